"""Tensors in safetensors files that know their own hash: written whole, read without a copy, a flipped bit is found.

A file is 8 bytes with the length of the header, the header, which is JSON, and the tensors, one after the other.
safetensors itself loads damaged data without a word, so the checksum of the file stands in its header (computed while
its 32 digits are zeros). Other programs ignore it; files of other programs have none and are taken as they are.

The header is read here and not by the library, so that one open file is checked, hashed and mapped, whatever becomes of
its path meanwhile, and so that a hostile header costs no more memory than its own length. A file that somebody cuts off
while it is mapped ends the process; nothing that maps files can prevent that.
"""

import hashlib
import json
import mmap
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nextile.base.errors import NextileError
from nextile.base.files import PARTIAL, Checksum, atomic_file, atomic_write, inside, open_regular

HASH, BLANK = "nextile.xxh3_128", "0" * 32
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}(-[0-9a-f]{8})?\.safetensors")
LARGEST = 5 * 10**9  # bytes of tensors in a file; a model with more is written in several
LONGEST_HEADER, LONGEST_JSON = 100 << 20, 64 << 20  # safetensors' own limit; what an index or a configuration may weigh
MOST_VALUES = 1 << 20  # in a JSON file: Python needs some 80 bytes for a value that a file says with two
MOST_TENSORS = 1 << 17  # in a file
LONGEST_NAME = 1000  # of a tensor, in bytes

# Their names of dtypes, in the order in which the library sorts them.
DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
RANKS = {dtype: rank for rank, dtype in enumerate(NAMES)}


# --- writing ----------------------------------------------------------------------------------------------------------


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write them atomically, one after the other; equal tensors give equal bytes. Returns the hash that the file has.

    Errors: NextileError when the disk is full.
    """
    names = sorted(tensors, key=lambda name: (-RANKS[tensors[name].dtype], name))  # wide ones first: all are aligned
    start = _header_of({name: tensors[name] for name in names})
    digest = Checksum(start)
    with atomic_file(path) as temporary, open(temporary, "xb") as file:
        file.write(start)
        for name in names:
            data = _bytes_of(tensors[name])
            digest.update(data)
            file.write(data)
        file.seek(start.index(BLANK.encode()))
        file.write(digest.hexdigest().encode())
    return digest.hexdigest()


def _header_of(tensors: Mapping[str, Tensor]) -> bytes:
    """The header with its length before it; the metadata first, so that the first 32 zeros are the hash's."""
    found: dict[str, Any] = {"__metadata__": {"format": "pt", HASH: BLANK}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        found[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(found, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _bytes_of(tensor: Tensor) -> memoryview:
    """Its numbers in their order, without a copy where they lie so."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def save_folder(folder: Path, tensors: Mapping[str, Tensor], *, largest: int = LARGEST) -> None:
    """Write `model.safetensors`, or shards of at most `largest` bytes (or one tensor) and then the index of them.

    A shard's name has a part of its hash, so that none is written over one that an older index names: whenever this
    ends, the folder has all of the old weights or all of the new ones. Errors: NextileError when the disk is full.
    """
    parts, old = _parts(tensors, largest), _old_shards(folder)
    if len(parts) == 1:
        save_tensors(folder / WHOLE, tensors)
        (folder / INDEX).unlink(missing_ok=True)
    else:
        index = _save_shards(folder, parts)
        atomic_write(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
        (folder / WHOLE).unlink(missing_ok=True)
        old -= set(index["weight_map"].values())
    for name in old:
        (folder / name).unlink(missing_ok=True)


def _parts(tensors: Mapping[str, Tensor], largest: int) -> list[dict[str, Tensor]]:
    """The tensors in their order, each part as large as may be."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if parts[-1] and size + tensor.nbytes > largest:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.nbytes
    return parts


def _save_shards(folder: Path, parts: list[dict[str, Tensor]]) -> dict[str, Any]:
    """Write them; returns their index."""
    places: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        stem = f"model-{number:05d}-of-{len(parts):05d}"
        written = folder / f".{stem}{PARTIAL}"
        name = f"{stem}-{save_tensors(written, part)[:8]}.safetensors"
        os.replace(written, folder / name)
        places |= dict.fromkeys(part, name)
    total = sum(tensor.nbytes for part in parts for tensor in part.values())
    return {"metadata": {"total_size": total}, "weight_map": places}


def _old_shards(folder: Path) -> set[str]:
    """Those of an index that is there, where their names are such as we give."""
    try:
        places = _places(folder)
    except NextileError:
        return set()
    return {name for name in places.values() if SHARD.fullmatch(name)}


# --- a header, whoever wrote it ---------------------------------------------------------------------------------------

# Bytes are matched as they stand: a JSON library would build what a header says before one could object to it.
_GAP = rb"[ \t\r\n]*+"
_TEXT = rb'"((?:[^"\\\x00-\x1f]++|\\[^\x00-\x1f])*+)"'
_NUMBER = rb"(?:0|[1-9][0-9]{0,18})"
_NUMBERS = rb"\[(" + _GAP + rb"(?:" + _NUMBER + _GAP + rb"(?:," + _GAP + _NUMBER + _GAP + rb"){0,63}+)?+)\]"
_OPEN = re.compile(_GAP + rb"\{" + _GAP)
_NAME = re.compile(_GAP + _TEXT + _GAP + rb":" + _GAP + rb"\{" + _GAP)
_FIELD = re.compile(_GAP + _TEXT + _GAP + rb":" + _GAP + rb"(?:" + _TEXT + rb"|" + _NUMBERS + rb")" + _GAP)
_CLOSE, _MORE, _END = re.compile(rb"\}" + _GAP), re.compile(rb"," + _GAP), re.compile(rb"\Z")


class Place(NamedTuple):
    """What a header says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # of its bytes, from the first after the header
    end: int


class Header(NamedTuple):
    """Of a file."""

    metadata: dict[str, memoryview]  # the values as they stand, of whatever length
    places: dict[str, Place]
    data: int  # where the tensors begin in the file


class _Scanner:
    """Moves over bytes, piece by piece."""

    def __init__(self, data: bytes):
        self.data, self.place = data, 0

    def takes(self, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
        """What stands here, if it is such a piece."""
        found = pattern.match(self.data, self.place)
        self.place = found.end() if found else self.place
        return found

    def need(self, pattern: re.Pattern[bytes]) -> re.Match[bytes]:
        """Errors: ValueError when something else stands here."""
        found = self.takes(pattern)
        if found is None:
            raise ValueError(f"its header is wrong at byte {self.place}")
        return found

    def members(self) -> Iterator[None]:
        """Within an object whose brace is taken: one step for each member, up to the other brace, which it takes."""
        if self.takes(_CLOSE):
            return
        while True:
            yield
            if not self.takes(_MORE):
                self.need(_CLOSE)
                return

    def view(self, found: re.Match[bytes], group: int) -> memoryview:
        """What a group matched, without a copy."""
        return memoryview(self.data)[found.start(group) : found.end(group)]


def _parse(data: bytes) -> tuple[dict[str, memoryview], dict[str, Place]]:
    """The metadata and the tensors of a header. Errors: ValueError for anything that is none."""
    if data.count(b'"data_offsets"') > MOST_TENSORS:  # told at once, and not when so many were read
        raise ValueError(f"it has more than {MOST_TENSORS:,} tensors")
    scanner, metadata, places = _Scanner(data), {}, {}
    scanner.need(_OPEN)
    for _ in scanner.members():
        name = _name(scanner.view(scanner.need(_NAME), 1))
        if name in places or (name == "__metadata__" and metadata):
            raise ValueError(f"its header names {name!r} twice")
        if len(places) == MOST_TENSORS:
            raise ValueError(f"it has more than {MOST_TENSORS:,} tensors")
        if name == "__metadata__":
            metadata = {_name(key): value for key, value, _ in _fields(scanner) if value is not None}
        else:
            places[name] = _place(name, list(_fields(scanner)))
    scanner.need(_END)
    return metadata, places


def _fields(scanner: _Scanner) -> Iterator[tuple[memoryview, memoryview | None, bytes | None]]:
    """Of one of the inner objects: the key with a text or with numbers."""
    for number, _ in enumerate(scanner.members()):
        if number == 1000:
            raise ValueError("its header has an object of more than 1,000 fields")
        found = scanner.need(_FIELD)
        yield scanner.view(found, 1), scanner.view(found, 2) if found[3] is None else None, found[3]


def _place(name: str, fields: list[tuple[memoryview, memoryview | None, bytes | None]]) -> Place:
    found = {bytes(key): (text, numbers) for key, text, numbers in fields}
    if len(fields) != 3 or found.keys() != {b"dtype", b"shape", b"data_offsets"}:
        raise ValueError(f"its header does not give {name!r} a dtype, a shape and its offsets")
    (text, _), (_, shape), (_, offsets) = (found[key] for key in (b"dtype", b"shape", b"data_offsets"))
    dtype = None if text is None or len(text) > 16 else DTYPES.get(str(text, "utf-8"))
    if dtype is None:
        raise ValueError(f"the dtype of {name!r} is none of {', '.join(DTYPES)}")
    if shape is None or offsets is None or offsets.count(b",") != 1:
        raise ValueError(f"its header does not give {name!r} a shape and two offsets")
    sizes = tuple(int(number) for number in shape.split(b",") if number.strip())
    start, end = map(int, offsets.split(b","))
    if end - start != prod(sizes) * dtype.itemsize or prod(max(1, size) for size in sizes) >= 1 << 60:
        raise ValueError(f"{name!r} has {end - start} bytes, which are no {_shown(sizes)} of {NAMES[dtype]}")
    return Place(dtype, sizes, start, end)


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[:8])) + (" x ..." if len(shape) > 8 else "")


def _name(view: memoryview) -> str:
    """A name that is to be held and shown."""
    if len(view) > LONGEST_NAME:
        raise ValueError(f"its header has a name of {len(view):,} bytes")
    name = _text(view)
    if not name.isprintable():
        raise ValueError(f"its header has the name {name!r}, which cannot be printed")
    return name


def _text(view: memoryview) -> str:
    """A JSON text without its quotes. Errors: ValueError where it is none, which is what UnicodeDecodeError is."""
    text = str(view, "utf-8")
    return json.loads(f'"{text}"') if "\\" in text else text


def _read_header(file: BufferedReader) -> Header:
    """Errors: ValueError when it is not sound: torn, or with tensors that overlap, leave gaps or reach beyond."""
    prefix, size = file.read(8), os.fstat(file.fileno()).st_size
    (length,) = struct.unpack("<Q", prefix) if len(prefix) == 8 else (0,)
    if not 2 <= length <= min(LONGEST_HEADER, size - 8):
        raise ValueError("its header is not whole")
    metadata, places = _parse(file.read(length))
    end = 0
    for name, place in sorted(places.items(), key=lambda item: item[1][2:]):
        if place.start != end:
            raise ValueError(f"{name!r} does not begin where the tensor before it ends")
        end = place.end
    if 8 + length + end != size:
        raise ValueError(f"it has {size - 8 - length} bytes of tensors, and its header says {end}")
    return Header(metadata, places, 8 + length)


def header(path: Path) -> dict[str, str]:
    """The file's metadata. Errors: OSError, and ValueError when there is no sound header."""
    with open_regular(path) as file:
        return {name: _text(value) for name, value in _read_header(file).metadata.items()}


# --- reading ----------------------------------------------------------------------------------------------------------


class Mapped(dict[str, Tensor]):
    """Tensors in files that are mapped into memory: what is looked at is read, what is written to becomes one's own."""

    def __init__(self) -> None:
        super().__init__()
        self._maps: list[tuple[int, mmap.mmap]] = []  # with the address of each

    def add(self, file: BufferedReader, places: Mapping[str, Place], data: int) -> None:
        """Map a file whose tensors lie at these places after `data` bytes."""
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        whole = torch.frombuffer(mapped, dtype=torch.uint8)  # it keeps the file mapped, for as long as a tensor lives
        self._maps.append((whole.data_ptr(), mapped))
        for name, place in places.items():
            self[name] = _seen_as(whole[data + place.start : data + place.end], place)

    def forget(self, tensors: Iterable[Tensor]) -> None:
        """Give back the memory of what was looked at; looked at again, it is read again. What was written is lost."""
        for tensor in tensors:
            for address, mapped in self._maps:
                start = tensor.data_ptr() - address
                if hasattr(mapped, "madvise") and 0 <= start < len(mapped):  # Windows has no such call
                    first = start - start % mmap.PAGESIZE
                    mapped.madvise(mmap.MADV_DONTNEED, first, start + tensor.nbytes - first)


def _seen_as(data: Tensor, place: Place) -> Tensor:
    """Bytes as the tensor that they are; a copy where a careless writer did not align them."""
    if not len(data):
        return torch.empty(place.shape, dtype=place.dtype)
    data = data if data.data_ptr() % place.dtype.itemsize == 0 else data.clone()
    return data.view(place.dtype).view(place.shape)


def load_tensors(path: Path) -> Mapped:
    """The file's tensors, mapped into memory. Errors: NextileError for a truncated, damaged or foreign file."""
    tensors = Mapped()
    _load_into(tensors, path, lambda name: True)
    return tensors


def _load_into(tensors: Mapped, path: Path, wanted: Callable[[str], bool]) -> None:
    try:
        with open_regular(path) as file:
            found = _read_header(file)
            _check_hash(file, found)
            tensors.add(file, {name: place for name, place in found.places.items() if wanted(name)}, found.data)
    except (OSError, ValueError) as error:
        raise NextileError(
            f"'{path}' is damaged or no safetensors file ({error}): get a complete copy of it"
        ) from error


def _check_hash(file: BufferedReader, found: Header) -> None:
    """Errors: ValueError when the file's checksum, with the digest in its header blanked, is another than it says."""
    if HASH not in found.metadata:
        return
    wanted = bytes(found.metadata[HASH])
    file.seek(0)
    digest = Checksum(file.read(found.data).replace(wanted, BLANK.encode(), 1))
    hashlib.file_digest(file, lambda: digest)
    if wanted != digest.hexdigest().encode():
        raise ValueError("its bytes are not those that were written")


def load_folder(folder: Path) -> Mapped:
    """The tensors of `model.safetensors`, or of the shards that its index names, none outside the folder."""
    if not (folder / INDEX).exists():
        return load_tensors(inside(folder, WHOLE))
    places, tensors = _places(folder), Mapped()
    for shard in sorted(set(places.values())):
        _load_into(tensors, inside(folder, shard), lambda name, shard=shard: places.get(name, shard) == shard)
    for name, shard in places.items():
        if name not in tensors:
            raise NextileError(f"'{folder / shard}' lacks {name!r}, which '{INDEX}' has there: get a complete copy")
    return tensors


def _places(folder: Path) -> dict[str, str]:
    """The names of tensors with those of their files. Errors: NextileError for an index that is none."""
    places = read_json(inside(folder, INDEX)).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise NextileError(f"'{folder / INDEX}' has no weight_map of file names: get a complete copy of it")
    return places


def read_json(path: Path) -> dict:
    """A JSON object from a file that somebody else wrote. Errors: NextileError for anything but that."""
    try:
        with open_regular(path) as file:
            data = file.read(LONGEST_JSON + 1)
        _check_amount(data)
        found = json.loads(data, object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        raise NextileError(f"'{path}' cannot be read as JSON ({error}): get a complete copy of it") from error
    if not isinstance(found, dict):
        raise NextileError(f"'{path}' holds no JSON object: get a complete copy of it")
    return found


def _check_amount(data: bytes) -> None:
    if len(data) > LONGEST_JSON:
        raise ValueError(f"larger than {LONGEST_JSON >> 20} MiB")
    if sum(data.count(sign) for sign in (b",", b"[", b"{")) > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES:,} values")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object each of whose names stands there once: of two, programs choose differently."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"{twice[:100]!r} stands there twice")
    return found


def _nothing(tensors: Iterable[Tensor]) -> None:
    pass


def as_dtype(
    tensors: Mapping[str, Tensor], dtype: torch.dtype | None, *, done: Callable[[Iterable[Tensor]], object] = _nothing
) -> dict[str, Tensor]:
    """Floating-point tensors in another dtype, or as they are for None; done is told of each that was converted."""
    found = dict(tensors)
    for name, tensor in tensors.items():
        if dtype is not None and dtype != tensor.dtype and tensor.is_floating_point():
            found[name] = tensor.to(dtype)
            done([tensor])
    return found
