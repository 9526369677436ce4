"""Word vectors: the corpus is text as words, the model tells each word from others by those around it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.pretrained import Pretrained
from nextile.checkpoint.store import Processor, Spec
from nextile.data.corpora import open_corpus
from nextile.data.shards import TokenStore
from nextile.models.build import AnyModel
from nextile.models.words import WordVectors
from nextile.nn import specs
from nextile.tasks.language import TextData, evaluated, only_one, parts
from nextile.tasks.report import Report
from nextile.tasks.settings import RunSettings, Words, recorded
from nextile.tasks.start import Start, WordStart, word_model
from nextile.tasks.task import GradientTask, all_but
from nextile.tasks.tokens import store_tokens, stored_parts, stored_tokens, tokens_of, watched
from nextile.text.lexicon import train_lexicon
from nextile.text.tokenizer import Tokenizer
from nextile.training.learner import Learner
from nextile.training.metrics import word_measures
from nextile.training.parallel import ALONE, World, only_alone
from nextile.training.words import RATE, ByTorch, Chances, WordLearner, has_kernel

PRESETS = {"cbow": specs.CBOW, "skip-gram": specs.SkipGram}
ROWS, LONGEST, SHORTEST = 200, 1000, 50  # of a step, and words of a row: work for several threads, and many steps
STEPS = 20  # of an epoch at least, so that the learning rate falls gently
MEASURED = 1 << 14  # held-out words that are looked at
BLOCK = 1 << 22  # tokens counted at a time
SHOWN, NEIGHBOURS = 5, 6  # words of a preview, and their neighbours
RANKS = 150  # how far apart in frequency they are
SLOW = "without numba word vectors take some ten times as long: pip install 'nextile[words]'"


def known_to(tokenizer: Tokenizer) -> Callable[[np.ndarray], np.ndarray]:
    """What leaves out the words that a tokenizer does not know: their neighbours close up, as in word2vec."""
    unknown = tokenizer.unknown_id
    return lambda ids: ids[ids != unknown]


def counted_words(store: TokenStore, tokenizer: Tokenizer) -> np.ndarray:
    """How often each word occurs, (V,); of special tokens 0."""
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for start in range(0, len(store), BLOCK):
        counts += np.bincount(store[start : start + BLOCK], minlength=len(counts))
    counts[list(tokenizer.special_ids)] = 0
    return counts


@dataclass(frozen=True)
class WordData(TextData):
    """Texts as words, those too rare to learn left out."""

    chosen: Words

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What the user is told of it."""
        return [
            ("corpus", f"{self.train.text_bytes + self.held_out.text_bytes:,} bytes, {self.documents:,} documents"),
            ("words", f"{self.processor.vocab_size - len(self.processor.special_ids):,} different ones"),
            ("training", f"{len(self.train):,} words"),
            ("validation", f"{len(self.held_out):,} words, never trained on"),
        ]

    @cached_property
    def chances(self) -> Chances:
        """How likely each word is kept and drawn, from how often it occurs."""
        return Chances.of(counted_words(self.train, self.processor), self.chosen.subsample)

    def context(self, usual: int) -> int:
        """Long rows, but in a short text so many that there are steps enough."""
        return max(min(SHORTEST, len(self.train) - 1), min(LONGEST, len(self.train) // (ROWS * STEPS)))

    def check(self, context: int) -> str | None:
        """Whether it will be slow. Errors: NextileError when there is too little text."""
        return super().check(context) or (None if has_kernel() else SLOW)

    def measure(self, model: AnyModel, *, context: int, precision: torch.dtype) -> dict[str, float]:
        """Nats per held-out word, and how often it seems likelier than a word that is not there."""
        return measured(model, self.held_out, self.chances)

    def preview(self, pretrained: Pretrained, seed: int) -> tuple[str, str]:
        """A few words, frequent and less so, and those that are most like them."""
        assert isinstance(pretrained.model, WordVectors)
        table = pretrained.model.words_in.weight.detach()
        unit = torch.nn.functional.normalize(table, dim=1)
        unit[list(self.processor.special_ids)] = 0.0
        asked = range(RANKS, len(unit), RANKS)[:SHOWN]
        best = (unit[list(asked)] @ unit.T).topk(min(NEIGHBOURS + 1, len(unit)), dim=1).indices.tolist()
        words = [[self.processor.token(index) for index in row] for row in best]
        return "nearest words", "\n".join(f"{row[0]}: {', '.join(row[1:])}" for row in words)


def measured(model: AnyModel, store: TokenStore, chances: Chances) -> dict[str, float]:
    """What a model says of the first words of a store; the same negatives each time."""
    assert isinstance(model, WordVectors)
    rows = torch.from_numpy(store[0 : min(MEASURED, len(store))])[None]
    with torch.no_grad():
        told = ByTorch(model, chances, store.end_id).learn(rows, 0.0, 0)
    if not told.predicted:
        raise NextileError(
            "no held-out word has a neighbour: give more text, or a larger validation.fraction or words.subsample"
        )
    return word_measures(float(told.nats), float(told.right), told.predicted)


def _shape(preset: str) -> type[specs.CBOW] | type[specs.SkipGram]:
    if preset not in PRESETS:
        raise UsageError(f"unknown preset '{preset}': it is one of {', '.join(PRESETS)}")
    return PRESETS[preset]


class WordEmbedding(GradientTask):
    """`--task words`."""

    name = "words"
    preset = "cbow"
    dropout = 0.0
    counts = "words"
    rows: int | None = ROWS
    unread: Collection[str] = (
        "dropout", "label_smoothing", "r_drop", "clip", "optimizer", "precision", "compile", "attention",
        "tokenizer.kind", "lora", *all_but("words"),
    )  # fmt: skip
    settings: Mapping[str, Any] = {
        "precision": "fp32",
        "compile": False,
        "validation": {"fraction": 0.02},
        "schedule": {"type": "linear", "warmup": 0, "floor": 0.004},
    }
    sizes: Mapping[str, tuple[str, ...]] = {}

    def suits(self, sources: Sequence[str]) -> bool:
        """Never unasked: a text makes a language model."""
        return False

    def prepare(
        self, sources: Sequence[str], settings: RunSettings, folder: Path, report: Report, base: Pretrained | None
    ) -> WordData:
        """Read, split, and store a corpus as words. Errors: NextileError for one that cannot be learned from."""
        tokenizer = tokens_of(base, specs.WordModel, self.name)
        corpus = open_corpus(only_one(sources))
        train, held_out = parts(corpus, settings.validation, settings.seed)
        if tokenizer is None:
            with report.bar("counting words", train.bytes, "B") as bar:
                texts = watched(train, bar.advance)
                tokenizer = train_lexicon(texts, settings.words.min_count, settings.tokenizer.size)
        learned, asked = (
            store_tokens(part, tokenizer, folder / name, f"reading ({name})", report, known_to(tokenizer))
            for name, part in (("train", train), ("validation", held_out))
        )
        if base is not None and not counted_words(learned, tokenizer).any():
            raise NextileError(f"no word of the text is among those of {base.called}: take others, or leave out --init")
        return WordData(tokenizer, learned, asked, settings.words)

    def open(self, folder: Path, settings: RunSettings, processor: Processor) -> WordData:
        """What `prepare` stored."""
        tokenizer, train, held_out = stored_parts(folder, processor)
        return WordData(tokenizer, train, held_out, settings.words)

    def spec(
        self, preset: str, size: Mapping[str, int], asked: Mapping[str, int], *, data: WordData, context: int,
        dropout: float,
    ) -> Spec:  # fmt: skip
        """Vectors of the usual size for all words of the data."""
        chosen = data.chosen
        return _shape(preset)(
            vocab=data.processor.vocab_size, width=chosen.dim, window=chosen.window, negatives=chosen.negatives
        )

    def begin_with(self, words: WordStart, preset: str | None, settings: RunSettings) -> Start:
        """The model that they come from; where they come from a file, one of its words."""
        if words.model is not None:
            return Start(words.model)
        chosen, dim = settings.words, words.table.dim
        if chosen.dim not in (dim, Words().dim):
            raise UsageError(f"{words.called} has vectors of {dim} numbers and words.dim is {chosen.dim}: leave it out")
        return word_model(words, _shape(preset or self.preset), chosen.window, chosen.negatives)

    def epochs(self, settings: RunSettings) -> float | None:
        """As many as the settings say."""
        return settings.words.epochs

    def learner(
        self, model: AnyModel, data: WordData, settings: RunSettings, *, precision: torch.dtype, compiled: bool,
        world: World = ALONE,
    ) -> Learner:  # fmt: skip
        """Negative sampling in place. Errors: UsageError on several processes."""
        only_alone(world, "word vectors are trained")
        assert isinstance(model, WordVectors)
        rate = settings.lr or RATE
        return WordLearner(model, data.chances, end=data.processor.end_id, lr=rate, seed=settings.seed)

    def trial(self, folder: Path) -> str:
        """The command that shows what the model does."""
        return f"nextile words {folder} near WORD"


def evaluate_words(pretrained: Pretrained, sources: Sequence[str], report: Report) -> dict[str, float]:
    """How well vectors tell the words of a text from others; none: the validation text of the run they come from.

    Words are left out, and negatives drawn, by how often they occur in the text that the vectors were learned from; in
    the very text where that is not at hand. Errors: NextileError when the text is none.
    """
    tokenizer = pretrained.tokenizer
    with TemporaryDirectory(prefix="nextile-evaluate-") as folder:
        store = evaluated(pretrained, sources, Path(folder), report, known_to(tokenizer))
        own = (pretrained.folder or Path()) / "data" / "train"
        counts = counted_words(stored_tokens(own, tokenizer) if own.exists() else store, tokenizer)
        return measured(pretrained.model, store, Chances.of(counts, recorded(pretrained.folder).words.subsample))
