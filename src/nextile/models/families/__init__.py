"""One file a family: its spec, its sizes, and the key map to its public weights."""
