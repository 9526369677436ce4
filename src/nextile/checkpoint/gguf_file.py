"""The header and the tensors of a GGUF file, read with every length checked against the file before it is believed.

A file is a header of named values, a table of tensors, and their bytes. The header is parsed here, and not by the gguf
package, which follows a hostile length until the memory is full.
"""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nextile.base.errors import NextileError

MAGIC, VERSIONS = b"GGUF", (2, 3)
LONGEST_HEADER = 128 << 20  # bytes; a vocabulary of 256,000 tokens takes ten million
MOST_VALUES, MOST_TENSORS, MOST_AXES = 1 << 16, 1 << 18, 4
ALIGNMENT = 32  # of tensors, where the header does not say another
NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
TEXT, ARRAY = 8, 9  # the other kinds of values, as the format numbers them
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def library() -> ModuleType:
    """The gguf package. Errors: NextileError where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise NextileError("GGUF files need gguf: pip install 'nextile[gguf]'") from error
    return gguf


# --- reading the header ---------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A tensor of the table: its axes, the last first, the number of its type, where its bytes begin."""

    axes: tuple[int, ...]
    type: int
    offset: int


class _Cursor:
    """Reads a header from its beginning. Errors: ValueError, before anything is made, for more than there is."""

    def __init__(self, data: mmap.mmap):
        self._data, self.at, self._end = data, 0, min(len(data), LONGEST_HEADER)

    def take(self, count: int) -> bytes:
        if count > self._end - self.at:
            raise ValueError("its header is not whole")
        self.at += count
        return self._data[self.at - count : self.at]

    def number(self, form: str) -> int:
        (value,) = struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))
        return value

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def value(self) -> Any:
        """A text, a number, a list of texts or an array of numbers."""
        kind = self.number("I")
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            kind, count = self.number("I"), self.number("Q")
            return [self.text() for _ in range(count)] if kind == TEXT else self._numbers(kind, count)
        return _short(self._numbers(kind, 1)[0])

    def _numbers(self, kind: int, count: int) -> np.ndarray:
        if kind not in NUMBERS:
            raise ValueError(f"its header has a value of kind {kind}")
        form = np.dtype(NUMBERS[kind])
        return np.frombuffer(self.take(count * form.itemsize), form)


def _short(value: Any) -> Any:
    """The number that somebody wrote down: 1e-06, not its neighbour among the floats of 32 bits, 9.99999997e-07."""
    return float(str(value)) if value.dtype == np.float32 else value.item()


class Header(NamedTuple):
    """What a file says of itself."""

    values: dict[str, Any]
    tensors: dict[str, Entry]
    begin: int  # of the tensors' bytes


def read_header(path: Path) -> Header:
    """A file's values and its table of tensors. Errors: NextileError for what is damaged or no GGUF file."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _header(_Cursor(data))
    except (ValueError, OSError, OverflowError) as error:
        raise NextileError(f"'{path}' is damaged or no GGUF file ({error}): get a complete copy of it") from error


def _header(cursor: _Cursor) -> Header:
    if cursor.take(4) != MAGIC or (version := cursor.number("I")) not in VERSIONS:
        raise ValueError("it does not begin as one of version 2 or 3, little-endian")
    tensors, values = cursor.number("Q"), cursor.number("Q")
    if tensors > MOST_TENSORS or values > MOST_VALUES:
        raise ValueError(f"its header speaks of {tensors} tensors and {values} values in version {version}")
    named = _once((cursor.text(), cursor.value()) for _ in range(values))
    table = _once((cursor.text(), _entry(cursor)) for _ in range(tensors))
    alignment = named.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise ValueError(f"its alignment is {str(alignment)[:20]}")
    return Header(named, table, -(-cursor.at // alignment) * alignment)


def _entry(cursor: _Cursor) -> Entry:
    count = cursor.number("I")
    if not 1 <= count <= MOST_AXES:
        raise ValueError(f"a tensor has {count} axes")
    return Entry(tuple(cursor.number("Q") for _ in range(count)), cursor.number("I"), cursor.number("Q"))


def _once(pairs: Iterator[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it has {name[:80]!r} twice")
        found[name] = value
    return found


# --- reading the tensors --------------------------------------------------------------------------------------------


def read_tensors(path: Path, header: Header) -> dict[str, Tensor]:
    """The file's tensors by its own names, mapped where they are not quantized; quantized ones become float32.

    Errors: NextileError for a tensor beyond the file and for a quantization that the gguf package cannot undo.
    """
    size = path.stat().st_size
    places = {name: _place(name, entry, header, size) for name, entry in header.tensors.items()}
    if sum(place.bytes for place in places.values()) > size:
        raise NextileError(f"'{path}' is damaged (its tensors lie in each other): get a complete copy of it")
    data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    return {name: _tensor(name, place, data) for name, place in places.items()}


class Place(NamedTuple):
    """Where a tensor's bytes are, what they are, and the shape of what they mean."""

    type: str
    shape: tuple[int, ...]
    begin: int
    bytes: int


def _place(name: str, entry: Entry, header: Header, size: int) -> Place:
    gguf = library()
    try:
        kind = gguf.GGMLQuantizationType(entry.type)
        block, width = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError) as error:
        raise NextileError(f"{name[:80]!r} is of GGUF's type {entry.type}, which nextile does not know") from error
    count = 1
    for axis in entry.axes:
        count *= axis  # a number of Python's, which does not overflow
    begin, length = header.begin + entry.offset, count // block * width
    if not count or entry.axes[0] % block or begin + length > size or begin % 8:
        raise NextileError(f"{name[:80]!r} does not lie in the file as its size says: get a complete copy of it")
    return Place(kind.name, tuple(reversed(entry.axes)), begin, length)


def _tensor(name: str, place: Place, data: Tensor) -> Tensor:
    taken = data[place.begin : place.begin + place.bytes]
    if place.type in DTYPES:
        return taken.view(DTYPES[place.type]).reshape(place.shape)
    gguf = library()
    rows = taken.numpy().reshape(*place.shape[:-1], -1)
    try:
        return torch.from_numpy(gguf.dequantize(rows, gguf.GGMLQuantizationType[place.type]))
    except (NotImplementedError, ValueError, KeyError) as error:
        raise NextileError(f"{name[:80]!r} is of GGUF's type {place.type}, which nextile cannot read") from error
