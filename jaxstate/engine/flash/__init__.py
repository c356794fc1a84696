"""Questions that are answered before they are asked."""
