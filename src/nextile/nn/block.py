"""The residual and the block: `Block.forward` is the equation.

Shapes: B batch, T time, D width.
"""

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

    def forward(self, x: Tensor, *context) -> Tensor:
        return x + self.dropout(self.inner(self.norm(x), *context))


class ResidualAfter(ResidualBefore):
    """norm(x + f(x)): the 2017 shape (post-norm)."""

    def forward(self, x: Tensor, *context) -> Tensor:
        return self.norm(x + self.dropout(self.inner(x, *context)))


RESIDUALS = {"before": ResidualBefore, "after": ResidualAfter}


class Block(nn.Module):
    """Self-attention, cross-attention when there is a memory, feed-forward."""

    def __init__(self, spec: specs.Stack, index: int = 0):
        super().__init__()
        left_out = spec.stochastic_depth * index / max(1, spec.depth - 1)  # the deeper, the more often

        def residual(inner: nn.Module) -> nn.Module:
            dropout: nn.Module = Dropout(spec.dropout)
            dropout = nn.Sequential(dropout, StochasticDepth(left_out)) if left_out else dropout
            return RESIDUALS[spec.norm_place](inner, make_norm(spec.norm, spec.width), dropout)

        self.self_attention = residual(SelfAttention(spec.attention, spec.width))
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
        x = self.self_attention(x, place, kept)
        if self.cross_attention is not None:
            x = self.cross_attention(x, memory, memory_bias)
        x = self.feed_forward(x)
        tap(self, "stream", x)
        return x
