"""Pictures with classes, or without: from a folder of class folders, Parquet files, or the digits of scikit-learn.

A corpus is opened by looking at names and labels alone, and at the headers of a few pictures; what is in a picture is
read when it is asked for. Names come from files that others wrote: none leads out of its folder, none is shown raw.

Shapes: N pictures, K classes.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nextile.base.errors import NextileError, UsageError
from nextile.base.files import inside
from nextile.data.corpora import SUFFIXES as TEXT_SUFFIXES
from nextile.data.corpora import missing, refuse_fraction
from nextile.images.pixels import SUFFIXES

DIGITS = "digits"  # 1,797 written digits of 8x8 pixels, which come with scikit-learn
TABLE_SUFFIX = ".parquet"
NAMES = "labels.txt"  # beside a Parquet file: the name of class 0, of class 1, ...
ASIDE = ("labels", "license", "readme")  # texts that tell of the pictures beside them
PARTS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})  # no names of classes
GREY = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F"})  # modes of PIL without colour
LOOKED_AT = 64  # pictures whose headers tell the size and the colours of all
BLOCK = 2**24  # bytes of a Parquet file to be held at a time, or one row
MOST_CLASSES, LONGEST_NAME = 2**20, 1000
UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # breaks a line, drives a terminal, or is no text

Picture = tuple[Path | bytes, str]  # where it is or what it is, and what errors call it
Source = Callable[[int], Picture]


@dataclass(frozen=True, eq=False)
class PictureCorpus:
    """Pictures and their classes: `source(i)` is the i-th picture and its name, labels (N,) int64 its class or -1.

    side: the usual length of a shorter side, in pixels; grey: none has colours; note: what the user should be told.
    """

    name: str
    classes: tuple[str, ...]
    labels: np.ndarray
    source: Source
    side: int
    grey: bool
    note: str | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class _Found:
    """Pictures that nobody has looked at yet."""

    source: Source
    labels: np.ndarray  # (N,)
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def _unlabelled(count: int) -> np.ndarray:
    return np.full(count, -1, dtype=np.int64)


def _count(number: int, thing: str) -> str:
    """2, "file" -> "2 files"."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def _shown(text: str) -> str:
    """The text with what cannot be shown in one line escaped."""
    return UNSHOWN.sub(lambda found: ascii(found[0])[1:-1], text)


def _classes(names: Sequence[str], place: str) -> tuple[str, ...]:
    """The names of classes. Errors: NextileError for one that is empty, too long, twice there or not to be shown."""
    if len(names) > MOST_CLASSES:
        raise NextileError(f"{place} has {len(names):,} classes, more than {MOST_CLASSES:,}: join some of them")
    seen = set[str]()
    for name in names:
        if not name.strip() or len(name) > LONGEST_NAME or UNSHOWN.search(name):
            raise NextileError(f"{place} has a class named {name[:40]!a}: give it a name to be read in one line")
        if name in seen:
            raise NextileError(f"{place} has the class '{name}' twice: give every class a name of its own")
        seen.add(name)
    return tuple(names)


# --- a folder ------------------------------------------------------------------------------------------------------

Parts = tuple[str, ...]  # the names from a folder down to a file


@dataclass
class _Listing:
    """What is in a folder, at any depth; hidden names are skipped."""

    pictures: list[Parts] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)  # Parquet files directly in it
    folders: list[str] = field(default_factory=list)  # directly in it
    others: int = 0
    links: int = 0  # that were not followed


def _is_picture(name: str) -> bool:
    return name.lower().endswith(tuple(SUFFIXES))


def _is_table(name: str) -> bool:
    return name.lower().endswith(TABLE_SUFFIX)


def _is_text(name: str) -> bool:
    return name.lower().endswith(TEXT_SUFFIXES) and not _is_aside(name)


def _is_aside(name: str) -> bool:
    return name.lower().partition(".")[0] in ASIDE


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    """What can be seen in a folder, by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted((each for each in entries if not each.name.startswith(".")), key=lambda each: each.name)
    except OSError as error:
        raise NextileError(f"cannot read '{_shown(str(folder))}': {error.strerror or error}") from error


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # links in a circle
        return False


def _is_open_table(entry: os.DirEntry[str]) -> bool:
    return _is_table(entry.name) and _is_file(entry) and not UNSHOWN.search(entry.name)


def _list(folder: Path) -> _Listing:
    found = _Listing()
    waiting: list[Parts] = [()]
    while waiting:
        parts = waiting.pop()
        for entry in _scan(folder.joinpath(*parts)):
            if entry.is_dir(follow_symlinks=False):
                waiting.append((*parts, entry.name))
            else:
                _add(found, folder, (*parts, entry.name), entry)
        if not parts:
            found.folders = [inner[0] for inner in waiting]
    found.pictures.sort()
    return found


def _add(found: _Listing, folder: Path, parts: Parts, entry: os.DirEntry[str]) -> None:
    if entry.is_symlink() and not _stays(folder, parts):
        found.links += 1
    elif _is_picture(entry.name) and _is_file(entry):
        found.pictures.append(parts)
    elif len(parts) == 1 and _is_open_table(entry):
        found.tables.append(entry.name)
    elif not _is_aside(entry.name):
        found.others += 1


def _stays(folder: Path, parts: Parts) -> bool:
    """Whether a link leads to a file of the same folder."""
    try:
        return inside(folder, "/".join(parts)).is_file()
    except (NextileError, OSError, RuntimeError):  # the last for links in a circle
        return False


def _from_folder(folder: Path, labelled: bool) -> _Found:
    listing = _list(folder)
    if listing.tables and not listing.pictures:
        _refuse_parts(folder, listing.tables)
        return _from_tables([folder / name for name in listing.tables], labelled)
    if not labelled:
        return _Found(_paths(folder, listing.pictures), _unlabelled(len(listing.pictures)), notes=_notes(listing))
    classes = _class_folders(folder, listing)
    number = {name: label for label, name in enumerate(classes)}
    labels = np.array([number[parts[0]] for parts in listing.pictures], dtype=np.int64)
    return _Found(_paths(folder, listing.pictures), labels, classes, _notes(listing, classes))


def _paths(folder: Path, pictures: Sequence[Parts]) -> Source:
    def source(index: int) -> Picture:
        path = folder.joinpath(*pictures[index])
        return path, _shown(str(path))

    return source


def _class_folders(folder: Path, listing: _Listing) -> tuple[str, ...]:
    """The folders with pictures, sorted. Errors: NextileError for pictures outside of them, or none that is a class."""
    outside = [parts[0] for parts in listing.pictures if len(parts) == 1]
    if outside:
        raise NextileError(
            f"'{folder}' has pictures that are in no class folder ({_shown(outside[0])}): put each into the folder of "
            f"its class, like {folder / 'cat' / '1.png'} and {folder / 'dog' / '1.png'}"
        )
    classes = _classes(sorted({parts[0] for parts in listing.pictures}), f"'{folder}'")
    _refuse_parts(folder, classes)
    return classes


def _refuse_parts(folder: Path, names: Sequence[str]) -> None:
    """Errors: NextileError when these are parts of a data set, of which one is to be trained on: train, test."""
    parts = {re.split(r"[-_.\d]", name.lower())[0] for name in names}
    alone = len(names) == 1 and names[0].lower() in parts
    if parts <= PARTS and (len(parts) > 1 or alone):
        first = max(names, key=lambda name: name.lower().startswith("train"))
        raise NextileError(
            f"'{folder}' has parts of a data set ({_some(names)}), to be trained on apart: give '{folder / first}'"
        )


def _notes(listing: _Listing, classes: Sequence[str] = ()) -> tuple[str, ...]:
    """What of a folder was left out; without classes, a folder without pictures is nothing to tell."""
    empty = [_shown(name) for name in listing.folders if classes and name not in classes]
    others = listing.others + len(listing.tables)
    return (
        *([f"{_count(len(empty), 'folder')} without pictures left out: {_some(empty)}"] * bool(empty)),
        *([f"{_count(others, 'file')} without a picture's suffix ignored"] * bool(others)),
        *([f"{_count(listing.links, 'link')} out of the folder, or to folders, not followed"] * bool(listing.links)),
    )


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join([*map(_shown, names[:most]), *["..."] * (len(names) > most)])


# --- Parquet -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Table:
    """A Parquet file: its schema, the rows of each row group, and about how many bytes a row has."""

    path: Path
    schema: Any
    groups: tuple[int, ...]
    row_bytes: int

    @property
    def rows(self) -> int:
        return sum(self.groups)


def _pyarrow() -> Any:
    """The library, with its Parquet reader. Errors: NextileError when it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise NextileError("Parquet files need pyarrow: pip install 'nextile[images]'") from error
    return pyarrow


@contextmanager
def _sound(path: Path) -> Iterator[None]:
    """Turn whatever pyarrow says of a broken file into one line."""
    try:
        yield
    except (_pyarrow().ArrowException, OSError, ValueError, OverflowError) as error:
        reason = _shown((str(error).splitlines() or [type(error).__name__])[0][:200])
        raise NextileError(f"cannot read '{path}' ({reason}): get a sound copy of it") from error


def _open_table(path: Path) -> _Table:
    with _sound(path), _pyarrow().parquet.ParquetFile(str(path)) as file:
        about = file.metadata
        groups = [about.row_group(number) for number in range(about.num_row_groups)]
        rows, size = [group.num_rows for group in groups], sum(group.total_byte_size for group in groups)
        _refuse_false_counts(path, rows)
        return _Table(path, file.schema_arrow, tuple(rows), max(1, size // max(1, sum(rows))))


def _refuse_false_counts(path: Path, rows: list[int]) -> None:
    """What a file says of itself need not be true, and memory is taken by it."""
    if min(rows, default=0) < 0 or sum(rows) > max(2**20, path.stat().st_size):
        raise NextileError(f"'{path}' is too small for the {sum(rows):,} rows that it claims: get a sound copy of it")


def _blocks(table: _Table, file: Any, column: str, group: int) -> Iterator[Any]:
    """A column of a row group, as arrays of about BLOCK bytes."""
    rows = min(2**16, max(1, BLOCK // table.row_bytes))
    for block in file.iter_batches(batch_size=rows, row_groups=[group], columns=[column], use_threads=False):
        yield block.column(0)


class _Rows:
    """The pictures of several Parquet files, read lazily: going forwards is cheap, going back begins a row group anew.

    One block of one file is held. May be called by several threads.
    """

    def __init__(self, tables: Sequence[_Table]):
        self._tables, self._starts = tables, np.cumsum([0, *(table.rows for table in tables)])
        self._cursor, self._lock = _Cursor(tables[0]), threading.Lock()

    def __call__(self, index: int) -> Picture:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        table, row = self._tables[number], index - int(self._starts[number])
        with self._lock, _sound(table.path):
            if self._cursor.table is not table:
                self._cursor.close()
                self._cursor = _Cursor(table)
            value = self._cursor.value(row)
        return _picture(value, table.path, f"{_shown(str(table.path))} row {row}")


class _Cursor:
    """A place in the column `image` of a Parquet file; it is opened when the first value is read."""

    def __init__(self, table: _Table):
        self.table, self._starts = table, np.cumsum([0, *table.groups])
        self._file: Any = None
        self._group, self._first = -1, 0
        self._blocks, self._block = iter(()), ()  # of Arrow; the block holds the rows from `_first` on

    def value(self, row: int) -> Any:
        """What stands in a row: bytes, a dictionary or None."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if group != self._group or row < self._first:
            self._enter(group)
        while row >= self._first + len(self._block):
            self._first, self._block = self._first + len(self._block), next(self._blocks, None) or ()
            if not len(self._block):
                self._group = -1
                raise NextileError(f"'{self.table.path}' ends before its row {row}: get a sound copy of it")
        return self._block[row - self._first].as_py()

    def _enter(self, group: int) -> None:
        self._file = self._file or _pyarrow().parquet.ParquetFile(str(self.table.path))
        self._blocks, self._block = _blocks(self.table, self._file, "image", group), ()
        self._group, self._first = group, int(self._starts[group])

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()


def _picture(value: Any, table: Path, name: str) -> Picture:
    """The bytes in a row, else the file that it names beside the table, else nothing at all: no sound picture."""
    value = {"bytes": value} if isinstance(value, bytes) else value or {}
    data, path = value.get("bytes"), value.get("path")
    if data or not isinstance(path, str):
        return data or b"", name
    try:
        return inside(table.parent, path), f"{name} ({_shown(path)})"
    except (NextileError, OSError, ValueError, RuntimeError):  # the last for links in a circle
        return b"", name


# --- the columns of a Parquet file ---------------------------------------------------------------------------------


def _field(schema: Any, name: str) -> Any:
    """The type of a column, or None where there is none, or more than one, of that name."""
    index = schema.get_field_index(name)
    return schema.field(index).type if index >= 0 else None


def _holds_pictures(kind: Any) -> bool:
    types = _pyarrow().types
    if types.is_struct(kind):
        inner = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        named = "path" in inner and (types.is_string(inner["path"]) or types.is_large_string(inner["path"]))
        return ("bytes" in inner and _is_binary(inner["bytes"])) or ("bytes" not in inner and named)
    return _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    types = _pyarrow().types
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_null(kind)


def _values(kind: Any) -> Any:
    """The type of a column's values, where those may be numbers into a dictionary."""
    return kind.value_type if _pyarrow().types.is_dictionary(kind) else kind


def _is_number(kind: Any) -> bool:
    return _pyarrow().types.is_integer(_values(kind))


def _holds_labels(kind: Any) -> bool:
    types = _pyarrow().types
    return _is_number(kind) or types.is_string(_values(kind)) or types.is_large_string(_values(kind))


def _check_columns(table: _Table, labelled: bool) -> None:
    wanted = {"image": (_holds_pictures, "the bytes of pictures, or a struct of bytes and path")}
    if labelled:
        wanted["label"] = (_holds_labels, "integers or strings")
    for name, (fits, remedy) in wanted.items():
        kind = _field(table.schema, name)
        if kind is None:
            there = _shown(", ".join(table.schema.names[:20])) or "none"
            raise NextileError(f"'{table.path}' has no column '{name}' (it has {there}): name one so")
        if not fits(kind):
            raise NextileError(f"the column '{name}' of '{table.path}' is {_shown(str(kind))[:100]}: give {remedy}")


# --- the labels of a Parquet file ----------------------------------------------------------------------------------

Names = tuple[str, ...] | None  # of the classes 0, 1, ...; None where nobody tells them
Values = dict[int | str, int]  # what stands for a class, by first appearance, to its number


def _labels(tables: Sequence[_Table]) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the classes, and the class of every row."""
    names, values = _class_names(tables), Values()
    codes = [_read_labels(table, names, values) for table in tables]
    known: list[Any] = [*values] if names is None else [*range(len(names))]
    if len({type(value) for value in known}) > 1:
        raise NextileError(f"'{tables[0].path.parent}' has labels of several types: give them all as numbers")
    rank = {value: label for label, value in enumerate(sorted(known))}
    places = np.array([rank[value] for value in values], dtype=np.int64)
    return names or _classes([*map(str, rank)], f"'{tables[0].path}'"), places[np.concatenate(codes)]


def _read_labels(table: _Table, names: Names, values: Values) -> np.ndarray:
    """The label of every row by its number in `values`, (rows,); those that are new there are added."""
    codes, rows = [np.empty(0, np.int64)], 0
    with _sound(table.path), _pyarrow().parquet.ParquetFile(str(table.path)) as file:
        for group in range(len(table.groups)):
            for block in _blocks(table, file, "label", group):
                codes.append(_coded(block, table.path, rows, names, values))
                rows += len(block)
    if rows != table.rows:
        raise NextileError(f"'{table.path}' has {rows} labels for {table.rows} rows: get a sound copy of it")
    return np.concatenate(codes)


def _coded(block: Any, path: Path, before: int, names: Names, values: Values) -> np.ndarray:
    """A block of labels by their numbers in `values`; `before` it stand so many rows."""
    arrow = _pyarrow()
    plain = block.dictionary_decode() if arrow.types.is_dictionary(block.type) else block
    coded = plain.dictionary_encode(null_encoding="encode")
    local, here = coded.indices.to_numpy(zero_copy_only=False), coded.dictionary.to_pylist()
    for number, value in enumerate(here):
        wrong = _wrong_label(value, names)
        if wrong:
            raise NextileError(f"'{path}' row {before + int(np.argmax(local == number))} {wrong}")
        values.setdefault(value, len(values))
    return np.array([values[value] for value in here], dtype=np.int64)[local]


def _wrong_label(value: int | str | None, names: Names) -> str:
    """What is wrong with a label, or nothing."""
    if value is None:
        return "has no label: give it one, or remove the row"
    if isinstance(value, int) and value < 0:
        return f"has the label {value}: classes are numbered from 0 up"
    if isinstance(value, int) and names is not None and value >= len(names):
        return f"has the label {value}, but only the classes 0 to {len(names) - 1} have names: give it one too"
    return ""


def _class_names(tables: Sequence[_Table]) -> Names:
    """What the numbers mean: as the files themselves say, else the file beside them, else nobody."""
    if not all(_is_number(_field(table.schema, "label")) for table in tables):
        return None
    said = {_names_within(table) for table in tables} - {None}
    if len(said) > 1:
        raise NextileError(f"the files of '{tables[0].path.parent}' name their classes differently: give one of them")
    return said.pop() if said else _names_beside(tables[0].path)


def _names_within(table: _Table) -> Names:
    """The names that the `datasets` library of Hugging Face leaves in the schema."""
    try:
        about = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        names = about["info"]["features"]["label"]["names"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    return _classes(names, f"'{table.path}'")


def _names_beside(path: Path) -> Names:
    if not os.path.lexists(path.parent / NAMES):
        return None
    beside = inside(path.parent, NAMES)
    try:
        with open(beside, "rb") as file:
            text = file.read(BLOCK).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise NextileError(f"cannot read '{beside}' ({error}): give the name of a class a line, in UTF-8") from error
    names = [line.strip() for line in text.rstrip().split("\n")]
    return _classes(names, f"'{beside}'")


def _from_tables(paths: Sequence[Path], labelled: bool) -> _Found:
    tables = [_open_table(path) for path in paths]
    for table in tables:
        _check_columns(table, labelled)
    classes, labels = _labels(tables) if labelled else ((), _unlabelled(sum(table.rows for table in tables)))
    notes = (f"{len(paths)} Parquet files read as one: {_some([path.name for path in paths])}",)
    return _Found(_Rows(tables), labels, classes, notes if len(paths) > 1 else ())


# --- built in ------------------------------------------------------------------------------------------------------


def _from_digits(labelled: bool) -> _Found:
    """Digits written by hand, 8x8 pixels from white paper 0 to black ink 16 (Alpaydin and Kaynak 1998)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise NextileError(f"{DIGITS} needs scikit-learn: pip install 'nextile[images]'") from error
    digits: Any = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (N, 8, 8)

    def source(index: int) -> Picture:
        return _png(pixels[index]), f"{DIGITS} {index}"

    if not labelled:
        return _Found(source, _unlabelled(len(pixels)))
    return _Found(source, digits.target.astype(np.int64), tuple(map(str, range(10))))


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    _pillow().fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _pillow() -> Any:
    """Its module of pictures. Errors: NextileError when it is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise NextileError("pictures need Pillow: pip install 'nextile[images]'") from error
    return Image


# --- opening -------------------------------------------------------------------------------------------------------


def are_pictures(sources: Sequence[str]) -> bool:
    """Whether these arguments mean pictures: `digits`, a .parquet with a column `image`, or a folder of pictures.

    A folder is one if it, or the first folder in it that has either, has pictures and no texts. A file wins over
    `digits`. Of a .parquet that cannot be read, pictures are assumed; opening it says what is wrong.
    """
    if len(sources) != 1:
        return False
    path = Path(sources[0])
    if not os.path.exists(path):  # unlike Path.exists, False for a name too long to be one
        return sources[0] == DIGITS or _is_table(path.name)
    try:
        return _shows_pictures(path) if path.is_dir() else _is_table(path.name) and _has_images(path)
    except NextileError:
        return not path.is_dir()


def _has_images(path: Path) -> bool:
    return _field(_open_table(_regular(path)).schema, "image") is not None


def _shows_pictures(folder: Path) -> bool:
    entries = _scan(folder)
    folders = [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]
    for each in itertools.chain([entries], map(_scan, folders)):
        names = [entry.name for entry in each if _is_file(entry)]
        if any(map(_is_text, names)):
            return False
        if any(map(_is_picture, names)):
            return True
    tables = [entry for entry in entries if _is_open_table(entry)]
    return bool(tables) and _has_images(Path(tables[0]))


def open_pictures(sources: Sequence[str], labelled: bool) -> PictureCorpus:
    """Pictures from a folder, a .parquet file or a folder of them, or `digits`; a file wins over the built-in name.

    labelled: with classes. Those of a folder are the folders in it, each with pictures at any depth; those of Parquet
    are in the column `label`, named by the file or by a labels.txt beside it; its pictures are in the column `image`.
    Errors: NextileError for what is missing, unreadable, fewer than 2 pictures or (labelled) classes, a label that is
    none, and an optional library that is not there; UsageError for more sources than one.
    """
    if len(sources) != 1:
        raise UsageError(f"pictures come from one source, not {len(sources)}: {_remedy()}")
    name = sources[0]
    found = _find(name, labelled)
    _refuse_too_little(name, found, labelled)
    note = "; ".join(found.notes) or None
    return PictureCorpus(_shown(name), found.classes, found.labels, found.source, *_look(name, found), note)


def _remedy() -> str:
    return f"give a folder of pictures, a {TABLE_SUFFIX} file or '{DIGITS}'"


def _find(name: str, labelled: bool) -> _Found:
    path = Path(name)
    if not os.path.exists(path):
        if name == DIGITS:
            return _from_digits(labelled)
        raise NextileError(missing(path, [DIGITS], _remedy()))
    if path.is_dir():
        return _from_folder(path, labelled)
    if not _is_table(name):
        raise NextileError(f"'{path}' is no collection of pictures: {_remedy()}")
    return _from_tables([_regular(path)], labelled)


def _regular(path: Path) -> Path:
    if not path.is_file():
        raise NextileError(f"'{path}' is not a regular file: {_remedy()}")
    return path


def _refuse_too_little(name: str, found: _Found, labelled: bool) -> None:
    count = len(found.labels)
    if not count:
        raise NextileError(f"'{name}' has no pictures in it: put files of these kinds there: {' '.join(SUFFIXES)}")
    if count < 2:
        raise NextileError(f"'{name}' has 1 picture: at least 2 are needed, and a few hundred to learn from")
    if labelled and (found.labels == found.labels[0]).all():
        only = found.classes[found.labels[0]]
        raise NextileError(f"all {count:,} pictures of '{name}' are of the class '{only}': give some of another class")


def _look(name: str, found: _Found) -> tuple[int, bool]:
    """The median of the shorter sides of a few pictures, and whether all of those are grey."""
    count = len(found.labels)
    places = np.linspace(0, count - 1, min(LOOKED_AT, count)).astype(int).tolist()
    headers = [header for place in places if (header := _header(found.source(place)[0]))]
    if not headers:
        raise NextileError(f"none of {len(places)} pictures looked at in '{name}' is one: get sound copies")
    return int(np.median([side for side, _ in headers])), all(grey for _, grey in headers)


def _header(source: Path | bytes) -> tuple[int, bool] | None:
    """The shorter side and whether it is grey, or None for what is no picture; that is said when it is read."""
    library, file = _pillow(), io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings(action="ignore"), library.open(file) as picture:
            return min(picture.size), picture.mode in GREY
    except Exception:  # a broken header raises what its reader happens to stumble over
        return None


# --- holding out for validation ------------------------------------------------------------------------------------


def split_pictures(corpus: PictureCorpus, fraction: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Which pictures to train on and which to validate on, `fraction` of each class; a pure function of its input.

    Both are sorted, (N,) int64 together. One picture at least of every class is left to train on, and one is held out
    of every class that has two, if the fraction of all is as many as those classes.
    Errors: NextileError when none can be held out, UsageError for a fraction that is none.
    """
    refuse_fraction(fraction)
    _, classes, sizes = np.unique(corpus.labels, return_inverse=True, return_counts=True)
    held = _shares(sizes, fraction)  # of each class
    if not held.sum():
        raise NextileError(
            f"'{corpus.name}' has one picture of each class, so none can be held out for validation: give more of them"
        )
    order = np.lexsort((_random(len(corpus), seed), classes))  # class by class
    ranks = np.empty(len(corpus), dtype=np.int64)
    ranks[order] = np.arange(len(corpus)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within the class
    chosen = ranks < held[classes]
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _random(count: int, seed: int) -> np.ndarray:
    """64 bits for each of `count` indices, that of an index depending on it and the seed alone: (count,) uint64."""
    key = hashlib.blake2b(f"pictures {seed}".encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)


def _shares(sizes: np.ndarray, fraction: float) -> np.ndarray:
    """How many of each class to hold out, (K,): the fraction of all in sum, and nearest to it in each."""
    total, most = max(1, round(fraction * int(sizes.sum()))), sizes - 1
    held = np.minimum((fraction * sizes).astype(np.int64), most)
    if (most > 0).sum() <= total:
        held = np.maximum(held, most > 0)
    lacking = np.where(held < most, fraction * sizes - held, -np.inf)  # the largest remainders are rounded up
    first = np.argsort(-lacking, kind="stable")[: max(0, total - int(held.sum()))]
    held[first[np.isfinite(lacking[first])]] += 1
    return held
