"""Word vectors of any model: a row for each of its tokens, and any other word as the mean of its pieces.

Where a tokenizer has pieces that begin with a space, a word is one that does, and is shown without it; a piece that
goes on within a word is shown behind "##", as WordPiece writes it. Left out are special tokens and those that are no
printable text by themselves: white space, control characters, a part of a character.
Shapes: V tokens, D numbers of a vector.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Literal

import numpy as np

from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.pretrained import Pretrained, load
from nextile.checkpoint.word2vec import SUFFIXES, WordTable, read_vectors
from nextile.data.corpora import missing
from nextile.nn import specs
from nextile.text.tokenizer import Tokenizer

Side = Literal["input", "output"]

# Where a model of this type keeps the vectors of its input and of its output, (V, D) each.
MATRICES: dict[type, tuple[str, str]] = {
    specs.Transformer: ("embed.token.weight", "head.weight"),
    specs.EncoderDecoder: ("source.token.weight", "head.weight"),
    specs.CBOW: ("words_in.weight", "words_out.weight"),
    specs.SkipGram: ("words_in.weight", "words_out.weight"),
}
WHOLE = ("word", "lexicon")  # kinds of tokenizers whose tokens are words
SPELLED = ("lexicon", "other")  # kinds whose vocabulary writes a token as it is read
MARK = "##"  # before a piece that goes on within a word
SENTENCEPIECE_SPACE = "▁"
TINY = 1e-30  # below the length of any vector but zero


class Lookup:
    """Word vectors by their words; where all of those are in small letters, a word is looked up in small letters."""

    def __init__(self, table: WordTable):
        self.table = table

    def row(self, word: str) -> int | None:
        """The word's row of the table; None where it has none."""
        return self.table.rows.get(word.lower() if self._is_small else word)

    def find(self, word: str) -> np.ndarray | None:
        """The vector of a word, float32 (D,); None where it has none."""
        row = self.row(word)
        return None if row is None else self.table.vectors[row]

    def vector(self, word: str) -> np.ndarray:
        """The vector of a word, float32 (D,). Errors: NextileError for one that has none, with those spelled alike."""
        found = self.find(word)
        if found is None:
            raise NextileError(f"{word!r} is not among the {len(self.table):,} words{self._alike(word)}")
        return found

    @cached_property
    def units(self) -> np.ndarray:
        """The table's vectors at length 1, (V, D); a vector of zeros stays one."""
        return unit(self.table.vectors)

    @cached_property
    def _is_small(self) -> bool:
        return all(word == word.lower() for word in self.table.words)

    def _alike(self, word: str) -> str:
        candidates = [each for each in self.table.words if abs(len(each) - len(word)) <= 2]  # the others take seconds
        near = difflib.get_close_matches(word.lower(), candidates, n=3)
        return f": did you mean {' or '.join(map(repr, near))}?" if near else ": give one of those"


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., D) at length 1; those of zeros stay so."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), TINY)


class PieceLookup(Lookup):
    """Vectors of pieces: a word that is no piece is the mean of those that it is written with."""

    def __init__(self, table: WordTable, spell: Callable[[str], np.ndarray | None]):
        super().__init__(table)
        self._spell = spell

    def find(self, word: str) -> np.ndarray | None:
        found = super().find(word)
        return self._spell(word) if found is None else found


# --- from a model ---------------------------------------------------------------------------------------------------


def word_vectors(pretrained: Pretrained, side: Side = "input") -> Lookup:
    """The vectors by which a model reads its tokens, or those by which it predicts them, as float32.

    Errors: UsageError for a model that reads pictures or has no such vectors.
    """
    tokenizer = pretrained.tokenizer
    if type(pretrained.spec) not in MATRICES:
        raise UsageError(f"{pretrained.called} has no word vectors: name a model that reads text")
    place = MATRICES[type(pretrained.spec)][side == "output"]
    matrix = attrgetter(place)(pretrained.model).detach().float().cpu().numpy()
    table = _named(tokenizer, matrix)
    if tokenizer.kind in WHOLE:
        return Lookup(table)
    before = " " if _marks_words(tokenizer) else ""
    return PieceLookup(table, lambda word: _mean(tokenizer, matrix, before + word))


def _named(tokenizer: Tokenizer, matrix: np.ndarray) -> WordTable:
    """The tokens that are text, in the order of their ids, and their rows; of two that look alike the first."""
    shown, rows = displays(tokenizer), {}
    for index in range(min(tokenizer.vocab_size, len(matrix))):  # a matrix may be padded, or lack the last tokens
        word = None if index in tokenizer.special_ids else shown(index)
        if word and word != MARK and word.isprintable() and " " not in word:
            rows.setdefault(word, index)
    return WordTable(tuple(rows), matrix[list(rows.values())])


def displays(tokenizer: Tokenizer) -> Callable[[int], str | None]:
    """How a token is called among the words."""
    if tokenizer.kind in SPELLED:
        pieces = any(token.startswith(SENTENCEPIECE_SPACE) for token in tokenizer.core.get_vocab())
        return lambda index: _marked(tokenizer.core.id_to_token(index), SENTENCEPIECE_SPACE if pieces else "")
    space = " " if _marks_words(tokenizer) else ""
    return lambda index: _marked(_text(tokenizer.bytes_of(index)), space)


def _marks_words(tokenizer: Tokenizer) -> bool:
    """Whether pieces at the beginning of a word begin with a space."""
    if tokenizer.kind != "bpe":
        return False
    tokens = (tokenizer.bytes_of(index) or b"" for index in range(tokenizer.vocab_size))
    return any(token.startswith(b" ") and token.strip() for token in tokens)


def _text(data: bytes | None) -> str | None:
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError:
        return None


def _marked(token: str | None, space: str) -> str | None:
    """The token without the space before it, or behind MARK where there is none."""
    if token is None or not space:
        return token
    return token.removeprefix(space) if token.startswith(space) else MARK + token


def _mean(tokenizer: Tokenizer, matrix: np.ndarray, text: str) -> np.ndarray | None:
    """The mean of the vectors of a text's pieces, (D,); None where one of them is unknown, or there are none."""
    ids = tokenizer.encode(text)
    known = [index for index in ids if index != tokenizer.unknown_id and index < len(matrix)]
    return matrix[known].mean(axis=0) if known and len(known) == len(ids) else None


# --- from anywhere --------------------------------------------------------------------------------------------------


def open_vectors(name: str | Path, side: Side = "input") -> Lookup:
    """The word vectors of a model folder, or of a .txt or .bin in word2vec's format.

    Errors: NextileError for what is missing or broken, UsageError for a model without word vectors, and for the other
    side of a file, which has one alone.
    """
    path = Path(name).expanduser()
    if path.is_dir() or not (path.is_file() or path.suffix.lower() in (*SUFFIXES, ".gz")):
        return word_vectors(load(name, device="cpu"), side)
    if not path.exists():
        raise NextileError(missing(path, (), "name a model folder, or a .txt or .bin of word vectors"))
    if side != "input":
        raise UsageError(f"'{path}' has one vector for each word, not those of the {side}: leave out --side")
    return Lookup(read_vectors(path))
