"""Texts with labels: from a .jsonl, a .csv, or built in, checked in one pass; and batches of texts of like lengths.

A corpus is opened by one streaming pass that checks every row; the texts are then read again, as often as wanted, one
at a time. Texts are UTF-8; rows whose text is nothing but white space are left out.
Shapes: N texts, B batch, T time, K classes.
"""

from __future__ import annotations

import ast
import csv
import functools
import hashlib
import io
import itertools
import json
import math
import os
import sysconfig
import tokenize
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nextile.base.config import Settings
from nextile.base.errors import NextileError, UsageError
from nextile.base.files import atomic_write, inside
from nextile.data.batches import Batch, Order, listed
from nextile.data.corpora import missing, open_bytes, refuse_binary, refuse_fraction
from nextile.data.packing import Side
from nextile.data.shards import TokenStore
from nextile.data.tables import checked_names, shown
from nextile.text.frame import Frame

LINE_SUFFIXES, TABLE_SUFFIXES = (".jsonl", ".jsonl.gz"), (".csv", ".csv.gz")
BUILTIN = "python-labels"
LONGEST = 2**22  # bytes of a line, or of a row of a table; what is longer is no text to be classified
EACH = 2_000  # built-in texts of a class, at most

Row = tuple[str, str, str | None]  # text, label and, where rows have one, id
Placed = Iterator[tuple[str, Row]]  # with what errors call the row


@dataclass(frozen=True, eq=False)
class LabelledCorpus:
    """Texts that can be iterated as often as wanted, the class of each (N,) int64, and a hash of each (N,) uint64.

    skipped: rows without a text. Errors: NextileError at the end of an iteration that read other texts than before.
    """

    name: str
    read: Callable[[], Iterator[str]]
    labels: np.ndarray
    classes: tuple[str, ...]
    hashes: np.ndarray
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[str]:
        digest = hashlib.sha256()
        for text in self.read():
            digest.update(_hash(text).to_bytes(8, "little"))
            yield text
        if digest.digest() != hashlib.sha256(self.hashes.astype("<u8").tobytes()).digest():
            raise NextileError(f"'{self.name}' changed while it was being read: run again when nobody writes to it")


# --- lines ---------------------------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a file, each with its place. Errors: NextileError for one that is no text, or too long."""
    offset = 0
    with open_bytes(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), start=1):
            place = f"line {number:,} of '{path}'"
            refuse_binary(line, offset, place)
            _refuse_longer(len(line), place)
            yield place, _decoded(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, place)
            offset += len(line)


def _refuse_longer(size: int, place: str) -> None:
    if size > LONGEST:
        raise NextileError(f"{place} is longer than {LONGEST:,} bytes: cut its text, or leave it out")


def _decoded(line: bytes, place: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise NextileError(
            f"{place} is not valid UTF-8 (byte {error.start} of the line): convert the file to UTF-8 (iconv)"
        ) from error


# --- .jsonl --------------------------------------------------------------------------------------------------------


def _json_rows(path: Path) -> Placed:
    """A row a line; empty lines are skipped."""
    for place, line in _lines(path):
        if line.strip():
            yield place, _json_row(line, place)


def _json_row(line: str, place: str) -> Row:
    value = _json_object(line, place)
    lacking = [name for name in ("text", "label") if name not in value]
    if lacking:
        raise NextileError(f'{place} has no "{lacking[0]}": each line must be like {{"text": "...", "label": "..."}}')
    if not isinstance(value["text"], str):
        raise NextileError(f'{place}: "text" is {_kind(value["text"])}, not a string: mend or remove the line')
    identity = value.get("id")
    return value["text"], _label(value["label"], place), None if identity is None else json.dumps(identity)


def _json_object(line: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise NextileError(f"{place} is not valid JSON ({error}): mend or remove the line") from error
    if not isinstance(value, dict):
        raise NextileError(f'{place} is {_kind(value)}: each line must be like {{"text": "...", "label": "..."}}')
    return value


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", bool: "true or false", type(None): "null", str: "a string"}
    return kinds.get(type(value), "a number")


def _label(value: Any, place: str) -> str:
    """The name of a class: a string, a number (1.0 is 1), true or false."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NextileError(f"{place}: the label is {value}, which is no class: mend or remove the row")
        value = int(value) if value.is_integer() else value
    if not isinstance(value, (str, int, float)):
        raise NextileError(f"{place}: the label is {_kind(value)}: it is a string, a number, true or false")
    name = str(value).strip()
    if not name:
        raise NextileError(f"{place}: the label is empty: name the class, or remove the row")
    return name


# --- .csv ----------------------------------------------------------------------------------------------------------


class _TableLines:
    """The lines of a table for the reader of rows, which asks for several where a text has line breaks of its own."""

    def __init__(self, path: Path):
        self._lines, self._path = _lines(path), path
        self.place, self._size = f"line 1 of '{path}'", 0

    def __iter__(self) -> Iterator[str]:
        for place, line in self._lines:
            self.place = self.place if self._size else place
            self._size += len(line)
            _refuse_longer(self._size, self.place)
            yield line

    def begin(self) -> None:
        """A row begins with the next line."""
        self._size = 0


def _table(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The rows of a .csv, the header among them, each with its place; empty lines are skipped."""
    lines = _TableLines(path)
    rows = csv.reader(iter(lines), strict=True)
    while True:
        lines.begin()
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise NextileError(
                f"{lines.place} is no row of a .csv ({error}): double the quotes inside of quoted texts, or give .jsonl"
            ) from error
        if row is None:
            return
        if row:
            yield lines.place, row


def _table_rows(path: Path) -> Placed:
    rows = _table(path)
    place, header = next(rows, (f"line 1 of '{path}'", []))
    columns = _columns(header, place)
    for place, row in rows:
        if len(row) != len(header):
            raise NextileError(f"{place} has {len(row)} fields and the header {len(header)}: quote texts with commas")
        text, label, identity = (None if at is None else row[at] for at in columns)
        yield place, (text or "", _label(label or "", place), identity or None)


def _columns(header: Sequence[str], place: str) -> tuple[int, int, int | None]:
    """Where text, label and id stand. Errors: NextileError for a header without the first two, or with one twice."""
    names = [name.strip() for name in header]
    for name in ("text", "label", "id"):
        if names.count(name) > 1:
            raise NextileError(f"{place} names the column '{name}' twice: rename one of them")
    for name in ("text", "label"):
        if name not in names:
            found = shown(", ".join(names))[:100] or "none"
            raise NextileError(
                f"{place} names no column '{name}' (its columns: {found}): the first line names text, label"
            )
    return names.index("text"), names.index("label"), names.index("id") if "id" in names else None


# --- built in ------------------------------------------------------------------------------------------------------


@functools.cache
def _python_lines() -> tuple[tuple[str, str], ...]:
    """Lines of this Python's own library, each of them code, a comment, or documentation; up to EACH of each."""
    found: dict[str, dict[str, None]] = {"code": {}, "comment": {}, "documentation": {}}
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if all(len(lines) >= EACH for lines in found.values()):
            break
        for kind, line in _lines_of_source(path.read_bytes()):
            plain = len(line.split()) >= 3 and len(line) <= 200 and not line.startswith((">>>", "..."))
            if plain and len(found[kind]) < EACH:
                found[kind][line] = None
    if not all(found.values()):
        raise NextileError("this Python comes without the source of its library: give a .jsonl or a .csv")
    rows = [(line, kind) for kind, lines in found.items() for line in lines]
    return tuple(sorted(rows, key=lambda row: _hash(row[0])))


def _lines_of_source(source: bytes) -> Iterator[tuple[str, str]]:
    """(kind, line) of what is one of the three alone; nothing of what this Python cannot read."""
    try:
        tree, tokens = ast.parse(source), list(tokenize.tokenize(io.BytesIO(source).readline))
    except (SyntaxError, tokenize.TokenError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            yield from (("documentation", line.strip()) for line in (ast.get_docstring(node) or "").splitlines())
    words = {token.start[0] for token in tokens if token.type == tokenize.NAME}
    mixed = {token.start[0] for token in tokens if token.type in (tokenize.COMMENT, tokenize.STRING)}
    for token in tokens:
        if token.type == tokenize.COMMENT and token.start[0] not in words:
            yield "comment", token.string.lstrip("#!: ").rstrip()
    lines = source.decode(errors="replace").splitlines()
    yield from (("code", lines[number - 1].strip()) for number in sorted(words - mixed) if number <= len(lines))


def _builtin_rows() -> Placed:
    return ((f"'{BUILTIN}'", (text, label, None)) for text, label in _python_lines())


# --- opening -------------------------------------------------------------------------------------------------------


def named_as_labelled(sources: Sequence[str]) -> bool:
    """Whether these arguments could be labelled texts by their names alone: one .jsonl or .csv, or the built-in."""
    return len(sources) == 1 and (
        sources[0].lower().endswith((*LINE_SUFFIXES, *TABLE_SUFFIXES)) or _is_builtin(sources[0])
    )


def are_labelled(sources: Sequence[str]) -> bool:
    """Whether these arguments mean labelled texts: the first line of a .jsonl has both fields, or it is a .csv."""
    if not named_as_labelled(sources) or _is_builtin(sources[0]):
        return named_as_labelled(sources)
    path = Path(sources[0])
    if path.name.lower().endswith(TABLE_SUFFIXES) or not path.is_file():
        return path.is_file()
    try:
        line = next((line for _, line in _lines(path) if line.strip()), "null")
        return {"text", "label"} <= _json_object(line, "").keys()
    except NextileError:
        return False


def _is_builtin(source: str) -> bool:
    return source == BUILTIN and not os.path.exists(source)


def open_labelled(sources: Sequence[str]) -> LabelledCorpus:
    """Texts with labels from one .jsonl or .csv (also .gz), or built in; a file wins over the built-in name.

    A line of a .jsonl has the fields "text" and "label", a .csv these columns by its first line. A label is a string,
    a number, true or false; the classes are sorted. Where rows have an "id", no two may have the same.
    Errors: NextileError with the line for what is broken; UsageError for more sources than one.
    """
    if len(sources) != 1:
        raise UsageError(f"labelled texts come from one source, not {len(sources)}: {_remedy()}")
    if _is_builtin(sources[0]):
        return _survey(sources[0], _builtin_rows)
    path = _file(sources[0])
    return _survey(str(path), lambda: (_table_rows if _is_table(path) else _json_rows)(path))


def _is_table(path: Path) -> bool:
    return path.name.lower().endswith(TABLE_SUFFIXES)


def _remedy() -> str:
    return f'give a .jsonl or .csv with "text" and "label", or {BUILTIN}'


def _file(source: str) -> Path:
    path = Path(source)
    if not os.path.exists(path):  # unlike Path.exists, False for a name too long to be one
        raise NextileError(missing(path, (BUILTIN,), _remedy()))
    if not path.is_file():
        raise NextileError(f"'{path}' is not a regular file: {_remedy()}")
    if not named_as_labelled([source]):
        raise NextileError(f"'{path}' has another suffix than labelled texts have: {_remedy()}")
    return path


def _hash(text: str) -> int:
    """64 bits of a text that are the same everywhere and always."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _survey(name: str, rows: Callable[[], Placed]) -> LabelledCorpus:
    """Read everything once: check and hash it, holding one row at a time."""
    numbers: dict[str, int] = {}  # of the classes, as they come
    labels, hashes, seen, skipped = array("q"), array("Q"), dict[int, str](), 0
    for place, (text, label, identity) in rows():
        _refuse_surrogates(text + label, place)
        _refuse_again(identity, place, seen)
        if not text.strip():
            skipped += 1
            continue
        if label not in numbers:
            checked_names([label], place)
        labels.append(numbers.setdefault(label, len(numbers)))
        hashes.append(_hash(text))
    if not labels:
        raise NextileError(f"'{name}' holds no texts: give some to learn from")
    classes = checked_names(sorted(numbers, key=_in_order), f"'{name}'")
    sorted_numbers = {label: number for number, label in enumerate(classes)}
    places = np.array([sorted_numbers[label] for label in numbers], dtype=np.int64)
    found = places[np.frombuffer(labels, dtype=np.int64)]
    return LabelledCorpus(
        name, lambda: _texts(rows()), found, classes, np.frombuffer(hashes, dtype=np.uint64), skipped
    )  # fmt: skip


def _texts(rows: Placed) -> Iterator[str]:
    return (text for _, (text, _, _) in rows if text.strip())


def _in_order(name: str) -> tuple[bool, int, str]:
    """Whole numbers first and by their size, then names."""
    whole = name.isascii() and name.isdecimal()
    return not whole, len(name) if whole else 0, name


def _refuse_surrogates(text: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise NextileError(f"{place} holds half of a surrogate pair: mend or remove it") from error


def _refuse_again(identity: str | None, place: str, seen: dict[int, str]) -> None:
    """Errors: NextileError for an id that an earlier row has; `seen` takes those that are new."""
    if identity is None:
        return
    _refuse_surrogates(identity, place)
    first = seen.setdefault(_hash(identity), place)
    if first is not place:
        raise NextileError(f"{place} has the id {shown(identity)[:40]} of {first}: give every row its own, or none")


def refuse_one_class(corpus: LabelledCorpus) -> None:
    """Errors: NextileError for texts that all have the same label, from which nothing can be learned."""
    if len(corpus.classes) < 2:
        label = "".join(corpus.classes)
        raise NextileError(f"all {len(corpus):,} texts of '{corpus.name}' have the label '{label}': give a second one")


def renumbered(corpus: LabelledCorpus, classes: Sequence[str]) -> LabelledCorpus:
    """The corpus with the numbers that its classes have elsewhere. Errors: NextileError for one that is not there."""
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = [name for name in corpus.classes if name not in numbers]
    if unknown:
        raise NextileError(
            f"'{corpus.name}' has the label '{unknown[0]}', which is none of {', '.join(classes[:10])}: "
            "name it as one of them, or leave it out"
        )
    moved = np.array([numbers[name] for name in corpus.classes])
    return replace(corpus, classes=tuple(classes), labels=moved[corpus.labels])


# --- holding out for validation ------------------------------------------------------------------------------------


def split_labelled(corpus: LabelledCorpus, fraction: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Which texts to train on and which to validate on, (N,) bool each; a pure function of its input.

    `fraction` of the different texts of each class, chosen by hash and seed, so that a text that comes twice never
    stands on both sides: one at least of a class that has two, and never all.
    Errors: NextileError when none can be held out, UsageError for a fraction that is none.
    """
    refuse_fraction(fraction)
    hashes, first, where = np.unique(corpus.hashes, return_index=True, return_inverse=True)
    classes = corpus.labels[first]  # of a text with several labels the first counts
    key = np.uint64(int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "little"))
    order = np.lexsort((hashes ^ key, classes))
    held = np.zeros(len(hashes), dtype=bool)
    for members in np.split(order, np.flatnonzero(np.diff(classes[order])) + 1):
        held[members[: min(max(1, round(fraction * len(members))), len(members) - 1)]] = True
    if not held.any():
        raise NextileError(
            f"'{corpus.name}' has one text of each label, so none can be held out for validation: give more of them"
        )
    return ~held[where.reshape(-1)], held[where.reshape(-1)]


# --- on disk --------------------------------------------------------------------------------------------------------


class Labels(Settings):
    """The names of the classes, and the number of that of each text."""

    format: str = "nextile labels 1"
    classes: tuple[str, ...]
    labels: tuple[int, ...]


def save_labels(path: Path, labels: np.ndarray, classes: Sequence[str]) -> None:
    """Write the classes of texts, (N,) int64."""
    atomic_write(path, Labels(classes=tuple(classes), labels=tuple(labels.tolist())).model_dump_json() + "\n")


def load_labels(path: Path, count: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """What `save_labels` wrote for so many texts. Errors: NextileError when it is missing, broken, or of others."""
    try:
        found = Labels.model_validate_json(inside(path.parent, path.name).read_bytes())
    except ValueError as error:
        raise NextileError(f"'{path}' is broken: train anew from the texts") from error
    labels = np.array(found.labels, dtype=np.int64)
    if len(labels) != count or labels.min(initial=0) < 0 or labels.max(initial=0) >= len(found.classes):
        raise NextileError(f"'{path}' does not name the classes of {count:,} texts: train anew from the texts")
    return labels, found.classes


# --- batches --------------------------------------------------------------------------------------------------------

POOL = 32  # batches that are sorted together: texts of like lengths, yet others each time
SHAPES = (0.5, 0.8, 0.95)  # of the texts, by their lengths: a compiled step has so many shapes, and one for the rest


@dataclass(frozen=True, eq=False)
class LabelledStore:
    """Tokenized texts, each a document of a store, and the class of each, (N,) int64 below `classes`.

    frame: what stands before and after each text.
    """

    store: TokenStore
    labels: np.ndarray
    classes: int
    frame: Frame

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def side(self) -> Side:
        """Where each text lies."""
        return Side.of(self.store)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each text with its frame; in the store it ends with one."""
        return np.maximum(self.side.lengths - 1 + len(self.frame), 1)

    def row(self, index: int, context: int) -> list[int]:
        """The tokens of a text in its frame; of nothing the end token."""
        return self.frame.around(self.side.tokens(index), context) or [self.store.end_id]

    def batch(self, indices: np.ndarray, context: int, width: int | None = None) -> Batch:
        """These texts as one batch, `width` tokens wide, or as the longest needs."""
        ids, segments = laid([self.row(int(index), context) for index in indices], width)
        targets = torch.nn.functional.one_hot(torch.from_numpy(self.labels[indices]), self.classes).float()
        return Batch(ids, targets, len(indices), (segments,))


def laid(rows: Sequence[Sequence[int]], width: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows filled up on the right by zeros: ids (B, T), and where there are tokens (B, T), int64 both."""
    width = width or max(map(len, rows))
    ids, there = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)], there[number, : len(row)] = row, 1
    return torch.from_numpy(ids), torch.from_numpy(there)


class LabelledBatches:
    """Batches of `batch` texts of like lengths, each text once an epoch; a batch is a function of (seed, step).

    Texts come in an order of their own each epoch. POOL batches of them are sorted by length, cut, and come in an order
    of their own. Texts longer than `context` are cut.
    """

    def __init__(self, texts: LabelledStore, *, context: int, batch: int, seed: int):
        if context < 1 or batch < 1:
            raise UsageError(f"context {context} and batch {batch} must be at least 1")
        self.texts, self.context, self.batch = texts, context, batch
        self._order, self._places = Order(len(texts), seed), Order(POOL, seed)
        self._widths = widths(texts.lengths, context)
        self._pool = functools.lru_cache(maxsize=2)(self._sorted)

    def micro(self, step: int, accumulate: int) -> list[Batch]:
        """The batch of a step in equal parts, for accumulation. Errors: UsageError when the rows do not divide."""
        return self.rows(step).split(accumulate)

    def rows(self, step: int) -> Batch:
        """The batch of a step."""
        chosen = self.chosen(step)
        longest = min(int(self.texts.lengths[chosen].max()), self.context)
        return self.texts.batch(chosen, self.context, next(width for width in self._widths if width >= longest))

    def chosen(self, step: int) -> np.ndarray:
        """Which texts a step sees, (B,)."""
        pool, number = divmod(step, POOL)
        place = self._places(pool, number)
        return self._pool(pool)[place * self.batch : (place + 1) * self.batch]

    def named(self, step: int) -> str:
        """The texts."""
        return listed("texts", self.chosen(step))

    def _sorted(self, pool: int) -> np.ndarray:
        size = POOL * self.batch
        epochs, places = np.divmod(np.arange(pool * size, (pool + 1) * size), len(self.texts))
        found = np.concatenate([self._order(int(epoch), places[epochs == epoch]) for epoch in np.unique(epochs)])
        return found[np.argsort(np.minimum(self.texts.lengths[found], self.context), kind="stable")]


def widths(lengths: np.ndarray, context: int) -> list[int]:
    """The few widths that batches have, ascending, in multiples of 8 where that fits; the last holds all texts."""
    wanted = [*np.quantile(lengths, SHAPES).tolist(), float(lengths.max())]
    return sorted({min(context, 8 * math.ceil(length / 8)) for length in wanted})


def all_texts(texts: LabelledStore, context: int, tokens: int) -> tuple[np.ndarray, Iterable[Batch]]:
    """The order of all texts by length, (N,), and batches of them in it, of about so many tokens each."""
    order = np.argsort(texts.lengths, kind="stable")
    rows = [max(1, tokens // min(int(length), context)) for length in texts.lengths[order]]
    return order, (texts.batch(part, context) for part in _parts(order, rows))


def _parts(order: np.ndarray, rows: list[int]) -> Iterator[np.ndarray]:
    """The order cut so that no part has more texts than its longest allows; `rows` never grows."""
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and stop - start < rows[stop]:
            stop += 1
        yield order[start:stop]
        start = stop


def chosen_texts(corpus: LabelledCorpus, chosen: np.ndarray) -> Iterator[str]:
    """The texts that are chosen, (N,) bool, in their order."""
    return itertools.compress(corpus, chosen)
