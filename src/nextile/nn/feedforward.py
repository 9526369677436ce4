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


MODULES = {specs.MLP: MLP, specs.GatedMLP: GatedMLP}


def make_feed_forward(spec: specs.MLP | specs.GatedMLP, width: int) -> nn.Module:
    """The module that the spec's type names."""
    return MODULES[type(spec)](spec, width)
