"""Multi-head attention: each token weighs the others, softmax(Q Kᵀ · scale + bias) V.

Shapes: B batch, T time asked, S time seen, D width, H heads, K kv-heads (G = H / K queries share one), E head width.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextile.nn import specs
from nextile.nn.cache import Attend, KeyValues, Slot
from nextile.nn.convolution import ShortConvolution
from nextile.nn.dropout import dropout
from nextile.nn.linear import Linear, held, in_type
from nextile.nn.norm import make_norm
from nextile.nn.position import Rotate
from nextile.nn.table import Embedding
from nextile.nn.tap import chosen_heads, tap, wanted

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

CAPTURED = ("queries", "keys", "values", "compared", "hidden", "scores", "weights", "heads")  # what `capture` names


@dataclass(frozen=True)
class Place:
    """What all blocks of a stack share in one call: who may see whom, and where everybody stands."""

    bias: Tensor | None = None  # added to the scores, (B or 1, H or 1, T, S); a large negative number hides
    causal: bool = False  # without a bias: query t sees keys 0..t
    blocks: "BlockMask | None" = None  # in place of both: which keys FlexAttention looks at
    rotate: Rotate | None = None
    slot: Slot | None = None
    segments: Tensor | None = None  # (B, T): which text of its row a token is of, where a convolution looks back
    ids: Tensor | None = None  # (B, T): the tokens, where they have embeddings among the values
    first: Tensor | None = None  # (B, T, D): what came into the stack, where its blocks read that again


def capped(scores: Tensor, cap: float | None) -> Tensor:
    """Scores that never leave -cap..cap, hardly changed where they are small (Gemma 2)."""
    return scores if cap is None else cap * torch.tanh(scores / cap)


def compared(q: Tensor, k: Tensor, scale: float, cap: float | None = None) -> Tensor:
    """How well queries (B, H, T, E) and keys (B, K, S, E) fit, at least in float32, before any bias: (B, H, T, S)."""
    grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[-1])  # (B, K, G*T, E): the queries that share a key
    scores = (grouped @ k.mT).reshape(*q.shape[:3], -1)  # (B, H, T, S)
    return capped((scores.double() if scores.dtype == torch.float64 else scores.float()) * scale, cap)


def hidden(scores: Tensor, bias: Tensor | None, causal: bool) -> Tensor:
    """Which keys are hidden from which queries, (B or 1, H or 1, T, S), of scores (B, H, T, S)."""
    if bias is not None:
        return (bias == torch.finfo(bias.dtype).min).expand(-1, -1, *scores.shape[2:])
    time, seen = scores.shape[2:]
    everything = torch.ones(1, 1, time, seen, dtype=torch.bool, device=scores.device)
    return everything.triu(seen - time + 1) if causal else ~everything  # the last query sees everything


def explicit_attention(
    q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None, causal: bool, scale: float, share: float = 0.0,
    cap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The textbook's way: q (B, H, T, E), k, v (B, K, S, E) -> result (B, H, T, E), scores, weights (B, H, T, S)."""
    scores = compared(q, k, scale, cap)
    if bias is not None:
        scores = scores + bias
    elif causal:
        scores = scores.masked_fill(hidden(scores, None, causal), torch.finfo(scores.dtype).min)
    weights = dropout(scores.softmax(-1), share).to(v.dtype)
    result = weights.reshape(len(q), k.shape[1], -1, k.shape[2]) @ v  # (B, K, G*T, E)
    return result.reshape(q.shape), scores, weights


def fast_attention(
    q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None, causal: bool, scale: float, share: float = 0.0,
    cap: float | None = None,
) -> Tensor:  # fmt: skip
    """The same result without keeping scores or weights; PyTorch's kernels know no cap on the scores.

    Inside a compiled graph on CPU the textbook's way fuses, and takes less than half the flash kernel's time at the
    lengths that a CPU trains (docs/benchmarks.md), and so it is faster where a few queries, as beams are, ask more keys
    than that; everywhere else PyTorch's kernels are ahead.
    """
    few = q.device.type == "cpu" and 1 < q.shape[2] <= 16 and q.shape[2] < k.shape[2]
    if cap is not None or (few and q.dtype == torch.float32 and not q.requires_grad and not causal):
        return explicit_attention(q, k, v, bias=bias, causal=causal, scale=scale, share=share, cap=cap)[0]
    if torch.compiler.is_compiling() and q.device.type == "cpu":
        return piece_by_piece(q, k, v, bias=bias, causal=causal, scale=scale, share=share)
    bias = None if bias is None else bias.to(q.dtype)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, dropout_p=share, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def block_attention(q: Tensor, k: Tensor, v: Tensor, blocks: "BlockMask", *, scale: float, cap: float | None) -> Tensor:
    """The same result by FlexAttention, which passes over blocks in which nothing is seen, and keeps no mask.

    It must be part of a compiled graph: outside of one it holds all scores.
    """
    from torch.nn.attention.flex_attention import flex_attention  # which imports half the compiler

    def cap_score(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return capped(score, cap)

    rule = {"score_mod": None if cap is None else cap_score, "block_mask": blocks, "scale": scale}
    return cast("Tensor", flex_attention(q, k, v, **rule, enable_gqa=q.shape[1] != k.shape[1]))


PIECE = 128  # queries that a compiled graph on CPU asks at once: what they weigh then stays near the processor
PIECES = 4  # at most: each is compiled for itself


class Weights(torch.autograd.Function):
    """softmax(scores * scale + bias), reckoned at least in float32 and kept for the gradient as narrow as it returns.

    In the scores' type, of their shape (..., T, S); bias (T, S) or as the scores, without a gradient.
    """

    @staticmethod
    def forward(scores: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
        return in_type((wide if bias is None else wide + bias).softmax(-1), scores.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.scale = inputs[2]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weights,) = ctx.saved_tensors
        wide = weights.to(torch.promote_types(weights.dtype, torch.float32))
        moved = grads[0] * wide
        return ((moved - wide * moved.sum(-1, keepdim=True)) * ctx.scale).to(weights.dtype), None, None


def piece_by_piece(
    q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None, causal: bool, scale: float, share: float
) -> Tensor:
    """The textbook's way for a compiled graph on CPU: q (B, H, T, E), k, v (B, K, S, E) -> (B, H, T, E).

    Where attention is causal the queries are asked in pieces, of which the earlier never meet keys that they cannot
    see. What hides is a number to add, in memory: comparing anew for each head takes longer than the exponentials.
    """
    if bias is not None and bias.requires_grad:
        return explicit_attention(q, k, v, bias=bias, causal=causal, scale=scale, share=share)[0]
    if not causal:
        return _weighed(q, k, v, None if bias is None else held(bias), scale, share)
    time, seen = q.shape[2], k.shape[2]
    step = -(-time // min(PIECES, -(-time // PIECE)))
    found = []
    for first in range(0, time, step):
        asked = q[:, :, first : first + step]
        last = seen - time + first + asked.shape[2]  # of the keys, the last query of a piece sees so many
        behind = held(_behind(asked.shape[2], last, q.device))
        found.append(_weighed(asked, k[:, :, :last], v[:, :, :last], behind, scale, share))
    return found[0] if len(found) == 1 else torch.cat(found, dim=2)


def _behind(time: int, seen: int, device: torch.device) -> Tensor:
    """What hides the keys that stand behind a query, (T, S)."""
    everything = torch.full((time, seen), torch.finfo(torch.float32).min, device=device)
    return everything.triu(seen - time + 1)


def _weighed(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, share: float) -> Tensor:
    """All queries at once, (B, H, T, E); bias (T, S), or (B or 1, H or 1, T, S)."""
    grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[-1])  # (B, K, G*T, E): the queries that share a key
    scores = (grouped @ k.mT).reshape(*q.shape[:3], -1)  # (B, H, T, S)
    weights = dropout(cast("Tensor", Weights.apply(scores, bias, scale)), share)
    return (weights.reshape(len(q), k.shape[1], -1, k.shape[2]) @ v).reshape(q.shape)


class OverHeads(nn.Module):
    """A norm of all heads as one vector (OLMo 2)."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, T, E) -> (B, H, T, E)."""
        joined = self.norm(x.transpose(1, 2).flatten(2))  # (B, T, H*E)
        return joined.unflatten(-1, (x.shape[1], -1)).transpose(1, 2)


class MultiHeadAttention(nn.Module):
    """The four matrices, the split in heads, and the weighing; what is asked and what is seen differ by subclass."""

    def __init__(self, spec: specs.Attention, width: int):
        super().__init__()
        self.heads, self.kv_heads = spec.heads, spec.kv_heads or spec.heads
        self.head_width = spec.head_width(width)
        self.scale = spec.scale or self.head_width**-0.5
        self.dropout, self.soft_cap = spec.dropout, spec.soft_cap
        inner, outer = self.heads * self.head_width, self.kv_heads * self.head_width
        self.query = Linear(width, inner, bias=spec.bias != "none")
        self.key = Linear(width, outer, bias=spec.bias != "none")
        self.value = Linear(width, outer, bias=spec.bias != "none")
        self.out = Linear(inner, width, bias=spec.bias == "all")
        self.query_norm, self.key_norm = (
            self._norm(spec, heads) if spec.qk_norm else nn.Identity() for heads in (self.heads, self.kv_heads)
        )

    def queries(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, E)."""
        return self.query_norm(self._split(self.query(x), self.heads))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, D) -> keys and values, (B, K, S, E) each."""
        return self.key_norm(self._split(self.key(x), self.kv_heads)), self._split(self.value(x), self.kv_heads)

    def _norm(self, spec: specs.Attention, heads: int) -> nn.Module:
        assert spec.qk_norm is not None
        if spec.qk_norm_over == "head":
            return make_norm(spec.qk_norm, self.head_width)
        return OverHeads(make_norm(spec.qk_norm, heads * self.head_width))

    def weigh(
        self, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None, causal: bool = False,
        blocks: "BlockMask | None" = None, attend: Attend | None = None,
    ) -> Tensor:  # fmt: skip
        """Attend (None: as is fastest here), join the heads, mix them by the output matrix: (B, T, D)."""
        k, v = k.to(q.dtype), v.to(q.dtype)
        share = self.dropout if self.training else 0.0
        rule = {"bias": bias, "causal": causal, "scale": self.scale, "share": share, "cap": self.soft_cap}
        if blocks is not None:
            z = block_attention(q, k, v, blocks, scale=self.scale, cap=self.soft_cap)
        elif attend is not None:
            z = attend(q, k, v, **rule)
        elif any(wanted(self, what) for what in CAPTURED):
            z = self.capture(q, k, v, **rule)
        else:
            z = fast_attention(q, k, v, **rule)
        return self.out(z.transpose(1, 2).flatten(2))

    def capture(self, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None, causal: bool, **rule: Any) -> Tensor:
        """Attend, and tap what a recording asks for: of all heads, or of the few, beside the fast path of all.

        Queries and keys are tapped as they are multiplied, after norms and turns; of some heads the keys and values
        are those of their groups. Returns (B, H, T, E).
        """
        asked = chosen_heads()
        z = None if asked is None else fast_attention(q, k, v, bias=bias, causal=causal, **rule)
        if asked is not None:
            groups = [head * k.shape[1] // q.shape[1] for head in asked]
            q, k, v = q[:, asked], k[:, groups], v[:, groups]
            bias = bias if bias is None or bias.shape[1] == 1 else bias[:, asked]
        heads, scores, weights = explicit_attention(q, k, v, bias=bias, causal=causal, **rule)
        named = {"queries": q, "keys": k, "values": v, "scores": scores, "weights": weights, "heads": heads}
        for what, value in named.items():
            tap(self, what, value)
        if wanted(self, "compared"):
            tap(self, "compared", compared(q, k, rule["scale"], rule["cap"]))
        if wanted(self, "hidden"):
            tap(self, "hidden", hidden(scores, bias, causal))
        return heads if z is None else z

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.head_width)).transpose(1, 2)


class SelfAttention(MultiHeadAttention):
    """Tokens of one stream ask each other.

    vocab: how many embeddings there are among the values; None: none.
    """

    def __init__(self, spec: specs.Attention, width: int, vocab: int | None = None):
        super().__init__(spec, width)
        self.convolution = ShortConvolution(spec.convolution, width) if spec.convolution else None
        self.value_embedding = Embedding(vocab, self.kv_heads * self.head_width) if vocab else None

    def forward(self, x: Tensor, place: Place, kept: KeyValues | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); `kept` holds the keys and values of earlier tokens and takes the new ones."""
        if self.convolution is not None:
            x = self.convolution(x, place.slot, kept, place.segments)
        q = self.queries(x)
        k, v = self.keys_values(x)
        if self.value_embedding is not None:
            v = v + self._split(self.value_embedding(place.ids), self.kv_heads).to(v.dtype)
        if place.rotate is not None:
            q, k = place.rotate(q), place.rotate(k)
        attend = None
        if kept is not None and place.slot is not None:
            k, v = kept.write(k, v, place.slot)
            attend = kept.attend(place.slot)
        return self.weigh(q, k, v, bias=place.bias, causal=place.causal, blocks=place.blocks, attend=attend)


class CrossAttention(MultiHeadAttention):
    """Tokens of one stream ask a memory, whose keys and values are computed once (`keys_values`)."""

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor], bias: Tensor | None) -> Tensor:
        """(B, T, D) and keys, values (M, K, S, E) -> (B, T, D); B / M rows, one after the other, share a memory."""
        k, v = memory
        q = self.queries(x).unflatten(0, (len(k), -1))  # (M, B/M, H, T, E)
        q = q.transpose(1, 2).flatten(2, 3)  # (M, H, B/M * T, E): the memory is read once for all that share it
        return self.weigh(q, k, v, bias=bias).reshape(x.shape)
