"""Floor 8: looks, never changes."""
