"""Pairs of texts, a source and its translation each: from a .tsv, two aligned files, or built in; checked in one pass.

A text is one line. A corpus is opened by one streaming pass that checks every line, counts, and hashes; the pairs are
then read again, as often as wanted, one at a time. Text is UTF-8: a byte order mark at the start of a file is dropped,
a line ends in "\\n" or "\\r\\n", and all else in it is text. Pairs of nothing but white space are left out.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nextile.base.errors import NextileError, UsageError
from nextile.data.corpora import missing, open_bytes, refuse_binary, refuse_fraction

TABLE_SUFFIXES = (".tsv", ".tsv.gz")  # a line is a source, a tab, its translation
MEND = "write it there, or remove the other side too"
LONGEST = 2**20  # bytes of a line; what is longer is no sentence, and need not be held
INDEX = np.dtype([("hash", "<u8"), ("source", "<i8"), ("target", "<i8")])  # of each pair; the sides in bytes

Pair = tuple[str, str]
Read = Callable[[], Iterator[Pair]]


class Pairs:
    """Sources and targets that can be iterated as often as wanted; each time they are read anew, one pair at a time.

    `len()` is their number; `source_bytes`, `target_bytes` and `bytes`, both together, are their size in UTF-8.
    Errors: NextileError at the end of an iteration that did not read what was counted when the corpus was opened.
    """

    def __init__(self, read: Read, count: int, source_bytes: int, target_bytes: int):
        self._read, self._count = read, count
        self.source_bytes, self.target_bytes = source_bytes, target_bytes
        self.bytes = source_bytes + target_bytes

    def __iter__(self) -> Iterator[Pair]:
        count = sources = targets = 0
        for source, target in self._read():
            count, sources, targets = count + 1, sources + len(source.encode()), targets + len(target.encode())
            yield source, target
        if (count, sources, targets) != (self._count, self.source_bytes, self.target_bytes):
            raise NextileError("the pairs changed while they were being read: run again when nobody writes to them")

    def __len__(self) -> int:
        return self._count


@dataclass(frozen=True, eq=False)
class PairCorpus:
    """A checked corpus of pairs, a SHA-256 over them, and how many lines were skipped, being empty on both sides."""

    name: str
    pairs: Pairs
    fingerprint: str
    skipped: int = 0
    builtin: bool = False


# --- lines ---------------------------------------------------------------------------------------------------------


def lines(path: Path, remedy: str = "give one sentence a line") -> Generator[str, None, None]:
    """The lines of a file without their ends; close it where it is not read to the end.

    Errors: NextileError with the number of a line that is no text.
    """
    offset = 0
    with open_bytes(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), start=1):
            refuse_binary(line, offset, f"'{path}'")
            text = _text(line, f"line {number} of '{path}'", remedy)
            yield text.removeprefix("\ufeff") if number == 1 else text
            offset += len(line)


def _text(line: bytes, place: str, remedy: str) -> str:
    if len(line) > LONGEST:
        raise NextileError(f"{place} is longer than {LONGEST:,} bytes: {remedy}")
    try:
        return line.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise NextileError(
            f"{place} is not valid UTF-8 (byte {error.start} of the line): convert the file to UTF-8 (iconv)"
        ) from error


def _table(path: Path) -> Iterator[Pair]:
    """Both sides of a .tsv, line by line."""
    with closing(lines(path)) as read:
        for number, line in enumerate(read, start=1):
            columns = line.split("\t") if line.strip() else ["", ""]
            if len(columns) != 2:
                found = f"{len(columns)} column{'s' * (len(columns) > 1)}"
                raise NextileError(
                    f"line {number} of '{path}' has {found} instead of 2: "
                    "write the source, one tab, and its translation"
                )
            yield columns[0], columns[1]


def _aligned(left: Path, right: Path) -> Iterator[Pair]:
    """Line by line the left file's and the right one's."""
    with closing(lines(left)) as sources, closing(lines(right)) as targets:
        for number, (source, target) in enumerate(itertools.zip_longest(sources, targets), start=1):
            if source is None or target is None:
                rest = sum(1 for side in (sources, targets) for _ in side)  # the other has none left
                short, long = (left, right) if source is None else (right, left)
                raise NextileError(
                    f"'{long}' has {number + rest:,} lines and '{short}' {number - 1:,}: it lacks line {number:,}; "
                    "give files in which the same lines say the same"
                )
            yield source, target


def _paired(pairs: Iterable[Pair], source_path: Path, target_path: Path) -> Iterator[Pair]:
    """The pairs, those empty on both sides as ("", ""). Errors: NextileError for one that is empty on one side only."""
    for number, (source, target) in enumerate(pairs, start=1):
        if not source.strip() and target.strip():
            raise NextileError(f"line {number} of '{source_path}' has no source for its target: {MEND}")
        if source.strip() and not target.strip():
            raise NextileError(f"line {number} of '{target_path}' has no target for its source: {MEND}")
        yield (source, target) if source.strip() else ("", "")


# --- built in ------------------------------------------------------------------------------------------------------


def hash_of(text: str) -> int:
    """64 bits of a text that are the same everywhere and always."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


@functools.cache
def _numbers_en_de() -> Read:
    """10,000 numbers spelled out, English and German: 0 to 999, and 9,000 others below a million; the order is mixed.

    They are kept, since spelling them takes two seconds. Errors: NextileError without num2words.
    """
    try:
        from num2words import num2words
    except ImportError as error:
        raise NextileError("numbers-en-de needs num2words: pip install 'nextile[mt]'") from error
    numbers = set(range(1000))
    drawn = (hash_of(f"draw {i}") % 10**6 for i in itertools.count())
    while len(numbers) < 10_000:
        numbers.add(next(drawn))
    pairs = [(num2words(n, lang="en"), num2words(n, lang="de")) for n in sorted(numbers, key=lambda n: hash_of(str(n)))]
    return lambda: iter(pairs)


PAIR_BUILTINS: dict[str, Callable[[], Read]] = {"numbers-en-de": _numbers_en_de}


# --- opening -------------------------------------------------------------------------------------------------------


def are_pairs(sources: Sequence[str]) -> bool:
    """Whether these arguments mean pairs: one .tsv, the name of built-in pairs, or more than one. Reads no file."""
    if len(sources) == 1:
        return _is_table(sources[0]) or _is_builtin(sources[0])
    return len(sources) > 1


def _is_table(source: str) -> bool:
    return source.lower().endswith(TABLE_SUFFIXES)


def _is_builtin(source: str) -> bool:
    return source in PAIR_BUILTINS and not os.path.exists(source)


def open_pairs(sources: Sequence[str]) -> PairCorpus:
    """Pairs from one .tsv, from two files whose lines belong together, or a built-in name; a file wins over a built-in.

    Any of the files may be packed, with .gz at the end of its name.
    Errors: NextileError for what is missing, unreadable, empty, binary, not UTF-8, or not in pairs, with the line;
    UsageError for sources that are neither one nor two sides.
    """
    match sources:
        case [source] if _is_builtin(source):
            return _survey(source, PAIR_BUILTINS[source](), builtin=True)
        case [source]:
            path = _file(source, PAIR_BUILTINS)
            if not _is_table(source):
                raise NextileError(f"'{source}' is one side of pairs, or none: {_remedy()}")
            return _survey(source, lambda: _paired(_table(path), path, path))
        case [source, target] if _is_table(source) or _is_table(target):
            raise UsageError(f"'{source}' and '{target}' are not a side each: give one .tsv alone, or two other files")
        case [source, target]:
            left, right = _file(source), _file(target)
            return _survey(f"{source} + {target}", lambda: _paired(_aligned(left, right), left, right))
    raise UsageError(f"pairs come from one source or two, not {len(sources)}: {_remedy()}")


def _remedy() -> str:
    return f"give a .tsv, two files whose lines belong together, or one of {', '.join(PAIR_BUILTINS)}"


def _file(source: str, builtins: Iterable[str] = ()) -> Path:
    path = Path(source)
    if not os.path.exists(path):  # unlike Path.exists, False for a name too long to be one
        raise NextileError(missing(path, builtins, _remedy()))
    if path.is_dir():
        raise NextileError(f"'{path}' is a folder: {_remedy()}")
    if not path.is_file():
        raise NextileError(f"'{path}' is not a regular file: pairs are read again and again, so write them to one")
    return path


def _survey(name: str, read: Read, builtin: bool = False) -> PairCorpus:
    """Read everything once: check, count and hash it, holding one pair at a time."""
    digest, skipped, count, sources, targets = hashlib.sha256(), 0, 0, 0, 0
    for source, target in read():
        if source:
            digest.update(f"{source}\n{target}\n".encode())
            count, sources, targets = count + 1, sources + len(source.encode()), targets + len(target.encode())
        else:
            skipped += 1
    _refuse_too_little(name, count, skipped)
    pairs = Pairs(lambda: (pair for pair in read() if pair[0]), count, sources, targets)
    return PairCorpus(name, pairs, digest.hexdigest(), skipped, builtin)


def _refuse_too_little(name: str, count: int, skipped: int) -> None:
    if not count and not skipped:
        raise NextileError(f"'{name}' is empty: give some pairs to learn from")
    if not count:
        raise NextileError(f"'{name}' holds nothing but white space: give some pairs to learn from")
    if count < 2:
        raise NextileError(f"'{name}' has 1 pair: at least 2 are needed, and a few thousand to learn from")


# --- holding out for validation ------------------------------------------------------------------------------------


def split_pairs(corpus: PairCorpus, fraction: float = 0.1, seed: int = 0) -> tuple[Pairs, Pairs]:
    """The pairs to train on and those to validate on, `fraction` of all sources; a pure function of its input.

    Sources are chosen by their hash and the seed, so that one that comes twice never stands on both sides.
    Errors: NextileError when one side would be empty, UsageError for a fraction that is none.
    """
    rows = (
        (hash_of(f"{seed}\n{source}"), len(source.encode()), len(target.encode())) for source, target in corpus.pairs
    )
    index = np.fromiter(rows, INDEX, len(corpus.pairs))
    held = held_out(index["hash"], fraction)
    if held is None:
        raise NextileError(
            f"all {len(index)} pairs of '{corpus.name}' have the same source, so none can be held out for validation: "
            "give pairs with other sources too"
        )
    return _part(corpus.pairs, index, ~held), _part(corpus.pairs, index, held)


def held_out(hashes: np.ndarray, fraction: float) -> np.ndarray | None:
    """Which to hold out of those with these hashes, (N,) bool: all of the least `fraction` of them; None: all are one.

    Errors: UsageError for a fraction that is none.
    """
    refuse_fraction(fraction)
    different = np.unique(hashes)
    if len(different) < 2:
        return None
    return hashes < different[min(max(1, round(fraction * len(different))), len(different) - 1)]


def _part(pairs: Pairs, index: np.ndarray, chosen: np.ndarray) -> Pairs:
    """The chosen pairs, (pairs,) bool, in their order."""
    source_bytes, target_bytes = (int(index[side][chosen].sum()) for side in ("source", "target"))
    return Pairs(functools.partial(itertools.compress, pairs, chosen), int(chosen.sum()), source_bytes, target_bytes)
