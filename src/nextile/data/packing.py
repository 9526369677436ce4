"""Texts, or pairs of them, as batches of one shape: several share a row, and every epoch others meet in it.

Shapes: P texts or pairs, S sides (1 of texts, 2 of pairs), C classes, R rows, B batch, L length of a row.
Rows are filled by lengths alone, once, best fit first (Johnson 1974). An epoch gives each place in a row to another
text or pair of the same lengths, so every epoch has as many rows, and a batch is a function of (seed, step).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial, reduce

import numpy as np
import torch

from nextile.base.errors import NextileError
from nextile.data.batches import IGNORE, Batch, Order, listed
from nextile.data.masking import refuse_sizes
from nextile.data.shards import TokenStore


@dataclass(frozen=True, eq=False)
class Side:
    """Sources or targets: each a document of a store, its end token included."""

    store: TokenStore
    starts: np.ndarray  # (P,) where each begins in the store
    lengths: np.ndarray  # (P,) with the end token

    def tokens(self, index: int) -> list[int]:
        """Those of one text, without its end token."""
        start = int(self.starts[index])
        return self.store[start : start + int(self.lengths[index]) - 1].tolist()

    @classmethod
    def of(cls, store: TokenStore) -> Side:
        """The documents of a store."""
        ends = store.ends() + 1
        starts = np.concatenate([[0], ends[:-1]])
        return cls(store, starts, ends - starts)


class PairStore:
    """Tokenized pairs: the i-th source belongs to the i-th target. Errors: NextileError when they are not as many."""

    def __init__(self, source: TokenStore, target: TokenStore):
        self.source, self.target = Side.of(source), Side.of(target)
        if len(self.source.lengths) != len(self.target.lengths):
            raise NextileError(
                f"'{source.folder}' has {len(self.source.lengths)} texts and '{target.folder}' has "
                f"{len(self.target.lengths)}: tokenize the pairs again"
            )

    def __len__(self) -> int:
        return len(self.source.lengths)

    @property
    def longest(self) -> np.ndarray:
        """The longer side of each pair, (P,) tokens."""
        return np.maximum(self.source.lengths, self.target.lengths)


# --- which lengths share a row --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rows:
    """The places of all rows, row by row: place p is for one of class `classes[p]`; row r has starts[r]:starts[r+1].

    A class is the texts, or pairs, of the same lengths on all sides.
    """

    classes: np.ndarray  # (P,)
    starts: np.ndarray  # (R + 1,)

    def __len__(self) -> int:
        return len(self.starts) - 1


class _OpenRows:
    """The rows that have room, by how much of it on each side."""

    def __init__(self, length: int, sides: int):
        self.full = (length,) * sides
        self._rows: dict[tuple[int, ...], list[int]] = {}
        self._some = np.zeros((length + 1,) * sides, dtype=bool)  # whether there are rows with this room
        self._sum = reduce(np.add.outer, [np.arange(length + 1)] * sides)

    def tightest(self, size: Sequence[int]) -> tuple[int, ...] | None:
        """The least room of a row in which what is of this size on each side fits, if there is one."""
        enough = tuple(slice(part, None) for part in size)
        found = np.where(self._some[enough], self._sum[enough], 2 * self._sum.max())
        beyond = np.unravel_index(found.argmin(), found.shape)
        room = tuple(int(more) + part for more, part in zip(beyond, size, strict=True))
        return room if self._some[room] else None

    def take(self, room: tuple[int, ...], count: int) -> list[int]:
        """Up to `count` rows with this room."""
        rows = self._rows[room]
        taken, self._rows[room] = rows[:count], rows[count:]
        self._some[room] = len(rows) > count
        return taken

    def put(self, room: tuple[int, ...], rows: Sequence[int]) -> None:
        """Rows that have this room."""
        self._rows.setdefault(room, []).extend(rows)
        self._some[room] = True


def fill_rows(sizes: np.ndarray, counts: np.ndarray, length: int) -> Rows:
    """Rows of `length` on each side for `counts` (C,) of each class, of `sizes` (C, S); each size fits in a row."""
    rows: list[list[int]] = []
    waiting = _OpenRows(length, sizes.shape[1])
    for index in np.argsort(-sizes.max(1), kind="stable").tolist():  # the longest first
        size = sizes[index].tolist()
        left = int(counts[index])
        while left:
            room = waiting.tightest(size)
            if room is None:
                room = waiting.full
                number = -(-left // min(length // part for part in size))
                waiting.put(room, range(len(rows), len(rows) + number))
                rows.extend([] for _ in range(number))
            chosen = waiting.take(room, left)
            for row in chosen:
                rows[row].append(index)
            waiting.put(tuple(free - part for free, part in zip(room, size, strict=True)), chosen)
            left -= len(chosen)
    return Rows(np.array([index for row in rows for index in row], dtype=np.int64), np.cumsum([0, *map(len, rows)]))


# --- batches --------------------------------------------------------------------------------------------------------


class PackedRows:
    """Batches of `batch` rows of `length` tokens on each side; what they hold is laid by `_batch`.

    fitting: (F,) which texts or pairs fit in a row.  lengths: theirs, (F, S).
    """

    what = "pairs"

    def __init__(self, fitting: np.ndarray, lengths: np.ndarray, *, length: int, batch: int, seed: int):
        self.length, self.batch, self.seed = length, batch, seed
        sizes, classes, counts = np.unique(lengths, axis=0, return_inverse=True, return_counts=True)
        self._rows = fill_rows(sizes, counts, length)
        self._fitting, self._classes = fitting, classes.reshape(-1)
        self._by_class = np.argsort(self._rows.classes, kind="stable")  # the places of each class
        self._order = Order(len(self._rows), seed)
        self._epoch = lru_cache(maxsize=2)(self._placed)  # a batch may reach into the next epoch

    def __len__(self) -> int:
        """The rows of an epoch."""
        return len(self._rows)

    def micro(self, step: int, accumulate: int) -> list[Batch]:
        """The batch of a step in equal parts, for accumulation. Errors: UsageError when the rows do not divide."""
        return self.rows(step).split(accumulate)

    def rows(self, step: int) -> Batch:
        """The batch of a step."""
        return self._batch(self._held(step))

    def named(self, step: int) -> str:
        """What its rows hold."""
        return listed(self.what, np.concatenate(self._held(step)))

    def _held(self, step: int) -> list[np.ndarray]:
        """What each row of a step holds."""
        epochs, places = np.divmod(np.arange(step * self.batch, (step + 1) * self.batch), len(self))
        return [self._at(epoch, place) for epoch, place in zip(epochs.tolist(), places.tolist(), strict=True)]

    def once(self) -> Iterator[Batch]:
        """All that fits, once; the last batch may have fewer rows."""
        for first in range(0, len(self), self.batch):
            yield self._batch([self._of_row(0, row) for row in range(first, min(first + self.batch, len(self)))])

    def _placed(self, epoch: int) -> np.ndarray:
        """What is in each place, (F,): the members of a class in an order of their own each epoch."""
        key = hashlib.blake2b(f"pairs {self.seed} {epoch}".encode(), digest_size=16).digest()
        random = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(len(self._fitting))
        placed = np.empty(len(self._fitting), dtype=np.int64)
        placed[self._by_class] = self._fitting[np.lexsort((random, self._classes))]
        return placed

    def _at(self, epoch: int, place: int) -> np.ndarray:
        """What the row holds that comes at this place of an epoch."""
        return self._of_row(epoch, self._order(epoch, place))

    def _of_row(self, epoch: int, row: int) -> np.ndarray:
        return self._epoch(epoch)[self._rows.starts[row] : self._rows.starts[row + 1]]

    def _batch(self, rows: list[np.ndarray]) -> Batch:
        """The batch of rows that hold these."""
        raise NotImplementedError


class PackedPairs(PackedRows):
    """Batches of pairs; those that are longer than a row are left out.

    start: the token that every target begins with. Errors: NextileError when no pair fits.
    """

    def __init__(self, pairs: PairStore, *, length: int, batch: int, seed: int, start: int):
        refuse_sizes(length, batch)
        fitting = np.flatnonzero(pairs.longest <= length)
        if not len(fitting):
            shortest = min(pairs.longest.tolist(), default=0)
            raise NextileError(
                f"no pair fits in a context of {length} tokens, the shortest has {shortest}: set a longer context"
            )
        self.pairs, self.start = pairs, start
        self.left_out = len(pairs) - len(fitting)
        lengths = np.stack([pairs.source.lengths[fitting], pairs.target.lengths[fitting]], axis=1)
        super().__init__(fitting, lengths, length=length, batch=batch, seed=seed)

    def _batch(self, rows: list[np.ndarray]) -> Batch:
        lay = partial(laid, rows=rows, length=self.length)
        source, sources, _ = lay(self.pairs.source)
        target, targets, begins = lay(self.pairs.target)
        inputs = np.zeros_like(target)
        inputs[:, 1:] = target[:, :-1]
        inputs[begins] = self.start
        asked = np.where(targets > 0, target, IGNORE)
        source, asked, inputs, sources, targets = map(torch.from_numpy, (source, asked, inputs, sources, targets))
        return Batch.of(source, asked, (inputs, sources, targets))


def laid(side: Side, rows: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The texts of each row one after the other: tokens, segments (1, 2, ... and 0), and where one begins: (B, L)."""
    pairs, count = np.concatenate(rows), np.array([len(row) for row in rows])
    lengths = side.lengths[pairs]
    before = np.cumsum(lengths) - lengths  # tokens laid before each text
    row = np.repeat(np.arange(len(rows)), count)
    first = np.cumsum(count) - count  # of each row
    offset = before - before[first][row] + row * length  # of each text in the batch laid flat
    within = np.arange(lengths.sum()) - np.repeat(before, lengths)
    place = np.repeat(offset, lengths) + within
    number = np.arange(len(pairs)) - first[row] + 1
    tokens, segments, begins = (np.zeros(len(rows) * length, dtype) for dtype in (np.int64, np.int64, bool))
    tokens[place] = side.store.take(np.repeat(side.starts[pairs], lengths) + within)
    segments[place] = np.repeat(number, lengths)
    begins[offset] = True
    return tuple(array.reshape(len(rows), length) for array in (tokens, segments, begins))  # type: ignore[return-value]
