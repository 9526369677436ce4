"""Word vectors learned by telling the words that are there from words that are not (Mikolov et al. 2013).

Shapes: B rows of T words, V vocabulary, D width, n predictions, N negatives of each, S of them shared by a block.
Two ways to the same: machine code by numba, word by word, which is word2vec's own order; and torch, blocks of words
at a time, for any device and without numba.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nextile.base.errors import NextileError
from nextile.data.batches import Batch
from nextile.models.words import WordVectors
from nextile.nn import specs
from nextile.training.learner import Learned

RATE = 0.025  # word2vec's
POWER = 0.75  # of a word's count, in how often it is drawn as a negative (Mikolov et al. 2013, 2.2)
LEAST, MOST = 16, 1024  # predictions that torch makes at once, before their words move,
ROOM = 8  # and no more than one for so many words: they would all move the same few vectors
SHARED = 64  # negatives of such a block, each counting as N / SHARED of a prediction's own
FULL = 2**32 - 1  # a probability of one, as uint32


def has_kernel() -> bool:
    """Whether numba is installed."""
    return find_spec("numba") is not None


@dataclass(frozen=True)
class Chances:
    """How likely words are kept, and drawn as negatives: from their counts (V,) in the text, 0 for what is no word.

    keep (V,): frequent words are left out at random, so that rare ones count (subsampling). chance, other (V,): an
    alias table (Walker 1977): of a place drawn evenly, the word itself with this chance, else the other.
    """

    counts: np.ndarray
    keep: np.ndarray
    chance: np.ndarray
    other: np.ndarray

    @classmethod
    def of(cls, counts: np.ndarray, subsample: float) -> Chances:
        """subsample: the share of the text above which a word counts as frequent; 0 leaves out none."""
        often = counts / max(1, counts.sum()) / subsample if subsample else np.zeros(len(counts))
        with np.errstate(divide="ignore", invalid="ignore"):
            keep = np.where(often > 0, np.minimum(1.0, (np.sqrt(often) + 1) / often), 1.0)
        chance, other = alias_table(counts**POWER)
        keep, chance = ((part * FULL).astype(np.uint32) for part in (keep, chance))
        return cls(counts, keep, chance, other.astype(np.uint32))


def alias_table(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Chances and others, (V,) each, by which words are drawn in proportion to their weights (Walker 1977)."""
    shares = weights / weights.sum() * len(weights)
    chance, other = np.ones(len(weights)), np.arange(len(weights))
    poor, rich = list(np.flatnonzero(shares < 1)), list(np.flatnonzero(shares >= 1))
    while poor and rich:
        taker, giver = poor.pop(), rich.pop()
        chance[taker], other[taker] = shares[taker], giver
        shares[giver] -= 1 - shares[taker]
        (poor if shares[giver] < 1 else rich).append(giver)
    return chance, other


def draw_seed(seed: int, step: int, part: int) -> int:
    """64 bits for a part of a step, unlike its neighbours'."""
    return int.from_bytes(hashlib.blake2b(f"words {seed} {step} {part}".encode(), digest_size=8).digest(), "little")


class WordLearner:
    """Moves word vectors in place, a rate for all of them; it has no state of its own.

    With one thread a run is the same to the bit each time; several overwrite each other now and then.
    """

    kind = "words"

    def __init__(self, model: WordVectors, chances: Chances, *, end: int, lr: float = RATE, seed: int = 0):
        if model.spec.vocab != len(chances.counts):
            raise NextileError(
                f"the model has {model.spec.vocab:,} words and its tokens are {len(chances.counts):,}: leave out "
                "model.vocab, or begin from a sound model"
            )
        self.lr, self.seed = lr, seed
        device = model.words_in.weight.device
        self.patient = device.type != "cpu"
        by_machine_code = has_kernel() and device.type == "cpu" and model.words_in.weight.dtype == torch.float32
        self.way = ByKernel(model, chances, end) if by_machine_code else ByTorch(model, chances, end)

    @torch.no_grad()
    def learn(self, micros: Sequence[Batch], index: int, factor: float) -> Learned:
        """Learn from rows of words; the loss is that of all predictions as they were made."""
        rows = torch.cat([batch.inputs for batch in micros])  # (B, T)
        nats, *_, predicted = self.way.learn(rows, self.lr * factor, draw_seed(self.seed, index, 0))
        loss = torch.as_tensor(nats, dtype=torch.float32) / max(1, predicted)
        return Learned(loss, torch.zeros(()), sum(batch.weight for batch in micros))

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}


# --- word by word ---------------------------------------------------------------------------------------------------


class ByKernel:
    """Rows shared out among threads."""

    def __init__(self, model: WordVectors, chances: Chances, end: int):
        from nextile.training import word_kernel

        self.spec, self.chances, self.end = model.spec, chances, end
        self.tables = [_with_padding(table.weight.detach()) for table in (model.words_in, model.words_out)]
        self.run = word_kernel.kernel(self.tables[0].shape[1], isinstance(model.spec, specs.SkipGram))
        self.logistic = word_kernel.logistic_tables()
        self.threads = ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="words")

    def learn(self, rows: Tensor, rate: float, seed: int) -> tuple[float, int]:
        """Nats and predictions of rows (B, T)."""
        if not 0 <= int(rows.min()) <= int(rows.max()) < len(self.chances.counts):
            raise NextileError(f"a word's number is outside 0..{len(self.chances.counts) - 1}: tokenize the text again")
        shares = np.array_split(rows.numpy(), min(len(rows), torch.get_num_threads()))
        done = list(self.threads.map(lambda part: self._share(shares[part], rate, seed, part), range(len(shares))))
        return sum(nats for nats, _ in done), sum(predicted for _, predicted in done)

    def _share(self, rows: np.ndarray, rate: float, seed: int, part: int) -> tuple[float, int]:
        return self.run(
            *self.tables, rows, self.end, self.chances.keep, self.chances.chance, self.chances.other,
            np.float32(rate), self.spec.window, self.spec.negatives, np.uint64(draw_seed(seed, 0, part)),
            *self.logistic,
        )  # fmt: skip


def _with_padding(table: Tensor) -> np.ndarray:
    """The rows (V, P) in which the vectors (V, D) lie, without a copy."""
    return torch.as_strided(table, (len(table), table.stride(0)), (table.stride(0), 1)).numpy()


# --- block by block -------------------------------------------------------------------------------------------------


@contextmanager
def one_thread() -> Iterator[None]:
    """torch's products by one thread: those of a block are so small that several wait for each other longer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Told(NamedTuple):
    """What came of predictions."""

    nats: Tensor  # summed: ()
    right: Tensor  # the share of the negatives that seemed less likely than the word itself, summed: ()
    predicted: int


class Sight(NamedTuple):
    """Words that are kept, and the span of them that each looks at: its neighbours, and itself."""

    words: Tensor  # (n,) int64
    first: Tensor  # (n,) where the span begins
    last: Tensor  # (n,) behind its end

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Every word beside each of its neighbours: the words, and the neighbours, (pairs,) each."""
        number, place = self.last - self.first, torch.arange(len(self.words), device=self.words.device)
        each = place.repeat_interleave(number)
        other = torch.arange(len(each), device=each.device) - (number.cumsum(0) - number - self.first)[each]
        return self.words[each[each != other]], self.words[other[each != other]]


class ByTorch:
    """Blocks of predictions, made at once and then learned from; they share their negatives, which weigh the less."""

    def __init__(self, model: WordVectors, chances: Chances, end: int):
        self.spec, self.end = model.spec, end
        self.inputs, self.output = model.words_in.weight.detach(), model.words_out.weight.detach()
        device = self.inputs.device
        self.keep = torch.as_tensor(chances.keep / FULL, dtype=torch.float32, device=device)
        self.weights = torch.as_tensor(chances.counts**POWER, dtype=torch.float32, device=device)
        self.size = max(LEAST, min(len(chances.counts) // ROOM, MOST))

    def learn(self, rows: Tensor, rate: float, seed: int) -> Told:
        """Predict the words of rows (B, T), and learn from it. A rate of 0 measures and moves nothing."""
        with one_thread():
            return self._learn(rows, rate, seed)

    def _learn(self, rows: Tensor, rate: float, seed: int) -> Told:
        draws = torch.Generator(self.inputs.device).manual_seed(seed >> 1)
        sight = self._look(rows.to(self.inputs.device), draws)
        pairs = sight.pairs() if isinstance(self.spec, specs.SkipGram) else None
        number = len(pairs[0] if pairs else sight.words)
        size = self.size if rate else max(1, number)
        blocks = [slice(start, min(start + size, number)) for start in range(0, number, size)]
        wanted = max(1, len(blocks) * SHARED)
        negatives = torch.multinomial(self.weights, wanted, replacement=True, generator=draws).split(SHARED)
        nats, right, predicted = self.inputs.new_zeros(()), self.inputs.new_zeros(()), 0
        for block, wrong in zip(blocks, negatives, strict=False):
            told = self._skip_gram(pairs, block, wrong, rate) if pairs else self._cbow(sight, block, wrong, rate)
            nats, right, predicted = nats + told.nats, right + told.right, predicted + told.predicted
        return Told(nats, right, predicted)

    def _look(self, rows: Tensor, draws: torch.Generator) -> Sight:
        """The words that are kept, each with as many neighbours as it draws, and none beyond its text."""
        chance = torch.rand(rows.shape, generator=draws, device=rows.device)
        there = (rows != self.end) & (chance <= self.keep[rows])
        texts = F.pad(rows == self.end, (1, 0), value=True)[:, :-1].flatten().cumsum(0)[there.flatten()]  # (n,)
        words, place = rows[there], torch.arange(len(texts), device=rows.device)
        reach = torch.randint(1, self.spec.window + 1, words.shape, generator=draws, device=rows.device)
        begins, ends = (torch.searchsorted(texts, texts, right=right) for right in (False, True))
        return Sight(words, torch.maximum(place - reach, begins), torch.minimum(place + reach + 1, ends))

    def _cbow(self, sight: Sight, block: slice, wrong: Tensor, rate: float) -> Told:
        """A block of words, each from the mean of its neighbours, by sums up to each place.

        What changes a mean changes all that it is the mean of, undivided, as in word2vec.
        """
        base, top = max(0, block.start - self.spec.window), min(len(sight.words), block.stop + self.spec.window)
        words, first, last = sight.words[base:top], sight.first[block] - base, sight.last[block] - base
        own = slice(block.start - base, block.stop - base)
        x = self.inputs[words]  # (m, D)
        sums = F.pad(x.cumsum(0), (0, 0, 1, 0))
        number = (last - first - 1)[:, None]
        hidden = (sums[last] - sums[first] - x[own]) / number.clamp(min=1)  # (n, D)
        told, change = self._tell_apart(hidden, words[own], wrong, (number > 0).to(x.dtype), rate)
        steps = torch.zeros_like(sums).index_add_(0, first, change).index_add_(0, last, change, alpha=-1)
        moved = steps.cumsum(0)[:-1]
        moved[own] -= change
        self.inputs.index_add_(0, words, moved)
        return told

    def _skip_gram(self, pairs: tuple[Tensor, Tensor], block: slice, wrong: Tensor, rate: float) -> Told:
        """A block of words, each from a neighbour alone."""
        right, seen = (part[block] for part in pairs)
        asked = self.inputs.new_ones(len(right), 1)
        told, change = self._tell_apart(self.inputs[seen], right, wrong, asked, rate)
        self.inputs.index_add_(0, seen, change)
        return told

    def _tell_apart(
        self, hidden: Tensor, right: Tensor, wrong: Tensor, asked: Tensor, rate: float
    ) -> tuple[Told, Tensor]:
        """What comes of it, and the change of hidden (n, D), which should predict right (n,) and not wrong (S,).

        asked (n, 1): 0 where nothing is asked. Moves the output vectors.
        """
        good, bad = self.output[right], self.output[wrong]
        up, down = (hidden * good).sum(1, keepdim=True), hidden @ bad.mT  # (n, 1), (n, S)
        weight = asked * (right[:, None] != wrong)
        each = self.spec.negatives / len(wrong)
        nats = (asked * F.softplus(-up)).sum() + each * (weight * F.softplus(down)).sum()
        first = (weight * (up > down)).sum() / len(wrong)
        towards, away = asked * torch.sigmoid(-up) * rate, weight * torch.sigmoid(down) * (-rate * each)
        change = towards * good + away @ bad
        self.output.index_add_(0, right, towards * hidden)
        self.output.index_add_(0, wrong, away.mT @ hidden)
        return Told(nats, first, int(asked.sum())), change
