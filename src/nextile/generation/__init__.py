"""Floor 7: model + prompt -> tokens."""
