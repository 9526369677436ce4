"""Conversations as tokens of which some are asked, stored and laid into rows; a batch is a function of (seed, step).

Shapes: P conversations, N pairs of them, B batch, T tokens of a row.
A token and whether it is asked are one number on disk: twice the id, and 1 more where it is asked.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nextile.base.errors import NextileError, UsageError
from nextile.base.files import atomic_write, inside
from nextile.data.batches import IGNORE, Batch, Order, listed
from nextile.data.masking import refuse_sizes
from nextile.data.packing import PackedRows, Side, laid
from nextile.data.shards import BLOCK, TokenStore, open_store, write_store
from nextile.text.chat import Example

ROOM = 1024  # tokens of a row at most, where nobody asks for more
LEFT_OUT = 0.01  # of the conversations, the longest, may be cut: rows for them would be mostly empty


class AnswerStore:
    """Conversations as tokens, some of them asked. The first token of one can never be: nothing comes before it."""

    def __init__(self, store: TokenStore):
        self.store = store
        self._side = Side.of(store)

    def __len__(self) -> int:
        return len(self._side.lengths)

    @property
    def sizes(self) -> np.ndarray:
        """Places in a row that each takes, (P,): all tokens but the last are read, and all but the first follow."""
        return self._side.lengths - 2  # the mark of the end is stored too

    @cached_property
    def _asked(self) -> np.ndarray:
        """Where in the store the asked tokens are, ascending."""
        blocks = range(0, len(self.store), BLOCK)
        return np.concatenate([np.flatnonzero(self.store[at : at + BLOCK] & 1) + at for at in blocks])

    def asked_within(self, context: int) -> np.ndarray:
        """How many tokens are asked of each conversation that is cut to a row of `context`, (P,)."""
        first = self._side.starts + 1
        last = first + np.minimum(self.sizes, context)
        return np.searchsorted(self._asked, last) - np.searchsorted(self._asked, first)

    def tokens(self, index: int) -> np.ndarray:
        """The ids of one."""
        start = int(self._side.starts[index])
        return self.store[start : start + int(self.sizes[index]) + 1] // 2

    def first_answer(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids of one up to its first answer, and those of the answer."""
        start = int(self._side.starts[index])
        numbers = self.store[start : start + int(self.sizes[index]) + 1]
        asked = numbers % 2 == 1
        begin = int(asked.argmax())
        length = int(np.append(~asked[begin:], True).argmax())
        return numbers[:begin] // 2, numbers[begin : begin + length] // 2

    def rows(self, rows: list[np.ndarray], length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of these conversations, cut at `length`: inputs, targets, and whose each token is, (B, T) each."""
        sizes = np.minimum(self.sizes, length)
        read, following = (Side(self.store, self._side.starts + later, sizes) for later in (0, 1))
        inputs, segments, _ = laid(read, rows, length)
        targets, _, _ = laid(following, rows, length)
        targets = np.where(targets % 2, targets // 2, IGNORE)
        return torch.from_numpy(inputs // 2), torch.from_numpy(targets), torch.from_numpy(segments)


def write_answers(
    folder: Path, examples: Iterable[Example], *, vocab_size: int, text_bytes: int, tokenizer: str
) -> AnswerStore:
    """Write conversations as a store that appears whole or never. tokenizer: the fingerprint of whose tokens they are.

    Errors: NextileError for an id that is not in the vocabulary, none at all, and a full disk.
    """
    numbers = (2 * example.ids.astype(np.int64) + example.answers for example in examples)
    end = 2 * vocab_size  # no token has it
    meta = {"text_bytes": text_bytes, "tokenizer": tokenizer}
    return AnswerStore(write_store(folder, numbers, vocab_size=end + 1, end_id=end, meta=meta))


def open_answers(folder: Path, tokenizer: str) -> AnswerStore:
    """What `write_answers` wrote. Errors: NextileError when that was with another tokenizer, or is broken."""
    store = open_store(folder)
    if store.meta.get("tokenizer") != tokenizer:
        raise NextileError(f"'{folder}' was written with another tokenizer or another way to write: train anew")
    return AnswerStore(store)


def usual_context(sizes: np.ndarray, together: float) -> int:
    """Tokens of a row that holds nearly all of these whole, and `together` usual ones, up to ROOM."""
    wanted = max(float(np.quantile(sizes, 1 - LEFT_OUT)), together * float(sizes.mean()))
    return min(ROOM, 16 * max(1, int(np.ceil(wanted / 16))))


# --- conversations that share rows ---------------------------------------------------------------------------------


class PackedAnswers(PackedRows):
    """Batches of rows in which conversations stand beside each other; those that are longer than a row are cut.

    Beside the inputs a batch has whose each token is, (B, T). A conversation that asks nothing after the cut is left
    out. Errors: NextileError when all of them are.
    """

    what = "conversations"

    def __init__(self, answers: AnswerStore, *, length: int, batch: int, seed: int):
        refuse_sizes(length, batch)
        self.answers = answers
        fitting = np.flatnonzero(answers.asked_within(length))
        if not len(fitting):
            raise NextileError(f"no conversation answers within a context of {length} tokens: set a longer context")
        sizes = np.minimum(answers.sizes[fitting], length)
        super().__init__(fitting, sizes[:, None], length=length, batch=batch, seed=seed)

    def _batch(self, rows: list[np.ndarray]) -> Batch:
        inputs, targets, segments = self.answers.rows(rows, self.length)
        return Batch.of(inputs, targets, (segments,))


# --- pairs of answers ----------------------------------------------------------------------------------------------


class Comparisons:
    """Batches of pairs: conversations 2i and 2i + 1 of the store, of which the first is preferred, are rows of one.

    Beside the inputs (2N, T) a batch has where there are tokens, (2N, T), and the reference's log-probability of each
    row's answers, (2N,); its weight is N. reference: theirs, (P,); None: 0. A pair of which one side asks nothing
    within `length` tokens is left out. Errors: NextileError when all of them are, UsageError for an odd batch.
    """

    def __init__(
        self, answers: AnswerStore, reference: np.ndarray | None, *, length: int, batch: int, seed: int
    ):  # fmt: skip
        refuse_sizes(length, batch)
        self.answers, self.length, self.batch = answers, length, batch
        self.reference = np.zeros(len(answers), np.float32) if reference is None else reference
        self.pairs = comparable(answers, length)
        if not len(self.pairs):
            raise NextileError(f"no pair has both answers within a context of {length} tokens: set a longer context")
        self._order = Order(len(self.pairs), seed)

    def __len__(self) -> int:
        """The pairs of an epoch."""
        return len(self.pairs)

    def micro(self, step: int, accumulate: int) -> list[Batch]:
        """The batch of a step in equal parts. Errors: UsageError where a part would not be whole pairs."""
        if self.batch % (2 * accumulate):
            raise UsageError(
                f"a pair is two rows: a batch of {self.batch} rows does not divide into {accumulate} "
                f"part{'s' * (accumulate > 1)} of whole pairs: choose a multiple of {2 * accumulate}"
            )
        return [self._batch(pairs) for pairs in self._chosen(step).reshape(accumulate, -1)]

    def named(self, step: int) -> str:
        """The pairs."""
        return listed("pairs", self._chosen(step))

    def _chosen(self, step: int) -> np.ndarray:
        """The pairs of a step, (N,)."""
        each = self.batch // 2
        epochs, places = np.divmod(np.arange(step * each, (step + 1) * each), len(self))
        order: list[np.ndarray] = [self._order(int(epoch), places[epochs == epoch]) for epoch in np.unique(epochs)]
        return self.pairs[np.concatenate(order)]

    def once(self) -> Iterator[Batch]:
        """Every pair once, in order; the last batch may have fewer."""
        each = max(1, self.batch // 2)
        for first in range(0, len(self), each):
            yield self._batch(self.pairs[first : first + each])

    def _batch(self, pairs: np.ndarray) -> Batch:
        rows = (2 * pairs[:, None] + np.arange(2)).reshape(-1)  # (2N,): chosen, rejected, chosen, ...
        inputs, targets, segments = self.answers.rows(list(rows[:, None]), self.length)
        return Batch(inputs, targets, len(pairs), (segments, torch.from_numpy(self.reference[rows])))


def comparable(answers: AnswerStore, context: int) -> np.ndarray:
    """The pairs of which both sides are asked something within `context` tokens, ascending."""
    return np.flatnonzero((answers.asked_within(context).reshape(-1, 2) > 0).all(1))


def _reference_name(context: int) -> str:
    return f"reference-{context}.npy"


def write_reference(folder: Path, context: int, found: np.ndarray) -> None:
    """Keep the reference's log-probabilities, (P,) floats, of the conversations in a folder, cut to this context."""
    buffer = io.BytesIO()
    np.save(buffer, found)
    atomic_write(folder / _reference_name(context), buffer.getvalue())


def read_reference(answers: AnswerStore, context: int) -> np.ndarray:
    """What `write_reference` kept. Errors: NextileError where it is missing, broken or of other conversations."""
    folder = answers.store.folder
    path = inside(folder, _reference_name(context))
    try:
        found = np.load(path)  # never unpickles
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise NextileError(f"'{path}' is damaged: train anew") from error
    if not isinstance(found, np.ndarray) or found.shape != (len(answers),) or found.dtype.kind != "f":
        raise NextileError(f"'{path}' does not belong to the conversations beside it: train anew")
    return found
