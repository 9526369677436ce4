"""Classification of texts: the corpus is texts with labels, the model is asked for the label of a text.

Shapes: N texts, B batch, T tokens, K classes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextile.base.device import choose_precision
from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.pretrained import Pretrained
from nextile.checkpoint.store import Processor, Spec
from nextile.data.batches import Batch, Steps
from nextile.data.labelled import (
    LabelledBatches,
    LabelledCorpus,
    LabelledStore,
    all_texts,
    are_labelled,
    chosen_texts,
    laid,
    load_labels,
    open_labelled,
    refuse_one_class,
    renumbered,
    save_labels,
    split_labelled,
)
from nextile.generation.decode import check_ids, evaluating
from nextile.models.build import AnyModel, build
from nextile.models.families import bert, bidirectional, gpt2, qwen3
from nextile.nn import specs
from nextile.tasks.classification import Answers
from nextile.tasks.report import Report, counted, one_line
from nextile.tasks.settings import RunSettings
from nextile.tasks.task import TextTask, all_but
from nextile.tasks.tokens import BATCH_TOKENS, learn_tokenizer, store_tokens, stored_tokens, text_only
from nextile.text.frame import Frame, framed, usual_frame
from nextile.text.tokenizer import Tokenizer
from nextile.training.loop import evaluate
from nextile.training.metrics import class_measures

PRESETS = {"bidirectional": bidirectional, "bert": bert, "gpt2": gpt2, "qwen3": qwen3}
LABELS = "labels.json"  # beside the tokens of a part
ROOM = 512  # tokens of a text that are read, where nobody asks for more: attention to more costs more than it tells
EPOCHS = 5  # how often texts are to be seen before a larger model learns more of them
ROWS = 32  # texts of a step
SHOWN, WIDE = 4, 70  # texts of a preview, and characters of each
TOGETHER = 64  # texts that are classified at once


@dataclass(frozen=True)
class _Texts:
    """Some texts of a corpus, and their size in UTF-8 bytes."""

    corpus: LabelledCorpus
    chosen: np.ndarray  # (N,) bool
    bytes: int

    @classmethod
    def of(cls, corpus: LabelledCorpus, chosen: np.ndarray) -> _Texts:
        """Those that are chosen, measured by reading them once."""
        return cls(corpus, chosen, sum(len(text.encode()) for text in chosen_texts(corpus, chosen)))

    def __iter__(self) -> Iterator[str]:
        return chosen_texts(self.corpus, self.chosen)

    @property
    def labels(self) -> np.ndarray:
        """Their classes, (N,) int64."""
        return self.corpus.labels[self.chosen]


@dataclass(frozen=True)
class LabelledData:
    """Texts of known classes, as tokens."""

    processor: Tokenizer
    train: LabelledStore
    held_out: LabelledStore
    classes: tuple[str, ...]
    seed: int = 0  # of a new head

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What the user is told of it."""
        kind, size = self.processor.kind, self.processor.vocab_size
        per_token = self.train.store.text_bytes / max(1, len(self.train.store))
        return [
            ("texts", f"{len(self.train) + len(self.held_out):,}, of {len(self.classes):,} classes: {self._few()}"),
            ("tokens", f"{kind}, {size:,} kinds, {per_token:.2f} bytes each"),
            ("training", f"{len(self.train):,} texts, {self.train_tokens:,} tokens"),
            ("validation", f"{len(self.held_out):,} texts, never trained on"),
        ]

    def _few(self, most: int = 10) -> str:
        more = f" and {len(self.classes) - most:,} more" if len(self.classes) > most else ""
        return ", ".join(self.classes[:most]) + more

    @property
    def train_tokens(self) -> int:
        """How many there are to learn from."""
        return len(self.train.store)

    @property
    def validation_tokens(self) -> int:
        """How many are held out."""
        return len(self.held_out.store)

    def context(self, usual: int) -> int:
        """As many as the longest text has, up to ROOM, whatever the size of the model."""
        longest = max(int(part.lengths.max()) for part in (self.train, self.held_out))
        return min(ROOM, 8 * -(-longest // 8))

    def enough(self, rows: float) -> bool:
        """EPOCHS of them: few texts make few examples, and what is seen once is hardly learned."""
        return rows >= EPOCHS * len(self.train)

    def check(self, context: int) -> str | None:
        """How many texts are cut, and of which classes nothing is held out."""
        lengths = np.concatenate([self.train.lengths, self.held_out.lengths])
        cut = int((lengths > context).sum())
        seen = set(self.held_out.labels.tolist())
        unseen = [name for number, name in enumerate(self.classes) if number not in seen]
        notes = [f"{cut:,} of {len(lengths):,} texts are longer than {context} tokens: they are cut"] * bool(cut)
        notes += [f"nothing is held out of {', '.join(unseen[:10])}: its accuracy is not measured"] * bool(unseen)
        return "; ".join(notes) or None

    def batches(self, *, context: int, batch: int, accumulate: int, seed: int) -> Steps:
        """Texts of like lengths, each once an epoch."""
        return Steps(LabelledBatches(self.train, context=context, batch=batch, seed=seed), accumulate)

    def measure(self, model: AnyModel, *, context: int, precision: torch.dtype) -> dict[str, float]:
        """Nats per text, and how many are right."""
        order, batches = all_texts(self.held_out, context, BATCH_TOKENS)
        return measured(model, batches, self.held_out.labels[order], precision)

    def preview(self, pretrained: Pretrained, seed: int) -> tuple[str, str]:
        """The first held-out texts, and what they are taken for."""
        chosen = range(min(SHOWN, len(self.held_out)))
        rows = [self.held_out.row(index, pretrained.spec.context) for index in chosen]
        best = probabilities(pretrained.model, rows).max(-1)
        lines = []
        for index, share, number in zip(chosen, best.values.tolist(), best.indices.tolist(), strict=True):
            text = one_line(self.processor.decode(self.held_out.side.tokens(index)))
            beginning = text if len(text) <= WIDE else text[: WIDE - 3] + "..."
            truth = self.classes[self.held_out.labels[index]]
            lines.append(f"{beginning}\n  -> {self.classes[number]} {share:.0%}\n  == {truth}")
        return "held-out texts, and what they are taken for", "\n".join(lines)


def measured(
    model: AnyModel, batches: Iterable[Batch], labels: np.ndarray, precision: torch.dtype
) -> dict[str, float]:  # fmt: skip
    """Nats per text and accuracy, on batches of texts that have these labels, in order."""
    answers = Answers()
    nats, asked = evaluate(model, batches, answers, precision=precision)
    right = int((answers.logprobs.argmax(-1).numpy() == labels).sum())
    return class_measures(nats, right, asked)


# --- the task -------------------------------------------------------------------------------------------------------


class Labelling(TextTask):
    """`--task classify`, where the data is texts."""

    name = "classify-text"  # in run.json; `run.task_for` finds it by the data
    preset = "bidirectional"
    dropout = 0.1
    counts = "texts"
    rows: int | None = ROWS
    presets: Mapping[str, ModuleType] = PRESETS
    unread: Collection[str] = all_but()

    def suits(self, sources: Sequence[str]) -> bool:
        """Texts with labels, by what is there."""
        return are_labelled(sources)

    def prepare(
        self, sources: Sequence[str], settings: RunSettings, folder: Path, report: Report, base: Pretrained | None
    ) -> LabelledData:
        """Read, split, tokenize and store texts. Errors: NextileError for what cannot be learned from."""
        known = _tokens_of(base)
        corpus = open_labelled(sources)
        refuse_one_class(corpus)
        train, held_out = _split(corpus, settings)
        for part in {id(part.corpus): part.corpus for part in (train, held_out)}.values():
            if part.skipped:
                report.warn(f"'{part.name}' has {part.skipped:,} rows without a text: they are left out")
        tokenizer = framed(known or learn_tokenizer(train, settings.tokenizer, report))
        learned, asked = (
            _store(part, tokenizer, folder / name, f"tokenizing ({name})", report)
            for name, part in (("train", train), ("validation", held_out))
        )
        return LabelledData(tokenizer, learned, asked, corpus.classes, settings.seed)

    def open(self, folder: Path, settings: RunSettings, processor: Processor) -> LabelledData:
        """What `prepare` stored."""
        tokenizer = text_only(processor, folder)
        (train, classes), (held_out, _) = (_stored(folder / name, tokenizer) for name in ("train", "validation"))
        return LabelledData(tokenizer, train, held_out, classes, settings.seed)

    def spec(
        self, preset: str, size: Mapping[str, int], asked: Mapping[str, int], *, data: LabelledData, context: int,
        dropout: float,
    ) -> Spec:  # fmt: skip
        """The preset's stack in this size under a new head; what is asked wins."""
        body = super().spec(preset, size, asked, data=data, context=context, dropout=dropout)
        return with_head(body, data.classes, data.processor)

    def adapt(self, base: Pretrained, data: LabelledData) -> AnyModel:
        """The embedding and the stack of the model to begin from, under a new head; one of the same classes stays."""
        model = build(with_head(base.spec, data.classes, data.processor), seed=data.seed)
        old, new = base.model.state_dict(), model.state_dict()
        keeps = isinstance(base.spec, specs.TextClassifier) and base.spec.head.classes == data.classes
        renamed = {"embed.": "source.", "stack.": "encoder."} if isinstance(base.spec, specs.EncoderDecoder) else {}
        for name, tensor in new.items():
            if keeps or not name.startswith("head."):
                part = name[: name.index(".") + 1]
                tensor.copy_(old[renamed.get(part, part) + name.removeprefix(part)])
        return model

    def trial(self, folder: Path) -> str:
        """The command that shows what the model does."""
        return f'nextile classify {folder} "..."'


def with_head(spec: Spec, classes: tuple[str, ...], tokenizer: Tokenizer) -> specs.TextClassifier:
    """A classifier of texts with the embedding and the stack of a model; of an encoder-decoder those of its encoder.

    It reads the last token of a causal stack; of one that looks both ways the first, where texts begin with a token
    of their own, else the mean: as transformers' classifiers do, the mean apart. A classifier keeps its kind of head.
    Errors: UsageError for a model of another kind.
    """
    if isinstance(spec, specs.TextClassifier):
        padding = {"padding": _padding(tokenizer)} if isinstance(spec.head, specs.LastHead) else {}
        return spec.model_copy(update={"head": spec.head.model_copy(update={"classes": classes, **padding})})
    if isinstance(spec, specs.EncoderDecoder):
        embed, stack = spec.source, spec.encoder
    elif isinstance(spec, specs.Transformer):
        embed, stack = spec.embed, spec.stack
    else:
        raise UsageError("a classifier of texts begins from a model that reads texts by a stack of blocks")
    if stack.causal:
        head = specs.LastHead(classes=classes, bias=False, padding=_padding(tokenizer))
    elif tokenizer.begin_id is None:
        head = specs.MeanHead(classes=classes)
    else:
        head = specs.PooledHead(classes=classes, dropout=stack.dropout)
    return specs.TextClassifier(context=spec.context, embed=embed, stack=stack, head=head)


def _padding(tokenizer: Tokenizer) -> int | None:
    """The token of padding, if it is not the one that ends each text and is read here."""
    return None if tokenizer.pad_id == tokenizer.end_id else tokenizer.pad_id


def _tokens_of(base: Pretrained | None) -> Tokenizer | None:
    """The tokens of the model to begin from, if there is one. Errors: UsageError when it does not read texts so."""
    if base is None:
        return None
    shapes = (specs.Transformer, specs.EncoderDecoder, specs.TextClassifier)
    if not isinstance(base.spec, shapes) or not isinstance(base.processor, Tokenizer):
        raise UsageError(f"a run of the task 'classify' cannot read texts by {base.called}, a model of another kind")
    return base.processor


def _split(corpus: LabelledCorpus, settings: RunSettings) -> tuple[_Texts, _Texts]:
    """What to train on and what to validate on: texts of their own for that, or what is held out."""
    if settings.validation.data:
        other = renumbered(open_labelled(settings.validation.data), corpus.classes)
        return _all(corpus), _all(other)
    train, held_out = split_labelled(corpus, settings.validation.fraction, settings.seed)
    return _Texts.of(corpus, train), _Texts.of(corpus, held_out)


def _all(corpus: LabelledCorpus) -> _Texts:
    return _Texts.of(corpus, np.ones(len(corpus), dtype=bool))


def _store(
    texts: _Texts, tokenizer: Tokenizer, folder: Path, title: str, report: Report, frame: Frame | None = None
) -> LabelledStore:
    """The texts' tokens in a store, and their labels beside it."""
    store = store_tokens(texts, tokenizer, folder, title, report)
    classes = texts.corpus.classes
    save_labels(folder / LABELS, texts.labels, classes)
    return LabelledStore(store, texts.labels, len(classes), usual_frame(tokenizer) if frame is None else frame)


def _stored(folder: Path, tokenizer: Tokenizer) -> tuple[LabelledStore, tuple[str, ...]]:
    """What `_store` wrote, and the names of the classes. Errors: NextileError when something of it is missing."""
    store = stored_tokens(folder, tokenizer)
    labels, classes = load_labels(folder / LABELS, store.documents)
    return LabelledStore(store, labels, len(classes), usual_frame(tokenizer)), classes


# --- using a classifier ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labelled:
    """A text, the most probable of its classes with their probabilities, and what the user should be told of it."""

    text: str
    classes: list[tuple[str, float]]
    note: str | None = None


def label(pretrained: Pretrained, texts: Sequence[str], top: int) -> list[Labelled]:
    """The `top` most probable classes of each text, most probable first; a text does not depend on those beside it.

    Errors: UsageError for a model that is no classifier of texts; NextileError for a tokenizer of another model.
    """
    spec = _classifier(pretrained)
    if top < 1:
        raise UsageError(f"top is {top}: ask for at least 1 class")
    tokenizer, classes, frame, found = pretrained.tokenizer, spec.head.classes, pretrained.frame, []
    for start in range(0, len(texts), TOGETHER):
        some = texts[start : start + TOGETHER]
        ids = [tokenizer.encode(text) for text in some]
        rows = [frame.around(each, spec.context) or [tokenizer.end_id] for each in ids]
        check_ids(rows, spec.embed.vocab, "text")
        best = probabilities(pretrained.model, rows).topk(min(top, len(classes)))
        ranked = zip(some, ids, best.values.tolist(), best.indices.tolist(), strict=True)
        for text, each, shares, numbers in ranked:
            named = [(classes[number], share) for number, share in zip(numbers, shares, strict=True)]
            found.append(Labelled(text, named, _cut(len(each), spec.context - len(frame))))
    return found


def _cut(tokens: int, room: int) -> str | None:
    return f"the text has {tokens:,} tokens and the model reads {room:,}: it is cut" if tokens > room else None


@torch.no_grad()
def probabilities(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """Of texts as tokens, (N,) of at least one each -> (N, K), on the CPU."""
    device = next(model.parameters()).device
    ids, there = laid(rows)
    with evaluating(model):
        return model(ids.to(device), there.to(device)).float().softmax(-1).cpu()


def _classifier(pretrained: Pretrained) -> specs.TextClassifier:
    if not isinstance(pretrained.spec, specs.TextClassifier):
        raise UsageError(f"{pretrained.called} is no classifier of texts: train one by nextile train --task classify")
    return pretrained.spec


def evaluate_labels(pretrained: Pretrained, sources: Sequence[str], report: Report) -> dict[str, float]:
    """Nats per text and accuracy; none: on what was held out of the run that the model comes from.

    Errors: NextileError for what are no texts with labels, and for a label that the model does not know.
    """
    spec = _classifier(pretrained)
    with TemporaryDirectory(prefix="nextile-evaluate-") as folder:
        texts = _evaluated(pretrained, sources, Path(folder), report, spec.head.classes)
        precision = choose_precision("auto", next(pretrained.model.parameters()).device)
        order, batches = all_texts(texts, spec.context, BATCH_TOKENS)
        with report.bar("evaluating", len(texts), "texts") as bar:
            return measured(pretrained.model, counted(batches, bar), texts.labels[order], precision)


def _evaluated(
    pretrained: Pretrained, sources: Sequence[str], folder: Path, report: Report, classes: tuple[str, ...]
) -> LabelledStore:  # fmt: skip
    if sources:
        corpus = renumbered(open_labelled(sources), classes)
        return _store(_all(corpus), pretrained.tokenizer, folder / "text", "tokenizing", report, pretrained.frame)
    own = (pretrained.folder or Path()) / "data" / "validation"
    if not own.exists():
        raise NextileError(f"{pretrained.called} has no held-out texts of its own: name texts to evaluate on")
    texts, known = _stored(own, pretrained.tokenizer)
    if known != classes:
        raise NextileError(f"'{own}' has other classes than {pretrained.called}: name texts to evaluate on")
    return texts
