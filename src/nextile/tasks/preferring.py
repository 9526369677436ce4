"""Preferences: of two answers to a prompt a model learns to give the chosen one (DPO: Rafailov et al. 2023).

Shapes: P conversations, two for each pair, N pairs of a batch, T tokens.
What the model that the run begins from gives each answer, the reference, is computed once and kept beside the data.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextile.base.device import choose_precision
from nextile.base.errors import UsageError
from nextile.checkpoint.pretrained import Pretrained
from nextile.checkpoint.store import Processor
from nextile.data.answers import (
    AnswerStore,
    Comparisons,
    comparable,
    read_reference,
    usual_context,
    write_reference,
)
from nextile.data.batches import Batch, Steps
from nextile.data.conversations import Conversation, Preference, are_preferences, open_preferences
from nextile.models.build import AnyModel
from nextile.tasks.conversing import (
    PARTS,
    ChatData,
    begun_by,
    cut_note,
    parts,
    store_answers,
    stored_answers,
    told,
)
from nextile.tasks.denoising import window_of
from nextile.tasks.language import PRESETS, only_one
from nextile.tasks.report import Report, counted
from nextile.tasks.settings import RunSettings, recorded
from nextile.tasks.task import TextTask, all_but
from nextile.tasks.tokens import BATCH_TOKENS
from nextile.training.learner import GradientLearner
from nextile.training.loop import evaluate
from nextile.training.metrics import preference_measures
from nextile.training.objectives import Objective, answers_log_probability, gained, preference

ROWS = 16  # of a step: eight pairs


class Compared:
    """DPO's objective, which counts how often the chosen answer wins, and by how much."""

    def __init__(self, beta: float) -> None:
        self.beta, self.won, self.margin = beta, 0, 0.0

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        margins = self.beta * gained(model, batch)  # (N,)
        self.won += int((margins > 0).sum())
        self.margin += float(margins.double().sum())
        return -F.logsigmoid(margins).sum()


def measured(model: AnyModel, batches: Iterable[Batch], beta: float, precision: torch.dtype) -> dict[str, float]:
    """How often a model prefers what is preferred, and by how much, in terms of what it began from."""
    objective = Compared(beta)
    nats, pairs = evaluate(model, batches, objective, precision=precision)
    return preference_measures(nats, objective.won, objective.margin, pairs)


# --- the reference --------------------------------------------------------------------------------------------------


def reference_of(
    model: AnyModel, answers: AnswerStore, context: int, *, precision: torch.dtype, report: Report
) -> np.ndarray:
    """What a model gives the answers of each conversation, (P,) nats; 0 for pairs that are left out."""
    comparisons = Comparisons(answers, None, length=context, batch=_batch(context), seed=0)
    found: list[Tensor] = []

    def kept(model: nn.Module, batch: Batch) -> Tensor:
        found.append(answers_log_probability(model, batch))
        return found[-1].sum()

    with report.bar("what the model gives them now", len(comparisons), "pairs") as bar:
        evaluate(model, counted(comparisons.once(), bar), kept, precision=precision)
    values = torch.cat(found).cpu().numpy()
    reference = np.zeros((len(answers) // 2, 2), values.dtype)
    reference[comparisons.pairs] = values.reshape(-1, 2)
    return reference.reshape(-1)


def _batch(context: int) -> int:
    """Rows of a batch that is measured."""
    return 2 * max(1, BATCH_TOKENS // context // 2)


# --- the data -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PreferenceData(ChatData):
    """Pairs of answers as tokens, the chosen one of each first, with the reference beside them."""

    beta: float

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What the user is told of it."""
        return [
            ("corpus", f"{len(self.train) // 2:,} pairs to train on, {self.train.store.text_bytes:,} bytes"),
            ("tokens", f"{self.processor.kind}, {self.processor.vocab_size:,} kinds"),
            ("training", f"{self.train_tokens:,} tokens"),
            ("validation", f"{len(self.held_out) // 2:,} pairs, never trained on"),
        ]

    def context(self, usual: int) -> int:
        """Rows that hold nearly all answers whole, each with its prompt."""
        return usual_context(self.train.sizes, 1.0)

    def check(self, context: int) -> str | None:
        """How many answers are cut. Errors: NextileError when no pair has two of them before the cut."""
        for store in (self.train, self.held_out):
            Comparisons(store, None, length=context, batch=2, seed=0)  # refuses when none has
        found = {"answers to train on": self.train, "to validate on": self.held_out}
        return cut_note(found, context, lambda store: len(store) - 2 * len(comparable(store, context)))

    def batches(self, *, context: int, batch: int, accumulate: int, seed: int) -> Steps:
        """Pairs, each once an epoch, in an order of its own each epoch; a pair is two rows."""
        reference = read_reference(self.train, context)
        compared = Comparisons(self.train, reference, length=context, batch=batch, seed=seed)
        return Steps(compared, accumulate)

    def once(self, context: int) -> Iterator[Batch]:
        """The held-out pairs."""
        reference = read_reference(self.held_out, context)
        return Comparisons(self.held_out, reference, length=context, batch=_batch(context), seed=0).once()

    def measure(self, model: AnyModel, *, context: int, precision: torch.dtype) -> dict[str, float]:
        """Nats per pair, how often the chosen answer wins, and its margin."""
        return measured(model, self.once(context), self.beta, precision)


class Steady(GradientLearner):
    """Learns without dropout: its noise would stand beside a difference that begins at 0."""

    def _backward(self, micros: Sequence[Batch], index: int) -> tuple[Tensor, int]:
        self.model.eval()
        return super()._backward(micros, index)


# --- the task -------------------------------------------------------------------------------------------------------


class Preferring(TextTask):
    """`--task prefer`."""

    name = "prefer"
    preset = "qwen3"
    dropout = 0.0
    counts = "pairs"
    rows: int | None = ROWS
    presets: Mapping[str, ModuleType] = PRESETS
    learns: type[GradientLearner] = Steady
    mode: Callable[[nn.Module], nn.Module] = staticmethod(nn.Module.eval)
    unread: Collection[str] = (*all_but("preference"), "label_smoothing", "r_drop", "tokenizer", "dropout")

    def suits(self, sources: Sequence[str]) -> bool:
        """A file that begins with a preference."""
        return are_preferences(sources)

    def prepare(
        self, sources: Sequence[str], settings: RunSettings, folder: Path, report: Report, base: Pretrained | None
    ) -> PreferenceData:
        """Read, split, tokenize and store pairs, and what the model to begin from gives them.

        Errors: UsageError without such a model and for fp8; NextileError for what cannot be learned from.
        """
        known = begun_by(base, self.name)
        if base is None or known is None:
            raise UsageError("a run of the task 'prefer' begins from a model that gives answers already: add --init")
        if settings.precision == "fp8":  # whose noise would stand beside a difference that begins at 0, as dropout's
            raise UsageError("precision 'fp8': the task 'prefer' compares with what a model gives in bf16; use bf16")
        records = open_preferences(only_one(sources))
        both = parts(records, settings.validation, settings.seed, open_preferences)
        train, held_out = (
            store_answers(_ways(told(part, f"tokenizing ({name})", report)), known, folder / name, part.bytes)
            for name, part in zip(PARTS, both, strict=True)
        )
        data = PreferenceData(known, train, held_out, settings.preference.beta)
        _refer(data, base, settings, report)
        return data

    def open(self, folder: Path, settings: RunSettings, processor: Processor) -> PreferenceData:
        """What `prepare` stored."""
        return PreferenceData(*stored_answers(folder, processor), settings.preference.beta)

    def objective(self, settings: RunSettings) -> Objective:
        """DPO."""
        return partial(preference, beta=settings.preference.beta)

    def trial(self, folder: Path) -> str:
        """The command that shows what the model does."""
        return f"nextile chat {folder}"


def _ways(pairs: Iterable[Preference]) -> Iterator[Conversation]:
    """Chosen, rejected, chosen, ..."""
    return (way for pair in pairs for way in pair)


def _refer(data: PreferenceData, base: Pretrained, settings: RunSettings, report: Report) -> None:
    """Keep what the model to begin from gives the answers, in rows as long as the plan's will be."""
    context = min(settings.context or data.context(0), base.spec.context)
    precision = choose_precision(settings.precision, next(base.model.parameters()).device)
    for store in (data.train, data.held_out):
        reference = reference_of(base.model, store, context, precision=precision, report=report)
        write_reference(store.store.folder, context, reference)


def evaluate_preferring(pretrained: Pretrained, sources: Sequence[str], report: Report) -> dict[str, float]:
    """How often a model prefers what is preferred, on the pairs that were held out of the run that it comes from.

    Errors: UsageError for other pairs, for which there is no reference.
    """
    if sources:
        raise UsageError("preferences are measured against the model that a run began from, which only those held out "
                         "of that run have: leave out the data")  # fmt: skip
    folder = (pretrained.folder or Path()) / "data"
    beta = recorded(pretrained.folder).preference.beta
    tokenizer, train, held_out = stored_answers(folder, pretrained.tokenizer)
    data = PreferenceData(tokenizer, train, held_out, beta)
    context = window_of(pretrained.folder)
    precision = choose_precision("auto", next(pretrained.model.parameters()).device)
    with report.bar("evaluating", len(comparable(data.held_out, context)), "pairs") as bar:
        return measured(pretrained.model, counted(data.once(context), bar), beta, precision)
