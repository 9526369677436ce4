"""What a kind of work must answer so that one run can do it: a task, and the data it has prepared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Protocol

import torch
from torch import nn

from nextile.base.device import choose_precision
from nextile.checkpoint.pretrained import Pretrained
from nextile.checkpoint.store import Processor, Spec
from nextile.data.batches import Steps
from nextile.models.build import AnyModel
from nextile.nn.float8 import use_float8
from nextile.tasks.report import Report
from nextile.tasks.settings import RunSettings
from nextile.tasks.shapes import STACK_SIZES, preset_of, with_heads
from nextile.tasks.start import Start, WordStart, refuse_words
from nextile.training.flex import check_step, use_flex
from nextile.training.learner import GradientLearner, Learner
from nextile.training.objectives import Objective, smooth_and_consistent
from nextile.training.optim import Optimizer
from nextile.training.parallel import ALONE, World
from nextile.training.spread_learner import SpreadLearner

# Groups of settings that belong to some tasks alone.
GROUPS = ("words", "masking", "denoise", "images", "augment", "preference", "growth.context")


def all_but(*read: str) -> tuple[str, ...]:
    """The groups of settings that a task does not read, given those that it does."""
    return tuple(group for group in GROUPS if group not in read)


class Data(Protocol):
    """A corpus made ready: tokens or pictures on disk to train and to validate on."""

    @property
    def processor(self) -> Processor:
        """What its texts became tokens by, or its pictures numbers."""
        ...

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What the user is told of it."""
        ...

    @property
    def train_tokens(self) -> int:
        """How many there are to learn from."""
        ...

    @property
    def validation_tokens(self) -> int:
        """How many are held out."""
        ...

    def context(self, usual: int) -> int:
        """The tokens of a row, where the size of the model has `usual` ones."""
        ...

    def enough(self, rows: float) -> bool:
        """Whether so many rows of training show the data as often as a larger model needs it."""
        ...

    def check(self, context: int) -> str | None:
        """What the user should be told of rows of so many tokens, in one line, if anything.

        Errors: NextileError when there is too little to train or to validate on.
        """
        ...

    def batches(self, *, context: int, batch: int, accumulate: int, seed: int) -> Steps:
        """The micro-batches of a step, as a pure function of it."""
        ...

    def measure(self, model: AnyModel, *, context: int, precision: torch.dtype) -> dict[str, float]:
        """How the model does on all that is held out, its "loss" in nats per target first."""
        ...

    def preview(self, pretrained: Pretrained, seed: int) -> tuple[str, str]:
        """A title and a sample of what the model makes of it now; pictures are laid into the model's folder."""
        ...


class Task(Protocol):
    """A kind of work: how its data is made, which models it has, what it asks of them."""

    name: str
    preset: str  # the model's shape when nobody asks for another
    dropout: float  # where the data is scarce
    counts: str  # what its speed is told in, a second
    rows: int | None  # of a step, where it does not follow from the size of the model
    unread: Collection[str]  # settings, and groups of them, that do nothing here
    settings: Mapping[str, Any]  # laid over the defaults of all tasks, and under what anybody asks for
    sizes: Mapping[str, tuple[str, ...]]  # where in the model's spec its sizes are: width, depth, heads, hidden

    def suits(self, sources: Sequence[str]) -> bool:
        """Whether these sources mean this task when none is named."""
        ...

    def prepare(
        self, sources: Sequence[str], settings: RunSettings, folder: Path, report: Report, base: Pretrained | None
    ) -> Data:
        """Read, split and store the data in `folder`, as the model to begin from reads it, if there is one.

        Errors: UsageError when that model cannot do this task.
        """
        ...

    def open(self, folder: Path, settings: RunSettings, processor: Processor) -> Data:
        """What `prepare` stored."""
        ...

    def spec(
        self, preset: str, size: Mapping[str, int], asked: Mapping[str, int], *, data: Any, context: int, dropout: float
    ) -> Spec:
        """The preset's model of this data in this size, or in its own; what the user asked for wins over both."""
        ...

    def begin_with(self, words: WordStart, preset: str | None, settings: RunSettings) -> Start:
        """What a run begins from that is given word vectors. Errors: UsageError where that is none."""
        ...

    def adapt(self, base: Pretrained, data: Any) -> AnyModel:
        """The model to begin from, made to fit the data."""
        ...

    def epochs(self, settings: RunSettings) -> float | None:
        """How often the data is read when nobody gives a budget; None: as often as the usual time allows."""
        ...

    def learner(
        self, model: AnyModel, data: Any, settings: RunSettings, *, precision: torch.dtype, compiled: bool,
        world: World = ALONE,
    ) -> Learner:  # fmt: skip
        """What changes the model in training on the data. Errors: UsageError for more processes than it can use."""
        ...

    def trial(self, folder: Path) -> str:
        """The command that shows what the model does."""
        ...


def compute_as_asked(model: AnyModel, settings: RunSettings, one_graph: bool) -> None:
    """Let a model learn by the products and the attention that the settings ask for, in place.

    one_graph: whether a step is. Errors: UsageError for fp8 or FlexAttention where the device, as one may be on which a
    run goes on, the step or the model has none.
    """
    device = next(model.parameters()).device
    if settings.precision == "fp8":
        choose_precision(settings.precision, device)
        use_float8(model)
    if settings.attention == "flex":
        check_step(device, one_graph)
        use_flex(model)


class GradientTask:
    """What tasks have in common that learn by gradients, where they say nothing else."""

    name: str
    rows: int | None = None
    settings: Mapping[str, Any] = MappingProxyType({})
    sizes: Mapping[str, tuple[str, ...]] = STACK_SIZES
    learns: type[GradientLearner] = GradientLearner
    mode: Callable[[nn.Module], nn.Module] = staticmethod(nn.Module.train)  # in which models learn on several processes

    def begin_with(self, words: WordStart, preset: str | None, settings: RunSettings) -> Start:
        """Not so. Errors: UsageError."""
        return refuse_words(words, self.name)

    def adapt(self, base: Pretrained, data: Any) -> AnyModel:
        """The model to begin from as it is."""
        return base.model

    def epochs(self, settings: RunSettings) -> float | None:
        """As often as the usual time allows."""
        return None

    def learner(
        self, model: AnyModel, data: Any, settings: RunSettings, *, precision: torch.dtype, compiled: bool,
        world: World = ALONE,
    ) -> Learner:  # fmt: skip
        """What follows the gradients of the task's objective. Errors: UsageError as of `compute_as_asked`."""
        compute_as_asked(model, settings, compiled and world.whole)
        if world.size > 1:
            return SpreadLearner(
                model, self.objective(settings), settings.optimizer_settings(), world, clip=settings.clip,
                precision=precision, compiled=compiled, mode=self.mode,
            )  # fmt: skip
        optimizer = Optimizer(model, settings.optimizer_settings(), compiled=compiled)
        return self.learns(
            model, self.objective(settings), optimizer, clip=settings.clip, precision=precision, compiled=compiled
        )

    def objective(self, settings: RunSettings) -> Objective:
        """The next token, or what a batch asks, with labels as smooth and passes as consistent as the settings say."""
        return smooth_and_consistent(settings.label_smoothing, settings.r_drop)


class TextTask(GradientTask):
    """What tasks have in common whose models read a text's tokens."""

    presets: Mapping[str, ModuleType] = MappingProxyType({})  # families by name

    def spec(
        self, preset: str, size: Mapping[str, int], asked: Mapping[str, int], *, data: Any, context: int,
        dropout: float,
    ) -> Spec:  # fmt: skip
        """A family's shape in this size; a preset such as "gpt2-medium" brings its own. What is asked wins."""
        family, own = preset_of(preset, self.presets)
        sized = with_heads({**(own or size), **asked})
        return family.spec(vocab=data.processor.vocab_size, context=context, dropout=dropout, **sized)

    def begin_with(self, words: WordStart, preset: str | None, settings: RunSettings) -> Start:
        """Tokens that are words begin with the vectors of those."""
        return Start(words=words)
