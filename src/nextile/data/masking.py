"""Masked tokens to train and to validate on, as BERT has them; a batch is a pure function of (seed, step).

Shapes: B batch, T time, A asked places of a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from nextile.base.errors import UsageError
from nextile.data.batches import IGNORE, Batch, TrainingWindows
from nextile.data.shards import TokenStore


def generator_of(purpose: str, seed: int, step: int) -> np.random.Generator:
    """Random numbers that depend on these three alone; take them by `random`, which NumPy keeps as it is."""
    key = hashlib.blake2b(f"{purpose} {seed} {step}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


def refuse_sizes(context: int, batch: int) -> None:
    """Errors: UsageError for rows of nothing, or none."""
    if context < 1 or batch < 1:
        raise UsageError(f"context {context} and batch {batch} must be at least 1")


def refuse_share(share: float) -> None:
    """Errors: UsageError for what is no part of a row."""
    if not 0 < share < 1:
        raise UsageError(f"a share of {share} leaves nothing to ask or nothing to read: choose one between 0 and 1")


@dataclass(frozen=True, eq=False)
class Masker:
    """Which tokens are asked, and what is shown there instead (Devlin et al. 2019).

    mask_id: the mask token.  ordinary: (ids,) the tokens that may be asked, and shown in place of others; no special
    ones.  share: of a row is asked; of that `masked_share` shows the mask, `random_share` any ordinary token, and the
    rest itself. Errors: UsageError for shares that are none, or no ordinary token.
    """

    mask_id: int
    ordinary: np.ndarray
    share: float = 0.15
    masked_share: float = 0.8
    random_share: float = 0.1

    def __post_init__(self) -> None:
        refuse_share(self.share)
        if min(self.masked_share, self.random_share) < 0 or not self.masked_share + self.random_share <= 1:
            raise UsageError(
                f"masked_share {self.masked_share} and random_share {self.random_share} are not parts of a whole: "
                "choose two from 0 to 1 with a sum of at most 1"
            )
        if not len(self.ordinary):
            raise UsageError("no token may be asked: give the tokens that text is made of, not special ones alone")

    def count(self, length: int) -> int:
        """How many places of a row are asked: the nearest whole number (halves to the even one), at least 1."""
        return max(1, round(self.share * length))

    def masked(self, tokens: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """tokens (B, T) -> inputs and targets (B, T), int64; a target is the token where it is asked, else IGNORE.

        A row with fewer ordinary tokens than are to be asked has all of them asked.
        """
        length, most = tokens.shape[1], self.count(tokens.shape[1])
        # Drawn row by row: what happens in a row does not depend on how many rows come after it.
        drawn = generator.random((len(tokens), length + 1 + most))
        keys, start, other = np.split(drawn, [length, length + 1], axis=1)  # (B, T), (B, 1), (B, A)
        ordinary = np.isin(tokens, self.ordinary)
        places = np.where(ordinary, keys, 1.0).argsort(axis=1)[:, :most]  # (B, A); others than ordinary come last
        asked = np.minimum(most, ordinary.sum(axis=1, keepdims=True))  # (B, 1)
        truth = np.take_along_axis(tokens, places, axis=1)  # (B, A)
        inputs, targets = tokens.copy(), np.full_like(tokens, IGNORE)
        np.put_along_axis(inputs, places, self._shown(truth, asked, start, other), axis=1)
        np.put_along_axis(targets, places, np.where(np.arange(most) < asked, truth, IGNORE), axis=1)
        return inputs, targets

    def _shown(self, truth: np.ndarray, asked: np.ndarray, start: np.ndarray, other: np.ndarray) -> np.ndarray:
        """What stands in these places, (B, A).

        Counts are exact where the shares give whole numbers. Where they do not, a row's are rounded up or down by one
        random start (systematic sampling: Madow 1949), so that they are right on average: were they always rounded to
        the nearest, rows that ask five places would never show a random token.
        """
        lots = np.arange(truth.shape[1]) + start  # (B, A); beyond `asked` a place stays as it is
        random = self.ordinary[(other * len(self.ordinary)).astype(np.int64)]
        shown = np.where(lots < (self.masked_share + self.random_share) * asked, random, truth)
        return np.where(lots < self.masked_share * asked, self.mask_id, shown)


# --- training ------------------------------------------------------------------------------------------------------


class MaskedWindows:
    """The windows of a text, each once an epoch and masked anew; a batch is a function of (seed, step).

    A window may hold the end of a document and the beginning of the next: the end token between them is never asked.
    """

    def __init__(self, store: TokenStore, masker: Masker, *, context: int, batch: int, seed: int):
        self.windows = TrainingWindows(store, context=context, batch=batch, seed=seed)
        self.masker, self.seed = masker, seed

    def __len__(self) -> int:
        """The windows of an epoch."""
        return len(self.windows)

    def rows(self, step: int) -> Batch:
        """The batch of a step."""
        tokens = self.windows.windows(step).inputs.numpy()
        inputs, targets = self.masker.masked(tokens, generator_of("masks", self.seed, step))
        return Batch.of(torch.from_numpy(inputs), torch.from_numpy(targets))

    def micro(self, step: int, accumulate: int) -> list[Batch]:
        """The same batch in equal parts, for accumulation. Errors: UsageError when the rows do not divide."""
        return self.rows(step).split(accumulate)

    def named(self, step: int) -> str:
        """The windows, by where they start."""
        return self.windows.named(step)


# --- validation ----------------------------------------------------------------------------------------------------


def _whole_and_rest(tokens: int, context: int) -> list[slice]:
    """Where the whole rows lie, and the shorter last one, which asks its share of what it has; those that there are."""
    whole = tokens - tokens % context
    return [part for part in (slice(0, whole), slice(whole, tokens)) if part.start < part.stop]


def masked_validation(store: TokenStore, masker: Masker, *, context: int, batch: int) -> Iterator[Batch]:
    """Each token of the store in exactly one row, in order; the masks are always the same, whatever the batch size.

    The last batch is filled up with end tokens that are not asked. Errors: UsageError for sizes below 1.
    """
    refuse_sizes(context, batch)
    generator = generator_of("masks of validation", 0, 0)
    for start in range(0, len(store), context * batch):
        tokens = store[start : start + context * batch]
        inputs, targets = np.full(batch * context, store.end_id), np.full(batch * context, IGNORE)
        for some in _whole_and_rest(len(tokens), context):
            rows = tokens[some].reshape(-1, min(context, len(tokens[some])))
            inputs[some], targets[some] = (array.reshape(-1) for array in masker.masked(rows, generator))
        shaped = torch.from_numpy(np.stack([inputs, targets]).reshape(2, batch, context))
        yield Batch.of(shaped[0], shaped[1])
