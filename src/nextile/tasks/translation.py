"""Translation: the corpus is pairs, the model is asked for the target's next token beside the source."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from nextile.base.device import choose_precision
from nextile.base.errors import NextileError
from nextile.checkpoint.pretrained import Pretrained
from nextile.checkpoint.store import Processor, Spec
from nextile.data.batches import Batch, Steps
from nextile.data.packing import PackedPairs, PairStore
from nextile.data.pairs import PairCorpus, Pairs, are_pairs, open_pairs, split_pairs
from nextile.generation.beam import Beams
from nextile.generation.translate import translate
from nextile.models.build import AnyModel
from nextile.models.families import marian, modern, prenorm
from nextile.nn import specs
from nextile.tasks.report import Report, counted
from nextile.tasks.settings import RunSettings, Validation
from nextile.tasks.shapes import preset_of, with_heads
from nextile.tasks.task import GradientTask, all_but
from nextile.tasks.tokens import BATCH_TOKENS, learn_tokenizer, store_tokens, stored_tokens, text_only, tokens_of
from nextile.text.pairs import for_pairs, start_of
from nextile.text.tokenizer import Tokenizer
from nextile.training.loop import evaluate
from nextile.training.metrics import bleu, check_tokenizer, chrf, exact, text_measures
from nextile.training.objectives import next_token

PRESETS = {"modern": modern, "marian": marian, "prenorm": prenorm}
STACK_SIZES = {"width": ("encoder.width", "decoder.width")}  # the two must be the same
ROOM = 512  # positions that a model is made for, where they cost nothing: sentences to come may be longer
LEFT_OUT = 0.001  # of the pairs, the longest: rows for them would be mostly empty
SETTINGS: Mapping[str, Any] = {
    "label_smoothing": 0.1,
    "optimizer": {"type": "muon", "lr": 5e-3, "betas": (0.9, 0.98)},  # tables want more than in a language model
}
SHOWN = 3  # pairs of a preview
BLEU_RUN = 4  # words: BLEU compares runs up to so many, and is 0 where no reference has one


@dataclass(frozen=True)
class _Side:
    """The sources or the targets of pairs, as texts."""

    pairs: Pairs
    side: int
    bytes: int

    def __iter__(self) -> Iterator[str]:
        return (pair[self.side] for pair in self.pairs)


@dataclass(frozen=True)
class _BothSides:
    """Sources and targets in turn: one vocabulary for both languages shares what they share (Sennrich et al. 2016)."""

    pairs: Pairs
    bytes: int

    def __iter__(self) -> Iterator[str]:
        return (text for pair in self.pairs for text in pair)


@dataclass(frozen=True)
class PairData:
    """Pairs as tokens, packed into rows."""

    processor: Tokenizer
    train: PairStore
    held_out: PairStore

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What the user is told of it."""
        kind, size = self.processor.kind, self.processor.vocab_size
        size_in_bytes = sum(side.store.text_bytes for side in (self.train.source, self.train.target))
        per_token = size_in_bytes / max(1, len(self.train.source.store) + len(self.train.target.store))
        return [
            ("corpus", f"{len(self.train):,} pairs to train on, {size_in_bytes:,} bytes"),
            ("tokens", f"{kind}, {size:,} kinds for both sides, {per_token:.2f} bytes each"),
            ("training", f"{self.train_tokens:,} target tokens"),
            ("validation", f"{len(self.held_out):,} pairs, never trained on"),
        ]

    @property
    def train_tokens(self) -> int:
        """How many there are to learn from, on the target's side."""
        return len(self.train.target.store)

    @property
    def validation_tokens(self) -> int:
        """How many are held out."""
        return len(self.held_out.target.store)

    def context(self, usual: int) -> int:
        """Rows that hold all pairs but the very longest, and three usual ones, whatever the size of the model."""
        longest = self.train.longest
        wanted = max(float(np.quantile(longest, 1 - LEFT_OUT)), 3 * float(longest.mean()))
        return min(ROOM, 16 * int(np.ceil(wanted / 16)))

    def enough(self, rows: float) -> bool:
        """Always: a larger model learns more from what is seen once."""
        return True

    def check(self, context: int) -> str | None:
        """How many pairs are too long. Errors: NextileError when all of them are."""
        PackedPairs(self.train, length=context, batch=1, seed=0, start=0)  # refuses when none fits
        found = {"to train on": (self.train, context), "to validate on": (self.held_out, room(context))}
        notes = [
            f"{int((pairs.longest > limit).sum()):,} of {len(pairs):,} pairs {what} (above {limit} tokens)"
            for what, (pairs, limit) in found.items()
            if pairs.longest.max() > limit
        ]
        return f"too long and left out: {' and '.join(notes)}; set context for longer ones" if notes else None

    def batches(self, *, context: int, batch: int, accumulate: int, seed: int) -> Steps:
        """Rows of pairs, each pair once an epoch, in an order of its own each epoch."""
        packed = PackedPairs(self.train, length=context, batch=batch, seed=seed, start=start_of(self.processor))
        return Steps(packed, accumulate)

    def measure(self, model: AnyModel, *, context: int, precision: torch.dtype) -> dict[str, float]:
        """Nats per token, perplexity and bits per byte of the held-out targets that the model has room for."""
        batches = all_pairs(self.held_out, start_of(self.processor), room(context))
        size = self.held_out.target.store.text_bytes
        return text_measures(*evaluate(model, batches, next_token, precision=precision), size)

    def preview(self, pretrained: Pretrained, seed: int) -> tuple[str, str]:
        """Held-out sources as the model translates them, without a search."""
        sources, targets = self.texts(SHOWN)
        found = translate(pretrained, sources, Beams(width=1))
        lines = [
            f"{source}\n  -> {best.text}\n  == {target}"
            for source, [best], target in zip(sources, found, targets, strict=True)
        ]
        return "translations, and what they should be", "\n".join(lines)

    def texts(self, count: int | None = None) -> tuple[list[str], list[str]]:
        """The first so many held-out sources and targets, or all, as text."""
        number = len(self.held_out) if count is None else min(count, len(self.held_out))
        sides = (self.held_out.source, self.held_out.target)
        sources, targets = ([self.processor.decode(side.tokens(i)) for i in range(number)] for side in sides)
        return sources, targets


def room(context: int) -> int:
    """The longest source and target of a model that is trained in rows of `context` tokens."""
    return max(context, ROOM)


def all_pairs(pairs: PairStore, start: int, limit: int) -> Iterator[Batch]:
    """Every pair of at most `limit` tokens once, in rows as long as the longest needs."""
    length = min(int(pairs.longest.max()), limit)
    return PackedPairs(pairs, length=length, batch=max(1, BATCH_TOKENS // length), seed=0, start=start).once()


class Translating(GradientTask):
    """`--task translate`."""

    name = "translate"
    preset = "modern"
    dropout = 0.3
    counts = "tok"
    unread: Collection[str] = all_but()
    settings: Mapping[str, Any] = SETTINGS
    sizes: Mapping[str, tuple[str, ...]] = STACK_SIZES

    def suits(self, sources: Sequence[str]) -> bool:
        """Pairs, by their names."""
        return are_pairs(sources)

    def prepare(
        self, sources: Sequence[str], settings: RunSettings, folder: Path, report: Report, base: Pretrained | None
    ) -> PairData:
        """Read, split, tokenize and store pairs. Errors: NextileError for what cannot be learned from."""
        tokenizer = tokens_of(base, specs.EncoderDecoder, self.name)
        corpus = open_pairs(sources)
        if corpus.skipped:
            report.warn(f"'{corpus.name}' has {corpus.skipped:,} lines that are empty on both sides: they are left out")
        train, held_out = _parts(corpus, settings.validation, settings.seed)
        texts = _BothSides(train, train.bytes)
        tokenizer = tokenizer or for_pairs(learn_tokenizer(texts, settings.tokenizer, report))
        stores = [
            _store(pairs, tokenizer, folder / name, f"tokenizing ({name})", report)
            for name, pairs in (("train", train), ("validation", held_out))
        ]
        return PairData(tokenizer, *stores)

    def open(self, folder: Path, settings: RunSettings, processor: Processor) -> PairData:
        """What `prepare` stored."""
        tokenizer = text_only(processor, folder)
        return PairData(tokenizer, *(_stored(folder / name, tokenizer) for name in ("train", "validation")))

    def spec(
        self, preset: str, size: Mapping[str, int], asked: Mapping[str, int], *, data: PairData, context: int,
        dropout: float,
    ) -> Spec:  # fmt: skip
        """The preset's shape in this size, or in its own; what is asked wins."""
        family, own = preset_of(preset, PRESETS)
        return family.spec(
            vocab=data.processor.vocab_size,
            context=room(context),
            dropout=dropout,
            start=start_of(data.processor),
            **with_heads({**(own or size), **asked}),
        )

    def trial(self, folder: Path) -> str:
        """The command that shows what the model does."""
        return f'nextile translate {folder} "..."'


def _parts(corpus: PairCorpus, validation: Validation, seed: int) -> tuple[Pairs, Pairs]:
    """What to train on and what to validate on: pairs of their own, or what is held out."""
    if validation.data:
        return corpus.pairs, open_pairs(validation.data).pairs
    return split_pairs(corpus, validation.fraction, seed)


def _store(pairs: Pairs, tokenizer: Tokenizer, folder: Path, title: str, report: Report) -> PairStore:
    sides = (_Side(pairs, 0, pairs.source_bytes), _Side(pairs, 1, pairs.target_bytes))
    names = ("source", "target")
    return PairStore(
        *(
            store_tokens(side, tokenizer, folder / name, f"{title}, {name}s", report)
            for side, name in zip(sides, names, strict=True)
        )
    )


def _stored(folder: Path, tokenizer: Tokenizer) -> PairStore:
    return PairStore(*(stored_tokens(folder / name, tokenizer) for name in ("source", "target")))


# --- how well a model translates ----------------------------------------------------------------------------------


def evaluate_pairs(
    pretrained: Pretrained, sources: Sequence[str], report: Report, *, beams: Beams | None = None, tokens: str = "13a"
) -> dict[str, Any]:
    """Loss, and BLEU, chrF and the share of exact answers of what the model translates by beams.

    sources: pairs as for training; none: the validation pairs of the run that the model comes from. tokens: how
    sacrebleu splits words; "none" for text that is split already. Without sacrebleu there is no BLEU and no chrF.
    Errors: NextileError for what are no pairs; UsageError for an unknown way to split.
    """
    check_tokenizer(tokens)  # before anything is translated
    with TemporaryDirectory(prefix="nextile-evaluate-") as folder:
        data = _evaluated(pretrained, sources, Path(folder), report)
        measured = _loss(pretrained, data, report)
        return measured | _quality(pretrained, data, beams or Beams(), tokens, report)


def evaluate_loss(pretrained: Pretrained, sources: Sequence[str], report: Report) -> dict[str, float]:
    """As `evaluate_pairs`, but nothing is translated: loss, perplexity and bits per byte."""
    with TemporaryDirectory(prefix="nextile-evaluate-") as folder:
        return _loss(pretrained, _evaluated(pretrained, sources, Path(folder), report), report)


def _evaluated(pretrained: Pretrained, sources: Sequence[str], folder: Path, report: Report) -> PairData:
    """The pairs to evaluate on; there are none to train on."""
    if sources:
        pairs = open_pairs(sources).pairs
        store = _store(pairs, pretrained.tokenizer, folder, "tokenizing", report)
        return PairData(pretrained.tokenizer, store, store)
    own = (pretrained.folder or Path()) / "data" / "validation"
    if not own.exists():
        raise NextileError(f"'{pretrained.folder}' has no validation pairs of its own: name pairs to evaluate on")
    store = _stored(own, pretrained.tokenizer)
    return PairData(pretrained.tokenizer, store, store)


def _loss(pretrained: Pretrained, data: PairData, report: Report) -> dict[str, float]:
    longest, context = int(data.held_out.longest.max()), pretrained.spec.context
    if longest > context:
        raise NextileError(f"a pair has {longest} tokens and the model reads {context}: leave out or cut such pairs")
    device = next(pretrained.model.parameters()).device
    with report.bar("evaluating", data.validation_tokens, "tokens") as bar:
        batches = counted(all_pairs(data.held_out, start_of(pretrained.tokenizer), context), bar)
        nats, asked = evaluate(pretrained.model, batches, next_token, precision=choose_precision("auto", device))
    return text_measures(nats, asked, data.held_out.target.store.text_bytes)


def _quality(pretrained: Pretrained, data: PairData, beams: Beams, tokens: str, report: Report) -> dict[str, Any]:
    sources, targets = data.texts()
    found: list[str] = []
    with report.bar("translating", len(sources), "sentences") as bar:
        for some in in_turn(sources):
            found += [best.text for [best] in translate(pretrained, some, beams)]
            bar.update(len(found))
    measured: dict[str, Any] = {"accuracy": exact(found, targets)}
    try:
        scores = {"bleu": bleu(found, targets, tokens), "chrf": chrf(found, targets)}
        if max(len(target.split()) for target in targets) < BLEU_RUN:
            del scores["bleu"]
    except NextileError as error:
        report.warn(str(error))
        return measured
    for name, score in scores.items():
        measured |= {name: score.value, f"{name}_signature": score.signature}
    return measured


def in_turn(texts: Sequence[str], together: int = 512) -> Iterator[Sequence[str]]:
    """So many at a time, of which like lengths are translated together."""
    for start in range(0, len(texts), together):
        yield texts[start : start + together]
