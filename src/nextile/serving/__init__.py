"""Floor 9: a model for many at once, over HTTP."""
