"""Small models and texts that several floors' tests share."""

from pathlib import Path

import pytest

TEXT = "\n".join(f"{i} green bottles hanging on the wall, and if {i} green bottles should fall" for i in range(400))

TINY = {
    "compile": False,
    "precision": "fp32",
    "batch": 4,
    "context": 16,
    "model.stack.width": 16,
    "model.stack.depth": 1,
    "tokenizer.kind": "char",
    "threads": 1,
}  # a model of a few thousand parameters, which trains in a second


@pytest.fixture
def text(tmp_path) -> Path:
    """A file of some 30 kB of repetitive English."""
    path = tmp_path / "bottles.txt"
    path.write_text(TEXT)
    return path
