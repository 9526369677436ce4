"""De-embedding: vectors become scores over the vocabulary, or over the classes of a picture or a text.

Shapes: B batch, T time, D width, V vocabulary, K classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nextile.nn import specs
from nextile.nn.attention import capped
from nextile.nn.dropout import Dropout
from nextile.nn.embed import TokenEmbedding
from nextile.nn.feedforward import ACTIVATIONS
from nextile.nn.head_loss import Product
from nextile.nn.linear import Linear
from nextile.nn.norm import make_norm
from nextile.nn.tap import tap


class TiedHead(nn.Module):
    """The embedding read backwards (Press and Wolf 2017)."""

    def __init__(self, spec: specs.TiedHead, embed: TokenEmbedding):
        super().__init__()
        self.scale, self.soft_cap = spec.scale, spec.soft_cap
        self._embed = (embed,)  # in a tuple, so that the matrix has one owner and one name
        self.bias = nn.Parameter(torch.zeros(embed.token.num_embeddings)) if spec.bias else None

    @property
    def weight(self) -> Tensor:
        """(V, D): the embedding's own."""
        return self._embed[0].token.weight

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V)."""
        return self.product(x).whole()

    def product(self, x: Tensor) -> Product:
        """The same, not multiplied yet."""
        return Product(x * self.scale if self.scale != 1.0 else x, self.weight, self.bias, self.soft_cap)


class LinearHead(Linear):
    """A matrix of its own."""

    def __init__(self, spec: specs.LinearHead, embed: TokenEmbedding):
        vocab, width = embed.token.weight.shape
        super().__init__(width, spec.vocab or vocab, bias=spec.bias)
        self.soft_cap = spec.soft_cap

    def forward(self, input: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V)."""
        return capped(super().forward(input), self.soft_cap)

    def product(self, x: Tensor) -> Product:
        """What `forward` multiplies."""
        return Product(x, self.weight, self.bias, self.soft_cap)


class MaskedHead(TiedHead):
    """The embedding read backwards from what a dense layer and a norm make of the vectors (Devlin et al. 2019)."""

    def __init__(self, spec: specs.MaskedHead, embed: TokenEmbedding):
        super().__init__(specs.TiedHead(bias=True), embed)
        width = embed.token.embedding_dim
        self.dense = Linear(width, width)
        self.activation = ACTIVATIONS[spec.activation]
        self.norm = make_norm(spec.norm, width)

    def product(self, x: Tensor) -> Product:
        """What `forward` multiplies."""
        return super().product(self.norm(self.activation(self.dense(x))))


Read = Callable[[nn.Module, Tensor], Tensor]


def read_whole(head: nn.Module, x: Tensor) -> Tensor:
    """What a model makes of its head and of what the head reads, if nothing else is asked: (B, T, D) -> (B, T, V)."""
    return head(x)


MODULES = {specs.TiedHead: TiedHead, specs.LinearHead: LinearHead, specs.MaskedHead: MaskedHead}


def make_head(spec: specs.TiedHead | specs.LinearHead | specs.MaskedHead, embed: TokenEmbedding) -> nn.Module:
    """The module that the spec's type names."""
    return MODULES[type(spec)](spec, embed)


# --- classes --------------------------------------------------------------------------------------------------------


def picked(x: Tensor, place: Tensor) -> Tensor:
    """Of each row the vector at its place: (B, T, D), (B,) -> (B, D)."""
    return x[torch.arange(len(x), device=x.device), place]


class SummaryHead(Linear):
    """From the first vector, which stands for the whole picture (Dosovitskiy et al. 2021)."""

    def __init__(self, spec: specs.ClassHead | specs.TextHead, width: int):
        super().__init__(width, len(spec.classes), bias=spec.bias)

    def forward(self, input: Tensor) -> Tensor:
        """(B, T, D) -> (B, K)."""
        return self.scores(self.pool(input))

    def of_texts(self, x: Tensor, there: Tensor) -> Tensor:
        """(B, T, D), of which padding does not count, there (B, T) True at tokens -> (B, K)."""
        return self.scores(self.pool_texts(x, there))

    def scores(self, pooled: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        tap(self, "pooled", pooled)
        return super().forward(pooled)

    def pool(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, D)."""
        return x[:, 0]

    def pool_texts(self, x: Tensor, there: Tensor) -> Tensor:
        """The same where there are tokens, at least one in each row: (B, T, D), (B, T) -> (B, D)."""
        return picked(x, there.int().argmax(1))


class PooledHead(SummaryHead):
    """From what a dense layer and a tanh make of the first vector (Devlin et al. 2019)."""

    def __init__(self, spec: specs.PooledHead, width: int):
        super().__init__(spec, width)
        self.dense = Linear(width, width)
        self.dropout = Dropout(spec.dropout)

    def scores(self, pooled: Tensor) -> Tensor:
        return super().scores(self.dropout(self.dense(pooled).tanh()))


class DistilledHead(nn.Module):
    """The mean of what two summaries say, one of which has learned from labels, the other from a teacher (DeiT)."""

    def __init__(self, spec: specs.DistilledHead, width: int):
        super().__init__()
        self.labels = Linear(width, len(spec.classes), bias=spec.bias)
        self.teacher = Linear(width, len(spec.classes), bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, K)."""
        tap(self, "pooled", x[:, :2])
        return (self.labels(x[:, 0]) + self.teacher(x[:, 1])) / 2


class MeanHead(SummaryHead):
    """From the mean of all vectors."""

    def pool(self, x: Tensor) -> Tensor:
        return x.mean(1)

    def pool_texts(self, x: Tensor, there: Tensor) -> Tensor:
        kept = x.masked_fill(~there[..., None], 0.0)
        return kept.sum(1) / there.sum(1, keepdim=True).clamp_min(1).to(x.dtype)


class LastHead(SummaryHead):
    """From the last vector, which alone has seen all of a text in a causal stack (Radford et al. 2018)."""

    def pool(self, x: Tensor) -> Tensor:
        return x[:, -1]

    def pool_texts(self, x: Tensor, there: Tensor) -> Tensor:
        return picked(x, there.shape[1] - 1 - there.flip(1).int().argmax(1))


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


CLASS_MODULES = {
    specs.SummaryHead: SummaryHead,
    specs.PooledHead: PooledHead,
    specs.DistilledHead: DistilledHead,
    specs.MeanHead: MeanHead,
    specs.LastHead: LastHead,
    specs.WeightedHead: WeightedHead,
}


def make_class_head(spec: specs.ClassHead | specs.TextHead, width: int) -> nn.Module:
    """The module that the spec's type names."""
    return CLASS_MODULES[type(spec)](spec, width)
