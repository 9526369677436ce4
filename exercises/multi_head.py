"""Exercise: split into heads, and join them.

One attention of width D becomes H attentions of width E = D / H, side by side: the first E numbers of a vector are the
first head's, the next E the second's, and so on. Every head attends by itself. Then their results stand on end again,
and one matrix mixes them (Vaswani et al. 2017, section 3.2.2).

Complete `split`, `join` and `multi_head`, the last by `torch.softmax` or your own `attention`. Then run this file:

    python exercises/multi_head.py
"""

import torch
from checking import case, main, require, same
from torch import Tensor

from nextile.nn import specs
from nextile.nn.attention import Place, SelfAttention


def split(x: Tensor, heads: int) -> Tensor:
    """(B, T, D) -> (B, H, T, E): head h has the numbers h * E up to (h + 1) * E of every vector."""
    raise NotImplementedError("complete `split` in exercises/multi_head.py")


def join(x: Tensor) -> Tensor:
    """What `split` took apart: (B, H, T, E) -> (B, T, D)."""
    raise NotImplementedError("complete `join` in exercises/multi_head.py")


def multi_head(x: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, heads: int) -> Tensor:
    """Self-attention, not masked: x (B, T, D) and four matrices (D, D), used as x @ matrix -> (B, T, D)."""
    raise NotImplementedError("complete `multi_head` in exercises/multi_head.py")


def check() -> None:
    """Compare with the library's own layer, which is given the same matrices."""
    with case("split of 6 numbers into 2 heads"):
        x = torch.arange(12.0).view(1, 2, 6)
        same(split(x, 2), torch.tensor([[[[0.0, 1, 2], [6, 7, 8]], [[3, 4, 5], [9, 10, 11]]]]))
    with case("join after split"):
        x = torch.randn(2, 5, 8)
        for heads in (1, 2, 4, 8):
            same(join(split(x, heads)), x)
    for heads in (4, 1):
        layer = SelfAttention(specs.Attention(heads=heads, bias="none"), 8)
        query, key, value, out = (getattr(layer, name).weight.detach().T for name in ("query", "key", "value", "out"))
        x = torch.randn(2, 5, 8)
        with torch.no_grad(), case(f"multi_head, 2 texts of 5 tokens, {heads} head{'s' * (heads > 1)}"):
            found = multi_head(x, query, key, value, out, heads)
            same(found, layer(x, Place()))
            alone = multi_head(x[:1], query, key, value, out, heads)
            require(torch.allclose(alone, found[:1], atol=1e-5), "a text is told something of the text beside it")


if __name__ == "__main__":
    main(check)
