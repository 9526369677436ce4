"""Every kind of run, tiny: its data, its settings, and what of it must not depend on interruptions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tests.conftest import TINY, TINY_PAIRS, TINY_PICTURES, write_bright

import nextile.api as api
from nextile.checkpoint.pretrained import Pretrained
from nextile.tasks.report import Report

STEPS = 20
OFTEN = {"validation.every": 7, "checkpoint.every": 3, "dropout": 0.1}
# Of the clock, or only there to be looked at; a hash of the first.
UNLIKE = {"speed.jsonl", "curve.html", "curve.png", "progress.json", "manifest.json"}


def without(settings: Mapping[str, Any], *groups: str) -> dict[str, Any]:
    """The settings that belong to none of these."""
    return {name: value for name, value in settings.items() if not name.startswith(groups)}


# --- data -----------------------------------------------------------------------------------------------------------


def write_text(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text("".join(f"User: Is {i} good?\nAssistant: Yes, it is. No, no.\n" for i in range(300)))
    return path


def write_pairs(folder: Path) -> Path:
    words = ("a", "red", "green", "blue", "bottle", "hangs", "falls", "on", "the", "wall")
    lines = [[words[i * k % len(words)] for k in range(1, 2 + i % 3)] for i in range(200)]
    path = folder / "pairs.tsv"
    path.write_text("".join(f"{' '.join(line)}\t{' '.join(reversed(line))} {i}\n" for i, line in enumerate(lines)))
    return path


def write_labelled(folder: Path) -> Path:
    rows = [{"text": f"{'so ' * (i % 5)}{('a cat', 'a dog')[i % 2]}, {i}", "label": i % 2} for i in range(60)]
    return write_lines(folder / "labelled.jsonl", rows)


def write_chats(folder: Path) -> Path:
    def said(number: int) -> list[dict[str, str]]:
        asked = {"role": "user", "content": f"Is {number} good?"}
        return [asked, {"role": "assistant", "content": ("Yes, it is.", "No, no.")[number % 2]}]

    return write_lines(folder / "chats.jsonl", [{"messages": said(i)} for i in range(60)])


def write_preferences(folder: Path) -> Path:
    rows = [{"prompt": f"Is {i} good?", "chosen": "Yes, it is.", "rejected": "No, no."} for i in range(60)]
    return write_lines(folder / "preferences.jsonl", rows)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_photos(folder: Path) -> Path:
    return write_bright(folder / "photos", {"above": np.s_[:6], "below": np.s_[6:]})


# --- runs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """What is asked of `train`."""

    source: Callable[[Path], Path]
    settings: Mapping[str, Any]
    given: Mapping[str, Any] = field(default_factory=dict)
    begins: bool = False  # from a small language model


PICTURES, TUNED = {**TINY_PICTURES, "images.size": 4}, without(TINY, "model", "tokenizer")
KINDS = {
    "lm": Kind(write_text, TINY),
    "masked": Kind(write_text, TINY, {"task": "masked"}),
    "denoise": Kind(write_text, TINY_PAIRS, {"task": "denoise"}),
    "translate": Kind(write_pairs, TINY_PAIRS | {"context": 32, "checkpoint.average": 3}),
    "classify": Kind(write_photos, PICTURES | {"augment.mixup": 0.2}),
    "classify-text": Kind(write_labelled, without(TINY, "context") | {"r_drop": 1.0, "accumulate": 2}),
    "paint": Kind(write_photos, PICTURES | {"images.colours": 8}, {"task": "paint"}),
    "words": Kind(write_text, {"threads": 1, "words.dim": 8, "words.min_count": 1, "batch": 4}, {"task": "words"}),
    "chat": Kind(write_chats, TINY | {"context": 48}),
    "prefer": Kind(write_preferences, without(TUNED, "context") | {"context": 48, "lr": 3e-3}, begins=True),
    "lora": Kind(write_text, TUNED, {"lora": 2}, begins=True),
    "lora of int8": Kind(write_chats, TUNED | {"context": 48, "lora.base": "int8"}, {"lora": 2}, begins=True),
    "compiled in bf16": Kind(write_text, TINY | {"compile": True, "precision": "bf16"}),
}


def prepare(kind: str, place: Path, report: Report) -> None:
    """Write the data, and the model to begin from where the kind does, into a new folder."""
    place.mkdir(parents=True)
    source = KINDS[kind].source(place)
    (place / "source").write_text(str(source))
    if KINDS[kind].begins:
        text = write_text(place)
        api.train(text, out=place / "base", steps=5, settings=TINY | {"context": 64, "dropout": 0.1}, report=report)


def work(kind: str, place: Path, folder: Path, report: Report, steps: int = STEPS, **more: Any) -> Pretrained:
    """Begin a run of what was prepared at a place, or go on with it."""
    if (folder / "run.json").exists():
        return api.train(resume=folder, report=report)
    settings = {**without(OFTEN, *(["dropout"] if kind in ("words", "prefer") else [])), **KINDS[kind].settings, **more}
    source, given = Path((place / "source").read_text()), dict(KINDS[kind].given)
    if KINDS[kind].begins:
        given["init"] = place / "base"
    return api.train(source, out=folder, steps=steps, settings=settings, report=report, **given)


def lasting(folder: Path) -> dict[str, bytes]:
    """Every file of a run, by its place, that must be the same byte for byte however often it was interrupted."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in UNLIKE]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def unlike(folder: Path, wanted: Mapping[str, bytes]) -> list[str]:
    """The files that are not as they should be."""
    found = lasting(folder)
    return sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
