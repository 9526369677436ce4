"""Keys and values in pages that many texts draw from one pool, and share where they begin alike (Kwon et al. 2023).

Shapes: N new tokens of all texts, R texts of one new token each, T new tokens of one text, S tokens of it that are
there then, D width, H heads, K kv-heads (G = H / K queries share one), E head width, P pages of A tokens.

A round reads some tokens of each text: one of those that are being written, many of a prompt. All stand in one batch,
(N, 1), without padding, and only attention looks at text by text (Yu et al. 2022, Orca). A text's pages are copied side
by side just before they are looked at, into a piece of memory that stays in the processor's cache: on CPU that is
as quick as keys that lie in one piece, and several times quicker than to gather all texts into one padded tensor.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from nextile.nn.attention import fast_attention
from nextile.nn.cache import Attend, Cache, KeyValues, Slot

# --- whose the pages are ------------------------------------------------------------------------------------------

Key = bytes  # stands for all tokens from a text's first to a page's last


def chained(before: Key, tokens: Sequence[int]) -> Key:
    """The key of a page with these tokens after those of `before`, b"" at the beginning of a text."""
    return hashlib.blake2b(before + array("q", tokens).tobytes(), digest_size=16).digest()


class Pages:
    """Which pages are free, who uses the others, and what full ones hold: nobody's stay until their room is needed.

    A page is taken by one text, or shared by several that begin alike; the least recently used of those that nobody
    uses is given up first, and of a text its end before its beginning.
    """

    def __init__(self, total: int):
        self.total = total
        self._free = list(range(total))[::-1]
        self._users = [0] * total
        self._known: dict[Key, int] = {}
        self._keys: dict[int, Key] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # known, and nobody's; the longest so first

    @property
    def available(self) -> int:
        """How many can be taken."""
        return len(self._free) + len(self._idle)

    def take(self) -> int | None:
        """A page of one's own; None where all are in use."""
        if not self._free:
            if not self._idle:
                return None
            page, _ = self._idle.popitem(last=False)
            del self._known[self._keys.pop(page)]
            self._free.append(page)
        page = self._free.pop()
        self._users[page] = 1
        return page

    def share(self, key: Key) -> int | None:
        """The page that holds this, one user more; None where none does."""
        page = self._known.get(key)
        if page is not None:
            self._idle.pop(page, None)
            self._users[page] += 1
        return page

    def know(self, page: int, key: Key) -> None:
        """Full, and never written again; where another page holds the same, that one stays known."""
        if key not in self._known and page not in self._keys:
            self._known[key], self._keys[page] = page, key

    def release(self, pages: Sequence[int]) -> None:
        """One user less, of a text's pages in their order."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page] == 0 and page in self._keys:
                self._idle[page] = None
            elif self._users[page] == 0:
                self._free.append(page)


# --- a round ------------------------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """The tokens of one text in a round: `count` new ones after `start` that are there."""

    pages: Sequence[int]  # with room for all
    start: int
    count: int

    @property
    def end(self) -> int:
        """How many are there then."""
        return self.start + self.count


@dataclass(frozen=True)
class Group:
    """What attention looks at in one go: some texts of one new token each, or one text of several."""

    first: int  # N: the first of its tokens in the round
    last: int  # and the one after its last
    span: int  # S of the longest
    pages: Tensor  # (R or 1, most pages of a text)
    hidden: Tensor | None  # (R or T, S): what no token sees, as large negative numbers; None: each sees all
    fresh: bool = False  # nothing was there before

    @property
    def single(self) -> bool:
        """Whether its texts have one new token each."""
        return len(self.pages) == self.last - self.first


@dataclass(frozen=True)
class PagedSlot(Slot):
    """Where the new tokens of a round go. `start` is a number, since a token sees all that its text holds so far."""

    where: Tensor = field(default_factory=lambda: torch.empty(0))  # (N,): page * A + place
    groups: Sequence[Group] = ()
    pieces: Sequence[Piece] = ()
    page: int = 1

    @cached_property
    def table(self) -> Tensor:
        """(N, S): where the tokens of each new token's text lie; anywhere beyond them."""
        pages = torch.zeros(len(self.pieces), -(-self.span // self.page), dtype=torch.long)
        for row, piece in zip(pages, self.pieces, strict=True):
            row[: -(-piece.end // self.page)] = torch.tensor(piece.pages[: -(-piece.end // self.page)])
        places = (pages[..., None] * self.page + torch.arange(self.page)).flatten(1)  # (R, S)
        return places.repeat_interleave(torch.tensor([piece.count for piece in self.pieces]), 0).to(self.where.device)


class Recalled:
    """Inputs of a convolution, looked up by row and place as a tensor (B, S, D) is, without gathering them."""

    def __init__(self, kept: Tensor, table: Tensor):
        self.kept, self.table, self.device = kept, table, kept.device

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, at: tuple[Tensor, Tensor]) -> Tensor:
        return self.kept[self.table[at]]


# --- tensors ------------------------------------------------------------------------------------------------------


class Scratch:
    """Memory in which pages are laid side by side; one piece for all layers, so that it stays in the nearest cache."""

    def __init__(self):
        self._memory: Tensor | None = None

    def gather(self, store: Tensor, pages: Tensor) -> Tensor:
        """Of (P, A, W) these pages (R, M) -> (R, M*A, W), until the next call."""
        wanted = pages.numel()
        if self._memory is None or len(self._memory) < wanted:
            self._memory = store.new_empty(wanted, *store.shape[1:])
        return torch.index_select(store, 0, pages.flatten(), out=self._memory[:wanted]).view(
            len(pages), -1, store[0, 0].numel()
        )


class PagedKeyValues(KeyValues):
    """One layer's pages: keys and values side by side, (P, A, 2*K*E), and what a convolution read, (P, A, D)."""

    def __init__(self, like: KeyValues, pages: int, page: int, scratch: Scratch):
        """like: a layer of an ordinary cache of this model."""
        self.heads, self.width = like.keys.shape[1], like.keys.shape[-1]
        self.store = like.keys.new_zeros(pages, page, 2 * self.heads * self.width)
        self.read = None if like.inputs is None else like.inputs.new_zeros(pages, page, like.inputs.shape[-1])
        self.scratch = scratch

    def write(self, keys: Tensor, values: Tensor, slot: Slot) -> tuple[Tensor, Tensor]:
        """Put new ones, (N, K, 1, E) or (1, K, T, E), on their pages, and return them."""
        new = torch.cat([_flat(x).flatten(1) for x in (keys, values)], -1)  # (N, 2*K*E)
        self.store.flatten(0, 1).index_copy_(0, cast(PagedSlot, slot).where, new.to(self.store.dtype))
        return keys, values

    def write_inputs(self, x: Tensor, slot: Slot) -> Tensor:
        """Put new ones, (N, 1, D) or (1, T, D), on their pages; all that is to be looked at, as (B, S, D) is."""
        assert self.read is not None
        slot, kept = cast(PagedSlot, slot), self.read.flatten(0, 1)
        kept.index_copy_(0, slot.where, x.flatten(0, 1).to(kept.dtype))
        return cast(Tensor, Recalled(kept, slot.table if len(x) > 1 else slot.table[:1]))

    def attend(self, slot: Slot) -> Attend:
        """Text by text, or some short ones at once."""
        return partial(self._attend, cast(PagedSlot, slot))

    def _attend(self, slot: PagedSlot, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None, **rule: Any) -> Tensor:
        """New queries, keys and values, (N, any heads, 1, E) or (1, any, T, E), the bias (N, any, 1, S) or likewise."""
        rule["causal"] = False
        asked, keys, values = _flat(q), _flat(k), _flat(v)  # (N, H or K, E)
        bias = None if bias is None else _flat(bias)  # (N, H or 1, S)
        found = asked.new_empty(asked.shape)
        for group in slot.groups:
            of = slice(group.first, group.last)
            mine = None if bias is None else bias[of, :, : group.span]
            ask = self._ask_singly if group.single else self._ask_together
            found[of] = ask(group, asked[of], keys[of], values[of], mine, rule)
        return found.view(len(q), q.shape[2], *found.shape[1:]).transpose(1, 2)

    def _ask_singly(self, group: Group, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rule: Any) -> Tensor:
        """R texts: q (R, H, E), bias (R, H or 1, S) -> (R, H, E). Queries that share a key stand where time does."""
        keys, values = self._gather(group, q.dtype)
        if bias is None:
            bias = None if group.hidden is None else group.hidden[:, None, None]  # (R, 1, 1, S)
        else:
            bias = bias.unflatten(1, (self.heads, -1)) if bias.shape[1] > 1 else bias[:, None]  # (R, K or 1, G or 1, S)
        return fast_attention(q.unflatten(1, (self.heads, -1)), keys, values, bias=bias, **rule).flatten(1, 2)

    def _ask_together(self, group: Group, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rule: Any) -> Tensor:
        """One text: q (T, H, E), bias (T, H or 1, S) -> (T, H, E)."""
        if group.fresh:
            keys, values = (x.transpose(0, 1)[None] for x in (k, v))  # (1, K, T, E)
        else:
            keys, values = self._gather(group, q.dtype)
        if bias is None:
            bias = None if group.hidden is None else group.hidden[None, None]  # (1, 1, T, S)
        else:
            bias = bias.transpose(0, 1)[None]  # (1, H or 1, T, S)
        rule = rule | {"causal": bias is None}
        return fast_attention(q.transpose(0, 1)[None], keys, values, bias=bias, **rule)[0].transpose(0, 1)

    def _gather(self, group: Group, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of a group's texts, (R, K, S, E) each."""
        kept = self.scratch.gather(self.store, group.pages)[:, : group.span].to(dtype)  # (R, S, 2*K*E)
        keys, values = kept.unflatten(-1, (2, self.heads, self.width)).permute(2, 0, 3, 1, 4)
        return keys, values


def _flat(x: Tensor) -> Tensor:
    """(N, any, 1, E) or (1, any, T, E) -> (N, any, E)."""
    return x.transpose(1, 2).flatten(0, 1)


def bytes_a_token(like: Cache) -> int:
    """What a token takes in a cache such as this, of one row."""
    kept = [
        tensor for layer in like.layers for tensor in (layer.keys, layer.values, layer.inputs) if tensor is not None
    ]
    return sum(tensor.nbytes for tensor in kept) // like.capacity


CALL = 1 << 19  # bytes that are read in the time in which attention is called once more
NEAR = 1 << 22  # bytes that stay in a processor's nearest caches


class PagedCache(Cache):
    """The pages of all layers. Its owner says what a round reads (`place`), and counts what is there himself."""

    def __init__(self, like: Cache, pages: int, page: int):
        """like: an empty cache of one row of the same model."""
        scratch = Scratch()
        layers = [PagedKeyValues(layer, pages, page, scratch) for layer in like.layers]
        super().__init__(cast(list[KeyValues], layers), like.lengths)
        self.page, self.device = page, like.lengths.device
        self.pages = Pages(pages)
        self.dtype, self._wide = layers[0].store.dtype, layers[0].store[0, 0].nbytes
        self._pieces: Sequence[Piece] = ()
        self._slot: PagedSlot | None = None

    def place(self, pieces: Sequence[Piece]) -> None:
        """What the next call of the model reads: its ids are (N, 1), or (1, T) where there is one piece.

        Best those of one token first, the shorter texts before the longer.
        """
        self._pieces, self._slot = pieces, None

    def clear(self, pages: Sequence[int]) -> None:
        """Forget what these held: what is hidden is read all the same, and 0 times a broken text's NaN is NaN."""
        rows = torch.tensor(pages, dtype=torch.long, device=self.device)
        for layer in self.layers:
            cast(PagedKeyValues, layer).store.index_fill_(0, rows, 0.0)

    def lay_out(self, pages: Sequence[int], count: int, cache: Cache) -> None:
        """Copy the first `count` tokens of a text into an ordinary cache of one row."""
        rows = torch.tensor(pages[: -(-count // self.page)], dtype=torch.long, device=self.device)
        for paged, kept in zip(cast(list[PagedKeyValues], self.layers), cache.layers, strict=True):
            both = paged.store[rows].flatten(0, 1)[:count].unflatten(-1, (2, paged.heads, -1))  # (S, 2, K, E)
            kept.keys[0, :, :count], kept.values[0, :, :count] = both.permute(1, 2, 0, 3)
            if paged.read is not None and kept.inputs is not None:
                kept.inputs[0, 0, :count] = paged.read[rows].flatten(0, 1)[:count]

    def take_back(self, pages: Sequence[int], start: int, stop: int, cache: Cache) -> None:
        """Copy tokens start..stop of a text from an ordinary cache of one row onto its pages."""
        where = [pages[place // self.page] * self.page + place % self.page for place in range(start, stop)]
        places = torch.tensor(where, dtype=torch.long, device=self.device)
        for paged, kept in zip(cast(list[PagedKeyValues], self.layers), cache.layers, strict=True):
            both = torch.stack((kept.keys[0, :, start:stop], kept.values[0, :, start:stop]))  # (2, K, S, E)
            paged.store.flatten(0, 1)[places] = both.permute(2, 0, 1, 3).flatten(1)
            if paged.read is not None and kept.inputs is not None:
                paged.read.flatten(0, 1)[places] = kept.inputs[0, 0, start:stop]

    def slot(self, count: int) -> Slot:
        """The place of each token of the round."""
        if self._slot is None:
            self._slot = self._made(count)
        return self._slot

    def advance(self, count: int | Tensor) -> None:
        """Nothing: the owner counts."""

    def _made(self, count: int) -> PagedSlot:
        pieces, page = self._pieces, self.page
        stand = [place for piece in pieces for place in range(piece.start, piece.end)]
        where = [
            piece.pages[place // page] * page + place % page
            for piece in pieces
            for place in range(piece.start, piece.end)
        ]
        positions = torch.tensor(stand, device=self.device)
        positions = positions if count > 1 else positions[:, None]  # (T,) or (N, 1)
        span = max(piece.end for piece in pieces)
        start = pieces[0].start if count > 1 else span - 1
        places = torch.tensor(where, device=self.device)
        return PagedSlot(positions, start, span, None, places, self._groups(), pieces, page)

    def _groups(self) -> list[Group]:
        groups, first = list[Group](), 0
        for some in self._gathered():
            last = first + sum(piece.count for piece in some)
            groups.append(self._group(some, first, last))
            first = last
        return groups

    def _gathered(self) -> list[list[Piece]]:
        """The pieces, where one more in a call costs less than one more call."""
        found = list[list[Piece]]()
        for piece in self._pieces:
            some = found[-1] if found else []
            longest = max([each.end for each in [*some, piece]])
            padding = longest * (len(some) + 1) - sum(each.end for each in [*some, piece])
            single = piece.count == 1 and all(each.count == 1 for each in some)
            if some and single and self._pays(longest * (len(some) + 1), padding):
                some.append(piece)
            else:
                found.append([piece])
        return found

    def _pays(self, tokens: int, padding: int) -> bool:
        if self.device.type != "cpu":
            return True
        return padding * self._wide <= CALL and tokens * self._wide <= NEAR

    def _group(self, some: list[Piece], first: int, last: int) -> Group:
        span = max(piece.end for piece in some)
        used = -(-span // self.page)
        pages = [list(piece.pages[: -(-piece.end // self.page)]) for piece in some]
        table = torch.tensor([[*row, *[row[0]] * (used - len(row))] for row in pages], device=self.device)
        if len(some) == 1 and (some[0].count == 1 or some[0].start == 0):
            return Group(first, last, span, table, None, fresh=some[0].start == 0)
        ends = [piece.end for piece in some] if some[0].count == 1 else range(some[0].start + 1, span + 1)
        if min(ends) == span:
            return Group(first, last, span, table, None)
        hidden = torch.arange(span) >= torch.tensor(ends)[:, None]  # (R or T, S)
        least = torch.finfo(self.dtype).min
        return Group(first, last, span, table, hidden.to(self.dtype).mul(least).to(self.device))
