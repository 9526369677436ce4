"""CBOW and skip-gram: two tables of word vectors, and what they say of neighbours (Mikolov et al. 2013).

Shapes: B batch, T time, V vocabulary, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextile.nn import specs

LINE = 16  # numbers of a cache line in float32


class Table(nn.Module):
    """A vector for each word: (V, D)."""

    def __init__(self, vocab: int, width: int):
        super().__init__()
        padded = -(-width // LINE) * LINE  # rows begin at cache lines: training reads and writes them in any order
        self.weight = nn.Parameter(torch.zeros(vocab, padded)[:, :width])


class WordVectors(nn.Module):
    """Word vectors and the network with one linear hidden layer that they are learned in."""

    def __init__(self, spec: specs.CBOW | specs.SkipGram):
        super().__init__()
        self.spec = spec
        self.words_in = Table(spec.vocab, spec.width)
        self.words_out = Table(spec.vocab, spec.width)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> (B, T, V): how well each word fits at a place (CBOW), or beside it (skip-gram).

        They are scores of one word against chance, each for itself: training never makes them sum to one.
        """
        return self.features(ids) @ self.words_out.weight.mT

    def features(self, ids: Tensor) -> Tensor:
        """The hidden layer: (B, T) -> (B, T, D)."""
        return F.embedding(ids, self.words_in.weight)


class SkipGram(WordVectors):
    """The hidden layer is a word's own vector: it predicts the words around it."""


class CBOW(WordVectors):
    """The hidden layer is the mean of up to `window` words on either side: they predict the word between."""

    def features(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, D); where a word has no neighbour, 0."""
        x, window = super().features(ids), self.spec.window
        means = F.avg_pool1d(x.mT, 2 * window + 1, stride=1, padding=window, count_include_pad=False).mT
        place = torch.arange(ids.shape[1], device=ids.device)
        count = place.clamp(max=window) + (ids.shape[1] - 1 - place).clamp(max=window)  # neighbours, (T,)
        count = count[:, None].to(x.dtype)
        return (means * (count + 1) - x) / count.clamp(min=1)
