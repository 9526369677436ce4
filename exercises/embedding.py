"""Exercise: from a number to a vector.

A token is a number without meaning: token 8 is not twice token 4. As a one-hot vector, 1 at its own place and 0
elsewhere, no token is near another. Times a learned matrix (V, D) it becomes the row of that token. Nobody multiplies
by zeros: looking the row up gives the same.

Complete the three functions. Then run this file:

    python exercises/embedding.py
"""

import torch
from checking import case, main, require, same
from torch import Tensor
from torch.nn import functional as F

from nextile.nn import specs
from nextile.nn.embed import TokenEmbedding


def one_hot(ids: Tensor, vocab: int) -> Tensor:
    """Tokens (B, T) -> float32 (B, T, V), by comparing or by placing ones; F.one_hot would be no exercise."""
    raise NotImplementedError("complete `one_hot` in exercises/embedding.py")


def embed_by_product(ids: Tensor, weight: Tensor) -> Tensor:
    """Tokens (B, T), weight (V, D) -> vectors (B, T, D): one-hot times the matrix."""
    raise NotImplementedError("complete `embed_by_product` in exercises/embedding.py")


def embed_by_row(ids: Tensor, weight: Tensor) -> Tensor:
    """The same by looking up rows, without any product."""
    raise NotImplementedError("complete `embed_by_row` in exercises/embedding.py")


def check() -> None:
    """Compare with torch's one-hot and the library's embedding, gradients included."""
    for shape in ((2, 5), (1, 1)):
        ids = torch.randint(0, 9, shape)
        with case(f"one_hot of {shape[0]} x {shape[1]} tokens among 9"):
            same(one_hot(ids, 9), F.one_hot(ids, 9).float())
    layer = TokenEmbedding(specs.TokenEmbedding(vocab=9), 4)
    ids = torch.tensor([[1, 8, 1], [0, 2, 2]])
    weight = layer.token.weight.detach()
    for name, function in (("product", embed_by_product), ("row", embed_by_row)):
        with case(f"embed_by_{name} of {ids.tolist()}"):
            same(function(ids, weight), layer(ids).detach())
    with case("the gradient of embed_by_row: a token that stands twice learns twice, one that is absent nothing"):
        learned = weight.clone().requires_grad_()
        embed_by_row(ids, learned).sum().backward()
        require(learned.grad is not None, "there is none")
        same(learned.grad, torch.tensor([1.0, 2, 2, 0, 0, 0, 0, 0, 1])[:, None].expand(9, 4))


if __name__ == "__main__":
    main(check)
