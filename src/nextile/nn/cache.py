"""Keys and values of what was read already: allocated once, passed in, one length per row.

Shapes: B batch, T time asked, S time seen, M memory length, C capacity, K kv-heads, E head width.

A row's next tokens stand at its own length, so prompts of different lengths share a batch by padding them on the
right: the padding is written beyond the row's length, where it is hidden and then overwritten.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nextile.base.errors import NextileError


@dataclass(frozen=True)
class Slot:
    """Where T new tokens go in every layer, and how much is looked at."""

    positions: Tensor  # (T,) when all rows stand at the same place, else (B, T)
    start: int | None  # that same place, when it is known without asking the device
    span: int  # S: keys 0..span-1 are looked at


class KeyValues:
    """One layer's keys and values, (B, K, C, E) each."""

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys, self.values = keys, values

    def write(self, keys: Tensor, values: Tensor, slot: Slot) -> tuple[Tensor, Tensor]:
        """Put (B, K, T, E) new ones in their slot; all that is to be looked at, (B, K, S, E)."""
        return self._write(self.keys, keys, slot), self._write(self.values, values, slot)

    @staticmethod
    def _write(kept: Tensor, new: Tensor, slot: Slot) -> Tensor:
        if slot.start is not None:
            kept[:, :, slot.start : slot.start + new.shape[2]] = new
        else:
            rows = torch.arange(len(kept), device=kept.device)[:, None]
            kept[rows, :, slot.positions] = new.transpose(1, 2).to(kept.dtype)  # indexed axes first: (B, T, K, E)
        return kept[:, :, : slot.span]

    def select(self, rows: Tensor, used: int) -> None:
        """Row i becomes what row rows[i] was, as far as it is used."""
        self.keys, self.values = (self._select(kept, rows, used) for kept in (self.keys, self.values))

    @staticmethod
    def _select(kept: Tensor, rows: Tensor, used: int) -> Tensor:
        chosen = kept[:, :, :used].index_select(0, rows)
        if len(rows) > len(kept):
            kept = kept.new_zeros(len(rows), *kept.shape[1:])
        kept = kept[: len(rows)]  # fewer rows stay where the memory is: to allocate and clear costs more than to move
        kept[:, :, :used] = chosen
        return kept


@dataclass
class Memory:
    """What a decoder attends to: each block's keys and values of a source, computed once, and whose they are.

    Several rows of the decoder may share a row of the memory, one after the other: the beams of one source.
    """

    layers: list[tuple[Tensor, Tensor]]  # (B, K, M, E) each
    segments: Tensor | None = None  # (B, M): which sequence of the row a token belongs to, 0 (False) at padding

    def __len__(self) -> int:
        return len(self.layers[0][0])

    def select(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was."""
        self.layers = [(k[rows], v[rows]) for k, v in self.layers]
        self.segments = None if self.segments is None else self.segments[rows]


class Cache:
    """The layers of one stack, how many tokens each row holds, and the memory that a decoder attends to beside them."""

    lengths: Tensor  # (B,)

    def __init__(self, layers: list[KeyValues], lengths: Tensor, memory: Memory | None = None):
        self.layers, self.lengths, self.memory = layers, lengths, memory
        self._longest, self._even = 0, True  # known here, so that the device need not be asked

    @property
    def capacity(self) -> int:
        """C: the tokens a row can hold."""
        return self.layers[0].keys.shape[2]

    def slot(self, count: int) -> Slot:
        """The place of the next `count` tokens of every row. Errors: NextileError when they do not fit."""
        if self._longest + count > self.capacity:
            raise NextileError(
                f"the cache holds {self.capacity} tokens and {self._longest} + {count} were given: ask for a larger one"
            )
        steps = torch.arange(count, device=self.lengths.device)
        if self._even:
            return Slot(self._longest + steps, self._longest, self._longest + count)
        return Slot(self.lengths[:, None] + steps, None, self._longest + count)

    def advance(self, count: int | Tensor) -> None:
        """Count the tokens just written: the same for every row, or (B,) of them."""
        if isinstance(count, Tensor):
            self.lengths += count.to(self.lengths.device)
            lengths = self.lengths.tolist()
            self._longest, self._even = max(lengths), len(set(lengths)) == 1
        else:
            self.lengths += count
            self._longest += count

    def select(self, rows: Tensor, each: int = 1) -> None:
        """Row i becomes what row rows[i] was: for beams, and to drop rows that are done.

        each: how many rows, one after the other, share a source from now on.
        """
        if self.memory is not None:
            sources = rows[::each] // (len(self.lengths) // len(self.memory))
            if sources.tolist() != list(range(len(self.memory))):
                self.memory.select(sources)
        for layer in self.layers:
            layer.select(rows, self._longest)
        self.lengths = self.lengths[rows]


class StaticCache(Cache):
    """A cache for a compiled step: shapes never change, every key is looked at, what is not written yet is hidden."""

    def slot(self, count: int) -> Slot:
        """As in `Cache`, but without a question that Python must answer anew at each step."""
        steps = torch.arange(count, device=self.lengths.device)
        return Slot(self.lengths[:, None] + steps, None, self.capacity)

    def advance(self, count: int | Tensor) -> None:
        """Count the tokens just written."""
        self.lengths += count
