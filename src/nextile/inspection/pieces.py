"""What a model reads, piece by piece: tokens with the merges that made them, or the places of a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

from nextile.text.bpe import join
from nextile.text.pieces import Pair, merges_of, piece, spelled
from nextile.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Piece:
    """One of the vectors that a model begins with."""

    id: int  # of the token; of a place in a picture its number there, -1 where it is none
    text: str
    merges: list[list[str]] = field(default_factory=list)  # from single bytes to the whole; empty without merges


def shower(tokenizer: Tokenizer) -> Callable[[int], str]:
    """How tokens are shown: their text, of part of a character its bytes, of others as the vocabulary writes them."""
    known = tokenizer.vocab_size  # a model may have room for more tokens than its tokenizer has
    return lru_cache(1 << 16)(lambda index: _shown(tokenizer, index) if index < known else "")


def _shown(tokenizer: Tokenizer, index: int) -> str:
    return "" if tokenizer.core.id_to_token(index) is None else piece(tokenizer, index)


def text_pieces(tokenizer: Tokenizer, ids: Iterable[int], shown: Callable[[int], str]) -> list[Piece]:
    """The tokens, with their merges where those are of bytes."""
    ids, ranks = list(ids), _ranks(tokenizer)
    return [Piece(index, shown(index), _merges(tokenizer, index, ranks)) for index in ids]


def _ranks(tokenizer: Tokenizer) -> Mapping[Pair, int]:
    if tokenizer.kind != "bpe":
        return {}
    return {pair: rank for rank, (pair, _) in enumerate(merges_of(tokenizer))}


def _merges(tokenizer: Tokenizer, index: int, ranks: Mapping[Pair, int]) -> list[list[str]]:
    """What a token is after each merge: ["l", "o", "w"], ["lo", "w"], ["low"].

    A token is made of its own bytes alone: no merge reached across its ends.
    """
    data = tokenizer.bytes_of(index) if ranks and index < tokenizer.vocab_size else None
    if not data:
        return []
    return [list(map(spelled, symbols)) for symbols in _joined([bytes([byte]) for byte in data], ranks)]


def _joined(symbols: list[bytes], ranks: Mapping[Pair, int]) -> Iterable[list[bytes]]:
    """The symbols as they are at first, and after each merge."""
    yield symbols
    while pairs := [pair for pair in pairwise(symbols) if pair in ranks]:
        symbols = join(symbols, min(pairs, key=ranks.__getitem__))
        yield symbols


def places(grid: Sequence[int], summaries: Sequence[str], count: int) -> list[Piece]:
    """The first `count` vectors of a picture of (rows, columns): its summaries, and its places row by row."""
    rows, columns = grid
    found = [Piece(-1, name) for name in summaries]
    found += [Piece(n, f"row {n // columns + 1}, column {n % columns + 1}") for n in range(rows * columns)]
    return found[:count]
