"""Small models and texts that several floors' tests share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

older_torch = torch.__version__ < "2.13"  # what differs there is said in docs/design.md
exact_rows = pytest.mark.skipif(older_torch, reason="oneDNN rounds a row by how many there are in this torch")

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


TINY_PAIRS = {name: value for name, value in TINY.items() if not name.startswith("model")} | {
    "model.encoder.width": 16,
    "model.encoder.depth": 1,
    "model.decoder.depth": 1,
}  # the same for pairs


TINY_PICTURES = {
    "compile": False,
    "precision": "fp32",
    "batch": 8,
    "threads": 1,
    "images.size": 8,
    "model.stack.width": 16,
    "model.stack.depth": 1,
}  # the same for pictures


def write_bright(folder: Path, places: Mapping[str, Any]) -> Path:
    """A folder with a class folder of 20 pictures for each place, where they are bright."""
    from PIL import Image

    random = np.random.default_rng(0)
    for name, place in places.items():
        (folder / name).mkdir(parents=True)
        for number in range(20):
            pixels = random.integers(0, 80, (12, 12, 3), dtype=np.uint8)
            pixels[place] += 150
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder with three class folders of 20 pictures each: bright above, bright below, bright at the left."""
    return write_bright(tmp_path / "photos", {"above": np.s_[:6], "below": np.s_[6:], "left": np.s_[:, :6]})


@pytest.fixture
def pairs(tmp_path) -> Path:
    """A .tsv of 300 short sentences, each beside its words in the opposite order."""
    words = ("a", "red", "green", "blue", "bottle", "hangs", "falls", "on", "the", "wall")
    lines = [[words[i * k % len(words)] for k in range(1, 2 + i % 3)] + [words[i // 30]] for i in range(300)]
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{' '.join(line)}\t{' '.join(reversed(line))}\n" for line in lines))
    return path


@pytest.fixture
def text(tmp_path) -> Path:
    """A file of some 30 kB of repetitive English."""
    path = tmp_path / "bottles.txt"
    path.write_text(TEXT)
    return path
