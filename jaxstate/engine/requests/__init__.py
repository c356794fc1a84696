"""Questions: as tokens, under way, and as futures."""
