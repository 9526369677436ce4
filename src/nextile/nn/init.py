"""Initialisation in one table: what a parameter is decides how it begins."""

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Constant:
    """Every number the same."""

    value: float

    def fill(self, parameter: Tensor, depth: int, generator: torch.Generator) -> None:
        """In place."""
        parameter.fill_(self.value)


@dataclass(frozen=True)
class Normal:
    """Drawn from a normal distribution."""

    std: float

    def fill(self, parameter: Tensor, depth: int, generator: torch.Generator) -> None:
        """In place."""
        parameter.normal_(0.0, self.std, generator=generator)


@dataclass(frozen=True)
class Branch(Normal):
    """As `Normal`, for what is added to the stream: 2 * depth branches add up, so each begins smaller (GPT-2)."""

    def fill(self, parameter: Tensor, depth: int, generator: torch.Generator) -> None:
        """In place."""
        parameter.normal_(0.0, self.std / math.sqrt(2 * depth), generator=generator)


@dataclass(frozen=True)
class FanIn:
    """Drawn from a normal distribution; what passes through a matrix (out, in) keeps `gain` of its scale."""

    gain: float

    def fill(self, parameter: Tensor, depth: int, generator: torch.Generator) -> None:
        """In place."""
        parameter.normal_(0.0, self.gain / math.sqrt(parameter.shape[-1]), generator=generator)


@dataclass(frozen=True)
class Kaiming:
    """Drawn from a normal distribution that keeps the scale of what passes through it and ReLU (He et al. 2015)."""

    def fill(self, parameter: Tensor, depth: int, generator: torch.Generator) -> None:
        """In place; of a convolution's weights (out, in, height, width)."""
        nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)


@dataclass(frozen=True)
class Narrow:
    """Drawn evenly from -1/2D to 1/2D, of vectors of D numbers (word2vec)."""

    def fill(self, parameter: Tensor, depth: int, generator: torch.Generator) -> None:
        """In place."""
        parameter.uniform_(-0.5 / parameter.shape[-1], 0.5 / parameter.shape[-1], generator=generator)


Table = tuple[tuple[str, Constant | Normal | FanIn | Kaiming | Narrow], ...]

TABLE: Table = (
    ("words_in.weight", Narrow()),
    ("words_out.weight", Constant(0.0)),
    ("*.convolutions.*.weight", Kaiming()),
    ("*.scalars.stream", Constant(1.0)),  # what speedruns add begins as nothing
    ("*.scalars.first", Constant(0.0)),
    ("*.convolution.taps", Constant(0.0)),
    ("*.value_embedding.weight", Constant(0.0)),
    ("*norm.weight", Constant(1.0)),
    ("*norm.offset", Constant(0.0)),
    ("*.bias", Constant(0.0)),
    ("*.inner.out.weight", Branch(0.02)),
    ("*.inner.down.weight", Branch(0.02)),
    ("*", Normal(0.02)),  # GPT-2, BERT, ViT and Qwen alike: embeddings, positions, projections, heads
)

# Branches that add nothing yet, and a head that says nothing: every block begins as the identity (Bachlechner et al.
# 2021, ReZero; Yang et al. 2022 of the head). What reads the stream begins where a step of Muon, which moves every
# direction alike, neither drowns it nor is lost in it.
ZERO_OUT: Table = (
    ("*.inner.out.weight", Constant(0.0)),
    ("*.inner.down.weight", Constant(0.0)),
    ("head.weight", Constant(0.0)),
    *((f"*.inner.{name}.weight", FanIn(0.5)) for name in ("query", "key", "value", "gate", "up")),
    *TABLE,
)
Init = Literal["normal", "zero_out"]
TABLES: dict[Init, Table] = {"normal": TABLE, "zero_out": ZERO_OUT}


@torch.no_grad()
def initialise(model: nn.Module, depth: int, seed: int, init: Init = "normal") -> None:
    """Fill every parameter by the first row of a table that matches its name, in order of name, from one seed."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        row = next(row for pattern, row in TABLES[init] if fnmatchcase(name, pattern))
        row.fill(parameter, depth, generator)
