"""Exercise: ask another sequence.

In a translator the decoder's tokens ask, and the encoder's answer: queries come from the decoder, keys and values from
the encoder's last output, the memory. Sources of different lengths share a batch, so that some places of the memory are
padding, and nobody may look at those (Vaswani et al. 2017, section 3.2.3).

Complete `cross_attention`. Then run this file:

    python exercises/cross_attention.py
"""

import torch
from checking import case, main, require, same
from torch import Tensor

from nextile.nn import specs
from nextile.nn.attention import CrossAttention
from nextile.nn.stack import hide


def cross_attention(
    x: Tensor, memory: Tensor, query: Tensor, key: Tensor, value: Tensor, there: Tensor
) -> tuple[Tensor, Tensor]:
    """One head: what the decoder's x (B, T, D) hears of a memory (B, S, D), and the weights (B, T, S).

    Three matrices (D, D), used as x @ matrix; there (B, S): True where the memory is no padding -> (B, T, D).
    """
    raise NotImplementedError("complete `cross_attention` in exercises/cross_attention.py")


def check() -> None:
    """Compare with the library's layer, and fill padding with other numbers to see whether anybody looks."""
    layer = CrossAttention(specs.Attention(heads=1, bias="none"), 8)
    layer.out.weight.data = torch.eye(8)
    matrices = [getattr(layer, name).weight.detach().T for name in ("query", "key", "value")]
    x, memory = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    there = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    bias = hide(there[:, None, None], 0.0, torch.float32)

    with torch.no_grad():
        want = layer(x, layer.keys_values(memory), bias)
        with case("2 texts, 3 tokens that ask 5 and 2 others"):
            found, weights = cross_attention(x, memory, *matrices, there)
            require(
                tuple(weights.shape) == (2, 3, 5), f"weights are {tuple(weights.shape)}, not (2, 3, 5): query by key"
            )
            require(torch.allclose(weights.sum(-1), torch.ones(2, 3)), "the weights of a query do not sum to 1")
            require((weights[1, :, 2:] == 0).all(), "padding of the second text has a weight")
            same(found, want)
        with case("other numbers in the padding"):
            memory[1, 2:] = 1e4
            same(cross_attention(x, memory, *matrices, there)[0], want)
        with case("a decoder longer than its memory"):
            x = torch.randn(1, 7, 8)
            want = layer(x, layer.keys_values(memory[:1, :2]), None)
            same(cross_attention(x, memory[:1, :2], *matrices, there[:1, :2])[0], want)


if __name__ == "__main__":
    main(check)
