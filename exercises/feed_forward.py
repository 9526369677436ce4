"""Exercise: the feed-forward net, and its bend.

Expand, bend, contract: a matrix to a width of usually four times as much, GELU on each number, a matrix back. The same
net reads every position by itself. GELU weighs a number by how much of a normal distribution lies below it
(Hendrycks and Gimpel 2016):

    GELU(x) = x Φ(x) = x (1 + erf(x / √2)) / 2

Complete both functions, without torch's own gelu. Then run this file:

    python exercises/feed_forward.py
"""

import torch
from checking import case, main, require, same
from torch import Tensor
from torch.nn import functional as F

from nextile.nn import specs
from nextile.nn.feedforward import make_feed_forward


def gelu(x: Tensor) -> Tensor:
    """Of each number, (...) -> (...)."""
    raise NotImplementedError("complete `gelu` in exercises/feed_forward.py")


def feed_forward(x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
    """x (B, T, D), matrices up (D, F) and down (F, D), used as x @ matrix, with their biases -> (B, T, D)."""
    raise NotImplementedError("complete `feed_forward` in exercises/feed_forward.py")


def check() -> None:
    """Compare with torch's GELU and the library's net."""
    with case("gelu of -3, -1, 0, 1, 3"):
        x = torch.tensor([-3.0, -1, 0, 1, 3])
        same(gelu(x), F.gelu(x))
    with case("gelu of ±1,000"):
        same(gelu(torch.tensor([-1000.0, 1000.0])), torch.tensor([0.0, 1000.0]))
    with case("gelu in float64"):
        x = torch.linspace(-6, 6, 101, dtype=torch.float64)
        same(gelu(x), F.gelu(x), within=1e-12)
    net = make_feed_forward(specs.MLP(hidden=32), 8)
    up, down = (getattr(net, name) for name in ("up", "down"))
    numbers = [number.detach() for layer in (up, down) for number in (layer.weight.T, layer.bias)]
    with torch.no_grad(), case("2 texts of 5 tokens, width 8, hidden width 32"):
        x = torch.randn(2, 5, 8)
        found = feed_forward(x, *numbers)
        same(found, net(x))
        turned = feed_forward(x.flip(1), *numbers)
        require(torch.allclose(turned, found.flip(1), atol=1e-5), "a position notices what stands beside it")


if __name__ == "__main__":
    main(check)
