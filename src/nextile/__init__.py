"""nextile: train, fine-tune, run and look inside transformers of every kind, from one set of blocks."""
