"""Who sees whom: one rule, as a dense mask for PyTorch's kernels and as blocks for FlexAttention (Dong et al. 2024).

Shapes: B batch, T time asked, S time seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Index = tuple[Any, ...]  # of whom the rule is asked: of these numbers, or
QUERIES: Index = (..., slice(None), None)  # of all, as views that broadcast: (T, 1) or (B, T, 1)
KEYS: Index = (..., None, slice(None))  # and (1, S) or (B, 1, S)


@dataclass(frozen=True)
class Sight:
    """Whom the tokens of one call see; in a stack each sees itself, so that nobody's scores are all hidden."""

    queries: Tensor  # where they stand: (T,), or row by row (B, T)
    keys: Tensor  # where they stand: (S,) or (B, S)
    causal: bool
    window: int | None = None  # so many tokens are seen, itself included (Beltagy et al. 2020)
    segments: Tensor | None = None  # (B, T): a token sees those of its own alone; those of 0, padding, see each other

    def distance(self, query: Index, key: Index) -> Tensor:
        """From a query to a key; negative looks back."""
        return self.keys[key] - self.queries[query]

    def visible(self, query: Index, key: Index) -> Tensor:
        """The rule: whether a query sees a key."""
        distance = self.distance(query, key)
        seen = distance <= 0 if self.causal else torch.ones_like(distance, dtype=torch.bool)
        if self.window is not None:
            seen = seen & (distance > -self.window)
        if self.segments is not None:
            seen = seen & (self.segments[query] == self.segments[key])
        return seen

    def dense(self) -> Tensor:
        """The mask of all queries and keys: (B or 1, T, S)."""
        seen = self.visible(QUERIES, KEYS)
        return seen.reshape(-1, *seen.shape[-2:])

    def distances(self) -> Tensor:
        """Those of all queries and keys: (B or 1, T, S)."""
        distance = self.distance(QUERIES, KEYS)
        return distance.reshape(-1, *distance.shape[-2:])

    def by_number(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """The rule as FlexAttention asks it: of the numbers of a row, a head, a query and a key, () each, to ()."""

        def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            if self.segments is None:
                return self.visible((query,), (key,))
            return self.visible((row, query), (row, key))

        return seen

    def blocks(self) -> BlockMask:
        """Which blocks of 128 queries and keys see each other, and in which of them each pair must be asked."""
        from torch.nn.attention.flex_attention import create_block_mask

        rows = None if self.segments is None else len(self.segments)
        time, seen = self.queries.shape[-1], self.keys.shape[-1]
        return create_block_mask(self.by_number(), rows, None, time, seen, device=self.keys.device)
