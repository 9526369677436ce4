"""Floor 3: tensors -> tensors, described by specs."""
