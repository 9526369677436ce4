"""Word vectors in word2vec's files: text and binary, read with bounds and refused by line.

Both begin with a line "V D". Then, of each word, text has a line of the word and its numbers between spaces; binary has
the word, a space, D little-endian float32 and, from some writers, a line break. A file ending in .gz is unpacked.
Shapes: V words, D numbers of a vector.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from nextile.base.errors import NextileError, UsageError
from nextile.base.files import atomic_write
from nextile.data.corpora import open_bytes

SUFFIXES = (".txt", ".bin")
MOST_WORDS, MOST_NUMBERS = 1 << 24, 1 << 17  # those of a vocabulary and a width in `nn.specs`
LONGEST = 4096  # bytes of a word
DIGITS = 64  # bytes of a number in text, with its space
HEADER = re.compile(rb"(\d{1,12}) (\d{1,12})\s*\n?")
PACKED = 1100  # how many times larger a file may be than its .gz: deflate reaches 1,032
CHUNK = 1 << 20  # bytes read at a time
BROKEN = "get a sound copy of it"

Rows = Iterator[tuple[bytes, np.ndarray]]


@dataclass(frozen=True, eq=False)
class WordTable:
    """Words, each once, and a vector for each: float32 (V, D)."""

    words: tuple[str, ...]
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.words)

    @property
    def dim(self) -> int:
        """D."""
        return self.vectors.shape[1]

    @cached_property
    def rows(self) -> dict[str, int]:
        """The row of each word."""
        return {word: row for row, word in enumerate(self.words)}


# --- reading --------------------------------------------------------------------------------------------------------


def read_vectors(path: str | Path) -> WordTable:
    """The words and vectors of a file, text or binary, told apart by what it holds.

    Errors: NextileError, naming the line of a text or the number of a word, for a header that is none or promises more
    than there is, a row too few or too many, a wrong number of values, a value that is no finite float32, a word that
    is empty, not UTF-8, too long or there twice.
    """
    path = Path(path)
    with open_bytes(path) as file:
        count, dim = _header(file, path)
        is_text = _is_text(file, path, dim)
        _refuse_too_large(path, count, dim, 2 if is_text else 4)
        rows, place = (_text_rows, _line) if is_text else (_binary_rows, _word)
        return _table(rows(file, path, dim), count, dim, lambda row: place(path, row))


def _line(path: Path, row: int) -> str:
    return f"line {row + 2} of '{path}'"  # the header is line 1


def _word(path: Path, row: int) -> str:
    return f"word {row + 1} of '{path}'"


def _header(file: io.BufferedIOBase, path: Path) -> tuple[int, int]:
    line = file.readline(64)
    found = HEADER.fullmatch(line)
    if not found:
        raise NextileError(
            f"line 1 of '{path}' is {line[:40]!r}, not the number of words and of values, as in '30000 100': "
            "write them there"
        )
    count, dim = int(found[1]), int(found[2])
    if not 1 <= count <= MOST_WORDS or not 1 <= dim <= MOST_NUMBERS:
        raise NextileError(
            f"line 1 of '{path}' says {count:,} words of {dim:,} values: "
            f"there are 1 to {MOST_WORDS:,} words of 1 to {MOST_NUMBERS:,} values"
        )
    return count, dim


def _refuse_too_large(path: Path, count: int, dim: int, value_bytes: int) -> None:
    """Errors: NextileError where the file cannot hold what its header says, before any of it gets memory."""
    least, size = count * (1 + dim * value_bytes), path.stat().st_size
    if least > size * (PACKED if path.suffix.lower() == ".gz" else 1):
        raise NextileError(
            f"line 1 of '{path}' says {count:,} words of {dim:,} values, which is more than its {size:,} bytes hold: "
            "get a complete copy of it"
        )


def _longest_row(dim: int) -> int:
    return LONGEST + dim * DIGITS


def _is_text(file: io.BufferedIOBase, path: Path, dim: int) -> bool:
    """Whether a row of text comes next; where nothing sound does, what the file's name and its bytes say."""
    at = file.tell()
    start = file.read(_longest_row(dim))
    file.seek(at)
    with suppress(ValueError):
        if len(_numbers(start.partition(b"\n")[0].rstrip().split(b" ")[1:])) == dim:
            return True
    return ".bin" not in path.suffixes and not re.search(rb"[\x00-\x08\x0e-\x1f]", start)


def _numbers(texts: list[bytes]) -> np.ndarray:
    """float32 (D,), not finite where it does not fit. Errors: ValueError for a text that is no number."""
    if b"_" in b" ".join(texts):
        raise ValueError("an underscore is no digit")  # though Python reads 1_0 as ten
    with np.errstate(over="ignore"):
        return np.array(list(map(float, texts))).astype(np.float32)


class _Window:
    """What of a file is looked at: from a place on at least `least` bytes, where there are so many."""

    def __init__(self, file: io.BufferedIOBase, least: int):
        self._file, self._least = file, least
        self.bytes, self.at = b"", 0

    def fill(self) -> bool:
        """Whether anything is left."""
        if len(self.bytes) - self.at < self._least:
            self.bytes = self.bytes[self.at :] + self._file.read(max(CHUNK, 4 * self._least))
            self.at = 0
        return self.at < len(self.bytes)

    def only(self, sign: bytes) -> bool:
        """Whether the sign is all that is left."""
        return len(self.bytes) - self.at == len(sign) and self.bytes.endswith(sign)

    def find(self, sign: bytes, within: int) -> int:
        """Where the sign comes next, -1 if not within so many bytes."""
        return self.bytes.find(sign, self.at, self.at + within)


def _text_rows(file: io.BufferedIOBase, path: Path, dim: int) -> Rows:
    """Line by line. Errors: NextileError for a line that is no word and D numbers."""
    longest, row = _longest_row(dim), 0
    window = _Window(file, longest)
    while window.fill():
        end = window.find(b"\n", longest)
        if end < 0 and len(window.bytes) - window.at >= longest:
            raise NextileError(f"{_line(path, row)} is longer than {longest:,} bytes: {BROKEN}")
        end = len(window.bytes) if end < 0 else end
        word, *texts = window.bytes[window.at : end].rstrip().split(b" ")
        yield word, _parsed(texts, dim, _line(path, row))
        window.at, row = end + 1, row + 1


def _parsed(texts: list[bytes], dim: int, place: str) -> np.ndarray:
    if len(texts) != dim:
        raise NextileError(f"{place} has {len(texts):,} values and the header says {dim:,}: {BROKEN}")
    try:
        return _numbers(texts)
    except ValueError as error:
        raise NextileError(f"{place} has a value that is no number ({str(error)[:80]}): {BROKEN}") from error


def _binary_rows(file: io.BufferedIOBase, path: Path, dim: int) -> Rows:
    """Word by word. Errors: NextileError for a word without an end, and for numbers that are cut off."""
    window, row = _Window(file, LONGEST + 2 + 4 * dim), 0
    while window.fill() and not window.only(b"\n"):
        space = window.find(b" ", LONGEST + 2)
        if space < 0:
            raise NextileError(f"{_word(path, row)} has no space behind it within {LONGEST:,} bytes: {BROKEN}")
        word, begin, end = window.bytes[window.at : space].lstrip(b"\n"), space + 1, space + 1 + 4 * dim
        if end > len(window.bytes):
            raise NextileError(f"{_word(path, row)} is cut off: get a complete copy of '{path}'")
        yield word, np.frombuffer(window.bytes, "<f4", dim, begin)
        window.at, row = end, row + 1


def _table(rows: Rows, count: int, dim: int, place: Callable[[int], str]) -> WordTable:
    """The table of all rows. Errors: NextileError for more or fewer than `count`, and for one that is wrong."""
    vectors, words, seen = np.empty((count, dim), np.float32), [], set()
    for row, (raw, values) in enumerate(rows):
        if row == count:
            raise NextileError(f"{place(row)} is one more than the {count:,} words that the header says: {BROKEN}")
        word = _decoded(raw, place(row))
        if word in seen:
            raise NextileError(f"{place(row)} has the word {word!r}, which was there before: leave one of them out")
        if not np.isfinite(values).all():
            raise NextileError(f"{place(row)} has a value that is not finite, or none in float32: {BROKEN}")
        vectors[row] = values
        words.append(word)
        seen.add(word)
    if len(words) < count:
        raise NextileError(f"{place(len(words))} is missing: the header says {count:,} words; get a complete copy")
    return WordTable(tuple(words), vectors)


def _decoded(raw: bytes, place: str) -> str:
    if not 1 <= len(raw) <= LONGEST:
        raise NextileError(f"{place} has no word, or one longer than {LONGEST:,} bytes: {BROKEN}")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise NextileError(f"{place} has a word that is not UTF-8, {raw[:40]!r}: convert it to UTF-8") from error


# --- writing --------------------------------------------------------------------------------------------------------


def write_vectors(path: str | Path, table: WordTable) -> int:
    """Write a .txt or a .bin, whole or not at all, that gensim and word2vec read; returns how many words were left out.

    Left out are words that the format has no way to write: those with white space, without a letter, or not Unicode.
    Text gives the float32 back exactly. The file is held in memory while it is written.
    Errors: UsageError for another suffix, NextileError where no word is left or the place cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"'{path}' is no {' and no '.join(SUFFIXES)}: word vectors are written as one of them")
    kept = [(row, raw) for row, word in enumerate(table.words) if (raw := _encoded(word))]
    if not kept:
        raise NextileError(f"none of the {len(table)} words can be written to '{path}': all have white space")
    vectors, as_bytes = table.vectors.astype("<f4"), _text_row if path.suffix.lower() == ".txt" else _binary_row
    rows = (as_bytes(raw, vectors[row]) for row, raw in kept)
    atomic_write(path, b"".join((f"{len(kept)} {table.dim}\n".encode(), *rows)))
    return len(table) - len(kept)


def _encoded(word: str) -> bytes | None:
    try:
        raw = word.encode()
    except UnicodeEncodeError:
        return None
    return raw if raw.split() == [raw] and len(raw) <= LONGEST else None


def _text_row(word: bytes, vector: np.ndarray) -> bytes:
    """Nine digits give a float32 back exactly."""
    return word + (b" %.9g" * len(vector)) % tuple(vector.tolist()) + b"\n"


def _binary_row(word: bytes, vector: np.ndarray) -> bytes:
    return word + b" " + vector.tobytes() + b"\n"
