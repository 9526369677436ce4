"""Conversations: a language model learns to answer; it reads all that is said and is asked for the answers alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch

from nextile.base.device import choose_precision
from nextile.base.errors import UsageError
from nextile.checkpoint.pretrained import Pretrained
from nextile.checkpoint.store import Processor
from nextile.data.answers import AnswerStore, PackedAnswers, open_answers, usual_context, write_answers
from nextile.data.batches import Batch, Steps
from nextile.data.conversations import (
    Conversation,
    Records,
    are_conversations,
    messages_of,
    open_conversations,
    split_records,
)
from nextile.generation.decode import LanguageModel, decode
from nextile.generation.sample import Sampling
from nextile.models.build import AnyModel
from nextile.nn import specs
from nextile.tasks.language import LONGEST_WINDOW, PRESETS, only_one
from nextile.tasks.report import Report, counted
from nextile.tasks.settings import RunSettings, Validation
from nextile.tasks.task import TextTask, all_but
from nextile.tasks.tokens import BATCH_TOKENS, learn_tokenizer, text_only, tokens_of
from nextile.text.chat import Chat
from nextile.text.tokenizer import Tokenizer
from nextile.training.loop import evaluate
from nextile.training.metrics import perplexity
from nextile.training.objectives import Objective, apart, next_token

TOGETHER = 3.0  # usual conversations that share a row, at least
ROWS = 8  # of a step
SHOWN = 60  # tokens of a preview
PARTS = ("train", "validation")


# --- from conversations to tokens -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Said:
    """All that is said in records, message by message, each with its speaker as where there is no other template."""

    records: Records[Any]
    bytes: int

    def __iter__(self) -> Iterator[str]:
        messages = (message for record in self.records for message in messages_of(record))
        return (f"{message.role.capitalize()}: {message.content}\n" for message in messages)


def told(records: Records[Any], title: str, report: Report) -> Iterator[Any]:
    """The records, while a bar is told how much went by."""
    with report.bar(title, records.bytes, "B") as bar:
        for record in records:
            yield record
            bar.advance(sum(len(message.content.encode()) for message in messages_of(record)))


def store_answers(conversations: Iterable[Conversation], tokenizer: Tokenizer, folder: Path, size: int) -> AnswerStore:
    """The tokens of conversations of `size` bytes in a store of their own, with the assistant's marked.

    Errors: NextileError for a conversation that the tokenizer's chat template refuses.
    """
    return write_answers(
        folder,
        Chat(tokenizer).examples(conversations),
        vocab_size=tokenizer.vocab_size,
        text_bytes=size,
        tokenizer=tokenizer.fingerprint(),
    )


def parts(records: Records[Any], validation: Validation, seed: int, read: Callable[[str], Records[Any]]):
    """What to train on and what to validate on: a source of its own, or what is held out."""
    if validation.data:
        return records, read(only_one(validation.data))
    return split_records(records, validation.fraction, seed)


def begun_by(base: Pretrained | None, task: str) -> Tokenizer | None:
    """The tokens of the model to begin from, if there is one. Errors: UsageError for one that does not write."""
    known = tokens_of(base, specs.Transformer, task)
    if base is not None and base.task != "lm":
        raise UsageError(f"a run of the task '{task}' cannot begin from {base.called}, which does not write texts")
    return known


def stored_answers(folder: Path, processor: Processor) -> tuple[Tokenizer, AnswerStore, AnswerStore]:
    """The tokenizer of a run's data, and the conversations to train and to validate on."""
    tokenizer = text_only(processor, folder)
    train, held_out = (open_answers(folder / name, tokenizer.fingerprint()) for name in PARTS)
    return tokenizer, train, held_out


def cut_note(stores: Mapping[str, AnswerStore], context: int, left_out: Callable[[AnswerStore], int]) -> str | None:
    """How many conversations are longer than a row, in one line, and how many of those are left out; None: none."""
    notes = [
        f"{int((store.sizes > context).sum()):,} of {len(store):,} {what}, of which {left_out(store):,} are left out, "
        "having no answer before the cut"
        for what, store in stores.items()
        if (store.sizes > context).any()
    ]
    return (
        f"longer than {context} tokens and cut at the end: {'; '.join(notes)}; set context for more" if notes else None
    )


# --- the data -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChatData:
    """Conversations as tokens, with the answers marked."""

    processor: Tokenizer
    train: AnswerStore
    held_out: AnswerStore

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What the user is told of it."""
        kind, size = self.processor.kind, self.processor.vocab_size
        answers = int(self.train.asked_within(int(self.train.sizes.max())).sum())
        return [
            ("corpus", f"{len(self.train):,} conversations to train on, {self.train.store.text_bytes:,} bytes"),
            ("tokens", f"{kind}, {size:,} kinds"),
            ("training", f"{self.train_tokens:,} tokens, {answers:,} of them in answers, which alone are learned"),
            ("validation", f"{len(self.held_out):,} conversations, never trained on"),
        ]

    @property
    def train_tokens(self) -> int:
        """How many are read to learn from."""
        return int(self.train.sizes.sum())

    @property
    def validation_tokens(self) -> int:
        """How many are held out."""
        return int(self.held_out.sizes.sum())

    def context(self, usual: int) -> int:
        """Rows that hold nearly all conversations whole, and several usual ones, whatever the size of the model."""
        return usual_context(self.train.sizes, TOGETHER)

    def enough(self, rows: float) -> bool:
        """Always: a larger model learns more from what is seen once."""
        return True

    def check(self, context: int) -> str | None:
        """How many conversations are cut. Errors: NextileError when none answers before the cut."""
        for store in (self.train, self.held_out):
            PackedAnswers(store, length=context, batch=1, seed=0)  # refuses when none does
        found = {"conversations to train on": self.train, "to validate on": self.held_out}
        return cut_note(found, context, lambda store: int((store.asked_within(context) == 0).sum()))

    def batches(self, *, context: int, batch: int, accumulate: int, seed: int) -> Steps:
        """Rows of conversations, each once an epoch, in an order of its own each epoch."""
        packed = PackedAnswers(self.train, length=context, batch=batch, seed=seed)
        return Steps(packed, accumulate)

    def measure(self, model: AnyModel, *, context: int, precision: torch.dtype) -> dict[str, float]:
        """Nats per token of the held-out answers, and perplexity."""
        return measured(model, all_answers(self.held_out, context), precision)

    def preview(self, pretrained: Pretrained, seed: int) -> tuple[str, str]:
        """The first held-out question, and the model's answer; all that comes before the answer is read."""
        first = int(np.argmax(self.held_out.asked_within(pretrained.spec.context) > 0))
        question, answer = self.held_out.first_answer(first)
        ends = {self.processor.end_id, *(self.processor.special_ids & {int(answer[-1])})}
        sampling = Sampling(temperature=0.0)
        found = decode(
            cast("LanguageModel", pretrained.model), [question.tolist()], sampling, max_tokens=SHOWN, end_ids=ends
        )
        written = [event.token for event in found if event.token not in ends]
        said = self.processor.decode(answer.tolist())
        return self.processor.decode(question.tolist()), f"{self.processor.decode(written)}\n== {said}"


def all_answers(answers: AnswerStore, context: int) -> Iterator[Batch]:
    """Every conversation once, in rows as long as the longest needs, up to `context` tokens."""
    length = min(int(answers.sizes.max()), context)
    return PackedAnswers(answers, length=length, batch=max(1, BATCH_TOKENS // length), seed=0).once()


def measured(model: AnyModel, batches: Iterable[Batch], precision: torch.dtype) -> dict[str, float]:
    """How well a model predicts answers."""
    nats, asked = evaluate(model, batches, apart(next_token), precision=precision)
    return {"loss": nats / asked, "perplexity": perplexity(nats / asked)}


# --- the task -------------------------------------------------------------------------------------------------------


class Conversing(TextTask):
    """`--task chat`."""

    name = "chat"
    preset = "qwen3"
    dropout = 0.1
    counts = "answer tok"
    rows: int | None = ROWS
    presets: Mapping[str, ModuleType] = PRESETS
    unread: Collection[str] = all_but()

    def suits(self, sources: Sequence[str]) -> bool:
        """A file that begins with a conversation."""
        return are_conversations(sources)

    def prepare(
        self, sources: Sequence[str], settings: RunSettings, folder: Path, report: Report, base: Pretrained | None
    ) -> ChatData:
        """Read, split, tokenize and store conversations. Errors: NextileError for what cannot be learned from."""
        known = begun_by(base, self.name)
        records = open_conversations(only_one(sources))
        both = parts(records, settings.validation, settings.seed, open_conversations)
        tokenizer = known or learn_tokenizer(_Said(both[0], both[0].bytes), settings.tokenizer, report)
        train, held_out = (
            store_answers(told(part, f"tokenizing ({name})", report), tokenizer, folder / name, part.bytes)
            for name, part in zip(PARTS, both, strict=True)
        )
        return ChatData(tokenizer, train, held_out)

    def open(self, folder: Path, settings: RunSettings, processor: Processor) -> ChatData:
        """What `prepare` stored."""
        return ChatData(*stored_answers(folder, processor))

    def objective(self, settings: RunSettings) -> Objective:
        """That of all tasks, of the answers alone."""
        return apart(super().objective(settings))

    def trial(self, folder: Path) -> str:
        """The command that shows what the model does."""
        return f"nextile chat {folder}"


def evaluate_chat(pretrained: Pretrained, sources: Sequence[str], report: Report) -> dict[str, float]:
    """How well a model predicts the answers in conversations; none: those held out of the run that it comes from.

    Errors: NextileError when the source is none or the folder has no conversations of its own.
    """
    with TemporaryDirectory(prefix="nextile-evaluate-") as folder:
        answers = _evaluated(pretrained, sources, Path(folder), report)
        context = min(pretrained.spec.context, LONGEST_WINDOW)
        precision = choose_precision("auto", next(pretrained.model.parameters()).device)
        with report.bar("evaluating", int(answers.asked_within(context).sum()), "answer tokens") as bar:
            return measured(pretrained.model, counted(all_answers(answers, context), bar), precision)


def _evaluated(pretrained: Pretrained, sources: Sequence[str], folder: Path, report: Report) -> AnswerStore:
    tokenizer, own = pretrained.tokenizer, (pretrained.folder or Path()) / "data" / "validation"
    if not sources:
        return open_answers(own, tokenizer.fingerprint())
    records = open_conversations(only_one(sources))
    return store_answers(told(records, "tokenizing", report), tokenizer, folder / "chat", records.bytes)
