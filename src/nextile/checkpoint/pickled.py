"""What torch.save wrote, read without running any of it: checked as a zip and as a pickle before torch opens it."""

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextile.base.errors import NextileError

LONGEST_PICKLE = 64 << 20  # bytes; that of a 124M model with its optimizer has 60 kB
STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
HARMLESS = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        *(f"torch {name}Storage" for name in STORAGES),
    }
)  # all that tensors in dictionaries need; torch's own list also has what allocates as much as a file asks for


def load_pickled(path: Path) -> Any:
    """What a file holds, its tensors mapped into memory and on the CPU.

    Errors: NextileError, before anything is run or allocated, for a pickle that names more than tensors need, for
    tensors larger than the file, and for what is no whole file of torch.save.
    """
    if not path.is_file():
        raise NextileError(f"'{path}' is not a regular file: name a checkpoint that torch.save wrote")
    _check_pickle(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        _check_sizes(found, path.stat().st_size)
        return found
    except Exception as error:  # torch raises what its parser meets
        why = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise NextileError(f"'{path}' is damaged ({why}): get a complete copy of it") from error


def _check_pickle(path: Path) -> None:
    """Errors: NextileError for what is no zip of torch.save, or would call anything but what makes tensors."""
    try:
        for name in _called(_pickle_of(path)):
            if name not in HARMLESS:
                raise NextileError(
                    f"'{path}' would run {name.replace(' ', '.')!r} when it is read: nextile reads files of tensors "
                    "and plain values only, so save its state_dict() alone"
                )
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise NextileError(
            f"'{path}' is no whole file of torch.save ({error}): get a complete copy of it, or, if it was saved by a "
            "torch older than 1.6, save it again"
        ) from error


def _pickle_of(path: Path) -> bytes:
    """The pickle in the zip. Errors: ValueError for a zip that unpacks to more than it is."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its parts are compressed")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("its parts are larger than the whole")
        pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > LONGEST_PICKLE:
            raise ValueError("it has not one data.pkl of sound size")
        return archive.read(pickles[0])


def _called(pickled: bytes) -> Iterator[str]:
    """The functions and classes that a pickle names, "module name" each, read as text and never looked up."""
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument)
        elif opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
            yield opcode.name  # whose names are made while it runs; torch.save writes none


def _check_sizes(found: Any, size: int) -> None:
    """Errors: ValueError for tensors that would grow when they are copied: rows that repeat, many in one place.

    One that reaches beyond its place in the file torch has refused, since what is mapped cannot grow.
    """
    tensors = list(tensors_in(found))
    if any(tensor.nbytes > tensor.untyped_storage().nbytes() for tensor in tensors):
        raise ValueError("a tensor is larger than what it is made of")
    if sum(tensor.nbytes for tensor in tensors) > 2 * size:  # a tied matrix is there twice
        raise ValueError("its tensors are larger than the file")


def tensors_in(found: Any) -> Iterator[Tensor]:
    """The tensors in dictionaries, lists and tuples within each other, however deep; each container once."""
    waiting, seen = [found], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)
