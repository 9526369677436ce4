"""Floor 1: pixels <-> tensors and tokens."""
