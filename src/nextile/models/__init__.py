"""Floor 4: what a family is."""
