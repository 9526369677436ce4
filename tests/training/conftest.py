"""A model of a few hundred weights with every kind of parameter, and batches that are a function of the step."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from nextile.data.batches import IGNORE, Batch

VOCAB = 11


class Block(nn.Module):
    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width, bias=False)
        self.mix = nn.Linear(width, width)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        self.bias_table = nn.Embedding(4, width)

    def forward(self, x):
        x = x + self.mix(x.cumsum(1) / 8 + self.bias_table.weight.sum(0))
        return x + self.dropout(self.down(self.up(self.norm(x)).relu()))


class TinyLM(nn.Module):
    """Causal through a running sum; its head is tied."""

    def __init__(self, width: int = 8, dropout: float = 0.0, depth: int = 2):
        super().__init__()
        self.token = nn.Embedding(VOCAB, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(depth))
        self.conv = nn.Conv1d(width, width, 1)
        self.head = nn.Linear(width, VOCAB)
        self.head.weight = self.token.weight

    def forward(self, ids):
        x = self.token(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.conv(x.mT).mT)


def make_tiny(seed: int = 0, **options) -> TinyLM:
    torch.manual_seed(seed)
    return TinyLM(**options)


def make_batch(seed: int, rows: int = 4, time: int = 6, ignore: float = 0.0) -> Batch:
    """Random tokens, a share of the targets not asked."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, (rows, time + 1), generator=generator)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    targets[torch.rand(targets.shape, generator=generator) < ignore] = IGNORE
    return Batch.of(inputs, targets)


@pytest.fixture(autouse=True)
def _one_thread():
    """Matrices this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny() -> Callable[..., TinyLM]:
    return make_tiny


@pytest.fixture
def batch() -> Callable[..., Batch]:
    return make_batch
