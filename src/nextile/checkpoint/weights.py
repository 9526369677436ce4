"""Tensors in safetensors files that know their own hash: written whole, read without a copy, a flipped bit is found.

safetensors itself loads damaged data without a word, so the SHA-256 of the file stands in its header (computed while
its 64 digits are zeros). Other programs ignore it; files of other programs have none and are taken as they are.
"""

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from nextile.base.errors import NextileError
from nextile.base.files import atomic_write, inside

HASH, BLANK = "nextile.sha256", "0" * 64
INDEX = "model.safetensors.index.json"
LONGEST_HEADER, LONGEST_JSON = 100 << 20, 64 << 20  # safetensors' own limit; what an index or a configuration may weigh


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write them atomically; equal tensors give equal bytes. Errors: NextileError when the disk is full."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = _in_order(safetensors.torch.save(kept, metadata={"format": "pt", HASH: BLANK}))
    atomic_write(path, data.replace(BLANK.encode(), hashlib.sha256(data).hexdigest().encode(), 1))


def _in_order(data: bytes) -> bytes:
    """The file with its metadata sorted; the library writes them in an order that changes from run to run."""
    (length,) = struct.unpack("<Q", data[:8])
    found = json.loads(data[8 : 8 + length])
    found["__metadata__"] = dict(sorted(found["__metadata__"].items()))
    text = json.dumps(found, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The file's tensors, mapped into memory. Errors: NextileError for a truncated, damaged or foreign file."""
    try:
        _check_hash(path)
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise NextileError(
            f"'{path}' is damaged or no safetensors file ({error}): get a complete copy of it"
        ) from error


def header(path: Path) -> dict[str, str]:
    """The file's metadata. Errors: ValueError when there is no sound header."""
    with open(path, "rb") as file:
        prefix = file.read(8)
        (length,) = struct.unpack("<Q", prefix) if len(prefix) == 8 else (0,)
        if not 2 <= length <= min(LONGEST_HEADER, os.path.getsize(path)):
            raise ValueError("its header is not whole")
        found = json.loads(file.read(length))
    metadata = found.get("__metadata__", {}) if isinstance(found, dict) else {}
    return metadata if isinstance(metadata, dict) else {}


def _check_hash(path: Path) -> None:
    wanted = header(path).get(HASH)
    if wanted is not None and wanted != _hash(path, str(wanted)):
        raise ValueError("its bytes are not those that were written")


def _hash(path: Path, digest: str) -> str:
    """The file's SHA-256 with the digest in its header blanked."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", start := file.read(8))
        found = hashlib.sha256(start + file.read(length).replace(digest.encode(), BLANK.encode(), 1))
        while chunk := file.read(1 << 22):
            found.update(chunk)
    return found.hexdigest()


def read_json(path: Path) -> dict:
    """A JSON object from a file that somebody else wrote. Errors: NextileError for anything but that."""
    try:
        if path.stat().st_size > LONGEST_JSON:
            raise ValueError(f"larger than {LONGEST_JSON >> 20} MiB")
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise NextileError(f"'{path}' cannot be read as JSON ({error}): get a complete copy of it") from error
    if not isinstance(found, dict):
        raise NextileError(f"'{path}' holds no JSON object: get a complete copy of it")
    return found


def load_folder(folder: Path) -> dict[str, Tensor]:
    """The tensors of `model.safetensors`, or of the shards that its index names, none outside the folder."""
    if not (folder / INDEX).exists():
        return load_tensors(inside(folder, "model.safetensors"))
    names = read_json(inside(folder, INDEX)).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise NextileError(f"'{folder / INDEX}' has no weight_map of file names: get a complete copy of it")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(names.values())):
        tensors |= load_tensors(inside(folder, shard))
    return tensors


def as_dtype(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Floating-point tensors in another dtype, or as they are for None."""
    return {name: t.to(dtype) if dtype and t.is_floating_point() else t for name, t in tensors.items()}
