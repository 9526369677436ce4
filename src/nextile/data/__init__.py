"""Floor 2: corpora -> batches."""
