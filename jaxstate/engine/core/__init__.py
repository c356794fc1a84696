"""The engine's state, and the loop that works on it."""
