"""The residual and the block: `Block.forward` is the equation.

Shapes: B batch, T time, D width.
"""

import torch
from torch import Tensor, nn

from nextile.nn import specs
from nextile.nn.attention import CrossAttention, Place, SelfAttention
from nextile.nn.cache import KeyValues
from nextile.nn.dropout import Dropout, StochasticDepth
from nextile.nn.feedforward import make_feed_forward
from nextile.nn.norm import make_norm
from nextile.nn.tap import tap


class ResidualBefore(nn.Module):
    """x + f(norm(x)): the input stays, gradients flow (pre-norm; Xiong et al. 2020)."""

    def __init__(self, inner: nn.Module, norm: nn.Module, dropout: nn.Module):
        super().__init__()
        self.inner, self.norm, self.dropout = inner, norm, dropout

    def branch(self, x: Tensor, *context) -> Tensor:
        """What is added to x."""
        return self.dropout(self.inner(self.norm(x), *context))

    def forward(self, x: Tensor, *context) -> Tensor:
        added = self.branch(x, *context)
        tap(self, "added", added)
        return x + added


class ResidualAfter(ResidualBefore):
    """norm(x + f(x)): the 2017 shape (post-norm)."""

    def forward(self, x: Tensor, *context) -> Tensor:
        added = self.dropout(self.inner(x, *context))
        tap(self, "added", added)
        return self.norm(x + added)


class ResidualInside(ResidualBefore):
    """x + norm(f(x)): the stream is never normed, what is added to it always (Groeneveld et al. 2024, OLMo 2)."""

    def branch(self, x: Tensor, *context) -> Tensor:
        return self.dropout(self.norm(self.inner(x, *context)))


class ResidualAround(ResidualBefore):
    """x + after(f(norm(x))): both (Gemma 2)."""

    def __init__(self, inner: nn.Module, norm: nn.Module, dropout: nn.Module, after_norm: nn.Module):
        super().__init__(inner, norm, dropout)
        self.after_norm = after_norm

    def branch(self, x: Tensor, *context) -> Tensor:
        return self.dropout(self.after_norm(self.inner(self.norm(x), *context)))


RESIDUALS = {"before": ResidualBefore, "after": ResidualAfter, "inside": ResidualInside, "around": ResidualAround}


class ResidualScalars(nn.Module):
    """a x + b x0, of the stream and of what came into the stack; a and b are learned (Jordan et al. 2024)."""

    def __init__(self):
        super().__init__()
        self.stream, self.first = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, first: Tensor) -> Tensor:
        """(B, T, D) twice -> (B, T, D)."""
        return self.stream.to(x.dtype) * x + self.first.to(x.dtype) * first


class Block(nn.Module):
    """Self-attention, cross-attention when there is a memory, feed-forward.

    vocab: of the stack's tokens, where they may have embeddings among the values.
    """

    def __init__(self, spec: specs.Stack, index: int = 0, vocab: int | None = None):
        super().__init__()
        left_out = spec.stochastic_depth * index / max(1, spec.depth - 1)  # the deeper, the more often

        def residual(inner: nn.Module) -> ResidualBefore:
            dropout: nn.Module = Dropout(spec.dropout)
            dropout = nn.Sequential(dropout, StochasticDepth(left_out)) if left_out else dropout
            norms = [make_norm(spec.norm, spec.width) for _ in range(1 + (spec.norm_place == "around"))]
            return RESIDUALS[spec.norm_place](inner, norms[0], dropout, *norms[1:])

        embedded = vocab if spec.value_embedding and spec.value_embedding.holds(index) else None
        self.scalars = ResidualScalars() if spec.residual_scalars else None
        self.self_attention = residual(SelfAttention(spec.attention, spec.width, embedded))
        self.cross_attention = residual(CrossAttention(spec.cross, spec.width)) if spec.cross else None
        self.feed_forward = residual(make_feed_forward(spec.feed_forward, spec.width))

    def forward(
        self,
        x: Tensor,
        place: Place,
        kept: KeyValues | None = None,
        memory: tuple[Tensor, Tensor] | None = None,
        memory_bias: Tensor | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if self.scalars is not None:
            x = self.scalars(x, place.first)
        x = self.self_attention(x, place, kept)
        if self.cross_attention is not None:
            x = self.cross_attention(x, memory, memory_bias)
        x = self.feed_forward(x)
        tap(self, "stream", x)
        return x


class ParallelBlock(Block):
    """Attention and feed-forward both read x, and both are added to it (Wang and Komatsuzaki 2021, GPT-J)."""

    def forward(
        self,
        x: Tensor,
        place: Place,
        kept: KeyValues | None = None,
        memory: tuple[Tensor, Tensor] | None = None,
        memory_bias: Tensor | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if self.scalars is not None:
            x = self.scalars(x, place.first)
        attended, fed = self.self_attention.branch(x, place, kept), self.feed_forward.branch(x)
        tap(self.self_attention, "added", attended)
        tap(self.feed_forward, "added", fed)
        x = x + attended + fed
        tap(self, "stream", x)
        return x


BLOCKS = {"serial": Block, "parallel": ParallelBlock}
