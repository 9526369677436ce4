"""Byte-pair encoding: the algorithm itself, readable; bulk work goes to the library.

A text is split into words, a word into symbols. Training joins the pair of neighbours that is most frequent into a new
symbol, again and again (Gage 1994; for words Sennrich et al. 2016; for bytes Radford et al. 2019). Encoding joins in
the order in which training did.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import islice, pairwise
from typing import Generic, TypeVar

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from nextile.base.errors import UsageError
from nextile.text import bulk
from nextile.text.bytelevel import CHARACTER, printable, utf8
from nextile.text.tokenizer import END, Tokenizer, assemble

# GPT-2's words: an English contraction, a run of letters, of numbers or of signs with the space before it, white space.
# Split by the library, not by `re`: that has neither \p{L} nor \p{N}, and Python's table of letters changes with its
# version, while these words must be those of the tokenizer.json that is written.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPLITTER = pre_tokenizers.Split(Regex(_WORDS), "isolated")

_BYTES = tuple(bytes([byte]) for byte in CHARACTER)  # in the order in which `tokenizers` numbers them
_LEAST = 1 + len(_BYTES)

S = TypeVar("S", str, bytes)  # a symbol: what it spells; joining two is +

# --- the algorithm, on any symbols --------------------------------------------------------------------------------


def join(word: Sequence[S], pair: tuple[S, S]) -> list[S]:
    """`word` with the two symbols of `pair` made one wherever they meet, from left to right."""
    joined: list[S] = []
    i = 0
    while i < len(word):
        if i + 1 < len(word) and (word[i], word[i + 1]) == pair:
            joined.append(word[i] + word[i + 1])
            i += 2
        else:
            joined.append(word[i])
            i += 1
    return joined


def join_all(word: Sequence[S], ranks: Mapping[tuple[S, S], int]) -> list[S]:
    """Encode one word: join the pair that training joined first, until it knows none of the pairs left."""
    symbols = list(word)
    while pairs := [pair for pair in pairwise(symbols) if pair in ranks]:
        symbols = join(symbols, min(pairs, key=ranks.__getitem__))
    return symbols


def learning(words: Mapping[tuple[S, ...], int], alphabet: Iterable[S], size: int) -> Iterator[tuple[tuple[S, S], int]]:
    """Train, merge by merge: each pair to join, with how often it occurs at that time."""
    order = {symbol: age for age, symbol in enumerate(alphabet)}
    pairs = _Pairs(words, order)
    while len(order) < size and (found := pairs.most_frequent()):
        pair, count = found
        order.setdefault(pair[0] + pair[1], len(order))
        pairs.join(pair)
        yield pair, count


def learn(words: Mapping[tuple[S, ...], int], alphabet: Iterable[S], size: int) -> list[tuple[S, S]]:
    """Train: the pairs to join, in order, from words with their counts, until there are `size` symbols or no pairs."""
    return [pair for pair, _ in learning(words, alphabet, size)]


class _Pairs(Generic[S]):
    """How often each pair of neighbours occurs, kept right while pairs are joined.

    A join changes only the words that hold the pair, so `places` remembers them. The heap is lazy: a count that fell
    leaves its entry too high, which is noticed when it comes to the top.
    """

    def __init__(self, words: Mapping[tuple[S, ...], int], order: Mapping[S, int]) -> None:
        self._words = [list(word) for word in words]
        self._weights = list(words.values())
        self._order = order
        self._counts: Counter[tuple[S, S]] = Counter()
        self._places: defaultdict[tuple[S, S], set[int]] = defaultdict(set)
        for place in range(len(self._words)):
            self._count(place, +1)
        self._heap = [self._entry(pair) for pair in self._counts]
        heapify(self._heap)

    def most_frequent(self) -> tuple[tuple[S, S], int] | None:
        """The most frequent pair and its count; of equally frequent ones the oldest symbols', as in `tokenizers`."""
        while self._heap:
            entry = heappop(self._heap)
            pair = entry[-1]
            if entry == self._entry(pair):
                return pair, self._counts[pair]
            if self._counts[pair] > 0:
                heappush(self._heap, self._entry(pair))
        return None

    def join(self, pair: tuple[S, S]) -> None:
        """Make `pair` one symbol in every word that has it."""
        new: set[tuple[S, S]] = set()
        for place in self._places.pop(pair):
            self._count(place, -1)
            self._words[place] = join(self._words[place], pair)
            new.update(self._count(place, +1))
        symbol = pair[0] + pair[1]
        for other in new:
            if symbol in other:
                heappush(self._heap, self._entry(other))

    def _count(self, place: int, sign: int) -> Iterable[tuple[S, S]]:
        """Add (+1) or take away (-1) the pairs of one word; the pairs."""
        pairs = list(pairwise(self._words[place]))
        for pair in pairs:
            self._counts[pair] += sign * self._weights[place]
            if sign > 0:
                self._places[pair].add(place)
        return pairs

    def _entry(self, pair: tuple[S, S]) -> tuple[int, int, int, tuple[S, S]]:
        return -self._counts[pair], self._order[pair[0]], self._order[pair[1]], pair


# --- on the bytes of text -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Merges:
    """What training learned, and with it the whole encoding: the pairs of bytes to join, in order."""

    pairs: tuple[tuple[bytes, bytes], ...]

    @cached_property
    def ranks(self) -> dict[tuple[bytes, bytes], int]:
        """The place of each pair in the order of joining."""
        return {pair: rank for rank, pair in enumerate(self.pairs)}

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """The id of each symbol: 0 is the end token, then come the bytes, then what was joined."""
        symbols = dict.fromkeys((END.encode(), *_BYTES, *(left + right for left, right in self.pairs)))
        return {symbol: index for index, symbol in enumerate(symbols)}

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        words = map(_symbols, pretokenize(text))
        return [self.ids[symbol] for word in words for symbol in join_all(word, self.ranks)]


def pretokenize(text: str) -> list[str]:
    """GPT-2's words: together they are the text, and no token reaches across two of them."""
    utf8(text)
    return [word for word, _ in _SPLITTER.pre_tokenize_str(text)]


def train(texts: Iterable[str], size: int) -> Merges:
    """Learn a vocabulary of `size` symbols, end token and bytes included; fewer where the texts give no more.

    In Python, to be read: `train_bpe` gives the same merges some ten times faster.
    Errors: UsageError for a size below 257.
    """
    _check(size)
    return Merges(tuple(learn(_counted(texts), (END.encode(), *_BYTES), size)))


def first_merges(texts: Iterable[str], count: int) -> Iterator[tuple[tuple[bytes, bytes], int]]:
    """The first merges of `train`, each with the count of its pair at that time; fewer where the texts give no more."""
    return islice(learning(_counted(texts), (END.encode(), *_BYTES), _LEAST + count), count)


def _counted(texts: Iterable[str]) -> dict[tuple[bytes, ...], int]:
    """The words of the texts as bytes, and how often each occurs."""
    counts = Counter(word for text in texts for word in pretokenize(text))
    return {tuple(_symbols(word)): count for word, count in counts.items()}


def _symbols(word: str) -> list[bytes]:
    return [bytes([byte]) for byte in utf8(word)]


def _check(size: int) -> None:
    if size < _LEAST:
        raise UsageError(f"tokenizer.size {size} is too small for bpe: the end token and 256 bytes need {_LEAST}")


# --- in bulk ------------------------------------------------------------------------------------------------------


def train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    """A byte-level BPE tokenizer with the merges of `train`, learned by the library; each text is one document.

    Errors: UsageError for a size below 257; NextileError for a text that is not Unicode.
    """
    _check(size)
    return to_tokenizer(Merges(tuple(bulk.learn_merges(texts, size, END))))


def to_tokenizer(merges: Merges) -> Tokenizer:
    """The merges as a tokenizer.json in the layout of GPT-2's."""
    vocabulary = {END: 0} | {printable(symbol): index for symbol, index in merges.ids.items() if index}
    pairs = [(printable(left), printable(right)) for left, right in merges.pairs]
    core = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return assemble(core, eos_token=END)
