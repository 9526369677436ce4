"""What a kind of work must answer so that one run can do it: a task, and the data it has prepared.

B batch, T time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nextile.checkpoint.pretrained import Pretrained
from nextile.checkpoint.store import Spec
from nextile.data.batches import Batch
from nextile.tasks.report import Report
from nextile.tasks.settings import RunSettings
from nextile.text.tokenizer import Tokenizer
from nextile.training.objectives import Objective


class Data(Protocol):
    """A corpus made ready: tokens on disk to train and to validate on."""

    @property
    def tokenizer(self) -> Tokenizer:
        """What its tokens are."""
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

    def check(self, context: int) -> str | None:
        """What the user should be told of rows of so many tokens, in one line, if anything.

        Errors: NextileError when there is too little to train or to validate on.
        """
        ...

    def batches(self, *, context: int, batch: int, accumulate: int, seed: int) -> Callable[[int], Sequence[Batch]]:
        """The micro-batches of a step, as a pure function of it."""
        ...

    def validation(self, *, context: int, batch: int) -> Iterable[Batch]:
        """All that is held out, each target once."""
        ...

    def measures(self, nats: float, asked: int) -> dict[str, float]:
        """What a total loss over the validation data means."""
        ...

    def preview(self, pretrained: Pretrained, seed: int) -> tuple[str, str]:
        """A title and a sample of what the model makes of it now."""
        ...


class Task(Protocol):
    """A kind of work: how its data is made, which models it has, what it asks of them."""

    name: str
    shape: type[Spec]  # the models that can do it
    preset: str  # the model's shape when nobody asks for another
    dropout: float  # where the data is scarce
    settings: Mapping[str, Any]  # laid over the defaults of all tasks, and under what anybody asks for
    sizes: Mapping[str, tuple[str, ...]]  # where in the model's spec its sizes are: width, depth, heads, hidden

    def suits(self, sources: Sequence[str]) -> bool:
        """Whether these sources mean this task when none is named."""
        ...

    def prepare(
        self, sources: Sequence[str], settings: RunSettings, folder: Path, report: Report, tokenizer: Tokenizer | None
    ) -> Data:
        """Read, split, tokenize and store the data in `folder`; with a tokenizer given, by that."""
        ...

    def open(self, folder: Path, tokenizer: Tokenizer) -> Data:
        """What `prepare` stored."""
        ...

    def spec(
        self, preset: str, size: Mapping[str, int], asked: Mapping[str, int], *, tokenizer: Tokenizer, context: int,
        dropout: float,
    ) -> Spec:  # fmt: skip
        """The preset's model in this size, or in its own; what the user asked for wins over both."""
        ...

    def objective(self, label_smoothing: float = 0.0, r_drop: float = 0.0) -> Objective:
        """What the model is asked to do."""
        ...

    def trial(self, folder: Path) -> str:
        """The command that shows what the model does."""
        ...
