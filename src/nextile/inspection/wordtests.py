"""How well word vectors agree with people: how alike two words are, and what is to a word as another is to a third.

Words are compared without regard to case; of words that differ in case alone the first, which is the most frequent,
stands for all. Only the first MOST words of a table are looked at. Both are as gensim has it.
Shapes: V words, D numbers of a vector, Q questions, B questions at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nextile.base.errors import NextileError, UsageError
from nextile.data.corpora import open_bytes
from nextile.inspection.vectors import Lookup, unit

MOST = 300_000
BATCH = 256  # questions at a time
LONGEST = 2**16  # bytes of a line


@dataclass(frozen=True)
class Score:
    """What came out of a test; `value` is NaN where too little was known."""

    kind: str  # "similarity": Spearman's rank correlation, -1 to 1; "analogies": the share that was right, 0 to 1
    value: float
    known: int  # questions all of whose words have vectors
    total: int
    sections: dict[str, float] = field(default_factory=dict)  # of analogies: the share right, where any is known


Line = tuple[str, str]  # where it stands, and what it says


def _lines(path: Path) -> Iterator[Line]:
    """The lines that say something. Errors: NextileError for one that is no text, or too long."""
    with open_bytes(path) as file:
        for number, raw in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), start=1):
            place = f"line {number} of '{path}'"
            if len(raw) > LONGEST:
                raise NextileError(f"{place} is longer than {LONGEST:,} bytes: give one question a line")
            try:
                text = raw.decode().removeprefix("\ufeff").strip()
            except UnicodeDecodeError as error:
                raise NextileError(f"{place} is not valid UTF-8: convert the file to UTF-8 (iconv)") from error
            if text and not text.startswith("#"):
                yield place, text


def _first_rows(lookup: Lookup) -> dict[str, int]:
    """The row of each word without regard to case."""
    rows: dict[str, int] = {}
    for row, word in enumerate(lookup.table.words[:MOST]):
        rows.setdefault(word.upper(), row)
    return rows


# --- how alike two words are ----------------------------------------------------------------------------------------


def similarity(lookup: Lookup, path: str | Path) -> Score:
    """The rank correlation between cosines and what people say, of a file with lines of word, word, number.

    A word that is in no table but can be spelled by a model's pieces is known. Lines that begin with # are left out.
    Errors: NextileError for a line that is none of these.
    """
    rows, told, found = _first_rows(lookup), [], []
    lines = list(_lines(Path(path)))
    for place, text in lines:
        a, b, number = _judgement(place, text)
        of_a, of_b = (_vector(lookup, rows, word) for word in (a, b))
        if of_a is not None and of_b is not None:
            told.append(number)
            found.append(float(unit(of_a) @ unit(of_b)))
    return Score("similarity", spearman(np.array(told), np.array(found)), len(told), len(lines))


def _judgement(place: str, text: str) -> tuple[str, str, float]:
    fields = text.split("\t") if "\t" in text else text.split()
    try:
        number = float(fields[2]) if len(fields) == 3 else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise NextileError(f"{place} is {text[:60]!r}, not two words and a number between tabs: mend it")
    return fields[0], fields[1], number


def _vector(lookup: Lookup, rows: dict[str, int], word: str) -> np.ndarray | None:
    row = rows.get(word.upper())
    return lookup.find(word) if row is None else lookup.table.vectors[row]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of (N,) and (N,); NaN where one of them does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """The place of each value in their order, equal ones at the middle of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[which]


# --- analogies ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Questions:
    """Those that can be asked: rows of a table, (Q, 4), and the section that each stands in."""

    rows: np.ndarray
    sections: list[str]
    total: int  # with those that cannot


def analogies(lookup: Lookup, path: str | Path) -> Score:
    """The share of right answers in a file of `: section` lines and lines of four words, the fourth to be found.

    An answer is the word nearest to b - a + c (see `neighbours.analogy`) that is none of the three.
    Errors: NextileError for a line that is neither.
    """
    first = _first_rows(lookup)
    asked = _questions(Path(path), first)
    kinds = np.array([first[word.upper()] for word in lookup.table.words[:MOST]])  # the row that stands for each
    answers = [_answers(lookup.units, kinds, batch) for batch in _batches(asked.rows[:, :3])]
    right = np.concatenate([np.zeros(0, int), *answers]) == asked.rows[:, 3]
    share = float(right.mean()) if len(right) else math.nan
    return Score("analogies", share, len(right), asked.total, _shares(right, asked.sections))


def _questions(path: Path, first: dict[str, int]) -> Questions:
    rows, sections, section, total = [], [], "", 0
    for place, text in _lines(path):
        words = text.upper().split()
        if text.startswith(":"):
            section = text.lstrip(": ")
            continue
        if len(words) != 4:
            raise NextileError(f"{place} is {text[:60]!r}, not four words or a section as in ': capitals': mend it")
        total += 1
        if all(word in first for word in words):
            rows.append([first[word] for word in words])
            sections.append(section)
    return Questions(np.array(rows, int).reshape(-1, 4), sections, total)


def _batches(rows: np.ndarray) -> Iterable[np.ndarray]:
    return (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))


def _answers(units: np.ndarray, kinds: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """What stands for the nearest word to each of these questions, (B, 3) -> (B,)."""
    a, b, c = (units[rows[:, place]] for place in range(3))  # (B, D) each
    cosines = (b - a + c) @ units[: len(kinds)].T  # (B, V); but for a factor of each row
    asked = np.arange(len(rows))
    np.put_along_axis(cosines, rows, -np.inf, axis=1)
    while True:
        best = cosines.argmax(axis=1)
        same = (kinds[best][:, None] == rows).any(axis=1)  # one of the three again, in other letters
        if not (same & np.isfinite(cosines[asked, best])).any():
            return kinds[best]
        cosines[asked[same], best[same]] = -np.inf


def _shares(right: np.ndarray, sections: list[str]) -> dict[str, float]:
    names = np.array(sections)
    return {name: float(right[names == name].mean()) for name in dict.fromkeys(sections)}


# --- either ---------------------------------------------------------------------------------------------------------


def score(lookup: Lookup, path: str | Path) -> Score:
    """The score on a file of either kind, told apart by its first line. Errors: UsageError for an empty file."""
    first = next((text for _, text in _lines(Path(path))), None)
    if first is None:
        raise UsageError(f"'{path}' asks nothing: give lines of word, word, number, or of four words")
    asks_analogies = first.startswith(":") or ("\t" not in first and len(first.split()) == 4)
    return (analogies if asks_analogies else similarity)(lookup, path)
