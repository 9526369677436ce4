"""Blocks in order; masks and positions are computed once for all of them.

Shapes: B batch, T time asked, S time seen, M memory length, D width, H heads.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from nextile.nn import specs
from nextile.nn.attention import CrossAttention, Place
from nextile.nn.block import BLOCKS
from nextile.nn.cache import Cache, Fork, KeyValues, Memory, Slot, StaticCache
from nextile.nn.mask import Sight
from nextile.nn.norm import make_norm
from nextile.nn.position import BIASES, RotaryPosition, Rotate, within
from nextile.nn.tap import tap


def attention_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which scores of this stream are computed: autocast's where it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def hide(visible: Tensor, bias: Tensor | float, dtype: torch.dtype) -> Tensor:
    """`bias` where visible, else the most negative finite number.

    Finite, because a row in which everything is hidden must not become NaN; beside any visible key its softmax weight
    is exactly 0.
    """
    least = torch.finfo(dtype).min
    return torch.where(visible, torch.as_tensor(bias, dtype=dtype, device=visible.device), least)


def places(x: Tensor, segments: Tensor | None) -> Tensor:
    """Where the tokens of x (B, T, ...) stand when nothing was read before: (T,), or in their segments, (B, T)."""
    return torch.arange(x.shape[1], device=x.device) if segments is None else within(segments)


def heard_of(memory: Memory, segments: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What decoder tokens (of these segments; None: each row of its own) hear of a memory: (B, 1, T or 1, M)."""
    if memory.segments is None:
        return None
    if segments is None:
        return hide(memory.segments[:, None, None, :] != 0, 0.0, dtype)
    return hide((segments[:, :, None] == memory.segments[:, None, :])[:, None], 0.0, dtype)


def as_it_is(block: nn.Module, x: Tensor, *context) -> Tensor:
    """The block applied."""
    return block(x, *context)


# The block as a region of its own: a graph of equal blocks is compiled in little more time than one of them takes.
as_region = cast("Callable[..., Tensor]", torch.compiler.nested_compile_region(as_it_is))


class TransformerStack(nn.Module):
    """An encoder (not causal), a decoder (causal), or a decoder that attends to a memory (cross)."""

    def __init__(self, spec: specs.Stack, vocab: int | None = None):
        """vocab: of the tokens that it reads, where they may have embeddings among the values."""
        super().__init__()
        self.spec = spec
        head_width = spec.attention.head_width(spec.width)
        self.blocks = nn.ModuleList(BLOCKS[spec.order](spec, index, vocab) for index in range(spec.depth))
        self.norm = nn.Identity() if spec.norm_place == "after" else make_norm(spec.norm, spec.width)
        self.rotary = RotaryPosition(spec.position, head_width) if isinstance(spec.position, specs.Rotary) else None
        local = spec.local
        self.is_local = [local is not None and local.holds(index) for index in range(spec.depth)]
        self.kinds = sorted(set(self.is_local))
        self.reads = {
            "segments": spec.attention.convolution is not None,
            "ids": spec.value_embedding is not None,
            "first": spec.residual_scalars is not None,
        }
        self.window = local.window if local else None
        own = local.position if local else None
        self.local_rotary = RotaryPosition(own, head_width) if own else self.rotary
        bias = BIASES.get(type(spec.position))
        self.position_bias = bias(spec.position, spec.attention.heads, spec.causal) if bias else None
        self.capped = spec.attention.soft_cap is not None
        self.flex = False  # whether a compiled graph hides keys by FlexAttention: `training.flex`

    def forward(
        self, x: Tensor, *, segments: Tensor | None = None, cache: Cache | None = None, memory: Memory | None = None,
        ids: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """x (B, T, D) -> (B, T, D).

        segments (B, T): several sequences may share a row, and each token sees those of its own alone, also in the
        memory. 0 is padding, so a mask that is True at real tokens is the case of one segment.
        A cache takes the new keys and values in place, but counts them only when its owner says so (`Cache.advance`);
        it knows the length of each row, so it excludes `segments`. ids (B, T): the tokens, for their value embeddings.
        """
        if segments is not None and cache is not None:
            raise ValueError("segments and cache exclude each other: a cache knows the length of each row")
        tap(self, "entered", x)
        read = self._read_beside(x, segments, ids)
        by_kind = {local: replace(place, **read) for local, place in self._places(x, segments, cache).items()}
        heard = heard_of(memory, segments, attention_dtype(x)) if memory else None
        apply = as_region if isinstance(cache, StaticCache) else as_it_is
        for i, block in enumerate(self.blocks):
            kept = cache.layers[i] if cache else None
            recalled = (memory.layers[i], heard) if memory else ()
            x = apply(block, x, by_kind[self.is_local[i]], kept, *recalled)
        return self.norm(x)

    def remember(self, features: Tensor, segments: Tensor | None = None) -> Memory:
        """An encoder's features (B, M, D) as this decoder's memory; segments (B, M) say whose they are."""
        parts = [part for part in self.modules() if isinstance(part, CrossAttention)]
        return Memory([part.keys_values(features) for part in parts], segments)

    def new_cache(self, batch: int, capacity: int, *, dtype=None, device=None, static: bool = False) -> Cache:
        """An empty cache for `batch` rows of up to `capacity` tokens; static for a compiled step."""
        attention = self.spec.attention
        shape = (batch, attention.kv_heads or attention.heads, capacity, attention.head_width(self.spec.width))
        like = next(self.parameters())
        options = {"dtype": dtype or like.dtype, "device": device or like.device}
        read = (batch, 1, capacity, self.spec.width)  # by a convolution
        shapes = [shape, shape, read] if attention.convolution else [shape, shape]
        layers = [KeyValues(*(torch.zeros(each, **options) for each in shapes)) for _ in self.blocks]
        lengths = torch.zeros(batch, dtype=torch.long, device=options["device"])
        return (StaticCache if static else Cache)(layers, lengths)

    def _read_beside(self, x: Tensor, segments: Tensor | None, ids: Tensor | None) -> dict[str, Tensor | None]:
        """What blocks read beside the stream, as far as their parts ask."""
        found = {"segments": segments, "ids": ids, "first": x}
        return {name: found[name] if is_read else None for name, is_read in self.reads.items()}

    def _places(self, x: Tensor, segments: Tensor | None, cache: Cache | None) -> dict[bool, Place]:
        """By whether a block is local, for the kinds that there are."""
        slot = cache.slot(x.shape[1]) if cache else None
        positions = slot.positions if slot else places(x, segments)  # (T,) or (B, T)
        found = {}
        for local in self.kinds:
            rotary = self.local_rotary if local else self.rotary
            rotate = rotary(positions) if rotary is not None else None
            found[local] = self._place(x, segments, slot, positions, rotate, self.window if local else None)
        return found

    def _place(
        self, x: Tensor, segments: Tensor | None, slot: Slot | None, positions: Tensor, rotate: Rotate | None,
        window: int | None,
    ) -> Place:  # fmt: skip
        time = x.shape[1]
        fresh = slot is None or slot.start == 0
        alone = slot is not None and slot.start is not None and time == 1  # one token sees all that is there
        whole = window is None or (slot.span if slot else time) <= window
        fork = slot.fork if slot else None
        by_blocks = self.flex and slot is None and torch.compiler.is_compiling()
        plain = segments is None and fork is None and self.position_bias is None and whole and (fresh or alone)
        if plain and not (by_blocks and self.capped):  # PyTorch's kernels know no cap
            return Place(causal=self.spec.causal and not alone, rotate=rotate, slot=slot)
        stand = torch.arange(slot.span, device=x.device) if slot else positions  # where the keys stand
        sight = Sight(positions, fork.stand if fork else stand, self.spec.causal, window, segments)
        if by_blocks:
            return Place(blocks=sight.blocks(), rotate=rotate)
        return Place(self._bias(sight, fork, attention_dtype(x)), rotate=rotate, slot=slot)

    def _bias(self, sight: Sight, fork: Fork | None, dtype: torch.dtype) -> Tensor:
        """What is added to the scores, and hides: (B or 1, H or 1, T, S)."""
        visible = sight.dense() if fork is None else sight.dense() & fork.seen
        if self.position_bias is None:
            return hide(visible[:, None], 0.0, dtype)
        bias = self.position_bias(sight.distances()).to(dtype)
        tap(self, "position_biases", bias)  # those of hidden keys too
        return hide(visible[:, None], bias, dtype)
