"""Exercise: write scaled dot-product attention.

Every query is compared with every key by a product. The products, over the root of the key's width, become weights by
a softmax over the keys, and the result is the average of the values under these weights:

    attention(Q, K, V) = softmax(Q Kᵀ / √E) V              (Vaswani et al. 2017, equation 1)

Complete `attention`. Nothing may loop over tokens: matrices do it. Then run this file:

    python exercises/attention.py
"""

import torch
from checking import case, main, same
from torch import Tensor

from nextile.nn.attention import explicit_attention


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Queries q (..., T, E), keys k (..., S, E), values v (..., S, E) -> result (..., T, E), weights (..., T, S)."""
    raise NotImplementedError("complete `attention` in exercises/attention.py")


def check() -> None:
    """Compare with the library, on random vectors and on a few that are not."""

    def compare(q: Tensor, k: Tensor, v: Tensor) -> None:
        result, _, weights = explicit_attention(q, k, v, bias=None, causal=False, scale=q.shape[-1] ** -0.5)
        found, found_weights = attention(q, k, v)
        with case("the weights"):
            same(found_weights, weights)
        with case("the result"):
            same(found, result)

    with case("2 texts, 3 heads, 5 tokens of width 8"):
        compare(*torch.randn(3, 2, 3, 5, 8))
    with case("4 queries and 7 keys, as of a decoder and an encoder"):
        compare(torch.randn(1, 2, 4, 8), *torch.randn(2, 1, 2, 7, 8))
    with case("one token, whose weight is 1"):
        compare(*torch.randn(3, 1, 1, 1, 8))
    with case("products of 10,000, which overflow a softmax that is not careful"):
        compare(*(100 * torch.randn(2, 1, 1, 5, 8)), torch.randn(1, 1, 5, 8))
    with case("float64, which must stay so"):
        compare(*torch.randn(3, 1, 2, 5, 8, dtype=torch.float64))


if __name__ == "__main__":
    main(check)
