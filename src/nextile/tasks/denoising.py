"""Denoising: the corpus is text, an encoder-decoder is asked for the parts that were cut out of it (T5)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from nextile.base.device import choose_precision
from nextile.base.errors import UsageError
from nextile.checkpoint.pretrained import Pretrained
from nextile.checkpoint.store import Processor, Spec
from nextile.checkpoint.weights import read_json
from nextile.data.batches import Batch, Steps
from nextile.data.corpora import open_corpus
from nextile.data.spans import Corruption, Prefix, Spans, SpanWindows, span_validation
from nextile.generation.beam import Beams
from nextile.generation.fill import fill_spans
from nextile.models.build import AnyModel
from nextile.nn import specs
from nextile.tasks import translation
from nextile.tasks.language import TextData, evaluated, only_one, store_parts
from nextile.tasks.report import Report, counted
from nextile.tasks.settings import PrefixNoise, RunSettings, SpanNoise, recorded
from nextile.tasks.shapes import preset_of, with_heads
from nextile.tasks.task import TextTask, all_but
from nextile.tasks.tokens import BATCH_TOKENS, stored_parts, tokens_of
from nextile.tasks.translation import PRESETS, STACK_SIZES, room
from nextile.text.masks import MASK, for_spans, sentinels_of
from nextile.text.pairs import start_of
from nextile.text.tokenizer import Tokenizer
from nextile.training.loop import evaluate
from nextile.training.metrics import perplexity
from nextile.training.objectives import next_token

WINDOW = 128  # tokens of a text that is cut to be evaluated, where no run tells how many it had
SHOWN, CUT = 24, slice(12, 16)  # tokens of a preview, and those that are cut out of it
SETTINGS: Mapping[str, Any] = {"optimizer": translation.SETTINGS["optimizer"]}


def corruption_of(tokenizer: Tokenizer, noise: SpanNoise | PrefixNoise) -> Corruption:
    """What cuts parts out of texts of this tokenizer."""
    common = (sentinels_of(tokenizer), tokenizer.end_id, start_of(tokenizer))
    return Prefix(*common) if isinstance(noise, PrefixNoise) else Spans(*common, noise.share, noise.mean)


@dataclass(frozen=True)
class NoisyData(TextData):
    """Documents as tokens, packed one after the other, and what cuts parts out of them."""

    corruption: Corruption

    def check(self, context: int) -> str | None:
        """Nothing to tell. Errors: NextileError for too little text, UsageError for rows that cannot be cut."""
        self.corruption.shape(context)
        return super().check(context)

    def batches(self, *, context: int, batch: int, accumulate: int, seed: int) -> Steps:
        """Windows of the training text, without replacement, cut anew each epoch."""
        windows = SpanWindows(self.train, self.corruption, context=context, batch=batch, seed=seed)
        return Steps(windows, accumulate)

    def once(self, context: int) -> list[Batch]:
        """The whole validation text, always cut in the same places."""
        batch = max(1, BATCH_TOKENS // context)
        return list(span_validation(self.held_out, self.corruption, context=context, batch=batch))

    def measure(self, model: AnyModel, *, context: int, precision: torch.dtype) -> dict[str, float]:
        """Nats per token of the target, and perplexity."""
        return measured(model, self.once(context), precision)

    def preview(self, pretrained: Pretrained, seed: int) -> tuple[str, str]:
        """The beginning of the validation text with a part cut out, and as the model fills it."""
        ids = self.held_out[0:SHOWN].tolist()
        before, gone, after = (
            self.processor.decode(ids[part]) for part in (slice(0, CUT.start), CUT, slice(CUT.stop, None))
        )
        text = f"{before}{MASK}{after}" if isinstance(self.corruption, Spans) else before
        [[filled]] = fill_spans(pretrained, [text], Beams(width=1))
        return text, f"{filled.text}\n== {before}{gone}{after}"


def measured(model: AnyModel, batches: Iterable[Batch], precision: torch.dtype) -> dict[str, float]:
    """How well a model writes what was cut out."""
    nats, asked = evaluate(model, batches, next_token, precision=precision)
    return {"loss": nats / asked, "perplexity": perplexity(nats / asked)}


class Denoising(TextTask):
    """`--task denoise`."""

    name = "denoise"
    preset = "modern"
    dropout = 0.1
    counts = "tok"
    unread: Collection[str] = all_but("denoise")
    settings: Mapping[str, Any] = SETTINGS
    sizes: Mapping[str, tuple[str, ...]] = STACK_SIZES

    def suits(self, sources: Sequence[str]) -> bool:
        """Never unasked: a text makes a language model."""
        return False

    def prepare(
        self, sources: Sequence[str], settings: RunSettings, folder: Path, report: Report, base: Pretrained | None
    ) -> NoisyData:
        """Read, split, tokenize and store a corpus. Errors: UsageError for a model to begin from without sentinels."""
        known = tokens_of(base, specs.EncoderDecoder, self.name)
        if base is not None and base.task != self.name:
            raise UsageError(f"a run of the task 'denoise' cannot begin from {base.called}, which has no sentinels")
        corpus = open_corpus(only_one(sources))
        tokenizer, train, held_out = store_parts(corpus, settings, folder, report, known, for_spans)
        return NoisyData(tokenizer, train, held_out, corruption_of(tokenizer, settings.denoise))

    def open(self, folder: Path, settings: RunSettings, processor: Processor) -> NoisyData:
        """What `prepare` stored."""
        tokenizer, train, held_out = stored_parts(folder, processor)
        return NoisyData(tokenizer, train, held_out, corruption_of(tokenizer, settings.denoise))

    def spec(
        self, preset: str, size: Mapping[str, int], asked: Mapping[str, int], *, data: NoisyData, context: int,
        dropout: float,
    ) -> Spec:  # fmt: skip
        """A translator's shape in this size, or in its own; what is asked wins."""
        family, own = preset_of(preset, PRESETS)
        return family.spec(
            vocab=data.processor.vocab_size,
            context=room(max(data.corruption.shape(context))),
            dropout=dropout,
            start=start_of(data.processor),
            **with_heads({**(own or size), **asked}),
        )

    def trial(self, folder: Path) -> str:
        """The command that shows what the model does."""
        return f'nextile generate {folder} "... {MASK} ..."'


def window_of(folder: Path | None) -> int:
    """The tokens of a row in the run of a folder: longer ones have sentinels and distances that it never saw."""
    plan = read_json(folder / "run.json").get("plan") if folder and (folder / "run.json").exists() else None
    window = plan.get("context") if isinstance(plan, dict) else None
    return window if isinstance(window, int) and window > 0 else WINDOW


def evaluate_denoiser(pretrained: Pretrained, sources: Sequence[str], report: Report) -> dict[str, float]:
    """How well a model writes what is cut out, as in its training; of its own validation text where there is no other.

    Errors: NextileError when the text is none or the folder has no validation text.
    """
    with TemporaryDirectory(prefix="nextile-evaluate-") as folder:
        store = evaluated(pretrained, sources, Path(folder), report)
        corruption = corruption_of(pretrained.tokenizer, recorded(pretrained.folder).denoise)
        context = min(window_of(pretrained.folder), len(store) - 1)
        if max(corruption.shape(context)) > pretrained.spec.context:
            context = pretrained.spec.context // 2
        data = NoisyData(pretrained.tokenizer, store, store, corruption)
        batches, precision = data.once(context), choose_precision("auto", next(pretrained.model.parameters()).device)
        with report.bar("evaluating", sum(batch.weight for batch in batches), "tokens") as bar:
            return measured(pretrained.model, counted(batches, bar), precision)
