"""Keys and values of what was read already: allocated once, passed in, one length per row.

Shapes: B batch, T time asked, S time seen, M memory length, C capacity, K kv-heads, E head width, W texts on a row.

A row's next tokens stand at its own length, so prompts of different lengths share a batch by padding them on the
right: the padding is written beyond the row's length, where it is hidden and then overwritten. Several texts that
begin alike, as beams do, may share a row: `Branches`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nextile.base.errors import NextileError

Attend = Callable[..., Tensor]  # (q, k, v, bias=, causal=, scale=, share=, cap=) -> what `fast_attention` does


@dataclass(frozen=True)
class Fork:
    """Whose the keys of a row are, when the T new tokens are each the next of a text of its own."""

    stand: Tensor  # where the keys stand in their texts: (S,) when the same in all rows, else (B, S)
    seen: Tensor  # (B, T, S): which keys are of a token's text, its own included


@dataclass(frozen=True)
class Slot:
    """Where T new tokens go in every layer, and how much is looked at."""

    positions: Tensor  # (T,) when all rows stand at the same place, else (B, T)
    start: int | None  # the first key that is written, when it is known without asking the device
    span: int  # S: keys 0..span-1 are looked at
    fork: Fork | None = None  # when the tokens do not follow each other


class KeyValues:
    """One layer's keys and values, (B, K, C, E) each, and what it read, (B, 1, C, D), where there is a convolution."""

    def __init__(self, keys: Tensor, values: Tensor, inputs: Tensor | None = None):
        self.keys, self.values, self.inputs = keys, values, inputs

    def write(self, keys: Tensor, values: Tensor, slot: Slot) -> tuple[Tensor, Tensor]:
        """Put (B, K, T, E) new ones in their slot; all that is to be looked at, (B, K, S, E)."""
        return self._write(self.keys, keys, slot), self._write(self.values, values, slot)

    def write_inputs(self, x: Tensor, slot: Slot) -> Tensor:
        """Put (B, T, D) new ones in their slot; all that is to be looked at, (B, S, D)."""
        assert self.inputs is not None
        return self._write(self.inputs, x[:, None], slot)[:, 0]

    def attend(self, slot: Slot) -> Attend | None:
        """What weighs the keys and values that `write` returns, where they do not lie in one piece."""
        return None

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
        self.inputs = None if self.inputs is None else self._select(self.inputs, rows, used)

    def widen(self, used: int, width: int) -> None:
        """Room for `width` texts on each row, which have the `used` keys that there are in common."""
        self.keys, self.values = (self._widen(kept, used, width) for kept in (self.keys, self.values))

    @staticmethod
    def _widen(kept: Tensor, used: int, width: int) -> Tensor:
        rows, heads, capacity, size = kept.shape
        wide = kept.new_empty(rows, heads, used + (capacity - used) * width, size)  # read where it is written alone
        wide[:, :, :used] = kept[:, :, :used]
        return wide

    def close_up(self, rows: Tensor, moved: Tensor, used: int) -> None:
        """As `select`, in place: only the rows `moved` were others before."""
        for kept in (self.keys, self.values):
            kept[moved, :, :used] = kept[rows[moved], :, :used]
        self.keys, self.values = self.keys[: len(rows)], self.values[: len(rows)]

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

    def close_up(self, rows: Tensor, moved: Tensor) -> None:
        """As `select`, in place: only the rows `moved` were others before."""
        for layer in self.layers:
            for kept in layer:
                kept[moved] = kept[rows[moved]]
        self.layers = [(k[: len(rows)], v[: len(rows)]) for k, v in self.layers]
        self.segments = None if self.segments is None else self.segments[rows]


class Branches:
    """Which keys of a row are whose, when W texts share it.

    Each step writes a key for each text behind those that there are. Texts that go on, or go on twice, or are given
    up, so move no key: all that changes is the table of who sees what.
    """

    def __init__(self, lengths: Tensor, longest: int, even: bool):
        """From one text on each row, (B,) long."""
        self.even = even
        stand = torch.arange(longest, device=lengths.device)
        self.seen = (stand < lengths[:, None])[:, None]  # (B, W, S)
        self.stand = stand if even else stand.expand(len(lengths), -1)  # (S,) or (B, S)
        self._slot: Slot | None = None

    def select(self, rows: Tensor, texts: Tensor) -> None:
        """Of these rows (B,) these texts (B, W)."""
        self.seen, self._slot = self.seen[rows[:, None], texts], None
        self.stand = self.stand if self.even else self.stand[rows]

    def slot(self, lengths: Tensor) -> Slot:
        """The place of the next token of each text."""
        if self._slot is None:
            rows, width, used = self.seen.shape
            positions = (lengths[:1] if self.even else lengths[:, None]).expand(*lengths.shape[self.even :], width)
            own = torch.eye(width, dtype=torch.bool, device=lengths.device).expand(rows, -1, -1)
            fork = Fork(torch.cat((self.stand, positions), -1), torch.cat((self.seen, own), -1))
            self._slot = Slot(positions, used, used + width, fork)
        return self._slot

    def advance(self, lengths: Tensor) -> None:
        """Count the tokens just written."""
        fork = self.slot(lengths).fork
        assert fork is not None
        self.stand, self.seen, self._slot = fork.stand, fork.seen, None


class Cache:
    """The layers of one stack, how many tokens each row holds, and the memory that a decoder attends to beside them."""

    lengths: Tensor  # (B,)

    def __init__(self, layers: list[KeyValues], lengths: Tensor, memory: Memory | None = None):
        self.layers, self.lengths, self.memory = layers, lengths, memory
        self.branches: Branches | None = None  # when texts share rows
        self._longest, self._even = 0, True  # known here, so that the device need not be asked

    @property
    def capacity(self) -> int:
        """C: the tokens a row can hold."""
        return self.layers[0].keys.shape[2]

    def slot(self, count: int) -> Slot:
        """The place of the next `count` tokens of every row, or of the next of each of its texts.

        Errors: NextileError when they do not fit.
        """
        if self.branches is not None:
            return self.branches.slot(self.lengths)
        if self._longest + count > self.capacity:
            raise NextileError(
                f"the cache holds {self.capacity} tokens and {self._longest} + {count} were given: ask for a larger one"
            )
        steps = torch.arange(count, device=self.lengths.device)
        if self._even:
            return Slot(self._longest + steps, self._longest, self._longest + count)
        return Slot(self.lengths[:, None] + steps, None, self._longest + count)

    def advance(self, count: int | Tensor) -> None:
        """Count the tokens just written: the same for every row (or of its texts), or (B,) of them."""
        if self.branches is not None:
            self.branches.advance(self.lengths)
        if isinstance(count, Tensor):
            self.lengths += count.to(self.lengths.device)
            lengths = self.lengths.tolist()
            self._longest, self._even = max(lengths), len(set(lengths)) == 1
        else:
            self.lengths += count
            self._longest += count

    def forget(self, count: int) -> None:
        """Take the last `count` tokens of every row for unread: what is written of them is hidden, then overwritten."""
        self.advance(-count)

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

    def branch(self, rows: Tensor, each: int) -> None:
        """As `select`, but `each` texts share a row from now on, and are read token by token, (B, W) of them.

        No key moves but those of rows that take the places of rows that are done. Where a convolution reads what stands
        just before a token, texts keep rows of their own, as `select` has it.
        """
        if self.layers[0].inputs is not None:
            return self.select(rows, each)
        if self.branches is None:
            for layer in self.layers:
                layer.widen(self._longest, each)
            self.branches = Branches(self.lengths, self._longest, self._even)
        width, used = self.branches.seen.shape[1:]
        texts, kept = rows.view(-1, each) % width, rows[::each] // width
        self.branches.select(kept, texts)
        moved = (kept != torch.arange(len(kept), device=kept.device)).nonzero()[:, 0]
        if self.memory is not None and len(kept) < len(self.memory):
            self.memory.close_up(kept, moved)
        if len(kept) < len(self.lengths):
            for layer in self.layers:
                layer.close_up(kept, moved, used)
        self.lengths = self.lengths[kept]
        return None


class StaticCache(Cache):
    """A cache for a compiled step: shapes never change, and what is not written yet is hidden.

    span: how many keys are looked at, of whatever row; all when None.
    """

    def __init__(
        self, layers: list[KeyValues], lengths: Tensor, memory: Memory | None = None, *, span: int | None = None
    ):
        super().__init__(layers, lengths, memory)
        self.span = span

    def slot(self, count: int) -> Slot:
        """As in `Cache`, but without a question that Python must answer anew at each step."""
        steps = torch.arange(count, device=self.lengths.device)
        return Slot(self.lengths[:, None] + steps, None, self.capacity if self.span is None else self.span)

    def advance(self, count: int | Tensor) -> None:
        """Count the tokens just written."""
        self.lengths += count
