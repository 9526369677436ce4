"""Floor 8: what a kind of work is, and one run of it."""
