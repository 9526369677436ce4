"""Parquet files of pictures: read lazily, a row group at a time; their labels checked, and named.

What a file says of itself is not believed before memory is taken by it, and no path in it leads out of its folder.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nextile.base.errors import NextileError
from nextile.base.files import inside

NAMES = "labels.txt"  # beside a Parquet file: the name of class 0, of class 1, ...
BLOCK = 2**24  # bytes of a Parquet file to be held at a time, or one row
MOST_CLASSES, LONGEST_NAME = 2**20, 1000
UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # breaks a line, drives a terminal, or is no text

Picture = tuple[Path | bytes, str]  # where it is or what it is, and what errors call it
Source = Callable[[int], Picture]


def shown(text: str) -> str:
    """The text with what cannot be shown in one line escaped."""
    return UNSHOWN.sub(lambda found: ascii(found[0])[1:-1], text)


def checked_names(names: Sequence[str], place: str) -> tuple[str, ...]:
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


# --- the rows of a Parquet file ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Table:
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
        reason = shown((str(error).splitlines() or [type(error).__name__])[0][:200])
        raise NextileError(f"cannot read '{path}' ({reason}): get a sound copy of it") from error


def open_table(path: Path) -> Table:
    with _sound(path), _pyarrow().parquet.ParquetFile(str(path)) as file:
        about = file.metadata
        groups = [about.row_group(number) for number in range(about.num_row_groups)]
        rows, size = [group.num_rows for group in groups], sum(group.total_byte_size for group in groups)
        refuse_false_counts(path, rows)
        return Table(path, file.schema_arrow, tuple(rows), max(1, size // max(1, sum(rows))))


def refuse_false_counts(path: Path, rows: list[int]) -> None:
    """What a file says of itself need not be true, and memory is taken by it."""
    if min(rows, default=0) < 0 or sum(rows) > max(2**20, path.stat().st_size):
        raise NextileError(f"'{path}' is too small for the {sum(rows):,} rows that it claims: get a sound copy of it")


def _blocks(table: Table, file: Any, column: str, group: int) -> Iterator[Any]:
    """A column of a row group, as arrays of about BLOCK bytes."""
    rows = min(2**16, max(1, BLOCK // table.row_bytes))
    for block in file.iter_batches(batch_size=rows, row_groups=[group], columns=[column], use_threads=False):
        yield block.column(0)


class Rows:
    """The pictures of several Parquet files, read lazily: going forwards is cheap, going back begins a row group anew.

    One block of one file is held. May be called by several threads.
    """

    def __init__(self, tables: Sequence[Table]):
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
        return _picture(value, table.path, f"{shown(str(table.path))} row {row}")


class _Cursor:
    """A place in the column `image` of a Parquet file; it is opened when the first value is read."""

    def __init__(self, table: Table):
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
        return inside(table.parent, path), f"{name} ({shown(path)})"
    except (NextileError, OSError, ValueError, RuntimeError):  # the last for links in a circle
        return b"", name


# --- the columns of a Parquet file ---------------------------------------------------------------------------------


def column_type(schema: Any, name: str) -> Any:
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


def check_columns(table: Table, labelled: bool) -> None:
    wanted = {"image": (_holds_pictures, "the bytes of pictures, or a struct of bytes and path")}
    if labelled:
        wanted["label"] = (_holds_labels, "integers or strings")
    for name, (fits, remedy) in wanted.items():
        kind = column_type(table.schema, name)
        if kind is None:
            there = shown(", ".join(table.schema.names[:20])) or "none"
            raise NextileError(f"'{table.path}' has no column '{name}' (it has {there}): name one so")
        if not fits(kind):
            raise NextileError(f"the column '{name}' of '{table.path}' is {shown(str(kind))[:100]}: give {remedy}")


# --- the labels of a Parquet file ----------------------------------------------------------------------------------

Names = tuple[str, ...] | None  # of the classes 0, 1, ...; None where nobody tells them
Values = dict[int | str, int]  # what stands for a class, by first appearance, to its number


def labels_of(tables: Sequence[Table]) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the classes, and the class of every row."""
    names, values = _class_names(tables), Values()
    codes = [_read_labels(table, names, values) for table in tables]
    known: list[Any] = [*values] if names is None else [*range(len(names))]
    if len({type(value) for value in known}) > 1:
        raise NextileError(f"'{tables[0].path.parent}' has labels of several types: give them all as numbers")
    rank = {value: label for label, value in enumerate(sorted(known))}
    places = np.array([rank[value] for value in values], dtype=np.int64)
    return names or checked_names([*map(str, rank)], f"'{tables[0].path}'"), places[np.concatenate(codes)]


def _read_labels(table: Table, names: Names, values: Values) -> np.ndarray:
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


def _class_names(tables: Sequence[Table]) -> Names:
    """What the numbers mean: as the files themselves say, else the file beside them, else nobody."""
    if not all(_is_number(column_type(table.schema, "label")) for table in tables):
        return None
    said = {_names_within(table) for table in tables} - {None}
    if len(said) > 1:
        raise NextileError(f"the files of '{tables[0].path.parent}' name their classes differently: give one of them")
    return said.pop() if said else _names_beside(tables[0].path)


def _names_within(table: Table) -> Names:
    """The names that the `datasets` library of Hugging Face leaves in the schema."""
    try:
        about = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        names = about["info"]["features"]["label"]["names"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    return checked_names(names, f"'{table.path}'")


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
    return checked_names(names, f"'{beside}'")
