"""Training state on disk: saved whole with a manifest of checksums, the last two kept, a broken one passed over.

state/step-00000200/  tensors.safetensors  progress.json  manifest.json

Of processes that hold parts of it each writes its own (`divided`).
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from nextile.base.errors import NextileError
from nextile.base.files import atomic_folder, checksum, inside, remove_leftovers
from nextile.checkpoint.divided import SUMS, load_divided, parts_in, save_divided
from nextile.checkpoint.weights import load_tensors, read_json, save_tensors
from nextile.training.parallel import World

KEPT = 2
WHOLE = ("tensors.safetensors", "progress.json")  # what the manifest of an undivided state names
MODEL = "model."  # before the names of the model's own tensors
NAME = re.compile(r"step-(\d{8,})")


class Saved(NamedTuple):
    """A training state read from disk."""

    step: int
    tensors: Mapping[str, Tensor]
    progress: dict[str, Any]
    note: str | None  # what was passed over, in one line


def save_state(
    run: str | Path, step: int, tensors: dict[str, Tensor], progress: dict[str, Any], *, kept: int = KEPT
) -> None:
    """Save a state atomically, then drop all but the last `kept`, two at least. Errors: NextileError: a full disk."""
    states = Path(run) / "state"
    with atomic_folder(states / f"step-{step:08d}") as folder:
        save_tensors(folder / "tensors.safetensors", tensors)
        (folder / "progress.json").write_text(json.dumps(progress, sort_keys=True))
        hashes = {name: checksum(folder / name) for name in WHOLE}
        (folder / "manifest.json").write_text(json.dumps({SUMS: hashes}, indent=2))
    _drop_old(states, kept)


def save_state_together(
    run: str | Path, step: int, tensors: Mapping[str, Tensor], progress: dict[str, Any], world: World, *,
    kept: int = KEPT,
) -> None:  # fmt: skip
    """The same for processes that hold parts of the tensors, which must all ask."""
    states = Path(run) / "state"
    save_divided(states / f"step-{step:08d}", tensors, progress, world)
    if world.first:
        _drop_old(states, kept)


def _drop_old(states: Path, kept: int) -> None:
    for old in _found(states)[max(KEPT, kept) :]:
        shutil.rmtree(old, ignore_errors=True)


def latest_state(run: str | Path, *, kept: int = KEPT) -> Saved:
    """The newest state that is whole. What a save left behind that was ended before it could drop it, is dropped now.

    Errors: NextileError when there is none.
    """
    states = Path(run) / "state"
    remove_leftovers(states)
    broken: list[str] = []
    for folder in _found(states):
        try:
            saved = _load(folder, broken)
        except NextileError as error:
            broken.append(str(error))
            continue
        if not broken:  # else an old one may be all that is whole
            _drop_old(states, kept)
        return saved
    if broken:
        raise NextileError(f"no saved state in '{states}' is whole: {broken[0]}: train anew, into another folder")
    raise NextileError(f"'{run}' holds no training state to resume from: train it with --out {run}")


def average_weights(run: str | Path, count: int) -> dict[str, Tensor]:
    """The mean of the model's weights over the last `count` states, or as many as there are, summed in float32.

    Errors: NextileError when one of them is broken.
    """
    folders = _found(Path(run) / "state")[:count]
    sums: dict[str, Tensor] = {}
    for folder in folders:
        for name, tensor in _load(folder, []).tensors.items():
            if name.startswith(MODEL):
                name = name.removeprefix(MODEL)
                sums[name] = sums[name] + tensor.float() if name in sums else tensor.float()
    return {name: total / len(folders) for name, total in sums.items()}


def drop_states(run: str | Path) -> None:
    """Forget the states of a run that never came to be."""
    shutil.rmtree(Path(run) / "state", ignore_errors=True)


def has_state(run: str | Path) -> bool:
    """Whether there is anything to resume from, whole or not."""
    return bool(_found(Path(run) / "state"))


def _found(states: Path) -> list[Path]:
    """The saved states, the newest first."""
    folders = [path for path in states.glob("step-*") if NAME.fullmatch(path.name)]
    return sorted(folders, key=lambda path: int(path.name[5:]), reverse=True)


def _load(folder: Path, broken: list[str]) -> Saved:
    hashes = read_json(inside(folder, "manifest.json")).get(SUMS)
    if not isinstance(hashes, dict):
        raise NextileError(f"'{folder}' has a manifest without hashes")
    parts = parts_in(hashes)
    for name in hashes if parts else WHOLE:
        if checksum(inside(folder, name)) != hashes.get(name):
            raise NextileError(f"'{folder / name}' is not what was saved")
    step = int(folder.name[5:])
    note = f"the latest saved state is broken ({broken[0]}); going on from step {step}" if broken else None
    tensors = load_divided(folder, parts) if parts else load_tensors(folder / "tensors.safetensors")
    return Saved(step, tensors, read_json(inside(folder, "progress.json")), note)
