"""Floor 0: settings, files, devices and errors; knows nothing of tokens or models."""
