"""Floor 6: model <-> disk."""
