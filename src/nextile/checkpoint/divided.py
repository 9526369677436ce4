"""The training state of processes that hold parts of it: each writes its own, any number of them read it.

state/step-00000200/  tensors-00000.safetensors tensors-00000.json ... progress.json manifest.json

A part is a safetensors file, beside which a JSON says where its boxes lie in the whole tensors. torch's distributed
checkpoints are not used, as their index is a pickle, which is a program; what reads this one runs nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nextile.base.errors import NextileError
from nextile.base.files import atomic_folder, atomic_write, checksum, inside
from nextile.checkpoint.weights import load_tensors, read_json, save_tensors
from nextile.training.parallel import World
from nextile.training.pieces import Box, box_of, holders, local

PART = re.compile(r"tensors-\d{5,}\.safetensors")
SUMS = "xxh3_128"  # the key of checksums in a manifest, and of that of a part
DIMENSIONS = 8  # of a tensor, at most


# --- writing ----------------------------------------------------------------------------------------------------------


def save_divided(path: Path, tensors: Mapping[str, Tensor], progress: dict[str, Any], world: World) -> None:
    """Write the folder of a state, whole or not at all; all processes must ask together, and see the same disk.

    Errors: NextileError on the process whose disk is full; the others lose it.
    """
    with _folder_of_all(path, world) as folder:
        _write_part(folder / f"tensors-{world.rank:05d}.safetensors", tensors, world)
        world.meet()
        if world.first:
            (folder / "progress.json").write_text(json.dumps(progress, sort_keys=True))
            (folder / "manifest.json").write_text(json.dumps({SUMS: _hashes(folder)}, indent=2))


@contextmanager
def _folder_of_all(path: Path, world: World) -> Iterator[Path]:
    """The first process's `atomic_folder`, in which all write."""
    if not world.first:
        yield Path(world.said(""))
        return
    with atomic_folder(path) as folder:
        world.said(str(folder))
        yield folder


def _write_part(path: Path, tensors: Mapping[str, Tensor], world: World) -> None:
    """What this process has to write, and where it belongs."""
    own = {name: tensor for name, tensor in tensors.items() if holders(tensor, world).writes}
    save_tensors(path, {name: local(tensor).cpu() for name, tensor in own.items()})
    places = {name: {"shape": list(tensor.shape), "start": list(box_of(tensor).start)} for name, tensor in own.items()}
    atomic_write(path.with_suffix(".json"), json.dumps({SUMS: checksum(path), "tensors": places}))


def _hashes(folder: Path) -> dict[str, str]:
    """Of every file; each process has hashed its own part, so that this is not one's work for all."""
    found = {path.name: checksum(path) for path in sorted(folder.glob("*.json"))}
    return found | {path.name: read_json(path.with_suffix(".json"))[SUMS] for path in folder.glob("*.safetensors")}


# --- reading ----------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A box of a tensor, and where in the whole it lies."""

    values: Tensor
    box: Box
    shape: tuple[int, ...]


class Joined(Mapping[str, Tensor]):
    """Tensors that are put together when they are asked for: no more of them is held than one."""

    def __init__(self, parts: Mapping[str, list[Part]]):
        self._parts = parts

    def __getitem__(self, name: str) -> Tensor:
        """The whole tensor, on the CPU."""
        parts = self._parts[name]
        if parts[0].box.size == parts[0].shape:
            return parts[0].values
        whole = torch.zeros(parts[0].shape, dtype=parts[0].values.dtype)
        for part in parts:
            part.box.of(whole).copy_(part.values)
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def parts_in(names: Mapping[str, Any]) -> list[str]:
    """Those of the files of a state that are parts of it, in order."""
    return sorted(name for name in names if PART.fullmatch(name))


def load_divided(folder: Path, names: list[str]) -> Joined:
    """The state of these parts. Errors: NextileError, in one line, where they do not make whole tensors."""
    parts: dict[str, list[Part]] = {}
    for name in names:
        places = read_json(inside(folder, name.removesuffix(".safetensors") + ".json")).get("tensors")
        for key, values in load_tensors(inside(folder, name)).items():
            place = places.get(key) if isinstance(places, dict) else None
            parts.setdefault(key, []).append(_part(folder / name, key, values, place))
    for key, found in parts.items():
        _check(folder, key, found)
    return Joined(parts)


def _part(path: Path, name: str, values: Tensor, place: Any) -> Part:
    """One part, where what is said of its place is possible."""
    found: list[Any] = [place.get("start"), place.get("shape")] if isinstance(place, dict) else [None]
    if not all(_are_sizes(numbers, values.ndim) for numbers in found):
        raise NextileError(f"'{path}' has no place for {name!r}: get a sound copy of it")
    start, shape = (tuple(numbers) for numbers in found)
    if any(s + n > w for s, n, w in zip(start, values.shape, shape, strict=True) if n):
        raise NextileError(f"'{path}' has {name!r} outside of its whole: get a sound copy of it")
    return Part(values, Box(start, tuple(values.shape)), shape)


def _are_sizes(numbers: Any, dimensions: int) -> bool:
    """Whether this is a list of so many natural numbers."""
    listed = isinstance(numbers, list) and len(numbers) == dimensions <= DIMENSIONS
    return listed and all(type(number) is int and 0 <= number < 1 << 40 for number in numbers)


def _check(folder: Path, name: str, parts: list[Part]) -> None:
    """Before memory is asked for: the parts are of one tensor, and together as large as it is."""
    alike = {(part.shape, part.values.dtype) for part in parts}
    if len(alike) > 1 or sum(part.values.numel() for part in parts) != prod(parts[0].shape):
        raise NextileError(f"'{folder}' has parts of {name!r} that make no whole: get a sound copy of it")
