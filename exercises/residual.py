"""Exercise: skip connection and layer norm.

Each part of a block adds to the stream and never replaces it. Layer norm brings every vector to mean 0 and variance 1
over its own D numbers (the variance divides by D; ε keeps the root from 0), then a learned gain and bias follow (Ba et
al. 2016). It stands before the part in today's models, after the sum in the paper of 2017:

    pre-norm   x + f(norm(x))                 post-norm   norm(x + f(x))

Complete the three functions, without torch's own layer norm. Then run this file:

    python exercises/residual.py
"""

from collections.abc import Callable

import torch
from checking import case, main, require, same
from torch import Tensor, nn
from torch.nn import functional as F

from nextile.nn.block import ResidualAfter, ResidualBefore

Layer = Callable[[Tensor], Tensor]


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """x (..., D), gain and bias (D,) -> (..., D)."""
    raise NotImplementedError("complete `layer_norm` in exercises/residual.py")


def pre_norm(x: Tensor, f: Layer, norm: Layer) -> Tensor:
    """(B, T, D) -> (B, T, D)."""
    raise NotImplementedError("complete `pre_norm` in exercises/residual.py")


def post_norm(x: Tensor, f: Layer, norm: Layer) -> Tensor:
    """(B, T, D) -> (B, T, D)."""
    raise NotImplementedError("complete `post_norm` in exercises/residual.py")


def check() -> None:
    """Compare with torch's layer norm and the library's residuals."""
    gain, bias = torch.randn(8), torch.randn(8)
    for name, x in {
        "2 texts of 3 tokens": torch.randn(2, 3, 8),
        "one vector": torch.randn(8),
        "numbers around 1,000": 1000 + torch.randn(2, 8),
        "equal numbers, whose variance is 0": torch.full((2, 8), 3.0),
    }.items():
        with case(f"layer_norm of {name}"):
            same(layer_norm(x, gain, bias), F.layer_norm(x, (8,), gain, bias), within=1e-4)
    norm, f = nn.LayerNorm(8), nn.Linear(8, 8)
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        for name, function, module in (("pre", pre_norm, ResidualBefore), ("post", post_norm, ResidualAfter)):
            with case(f"{name}_norm of 2 texts of 3 tokens"):
                same(function(x, f, norm), module(f, norm, nn.Identity())(x))
    with case("pre_norm of a part that gives 0: doing nothing must be easy"):
        kept = pre_norm(x, torch.zeros_like, norm)
        require(torch.equal(kept, x), "the stream is not what it was")


if __name__ == "__main__":
    main(check)
