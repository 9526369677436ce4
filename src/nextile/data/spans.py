"""A text with parts cut out, and what was cut out, as T5 learns them; a batch is a pure function of (seed, step).

Shapes: B batch, L tokens of a window, S spans, M source length, T target length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from nextile.base.errors import UsageError
from nextile.data.batches import IGNORE, Batch, TrainingWindows
from nextile.data.masking import generator_of, refuse_share, refuse_sizes
from nextile.data.shards import TokenStore

FILLER = -1  # stands for a token where a text has ended


class Corruption(Protocol):
    """A way to make a source and its target of a window."""

    def shape(self, window: int) -> tuple[int, int]:
        """M and T for windows of so many tokens. Errors: UsageError when it cannot be applied to them."""
        ...

    def corrupted(self, tokens: np.ndarray, generator: np.random.Generator) -> Batch:
        """tokens (B, L) -> source (B, M), beside it the target so far (B, T), and what comes next in it (B, T).

        A row depends on itself and its random numbers alone. Errors: as `shape`.
        """
        ...


def _ended(tokens: np.ndarray, end_id: int) -> np.ndarray:
    """Each row followed by the end token."""
    return np.pad(tokens, ((0, 0), (0, 1)), constant_values=end_id)


def _batch(source: np.ndarray, targets: np.ndarray, start: int, *segments: np.ndarray) -> Batch:
    """What an encoder-decoder is given: the target so far is the target one token later."""
    shown = np.where(targets == IGNORE, start, targets)[:, :-1]
    so_far = np.pad(shown, ((0, 0), (1, 0)), constant_values=start)
    beside = tuple(torch.from_numpy(array) for array in (so_far, *segments))
    return Batch.of(torch.from_numpy(source), torch.from_numpy(targets), beside)


# --- span corruption -----------------------------------------------------------------------------------------------


def _partition(keys: np.ndarray, parts: int) -> np.ndarray:
    """n items in `parts` runs of at least one, all ways equally likely, by keys (B, n - 1): lengths (B, parts)."""
    rows, borders = keys.shape
    chosen = np.sort(keys.argsort(axis=1)[:, : parts - 1], axis=1) + 1  # where each run but the first begins
    edges = [np.zeros((rows, 1), np.int64), chosen, np.full((rows, 1), borders + 1)]
    return np.diff(np.concatenate(edges, axis=1), axis=1)


@dataclass(frozen=True)
class Spans:
    """T5's span corruption: random spans are cut out, a sentinel stands for each (Raffel et al. 2020, section 3.3.4).

    Source: what is kept, with sentinel i in place of the i-th span, and the end. Target: each sentinel followed by its
    span, and the end. A row begins with what is kept.

    sentinels: in order.  start: what a target so far begins with.  share: of a window is cut out.  mean: length of a
    span. Errors: UsageError for a share or a mean that is none.
    """

    sentinels: tuple[int, ...]
    end_id: int
    start: int
    share: float = 0.15
    mean: float = 3.0

    def __post_init__(self) -> None:
        refuse_share(self.share)
        if not self.mean >= 1:
            raise UsageError(f"a mean span of {self.mean} tokens is too short: choose at least 1")

    def counts(self, window: int) -> tuple[int, int]:
        """How many tokens are cut out, and in how many spans; rounded to the nearest, halves to the even one."""
        noise = round(window * self.share)
        spans = max(1, round(noise / self.mean))
        if noise < 1 or window - noise < spans:
            raise UsageError(
                f"a window of {window} tokens cannot lose {noise} of them in {spans} span{'s' * (spans > 1)}: "
                "set a longer context or another share"
            )
        if spans > len(self.sentinels):
            raise UsageError(
                f"a window of {window} tokens has {spans} spans, and there are {len(self.sentinels)} sentinels: "
                "set a shorter context, a smaller share or longer spans"
            )
        return noise, spans

    def shape(self, window: int) -> tuple[int, int]:
        """M and T, as in T5's `random_spans_helper`."""
        noise, spans = self.counts(window)
        return window - noise + spans + 1, noise + spans + 1

    def corrupted(self, tokens: np.ndarray, generator: np.random.Generator) -> Batch:
        """Source (B, M), beside it the target so far (B, T), and targets (B, T)."""
        begins = self._begins(tokens.shape, generator)
        source, target = (self._without(tokens, begins, cut) for cut in (1, 0))
        return _batch(source, target, self.start)

    def _begins(self, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
        """Where a part begins, kept and cut out in turn, (B, L) bool; as T5's `random_spans_noise_mask` draws them."""
        rows, window = shape
        noise, spans = self.counts(window)
        keys = generator.random((rows, window - 2))  # one draw, so that each row has numbers of its own
        kept, cut = (_partition(part, spans) for part in np.split(keys, [window - noise - 1], axis=1))
        starts = np.stack([kept, cut], axis=2).reshape(rows, 2 * spans).cumsum(axis=1)[:, :-1]  # (B, 2S - 1)
        begins = np.zeros(shape, dtype=bool)
        begins[:, 0] = True
        np.put_along_axis(begins, starts, True, axis=1)
        return begins

    def _without(self, tokens: np.ndarray, begins: np.ndarray, cut: int) -> np.ndarray:
        """The rows with a sentinel for each part that is cut out (1: every second one, 0: the others), and the end."""
        parts = begins.cumsum(axis=1) - 1  # (B, L): 0 kept, 1 cut out, 2 kept, ...
        gone = parts % 2 == cut
        marked = np.where(gone & begins, np.array(self.sentinels)[parts // 2], tokens)
        left = marked[begins | ~gone].reshape(len(tokens), -1)  # as many in each row, since the counts are fixed
        return _ended(left, self.end_id)


# --- prefix --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prefix:
    """A prefix language model as one span at the end of a window (Raffel et al. 2020, section 3.3.1).

    Source: the beginning, sentinel 0, and the end. Target: sentinel 0, the rest, and the end.

    The cut is drawn uniformly from 1 to L - 1. Both sides are padded to L + 1 tokens, so a batch has segments too: 1,
    and 0 for padding, which is not asked. Fields: as of Spans. Errors: UsageError without a sentinel.
    """

    sentinels: tuple[int, ...]
    end_id: int
    start: int

    def __post_init__(self) -> None:
        if not self.sentinels:
            raise UsageError("a prefix needs a sentinel, and there is none: take a tokenizer made for spans")

    def shape(self, window: int) -> tuple[int, int]:
        """M and T."""
        if window < 2:
            raise UsageError(f"a window of {window} tokens cannot be cut in two: set a longer context")
        return window + 1, window + 1

    def corrupted(self, tokens: np.ndarray, generator: np.random.Generator) -> Batch:
        """Source (B, M), beside it the target so far (B, T), the segments of both, and targets (B, T)."""
        rows, window = tokens.shape
        length, _ = self.shape(window)
        cut = 1 + (generator.random((rows, 1)) * (window - 1)).astype(np.int64)  # (B, 1)
        place, line = np.arange(length), _ended(tokens, self.end_id)  # (L + 1,), (B, L + 1)
        source = np.select(
            [place < cut, place == cut, place == cut + 1], [line, self.sentinels[0], self.end_id], self.start
        )
        rest = np.take_along_axis(line, np.minimum(cut + place - 1, window), axis=1)
        target = np.where(place == 0, self.sentinels[0], rest)
        heard, written = place <= cut + 1, place <= window - cut + 1  # (B, L + 1) each
        segments = (part.astype(np.int64) for part in (heard, written))
        return _batch(source, np.where(written, target, IGNORE), self.start, *segments)


# --- back again ----------------------------------------------------------------------------------------------------


def _spans(target_ids: Iterable[int], sentinels: frozenset[int]) -> dict[int, Sequence[int]]:
    """What follows each sentinel."""
    spans: dict[int, Sequence[int]] = {}
    current: list[int] = []  # what comes before the first belongs to none
    for index in target_ids:
        if index in sentinels:
            current = []
            spans.setdefault(index, current)
        else:
            current.append(index)
    return spans


def rebuild(source_ids: Iterable[int], target_ids: Iterable[int], sentinels: Sequence[int]) -> list[int]:
    """The text: the source with each sentinel replaced by what follows it in the target.

    Both without the end token and padding behind them. Of a target that a model wrote nothing is required: a sentinel
    that it lacks stands for nothing, of one that comes twice the first counts, and others are left out.
    """
    spans = dict.fromkeys(sentinels, ()) | _spans(target_ids, frozenset(sentinels))
    return [token for index in source_ids for token in spans.get(index, (index,))]


# --- training ------------------------------------------------------------------------------------------------------


class SpanWindows:
    """The windows of a text, each once an epoch and corrupted anew; a batch is a function of (seed, step).

    A window may hold the end of a document and the beginning of the next: its end token is a token like others, and
    may be cut out. Errors: UsageError when windows of this context cannot be corrupted so.
    """

    def __init__(self, store: TokenStore, corruption: Corruption, *, context: int, batch: int, seed: int):
        self.windows = TrainingWindows(store, context=context, batch=batch, seed=seed)
        self.corruption, self.seed = corruption, seed
        corruption.shape(context)

    def __len__(self) -> int:
        """The windows of an epoch."""
        return len(self.windows)

    def rows(self, step: int) -> Batch:
        """The batch of a step."""
        tokens = self.windows.windows(step).inputs.numpy()
        return self.corruption.corrupted(tokens, generator_of("spans", self.seed, step))

    def micro(self, step: int, accumulate: int) -> list[Batch]:
        """The same batch in equal parts, for accumulation. Errors: UsageError when the rows do not divide."""
        return self.rows(step).split(accumulate)

    def named(self, step: int) -> str:
        """The windows, by where they start."""
        return self.windows.named(step)


# --- validation ----------------------------------------------------------------------------------------------------


def _filled(batch: Batch, end_id: int) -> Batch:
    """Filler reads as end tokens; it is not asked, nor what comes after it, nor anything in a row that begins with it.

    Both corruptions keep a row's first token, so it tells whether the row has any text.
    """
    empty = batch.inputs[:, :1] == FILLER  # (B, 1)
    unasked = empty | ((batch.targets == FILLER).cumsum(1) > 0)  # (B, T)
    inputs, *beside = (tensor.masked_fill(tensor == FILLER, end_id) for tensor in batch.given)
    return Batch.of(inputs, batch.targets.masked_fill(unasked, IGNORE), tuple(beside))


def span_validation(store: TokenStore, corruption: Corruption, *, context: int, batch: int) -> Iterator[Batch]:
    """Each token of the store in exactly one row, in order; the same spans always, whatever the batch size.

    The last batch is filled up with end tokens that are not asked. Errors: UsageError as `Corruption.shape`.
    """
    refuse_sizes(context, batch)
    generator = generator_of("spans of validation", 0, 0)
    for start in range(0, len(store), context * batch):
        tokens = np.full(batch * context, FILLER)
        found = store[start : start + context * batch]
        tokens[: len(found)] = found
        yield _filled(corruption.corrupted(tokens.reshape(batch, context), generator), store.end_id)
