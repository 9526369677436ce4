"""Exercise: where a token stands.

Sinusoids: position pos has the angles pos / 10000^(2i/D), i = 0 ... D/2 - 1. First all their sines, then all their
cosines (Vaswani et al. 2017, section 3.5, who interleave the two).

Rotary: the pair (x_i, x_{i + E/2}) is turned by the angle pos / base^(2i/E), as a point in the plane (Su et al. 2021):

    (a, b) -> (a cos - b sin, b cos + a sin)

Complete both functions. Then run this file:

    python exercises/positions.py
"""

import torch
from checking import case, main, require, same
from torch import Tensor

from nextile.nn import specs
from nextile.nn.position import RotaryPosition, sinusoid


def sinusoids(length: int, width: int) -> Tensor:
    """(T, D), float32, of positions 0 to T - 1; the width is even."""
    raise NotImplementedError("complete `sinusoids` in exercises/positions.py")


def rotate(x: Tensor, positions: Tensor, base: float = 10_000.0) -> Tensor:
    """Queries or keys x (..., T, E), positions (T,) -> (..., T, E), turned; E is even."""
    raise NotImplementedError("complete `rotate` in exercises/positions.py")


def check() -> None:
    """Compare with the library, and look whether products depend on the distance alone."""
    for length, width in ((1, 2), (10, 8), (100, 64)):
        with case(f"sinusoids of {length} positions, width {width}"):
            same(sinusoids(length, width), sinusoid(torch.arange(length), width).float(), within=1e-4)
    with case("rotate at position 0, which turns nothing"):
        x = torch.randn(1, 1, 1, 8)
        same(rotate(x, torch.tensor([0])), x)
    for base in (10_000.0, 100.0):
        with case(f"rotate of 2 texts, 3 heads, 5 tokens from position 7 on, base {base:,.0f}"):
            x, positions = torch.randn(2, 3, 5, 8), torch.arange(7, 12)
            same(rotate(x, positions, base), RotaryPosition(specs.Rotary(base=base), 8)(positions)(x), within=1e-4)
    with case("rotate, lengths"):
        x = torch.randn(5, 8)
        same(rotate(x, torch.arange(5)).norm(dim=-1), x.norm(dim=-1))
    with case("rotate, a query at 3 and a key at 10, and the same at 103 and 110"):
        q, k = torch.randn(2, 1, 8)
        near, far = (
            float((rotate(q, torch.tensor([at])) * rotate(k, torch.tensor([at + 7]))).sum()) for at in (3, 103)
        )
        require(abs(near - far) < 1e-3, f"their products are {near:.4f} and {far:.4f} and should be equal")


if __name__ == "__main__":
    main(check)
