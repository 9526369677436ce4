"""Blocks in order; masks and positions are computed once for all of them.

Shapes: B batch, T time asked, S time seen, M memory length, D width, H heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from nextile.nn import specs
from nextile.nn.attention import CrossAttention, Place
from nextile.nn.block import Block
from nextile.nn.cache import Cache, KeyValues, StaticCache
from nextile.nn.norm import make_norm
from nextile.nn.position import BIASES, RotaryPosition


@dataclass
class Memory:
    """What a decoder attends to: each block's keys and values of it, computed once, and what of it is hidden."""

    layers: list[tuple[Tensor, Tensor]]
    bias: Tensor | None = None  # (B, 1, 1, M)

    def select(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was (beams)."""
        self.layers = [(k[rows], v[rows]) for k, v in self.layers]
        self.bias = None if self.bias is None else self.bias[rows]


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


def as_it_is(block: nn.Module, x: Tensor, *context) -> Tensor:
    """The block applied."""
    return block(x, *context)


# The block as a region of its own: a graph of equal blocks is compiled in little more time than one of them takes.
as_region = cast("Callable[..., Tensor]", torch.compiler.nested_compile_region(as_it_is))


class TransformerStack(nn.Module):
    """An encoder (not causal), a decoder (causal), or a decoder that attends to a memory (cross)."""

    def __init__(self, spec: specs.Stack):
        super().__init__()
        self.spec = spec
        head_width = spec.attention.head_width(spec.width)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        self.norm = make_norm(spec.norm, spec.width) if spec.norm_place == "before" else nn.Identity()
        self.rotary = RotaryPosition(spec.position, head_width) if isinstance(spec.position, specs.Rotary) else None
        bias = BIASES.get(type(spec.position))
        self.position_bias = bias(spec.position, spec.attention.heads, spec.causal) if bias else None

    def forward(
        self, x: Tensor, *, keep: Tensor | None = None, cache: Cache | None = None, memory: Memory | None = None
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D).

        keep (B, T) is True at real tokens, False at padding. A cache takes the new keys and values in place, but counts
        them only when its owner says so (`Cache.advance`); it knows the length of each row, so it excludes `keep`.
        """
        if keep is not None and cache is not None:
            raise ValueError("keep and cache exclude each other: a cache knows the length of each row")
        place = self._place(x, keep, cache)
        apply = as_region if isinstance(cache, StaticCache) else as_it_is
        for i, block in enumerate(self.blocks):
            kept = cache.layers[i] if cache else None
            recalled = (memory.layers[i], memory.bias) if memory else ()
            x = apply(block, x, place, kept, *recalled)
        return self.norm(x)

    def remember(self, features: Tensor, keep: Tensor | None = None) -> Memory:
        """An encoder's features (B, M, D) as this decoder's memory; keep (B, M) is False at what nobody may see."""
        parts = [part for part in self.modules() if isinstance(part, CrossAttention)]
        bias = None if keep is None else hide(keep[:, None, None, :], 0.0, attention_dtype(features))
        return Memory([part.keys_values(features) for part in parts], bias)

    def new_cache(self, batch: int, capacity: int, *, dtype=None, device=None, static: bool = False) -> Cache:
        """An empty cache for `batch` rows of up to `capacity` tokens; static for a compiled step."""
        attention = self.spec.attention
        shape = (batch, attention.kv_heads or attention.heads, capacity, attention.head_width(self.spec.width))
        like = next(self.parameters())
        options = {"dtype": dtype or like.dtype, "device": device or like.device}
        layers = [KeyValues(torch.zeros(shape, **options), torch.zeros(shape, **options)) for _ in self.blocks]
        lengths = torch.zeros(batch, dtype=torch.long, device=options["device"])
        return (StaticCache if static else Cache)(layers, lengths)

    def _place(self, x: Tensor, keep: Tensor | None, cache: Cache | None) -> Place:
        time = x.shape[1]
        slot = cache.slot(time) if cache else None
        positions = slot.positions if slot else torch.arange(time, device=x.device)  # (T,) or (B, T)
        rotate = self.rotary(positions) if self.rotary is not None else None
        fresh = slot is None or slot.start == 0
        alone = slot is not None and slot.start is not None and time == 1  # one token sees all that is there
        if keep is None and self.position_bias is None and (fresh or alone):
            return Place(causal=self.spec.causal and not alone, rotate=rotate, slot=slot)
        bias = self._bias(positions, slot.span if slot else time, keep, attention_dtype(x))
        return Place(bias=bias, rotate=rotate, slot=slot)

    def _bias(self, positions: Tensor, span: int, keep: Tensor | None, dtype: torch.dtype) -> Tensor:
        """(B or 1, H or 1, T, S)."""
        distance = torch.arange(span, device=positions.device) - positions[..., None]  # (T, S) or (B, T, S)
        distance = distance.reshape(-1, *distance.shape[-2:])  # (B or 1, T, S)
        visible = (distance <= 0 if self.spec.causal else torch.ones_like(distance, dtype=torch.bool))[:, None]
        if keep is not None:
            visible = visible & keep[:, None, None, :]
        bias = 0.0 if self.position_bias is None else self.position_bias(distance).to(dtype)
        return hide(visible, bias, dtype)
