"""De-embedding: vectors become scores over the vocabulary, or over the classes of a picture.

Shapes: B batch, T time, D width, V vocabulary, K classes.
"""

import torch
from torch import Tensor, nn

from nextile.nn import specs
from nextile.nn.embed import TokenEmbedding
from nextile.nn.feedforward import ACTIVATIONS
from nextile.nn.linear import Linear, linear
from nextile.nn.norm import make_norm
from nextile.nn.tap import tap


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
        super().__init__(width, spec.vocab or vocab, bias=spec.bias)


class MaskedHead(TiedHead):
    """The embedding read backwards from what a dense layer and a norm make of the vectors (Devlin et al. 2019)."""

    def __init__(self, spec: specs.MaskedHead, embed: TokenEmbedding):
        super().__init__(specs.TiedHead(bias=True), embed)
        width = embed.token.embedding_dim
        self.dense = Linear(width, width)
        self.activation = ACTIVATIONS[spec.activation]
        self.norm = make_norm(spec.norm, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V)."""
        return super().forward(self.norm(self.activation(self.dense(x))))


MODULES = {specs.TiedHead: TiedHead, specs.LinearHead: LinearHead, specs.MaskedHead: MaskedHead}


def make_head(spec: specs.TiedHead | specs.LinearHead | specs.MaskedHead, embed: TokenEmbedding) -> nn.Module:
    """The module that the spec's type names."""
    return MODULES[type(spec)](spec, embed)


# --- classes --------------------------------------------------------------------------------------------------------


class SummaryHead(Linear):
    """From the first vector, which stands for the whole picture (Dosovitskiy et al. 2021)."""

    def __init__(self, spec: specs.SummaryHead | specs.MeanHead | specs.WeightedHead, width: int):
        super().__init__(width, len(spec.classes), bias=spec.bias)

    def forward(self, input: Tensor) -> Tensor:
        """(B, T, D) -> (B, K)."""
        pooled = self.pool(input)  # (B, D)
        tap(self, "pooled", pooled)
        return super().forward(pooled)

    def pool(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, D)."""
        return x[:, 0]


class MeanHead(SummaryHead):
    """From the mean of all vectors."""

    def pool(self, x: Tensor) -> Tensor:
        return x.mean(1)


class WeightedHead(SummaryHead):
    """From their weighted mean; the weights are a softmax of what a learned vector says of each."""

    def __init__(self, spec: specs.WeightedHead, width: int):
        super().__init__(spec, width)
        self.importance = Linear(width, 1)

    def pool(self, x: Tensor) -> Tensor:
        scores = self.importance(x)  # (B, T, 1)
        weights = scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(1).to(x.dtype)
        tap(self, "weights", weights)
        return (weights.mT @ x)[:, 0]


CLASS_MODULES = {specs.SummaryHead: SummaryHead, specs.MeanHead: MeanHead, specs.WeightedHead: WeightedHead}


def make_class_head(spec: specs.SummaryHead | specs.MeanHead | specs.WeightedHead, width: int) -> nn.Module:
    """The module that the spec's type names."""
    return CLASS_MODULES[type(spec)](spec, width)
