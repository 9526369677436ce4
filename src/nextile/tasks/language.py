"""Language models: the corpus is text, the model is asked for the next token, the preview is its writing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import torch

from nextile.base.device import choose_precision
from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.pretrained import Pretrained
from nextile.checkpoint.store import Processor
from nextile.data.batches import Steps, TrainingWindows, sliding_batches, validation_batches
from nextile.data.corpora import Corpus, Documents, open_corpus, split
from nextile.data.shards import TokenStore, is_store, open_store
from nextile.generation.complete import complete
from nextile.generation.sample import Sampling
from nextile.models.build import AnyModel
from nextile.models.families import gpt2, qwen3
from nextile.nn import specs
from nextile.tasks.report import Report, counted
from nextile.tasks.settings import RunSettings, Validation
from nextile.tasks.task import TextTask, all_but
from nextile.tasks.tokens import (
    BATCH_TOKENS,
    as_they_are,
    divide_store,
    learn_tokenizer,
    store_tokens,
    stored_parts,
    stored_tokens,
    tokens_of,
)
from nextile.text.tokenizer import Tokenizer
from nextile.training.loop import evaluate
from nextile.training.metrics import text_measures
from nextile.training.objectives import next_token

LONGEST_WINDOW = 4096  # tokens of an evaluation's window, however long the model's context
PRESETS = {"qwen3": qwen3, "gpt2": gpt2}


@dataclass(frozen=True)
class TextData:
    """Documents as tokens, packed one after the other, each followed by its end token."""

    processor: Tokenizer
    train: TokenStore
    held_out: TokenStore

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What the user is told of it."""
        kind, size = self.processor.kind, self.processor.vocab_size
        per_token = self.train.text_bytes / len(self.train)
        return [
            ("corpus", f"{self.train.text_bytes + self.held_out.text_bytes:,} bytes, {self.documents:,} documents"),
            ("tokens", f"{kind}, {size:,} kinds, {per_token:.2f} bytes each"),
            ("training", f"{len(self.train):,} tokens"),
            ("validation", f"{len(self.held_out):,} tokens, never trained on"),
        ]

    @property
    def documents(self) -> int:
        """How many there are; one that is cut for validation counts on both sides."""
        return self.train.documents + self.held_out.documents

    @property
    def train_tokens(self) -> int:
        """How many there are to learn from."""
        return len(self.train)

    @property
    def validation_tokens(self) -> int:
        """How many are held out."""
        return len(self.held_out)

    def context(self, usual: int) -> int:
        """The usual one, if the training text can fill it."""
        return min(usual, len(self.train) - 1)

    def enough(self, rows: float) -> bool:
        """Always: a larger model learns more from what is seen once."""
        return True

    def check(self, context: int) -> str | None:
        """Nothing to tell. Errors: NextileError when there is too little text to train or to validate on."""
        if len(self.train) <= context:
            raise NextileError(
                f"the training text has {len(self.train)} tokens, too few for a context of {context}: "
                f"set context={max(1, len(self.train) - 1)} or give more text"
            )
        if len(self.held_out) < 2:
            raise NextileError(
                f"the validation text has {len(self.held_out)} token: give more text or a larger validation.fraction"
            )
        return None

    def batches(self, *, context: int, batch: int, accumulate: int, seed: int) -> Steps:
        """Windows of the training text, without replacement, in an order of its own each epoch."""
        windows = TrainingWindows(self.train, context=context, batch=batch, seed=seed)
        return Steps(windows, accumulate)

    def measure(self, model: AnyModel, *, context: int, precision: torch.dtype) -> dict[str, float]:
        """Nats per token, perplexity and bits per byte of the whole validation text in windows end to end."""
        windows = validation_batches(self.held_out, context=context, batch=max(1, BATCH_TOKENS // context))
        return text_measures(*evaluate(model, windows, next_token, precision=precision), self.held_out.text_bytes)

    def preview(self, pretrained: Pretrained, seed: int) -> tuple[str, str]:
        """What the model writes after the first words of the validation text."""
        prompt = pretrained.tokenizer.decode(self.held_out[0:24].tolist())
        sampling = Sampling(temperature=0.8, seed=seed)
        [[completion]] = complete(pretrained, [prompt], sampling, max_tokens=60)
        return prompt, completion.text


class LanguageModelling(TextTask):
    """`--task lm`."""

    name = "lm"
    preset = "qwen3"
    dropout = 0.1
    counts = "tok"
    presets: Mapping[str, ModuleType] = PRESETS
    unread: Collection[str] = all_but("growth.context")

    def suits(self, sources: Sequence[str]) -> bool:
        """Any text."""
        return True

    def prepare(
        self, sources: Sequence[str], settings: RunSettings, folder: Path, report: Report, base: Pretrained | None
    ) -> TextData:
        """Read, split, tokenize and store a corpus. Errors: NextileError for a corpus that cannot be learned from."""
        tokenizer = tokens_of(base, specs.Transformer, self.name)
        source = only_one(sources)
        if is_store(source):
            return TextData(*divide_store(source, settings, folder, tokenizer))
        corpus = open_corpus(source)
        if corpus.builtin and Path(source).name == source:
            report.say(f"{source} is built in: {corpus.bytes:,} bytes of text from this Python")
        return TextData(*store_parts(corpus, settings, folder, report, tokenizer))

    def open(self, folder: Path, settings: RunSettings, processor: Processor) -> TextData:
        """What `prepare` stored."""
        return TextData(*stored_parts(folder, processor))

    def trial(self, folder: Path) -> str:
        """The command that shows what the model does."""
        return f'nextile generate {folder} "..."'


def only_one(sources: Sequence[str]) -> str:
    """The source of a text. Errors: UsageError when there are several."""
    if len(sources) != 1:
        raise UsageError(f"a language model reads one source, not {len(sources)}: put the files in one folder")
    return sources[0]


def parts(corpus: Corpus, validation: Validation, seed: int) -> tuple[Documents, Documents]:
    """What to train on and what to validate on: a text of its own, or what is held out."""
    if validation.data:
        return corpus.documents, open_corpus(only_one(validation.data)).documents
    return split(corpus, validation.fraction, seed)


def store_parts(
    corpus: Corpus, settings: RunSettings, folder: Path, report: Report, tokenizer: Tokenizer | None,
    made: Callable[[Tokenizer], Tokenizer] = lambda learned: learned,
) -> tuple[Tokenizer, TokenStore, TokenStore]:  # fmt: skip
    """The tokens of what is trained on and of what is held out, by this tokenizer, or one made of what was learned."""
    train, held_out = parts(corpus, settings.validation, settings.seed)
    tokenizer = tokenizer or made(learn_tokenizer(train, settings.tokenizer, report))
    learned, asked = (
        store_tokens(documents, tokenizer, folder / name, f"tokenizing ({name})", report)
        for name, documents in (("train", train), ("validation", held_out))
    )
    return tokenizer, learned, asked


def evaluated(
    pretrained: Pretrained, sources: Sequence[str], folder: Path, report: Report,
    kept: Callable[[np.ndarray], np.ndarray] = as_they_are,
) -> TokenStore:  # fmt: skip
    """The tokens to evaluate on: those of a text that are kept, or what was held out of the run of the model.

    Errors: NextileError when the text is none or the folder has no validation text.
    """
    if sources and is_store(sources[0]) and kept is as_they_are:
        return stored_tokens(Path(only_one(sources)), pretrained.tokenizer)
    if sources:
        documents = open_corpus(only_one(sources)).documents
        return store_tokens(documents, pretrained.tokenizer, folder / "text", "tokenizing", report, kept)
    own = (pretrained.folder or Path()) / "data" / "validation"
    if not own.exists():
        raise NextileError(f"'{pretrained.folder}' has no validation text of its own: name a text to evaluate on")
    return open_store(own)


def evaluate_text(
    pretrained: Pretrained, sources: Sequence[str], report: Report, *, stride: int | None = None
) -> dict[str, Any]:
    """How well a model predicts a text, in windows end to end; none: the validation text of the run it comes from.

    stride: how many tokens each window goes on, and asks; those before them in the window are only read.
    Errors: UsageError for a stride outside the window; NextileError when the text is none or the folder has no
    validation text.
    """
    longest = min(pretrained.spec.context, LONGEST_WINDOW)
    if stride is not None and not 1 <= stride <= longest:
        raise UsageError(f"stride is {stride} and the model reads {longest} tokens at a time: choose 1 to {longest}")
    with TemporaryDirectory(prefix="nextile-evaluate-") as folder:
        return _evaluate(pretrained, evaluated(pretrained, sources, Path(folder), report), report, stride or longest)


def _evaluate(pretrained: Pretrained, store: TokenStore, report: Report, stride: int) -> dict[str, Any]:
    context = min(pretrained.spec.context, max(1, len(store) - 1), LONGEST_WINDOW)
    stride = min(stride, context)
    device = next(pretrained.model.parameters()).device
    precision = choose_precision("auto", device)
    windows = sliding_batches(store, context=context, stride=stride, batch=max(1, BATCH_TOKENS // context))
    with report.bar("evaluating", len(store) - 1, "tokens") as bar:
        nats, asked = evaluate(pretrained.model, counted(windows, bar), next_token, precision=precision)
    said = {"windows": "sliding" if stride < context else "end to end", "context": context, "stride": stride}
    return text_measures(nats, asked, store.text_bytes) | said
