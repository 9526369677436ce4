"""Floor 5: batches and a model become a better model."""
