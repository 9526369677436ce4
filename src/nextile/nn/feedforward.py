"""The feed-forward net: expand, bend, contract, the same at each position.

Shapes: B batch, T time, D width, F hidden width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextile.nn import specs
from nextile.nn.linear import Linear
from nextile.nn.tap import tap

SQRT_8_OVER_PI = math.sqrt(8 / math.pi)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU's tanh approximation, as GPT-2 has it (Hendrycks and Gimpel 2016).

    In a compiled graph on CPU it is written as the sigmoid that it equals, since (1 + tanh y) / 2 is the sigmoid of 2y:
    a vector of sigmoids takes less than half of the time of a vector of tanhs, forward and backward.
    """
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        return x * torch.sigmoid(x * (SQRT_8_OVER_PI + 0.044715 * SQRT_8_OVER_PI * x * x))
    return F.gelu(x, approximate="tanh")


def quick_gelu(x: Tensor) -> Tensor:
    """GELU's sigmoid approximation, as image-GPT has it."""
    return x * torch.sigmoid(1.702 * x)


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)² (So et al. 2021, Primer)."""
    return F.relu(x).square()


ACTIVATIONS = {
    "relu": F.relu,
    "relu_squared": relu_squared,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "silu": F.silu,
}


class MLP(nn.Module):
    """down(f(up(x)))."""

    def __init__(self, spec: specs.MLP, width: int):
        super().__init__()
        self.activation = ACTIVATIONS[spec.activation]
        self.up = Linear(width, spec.hidden, bias=spec.bias)
        self.down = Linear(spec.hidden, width, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.up(x))  # (B, T, F)
        tap(self, "hidden", hidden)
        return self.down(hidden)  # (B, T, D)


class GatedMLP(nn.Module):
    """down(f(gate(x)) * up(x))."""

    def __init__(self, spec: specs.GatedMLP, width: int):
        super().__init__()
        self.activation = ACTIVATIONS[spec.activation]
        self.gate = Linear(width, spec.hidden, bias=spec.bias)
        self.up = Linear(width, spec.hidden, bias=spec.bias)
        self.down = Linear(spec.hidden, width, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.gate(x)) * self.up(x)  # (B, T, F)
        tap(self, "hidden", hidden)
        return self.down(hidden)  # (B, T, D)


class Stacked(nn.Module):
    """The matrices of N experts as one tensor."""

    def __init__(self, experts: int, inner: int, outer: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, outer, inner))

    def of(self, expert: int, x: Tensor) -> Tensor:
        """One expert's: (..., inner) -> (..., outer)."""
        return F.linear(x, self.weight[expert])

    def forward(self, x: Tensor) -> Tensor:
        """Every expert's: (M, inner) or (N, M, inner) -> (N, M, outer)."""
        return x @ self.weight.mT


class Experts(nn.Module):
    """sum of share_e * down_e(f(gate_e(x)) * up_e(x)) over the few experts e that the router likes best.

    Shapes: N experts, C of them chosen, M = B * T tokens.
    """

    def __init__(self, spec: specs.Experts, width: int):
        super().__init__()
        self.activation, self.chosen = ACTIVATIONS[spec.activation], spec.chosen
        self.router = Linear(width, spec.experts, bias=False)
        self.gate = Stacked(spec.experts, width, spec.hidden)
        self.up = Stacked(spec.experts, width, spec.hidden)
        self.down = Stacked(spec.experts, spec.hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        tokens = x.flatten(0, -2)  # (M, D)
        shares = self.shares(tokens)  # (M, N)
        tap(self, "shares", shares)
        compiling = torch.compiler.is_compiling()
        return (self._all(tokens, shares) if compiling else self._few(tokens, shares)).view_as(x)

    def shares(self, tokens: Tensor) -> Tensor:
        """How much each expert counts, 0 for those that are not chosen; together 1: (M, D) -> (M, N)."""
        scores = self.router(tokens)
        probabilities = scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1)
        best, experts = probabilities.topk(self.chosen, dim=-1)  # (M, C)
        best = best / best.sum(-1, keepdim=True)
        return torch.zeros_like(probabilities).scatter(1, experts, best).to(tokens.dtype)

    def _few(self, tokens: Tensor, shares: Tensor) -> Tensor:
        """Each expert reads the tokens that chose it."""
        result = torch.zeros_like(tokens)
        for expert in range(shares.shape[1]):
            rows = shares[:, expert].nonzero()[:, 0]
            if len(rows):
                mine = tokens[rows]
                hidden = self.activation(self.gate.of(expert, mine)) * self.up.of(expert, mine)
                share = shares[rows, expert, None]
                result = result.index_add(0, rows, (self.down.of(expert, hidden) * share).to(result.dtype))
        return result

    def _all(self, tokens: Tensor, shares: Tensor) -> Tensor:
        """Every expert reads every token: more work, but of a shape that a compiled graph can know before."""
        hidden = self.activation(self.gate(tokens)) * self.up(tokens)  # (N, M, F)
        return (self.down(hidden) * shares.mT[..., None]).sum(0)  # (M, D)


MODULES = {specs.MLP: MLP, specs.GatedMLP: GatedMLP, specs.Experts: Experts}


def make_feed_forward(spec: specs.FeedForward, width: int) -> nn.Module:
    """The module that the spec's type names."""
    return MODULES[type(spec)](spec, width)
