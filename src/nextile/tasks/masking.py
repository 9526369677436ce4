"""Masked language models: the corpus is text, the model is asked for tokens that were hidden from it (BERT)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import torch
from torch import Tensor, nn

from nextile.base.device import choose_precision
from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.pretrained import Pretrained
from nextile.checkpoint.store import Processor
from nextile.data.batches import Batch, Steps
from nextile.data.corpora import open_corpus
from nextile.data.masking import MaskedWindows, Masker, masked_validation
from nextile.generation.fill import fill
from nextile.generation.sample import Sampling
from nextile.models.build import AnyModel
from nextile.models.families import bert, bidirectional
from nextile.nn import specs
from nextile.tasks.language import LONGEST_WINDOW, TextData, evaluated, only_one, store_parts
from nextile.tasks.report import Report, counted
from nextile.tasks.settings import Masking, RunSettings, recorded
from nextile.tasks.task import TextTask, all_but
from nextile.tasks.tokens import BATCH_TOKENS, stored_parts, tokens_of
from nextile.text.masks import MASK, for_masks, mask_of, ordinary_of
from nextile.text.tokenizer import Tokenizer
from nextile.training.loop import evaluate
from nextile.training.metrics import masked_measures
from nextile.training.objectives import cross_entropy

PRESETS = {"bidirectional": bidirectional, "bert": bert}
SHOWN, GAP = 24, 6  # tokens of a preview, of which every so manieth is hidden


def masker_of(tokenizer: Tokenizer, masking: Masking) -> Masker:
    """What hides tokens of this tokenizer."""
    return Masker(mask_of(tokenizer), ordinary_of(tokenizer), **masking.model_dump())


class Filled:
    """An objective that counts how often the most probable token is the one that was hidden."""

    def __init__(self) -> None:
        self.right = 0

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(*batch.given).float()
        self.right += int((logits.argmax(-1) == batch.targets).sum())
        return cross_entropy(logits, batch, 0.0)


@dataclass(frozen=True)
class MaskedData(TextData):
    """Documents as tokens, packed one after the other, and what hides some of them."""

    masker: Masker

    def batches(self, *, context: int, batch: int, accumulate: int, seed: int) -> Steps:
        """Windows of the training text, without replacement, with other masks each epoch."""
        windows = MaskedWindows(self.train, self.masker, context=context, batch=batch, seed=seed)
        return Steps(windows, accumulate)

    def once(self, context: int) -> list[Batch]:
        """The whole validation text, always with the same masks."""
        batch = max(1, BATCH_TOKENS // context)
        return list(masked_validation(self.held_out, self.masker, context=context, batch=batch))

    def measure(self, model: AnyModel, *, context: int, precision: torch.dtype) -> dict[str, float]:
        """Nats per hidden token, perplexity, and the share that the model fills in as it was."""
        return measured(model, self.once(context), precision)

    def preview(self, pretrained: Pretrained, seed: int) -> tuple[str, str]:
        """The beginning of the validation text with tokens hidden, and as the model fills it."""
        ids = self.held_out[0 : min(SHOWN, pretrained.spec.context // 2)].tolist()
        pieces = [self.processor.decode(ids[start : start + GAP - 1]) for start in range(0, len(ids), GAP)]
        text = f" {MASK}".join(pieces) if self.processor.kind == "bpe" else MASK.join(pieces)
        [[filled]] = fill(pretrained, [text], Sampling(temperature=0.0))
        return text, f"{filled.text}\n== {self.processor.decode(ids)}"


def measured(model: AnyModel, batches: Iterable[Batch], precision: torch.dtype) -> dict[str, float]:
    """How a model fills what these batches hide. Errors: NextileError when they hide nothing."""
    objective = Filled()
    nats, asked = evaluate(model, batches, objective, precision=precision)
    if not asked:
        raise NextileError("the validation text has no token that may be hidden: give more text")
    return masked_measures(nats, objective.right, asked)


class MaskedModelling(TextTask):
    """`--task masked`."""

    name = "masked"
    preset = "bidirectional"
    dropout = 0.1
    counts = "tok"
    presets: Mapping[str, ModuleType] = PRESETS
    unread: Collection[str] = all_but("masking")

    def suits(self, sources: Sequence[str]) -> bool:
        """Never unasked: a text makes a language model."""
        return False

    def prepare(
        self, sources: Sequence[str], settings: RunSettings, folder: Path, report: Report, base: Pretrained | None
    ) -> MaskedData:
        """Read, split, tokenize and store a corpus. Errors: UsageError for a model to begin from that has no masks."""
        known = tokens_of(base, specs.Transformer, self.name)
        if base is not None and base.task != self.name:
            raise UsageError(f"a run of the task 'masked' cannot begin from {base.called}, which fills no masks")
        corpus = open_corpus(only_one(sources))
        tokenizer, train, held_out = store_parts(corpus, settings, folder, report, known, for_masks)
        return MaskedData(tokenizer, train, held_out, masker_of(tokenizer, settings.masking))

    def open(self, folder: Path, settings: RunSettings, processor: Processor) -> MaskedData:
        """What `prepare` stored."""
        tokenizer, train, held_out = stored_parts(folder, processor)
        return MaskedData(tokenizer, train, held_out, masker_of(tokenizer, settings.masking))

    def trial(self, folder: Path) -> str:
        """The command that shows what the model does."""
        return f'nextile generate {folder} "... {MASK} ..."'


def evaluate_masked(pretrained: Pretrained, sources: Sequence[str], report: Report) -> dict[str, float]:
    """How well a masked model fills a text, as much of it hidden as in its training; none: its run's validation text.

    Errors: NextileError when the text is none or the folder has no validation text.
    """
    with TemporaryDirectory(prefix="nextile-evaluate-") as folder:
        store = evaluated(pretrained, sources, Path(folder), report)
        context = min(pretrained.spec.context, len(store), LONGEST_WINDOW)
        data = MaskedData(
            pretrained.tokenizer, store, store, masker_of(pretrained.tokenizer, recorded(pretrained.folder).masking)
        )
        precision = choose_precision("auto", next(pretrained.model.parameters()).device)
        batches = data.once(context)
        with report.bar("evaluating", sum(batch.weight for batch in batches), "tokens") as bar:
            found = measured(pretrained.model, counted(batches, bar), precision)
    return {"loss": found["loss"], "perplexity": found["perplexity"], "accuracy": found["filled"]}
