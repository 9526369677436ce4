"""Language models: the corpus is text, the model is asked for the next token, the preview is its writing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from nextile.base.device import choose_precision
from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.pretrained import Pretrained
from nextile.checkpoint.store import Spec
from nextile.data.batches import Batch, TrainingWindows, validation_batches
from nextile.data.corpora import Documents, open_corpus, split
from nextile.data.shards import TokenStore, open_store, write_store
from nextile.generation.complete import complete
from nextile.generation.sample import Sampling
from nextile.models.families import gpt2, qwen3
from nextile.tasks.report import Report
from nextile.tasks.settings import RunSettings, TokenizerChoice
from nextile.text.build import train_tokenizer
from nextile.text.tokenizer import Tokenizer
from nextile.training.loop import evaluate
from nextile.training.metrics import bits_per_byte, perplexity
from nextile.training.objectives import Objective, next_token

SMALL = 300_000  # bytes; below, characters: a corpus this short shows too few examples of each larger piece
LONGEST_WINDOW = 4096  # tokens of an evaluation's window, however long the model's context
PRESETS = {"qwen3": qwen3, "gpt2": gpt2}


@dataclass(frozen=True)
class TextData:
    """Documents as tokens, packed one after the other, each followed by its end token."""

    tokenizer: Tokenizer
    train: TokenStore
    held_out: TokenStore

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What the user is told of it."""
        kind, size = self.tokenizer.kind, self.tokenizer.vocab_size
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

    @property
    def longest(self) -> int:
        """The longest context that the training text can fill."""
        return len(self.train) - 1

    def batches(self, *, context: int, batch: int, accumulate: int, seed: int) -> Callable[[int], Sequence[Batch]]:
        """Windows of the training text, without replacement, in an order of its own each epoch."""
        windows = TrainingWindows(self.train, context=context, batch=batch, seed=seed)
        return partial(windows.micro, accumulate=accumulate)

    def validation(self, *, context: int, batch: int) -> Iterable[Batch]:
        """The whole validation text in windows end to end."""
        return validation_batches(self.held_out, context=context, batch=batch)

    def measures(self, nats: float, asked: int) -> dict[str, float]:
        """Nats per token, perplexity and bits per byte."""
        return text_measures(nats, asked, self.held_out.text_bytes)

    def preview(self, pretrained: Pretrained, seed: int) -> tuple[str, str]:
        """What the model writes after the first words of the validation text."""
        prompt = pretrained.tokenizer.decode(self.held_out[0:24].tolist())
        sampling = Sampling(temperature=0.8, seed=seed)
        [[completion]] = complete(pretrained, [prompt], sampling, max_tokens=60)
        return prompt, completion.text


def text_measures(nats: float, asked: int, size: int) -> dict[str, float]:
    """Nats per token, perplexity, bits per byte of a text of `size` bytes."""
    loss = nats / asked
    return {"loss": loss, "perplexity": perplexity(loss), "bits_per_byte": bits_per_byte(nats, size)}


class LanguageModelling:
    """`--task lm`."""

    name = "lm"

    def prepare(
        self, source: str, settings: RunSettings, folder: Path, report: Report, tokenizer: Tokenizer | None
    ) -> TextData:
        """Read, split, tokenize and store a corpus. Errors: NextileError for a corpus that cannot be learned from."""
        corpus = open_corpus(source)
        if corpus.builtin and Path(source).name == source:
            report.say(f"{source} is built in: {corpus.bytes:,} bytes of text from this Python")
        train, held_out = split(corpus, settings.validation.fraction, settings.seed)
        tokenizer = tokenizer or learn_tokenizer(train, settings.tokenizer, report)
        stores = [
            _store(documents, tokenizer, folder / name, f"tokenizing ({name})", report)
            for name, documents in (("train", train), ("validation", held_out))
        ]
        return TextData(tokenizer, *stores)

    def open(self, folder: Path, tokenizer: Tokenizer) -> TextData:
        """What `prepare` stored."""
        stores = [open_store(folder / name) for name in ("train", "validation")]
        for store in stores:
            if store.meta.get("tokenizer") != tokenizer.fingerprint():
                raise NextileError(f"'{store.folder}' was written with another tokenizer: train anew from the text")
        return TextData(tokenizer, *stores)

    def spec(
        self, preset: str | None, size: Mapping[str, int], asked: Mapping[str, int], *, vocab: int, context: int,
        dropout: float,
    ) -> Spec:  # fmt: skip
        """Qwen3's shape in this size, or GPT-2's; a preset such as "gpt2-medium" brings its own. What is asked wins."""
        family, own = _preset(preset or "qwen3")
        size = {**(own or size), **asked}
        heads = size.get("heads") or default_heads(size["width"])
        if size["width"] % heads and "head_dim" not in size:
            raise UsageError(f"width {size['width']} is not a multiple of {heads} heads: change one of them")
        return family.spec(vocab=vocab, context=context, dropout=dropout, **{**size, "heads": heads})

    def objective(self, label_smoothing: float = 0.0) -> Objective:
        """The next token."""
        return partial(next_token, label_smoothing=label_smoothing)


def learn_tokenizer(documents: Documents, choice: TokenizerChoice, report: Report) -> Tokenizer:
    """The tokenizer that was chosen, or what suits the amount of text, learned from it."""
    kind = choice.kind
    if kind == "auto":
        kind = "char" if documents.bytes < SMALL else "bpe"
    with report.bar(f"learning the tokens ({kind})", documents.bytes, "B") as bar:
        return train_tokenizer(kind, choice.size or bpe_size(documents.bytes), _watched(documents, bar.advance))


def default_heads(width: int) -> int:
    """As many heads of about 64 (32 in a narrow model) as divide the width into even parts."""
    most = max(1, round(width / (64 if width > 128 else 32)))
    return next(heads for heads in range(most, 0, -1) if width % (2 * heads) == 0 or heads == 1)


def bpe_size(size: int) -> int:
    """How many tokens a text of `size` bytes gives enough examples of: 1,024 at half a megabyte, 32,768 at 500 MB."""
    power = 10 + max(0, round(np.log2(max(size, 1) / 500_000) / 2))
    return 2 ** min(15, int(power))


def _preset(name: str):
    """The family and the size of a preset; without a size where the name is the family's."""
    sizes = {size: (family, dict(values)) for family in PRESETS.values() for size, values in family.SIZES.items()}
    known = {name: (family, {}) for name, family in PRESETS.items()} | {
        size: found for size, found in sizes.items() if size not in PRESETS
    }
    if name not in known:
        raise UsageError(f"unknown preset '{name}': it is one of {', '.join(known)}")
    return known[name]


def _watched(texts: Iterable[str], advance: Callable[[int], None]) -> Iterator[str]:
    for text in texts:
        yield text
        advance(len(text.encode()))


def _store(documents: Documents, tokenizer: Tokenizer, folder: Path, title: str, report: Report) -> TokenStore:
    meta = {"text_bytes": documents.bytes, "tokenizer": tokenizer.fingerprint()}
    with report.bar(title, documents.bytes, "B") as bar:
        arrays = tokenizer.encode_documents(documents, progress=bar.update)
        return write_store(folder, arrays, vocab_size=tokenizer.vocab_size, end_id=tokenizer.end_id, meta=meta)


def evaluate_text(pretrained: Pretrained, source: str | Path | None, report: Report) -> dict[str, float]:
    """How well a model predicts a text, in windows end to end; None: the validation text of the run it comes from.

    Errors: NextileError when the text is none or the folder has no validation text.
    """
    if source is not None:
        with TemporaryDirectory(prefix="nextile-evaluate-") as folder:
            documents = open_corpus(str(source)).documents
            store = _store(documents, pretrained.tokenizer, Path(folder) / "text", "tokenizing", report)
            return _evaluate(pretrained, store, report)
    own = (pretrained.folder or Path()) / "data" / "validation"
    if not own.exists():
        raise NextileError(f"'{pretrained.folder}' has no validation text of its own: name a text to evaluate on")
    return _evaluate(pretrained, open_store(own), report)


def _evaluate(pretrained: Pretrained, store: TokenStore, report: Report) -> dict[str, float]:
    context = min(pretrained.spec.context, max(1, len(store) - 1), LONGEST_WINDOW)
    device = next(pretrained.model.parameters()).device
    precision = choose_precision("auto", device)
    with report.bar("evaluating", len(store) - 1, "tokens") as bar:
        batches = _counted(validation_batches(store, context=context, batch=max(1, 4096 // context)), bar.advance)
        nats, asked = evaluate(pretrained.model, batches, next_token, precision=precision)
    return text_measures(nats, asked, store.text_bytes)


def _counted(batches: Iterable[Batch], advance: Callable[[int], None]) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        advance(batch.weight)
