"""Batches of tokens to train and to validate on; the order is a pure function of (seed, step).

B batch, T time asked.
"""

from __future__ import annotations

import hashlib
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from nextile.base.errors import NextileError, UsageError
from nextile.data.shards import TokenStore

IGNORE = -100  # a target that is not asked; what torch's cross-entropy skips
ROUNDS = 8  # of the Feistel network: the keys of a permutation are one BLAKE2b digest of 64 bytes
Item = TypeVar("Item")


def asked(targets: Tensor) -> Tensor:
    """Which targets count: of tokens (B, T) those that are not IGNORE, of classes (B, K) each row."""
    return targets.sum(-1) > 0 if targets.is_floating_point() else targets != IGNORE


@dataclass(frozen=True, eq=False)
class Batch:
    """What a model is given and asked: inputs (B, T) and targets (B, T), int64; `weight`: how many targets are asked.

    beside: what else it is given, (B, ...) each: a translator the target so far, and which pair each token belongs to.
    Of pictures the inputs are (B, C, H, W), and the targets the probabilities of their classes, float (B, K).
    """

    inputs: Tensor
    targets: Tensor
    weight: int
    beside: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, inputs: Tensor, targets: Tensor, beside: tuple[Tensor, ...] = ()) -> Batch:
        """A batch with its weight counted."""
        return cls(inputs, targets, int(asked(targets).sum()), beside)

    @property
    def given(self) -> tuple[Tensor, ...]:
        """The arguments of the model."""
        return (self.inputs, *self.beside)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        beside = tuple(tensor.to(device) for tensor in self.beside)
        return Batch(self.inputs.to(device), self.targets.to(device), self.weight, beside)

    def split(self, parts: int) -> list[Batch]:
        """The rows in that many equal parts, in order. Errors: UsageError when they do not divide."""
        rows = len(self.inputs)
        if parts < 1 or rows % parts:
            raise UsageError(f"a batch of {rows} rows does not divide into {parts} equal parts: choose a divisor")
        if parts == 1:
            return [self]
        chunks = zip(*(tensor.chunk(parts) for tensor in (self.inputs, self.targets, *self.beside)), strict=True)
        return [Batch.of(inputs, targets, tuple(beside)) for inputs, targets, *beside in chunks]


# --- the steps of a run ----------------------------------------------------------------------------------------------


class Source(Protocol):
    """Batches that are a function of the step."""

    def micro(self, step: int, accumulate: int) -> list[Batch]:
        """The batch of a step in equal parts."""
        ...

    def named(self, step: int) -> str:
        """What it is made of, in a few words."""
        ...


class MicroBatches(Protocol):
    """The micro-batches of a step, and what they are made of."""

    def __call__(self, step: int) -> Sequence[Batch]: ...

    def named(self, step: int) -> str: ...


@dataclass(frozen=True)
class Steps:
    """The micro-batches of each step of a run."""

    source: Source
    accumulate: int

    def __call__(self, step: int) -> list[Batch]:
        """Those of a step, a pure function of it."""
        return self.source.micro(step, self.accumulate)

    def named(self, step: int) -> str:
        """Where in the data of the run they are from."""
        return f"data/train, counted from 0, {self.source.named(step)}"


def listed(what: str, numbers: np.ndarray, most: int = 8) -> str:
    """ "pairs 3, 17, 29 and 13 more": the first of (N,) numbers, and how many are not said."""
    more = f" and {len(numbers) - most:,} more" if len(numbers) > most else ""
    return f"{what} {', '.join(map(str, numbers[:most].tolist()))}{more}"


# --- the order -----------------------------------------------------------------------------------------------------


class Order:
    """A permutation of range(n) for every epoch, looked up one place at a time: O(1) time and memory at any n.

    A Feistel network permutes the integers of an even number of bits, of which there are at most 4n; what it maps
    beyond n is mapped again until it falls inside, which is a permutation of range(n) (cycle walking: Black and
    Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """

    def __init__(self, n: int, seed: int):
        self.n, self.seed = n, seed
        half = max(1, ((n - 1).bit_length() + 1) // 2)
        self._half, self._mask = np.uint64(half), np.uint64(2**half - 1)

    @overload
    def __call__(self, epoch: int, places: int) -> int: ...
    @overload
    def __call__(self, epoch: int, places: np.ndarray) -> np.ndarray: ...
    def __call__(self, epoch: int, places: int | np.ndarray) -> int | np.ndarray:
        """What stands at these places in that epoch, int64 of the same shape. Errors: IndexError beyond 0..n-1."""
        if np.min(places, initial=0) < 0 or np.max(places, initial=0) >= self.n:
            raise IndexError(f"an order of {self.n} has places 0 to {self.n - 1}, not {places}")
        keys = np.frombuffer(_hash("order", self.seed, epoch), dtype="<u8")
        found = self._permute(np.array(places, dtype=np.uint64).reshape(-1), keys)
        while (outside := found >= self.n).any():
            found[outside] = self._permute(found[outside], keys)
        found = found.astype(np.int64).reshape(np.shape(places))
        return found if isinstance(places, np.ndarray) else int(found)

    def _permute(self, x: np.ndarray, keys: np.ndarray) -> np.ndarray:
        left, right = x >> self._half, x & self._mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & self._mask)
        return left << self._half | right


def _hash(purpose: str, seed: int, epoch: int) -> bytes:
    return hashlib.blake2b(f"{purpose} {seed} {epoch}".encode(), digest_size=8 * ROUNDS).digest()


def _mix(x: np.ndarray) -> np.ndarray:
    """Every bit of x, (...,) uint64, changes every bit of the result: the finalizer of SplitMix64 (Steele 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


# --- training ------------------------------------------------------------------------------------------------------


class TrainingWindows:
    """Windows of `context` tokens, each once an epoch in an order of its own; a batch is a function of (seed, step).

    Windows lie end to end from an offset below `context` that every epoch chooses anew, so that tokens meet other
    borders. Every epoch has the same number of windows, `len(self)`. A batch may reach into the next epoch.
    Errors: NextileError when the store is shorter than one window and its last target.
    """

    def __init__(self, store: TokenStore, *, context: int, batch: int, seed: int):
        if context < 1 or batch < 1:
            raise UsageError(f"context {context} and batch {batch} must be at least 1")
        if len(store) < context + 1:
            raise NextileError(_too_short(len(store), context))
        self.store, self.context, self.batch, self.seed = store, context, batch, seed
        self._windows = max(1, (len(store) - context) // context)
        self._offsets = min(context, len(store) - self._windows * context)
        self._order = Order(self._windows, seed)

    def __len__(self) -> int:
        return self._windows

    def epoch(self, step: int) -> float:
        """How many times the windows have been seen before this step."""
        return step * self.batch / self._windows

    def windows(self, step: int) -> Batch:
        """The batch of a step."""
        spans = np.stack([self._span(start) for start in self.starts(step)])  # (B, T + 1)
        tokens = torch.from_numpy(spans)
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), weight=self.batch * self.context)

    def micro(self, step: int, accumulate: int) -> list[Batch]:
        """The same batch in equal parts, for accumulation. Errors: UsageError when the rows do not divide."""
        return self.windows(step).split(accumulate)

    def starts(self, step: int) -> np.ndarray:
        """Where in the store the windows of a step start, (B,)."""
        epochs, places = np.divmod(np.arange(step * self.batch, (step + 1) * self.batch), self._windows)
        return np.concatenate([self._epoch_starts(int(e), places[epochs == e]) for e in np.unique(epochs)])

    def named(self, step: int) -> str:
        """The windows, by where they start."""
        return listed(f"windows of {self.context} tokens at", self.starts(step))

    def _epoch_starts(self, epoch: int, places: np.ndarray) -> np.ndarray:
        offset = int.from_bytes(_hash("offset", self.seed, epoch), "little") % self._offsets
        return offset + self._order(epoch, places) * self.context

    def _span(self, start: int) -> np.ndarray:
        return self.store[int(start) : int(start) + self.context + 1]


def _too_short(tokens: int, context: int) -> str:
    fits = f"use context={tokens - 1} or less, or more text" if tokens > 1 else "give more text"
    return f"{tokens} tokens are too few for a context of {context} and its last target: {fits}"


# --- validation ----------------------------------------------------------------------------------------------------


def validation_batches(store: TokenStore, *, context: int, batch: int) -> Iterator[Batch]:
    """Batches of one shape in which every token after the first is asked exactly once, in order.

    The last batch is filled up with targets that are not asked (IGNORE). Errors: NextileError below 2 tokens.
    """
    if len(store) < 2:
        raise NextileError(_too_short(len(store), context))
    for start in range(0, len(store) - 1, context * batch):
        tokens = store[start : start + context * batch + 1]
        inputs = np.zeros(batch * context, dtype=np.int64)
        targets = np.full(batch * context, IGNORE)
        inputs[: len(tokens) - 1], targets[: len(tokens) - 1] = tokens[:-1], tokens[1:]
        shaped = (torch.from_numpy(array.reshape(batch, context)) for array in (inputs, targets))  # (B, T) each
        yield Batch(*shaped, weight=len(tokens) - 1)


def sliding_batches(store: TokenStore, *, context: int, stride: int, batch: int) -> Iterator[Batch]:
    """Batches of one shape in which every token after the first is asked exactly once, after as much text as there is.

    Each window begins `stride` tokens after the last and asks what that did not: its own last `stride` tokens, which
    have more than context - stride before them. The first asks all of its tokens. With stride = context these are the
    `validation_batches`. Errors: NextileError below 2 tokens; UsageError for a stride outside 1..context.
    """
    if not 1 <= stride <= context:
        raise UsageError(f"stride {stride} does not fit windows of {context} tokens: choose 1 to {context}")
    if len(store) < 2:
        raise NextileError(_too_short(len(store), context))
    starts = range(0, max(1, len(store) - 1 - context + stride), stride)
    for first in range(0, len(starts), batch):
        yield _windows(store, starts[first : first + batch], context=context, batch=batch)


def _windows(store: TokenStore, starts: range, *, context: int, batch: int) -> Batch:
    """The windows that begin there, filled up to `batch` rows; all but the store's first ask their end alone."""
    tokens = store[starts[0] : starts[-1] + context + 1]
    inputs = np.zeros((batch, context), dtype=np.int64)
    targets = np.full((batch, context), IGNORE)
    for row, start in enumerate(starts):
        window = tokens[start - starts[0] :][: context + 1]
        known = context - starts.step if start else 0  # targets that the window before asked
        inputs[row, : len(window) - 1] = window[:-1]
        targets[row, known : len(window) - 1] = window[known + 1 :]
    return Batch.of(torch.from_numpy(inputs), torch.from_numpy(targets))


# --- preparing ahead -----------------------------------------------------------------------------------------------


def prefetch(function: Callable[[int], Item], start: int, stop: int, depth: int = 2) -> Generator[Item, None, None]:
    """function(start) ... function(stop - 1), in order, up to `depth` of them prepared ahead by one thread.

    An error is raised where its result was due. When the consumer stops early, at most the call in progress is awaited.
    """
    steps = iter(range(start, stop))
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    try:
        ahead = deque(worker.submit(function, step) for step in islice(steps, max(1, depth)))
        while ahead:
            item = ahead.popleft().result()
            ahead.extend(worker.submit(function, step) for step in islice(steps, 1))
            yield item
    finally:
        if not sys.is_finalizing():  # else Python has waited for its threads already, and half of it is gone
            worker.shutdown(cancel_futures=True)
