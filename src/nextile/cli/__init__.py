"""Floor 10: one file per verb, thin."""
