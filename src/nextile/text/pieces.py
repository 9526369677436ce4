"""What a tokenizer does to a text, made visible: its pieces with their ids, and its merges one by one.

A space is shown as ·, a line break as ⏎, and whatever could drive a terminal or would not be seen as its escape.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from shutil import get_terminal_size
from typing import Any, NamedTuple, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from nextile.base.errors import UsageError
from nextile.text.bpe import join_all, pretokenize
from nextile.text.bytelevel import raw, utf8
from nextile.text.tokenizer import Tokenizer

Pair = tuple[bytes, bytes]

SIGNS = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}
COLOURS = ("black on #a6cee3", "black on #fdbf6f", "black on #b2df8a", "black on #cab2d6")  # neighbours differ

# --- what is seen of a piece --------------------------------------------------------------------------------------


def spelled(data: bytes) -> str:
    r"""Bytes as text; those of a part of a character as \\x..."""
    return data.decode(errors="backslashreplace")


def piece(tokenizer: Tokenizer, index: int) -> str:
    r"""The text of a token; of part of a character its bytes as \\x.., of others how the vocabulary writes them."""
    known = tokenizer.bytes_of(index)
    return tokenizer.token(index) if known is None else spelled(known)


def visible(text: str) -> str:
    """A text in which every character is seen, in one line; invisible and control characters are escaped."""
    return "".join(SIGNS.get(each) or (each if each.isprintable() else _escaped(each)) for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


# --- pieces above their ids ---------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A visible piece and its id."""

    piece: str
    index: str

    @property
    def width(self) -> int:
        """Columns of a terminal."""
        return max(cell_len(self.piece), len(self.index))


def cells(tokenizer: Tokenizer, ids: Iterable[int]) -> list[Cell]:
    """What is shown of each token."""
    return [Cell(visible(piece(tokenizer, index)), str(index)) for index in ids]


def lines(row: Iterable[Cell], width: int) -> Iterator[list[Cell]]:
    """The cells in lines of at most so many columns, a column between two; a line break in the text ends one."""
    line: list[Cell] = []
    for cell in row:
        if line and sum(each.width + 1 for each in line) + cell.width > width:
            yield line
            line = []
        line.append(cell)
        if cell.piece.endswith(SIGNS["\n"]):
            yield line
            line = []
    if line:
        yield line


def plain(line: Sequence[Cell]) -> str:
    """Two lines of text: the pieces with | between, and below each its id."""
    pieces = "|".join(_padded(cell.piece, cell.width) for cell in line)
    return f"{pieces.rstrip(' ')}\n{' '.join(cell.index.ljust(cell.width) for cell in line).rstrip()}\n"


def coloured(line: Sequence[Cell], first: int) -> Text:
    """The same for a terminal, the pieces on colours instead; first: how many pieces came before."""
    text = Text()
    for number, cell in enumerate(line, start=first):
        text.append(cell.piece, COLOURS[number % len(COLOURS)])
        text.append(" " * (cell.width + 1 - cell_len(cell.piece)))
    return text.append("\n" + " ".join(cell.index.ljust(cell.width) for cell in line), "dim")


def draw(tokenizer: Tokenizer, ids: Iterable[int], stream: TextIO) -> None:
    """Write all pieces above their ids, in lines as wide as the terminal; 100 columns where there is none.

    In colour on a terminal, unless NO_COLOR says that none is wanted (https://no-color.org).
    """
    colour, drawn = stream.isatty() and not os.environ.get("NO_COLOR"), 0
    console = Console(file=stream, force_terminal=True, highlight=False, markup=False, emoji=False)
    for line in lines(cells(tokenizer, ids), get_terminal_size((100, 24)).columns):
        if colour:
            console.print(coloured(line, first=drawn), soft_wrap=True)
        else:
            stream.write(plain(line))
        drawn += len(line)
    stream.flush()


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


# --- merges, one by one -------------------------------------------------------------------------------------------


class Merge(NamedTuple):
    """A merge: which it is, what it joins, how often that occurred if it is known, and what a text is after it."""

    number: int
    pair: Pair
    count: int | None
    text: list[bytes]

    @property
    def token(self) -> bytes:
        """What it makes."""
        return self.pair[0] + self.pair[1]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        pair, text = ([spelled(each) for each in some] for some in (self.pair, self.text))
        return {"merge": self.number, "count": self.count, "pair": pair, "token": spelled(self.token), "text": text}


def one_by_one(merges: Iterable[tuple[Pair, int | None]], words: Sequence[Sequence[bytes]]) -> Iterator[Merge]:
    """The merges with their counts in order, each with the words as they are after it."""
    ranks: dict[Pair, int] = {}
    for number, (pair, count) in enumerate(merges, start=1):
        ranks[pair] = number
        words = [join_all(word, ranks) for word in words]
        yield Merge(number, pair, count, [symbol for word in words for symbol in word])


def merges_of(tokenizer: Tokenizer) -> list[tuple[Pair, None]]:
    """The merges of a tokenizer.json, which does not say how often they occurred.

    Errors: UsageError for a tokenizer that has none, or whose are not of bytes.
    """
    if tokenizer.kind != "bpe":
        raise UsageError(
            f"these tokens are of kind '{tokenizer.kind}' and have no merges of bytes: name others, or a text"
        )
    model = json.loads(tokenizer.core.to_str())["model"]
    return [((raw(left), raw(right)), None) for left, right in model["merges"]]


def byte_words(text: str, tokenizer: Tokenizer | None = None) -> list[list[bytes]]:
    """The words of a text as single bytes, as a byte-level tokenizer splits it; as GPT-2's does if none is given.

    Errors: NextileError for a text that is not Unicode.
    """
    words = map(utf8, pretokenize(text)) if tokenizer is None else map(raw, _pretokenized(tokenizer, text))
    return [[bytes([byte]) for byte in word] for word in words]


def _pretokenized(tokenizer: Tokenizer, text: str) -> list[str]:
    utf8(text)
    core = tokenizer.core
    normal = core.normalizer.normalize_str(text) if core.normalizer else text
    return [word for word, _ in core.pre_tokenizer.pre_tokenize_str(normal)] if core.pre_tokenizer else [normal]
