"""De-embedding: vectors become scores over the vocabulary.

Shapes: B batch, T time, D width, V vocabulary.
"""

import torch
from torch import Tensor, nn

from nextile.nn import specs
from nextile.nn.embed import TokenEmbedding
from nextile.nn.linear import Linear, linear


class TiedHead(nn.Module):
    """The embedding read backwards (Press and Wolf 2017)."""

    def __init__(self, spec: specs.TiedHead, embed: TokenEmbedding):
        super().__init__()
        self.scale = spec.scale
        self._embed = (embed,)  # in a tuple, so that the matrix has one owner and one name
        self.bias = nn.Parameter(torch.zeros(embed.token.num_embeddings)) if spec.bias else None

    @property
    def weight(self) -> Tensor:
        """(V, D): the embedding's own."""
        return self._embed[0].token.weight

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V)."""
        x = x * self.scale if self.scale != 1.0 else x
        return linear(x, self.weight, self.bias)


class LinearHead(Linear):
    """A matrix of its own."""

    def __init__(self, spec: specs.LinearHead, embed: TokenEmbedding):
        vocab, width = embed.token.weight.shape
        super().__init__(width, vocab, bias=spec.bias)


MODULES = {specs.TiedHead: TiedHead, specs.LinearHead: LinearHead}


def make_head(spec: specs.TiedHead | specs.LinearHead, embed: TokenEmbedding) -> nn.Module:
    """The module that the spec's type names."""
    return MODULES[type(spec)](spec, embed)
