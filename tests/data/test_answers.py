"""Stored answers: what is asked, how conversations share rows, and pairs that stay together; from seed and step."""

import numpy as np
import pytest
import torch

from nextile.base.errors import NextileError, UsageError
from nextile.data.answers import (
    Comparisons,
    PackedAnswers,
    comparable,
    open_answers,
    read_reference,
    usual_context,
    write_answers,
    write_reference,
)
from nextile.data.batches import IGNORE
from nextile.text.chat import Example

VOCAB, LENGTH = 1000, 16


def conversations(count, seed=0):
    """Of 3 to 12 tokens, each begun by its own number; the second half is asked."""
    random = np.random.default_rng(seed)
    for number in range(count):
        size = int(random.integers(3, 13))
        ids = np.array([100 + number, *random.integers(1, 90, size - 1)], np.uint32)
        yield Example(ids, np.arange(size) >= size // 2)


@pytest.fixture
def store(tmp_path):
    def make(examples):
        return write_answers(tmp_path / "store", examples, vocab_size=VOCAB, text_bytes=7, tokenizer="mine")

    return make


def packed(answers, **changes):
    return PackedAnswers(answers, **{"length": LENGTH, "batch": 3, "seed": 1, **changes})


def unpacked(batch):
    """The conversations of a batch: what is read, and what is asked."""
    [segments] = batch.beside
    for row in range(len(batch.inputs)):
        for number in range(1, int(segments[row].max()) + 1):
            mine = segments[row] == number
            yield batch.inputs[row][mine].tolist(), batch.targets[row][mine].tolist()


# --- on disk --------------------------------------------------------------------------------------------------------


def test_what_is_stored_comes_back(store, tmp_path):
    examples = list(conversations(20))
    store(examples)
    answers = open_answers(tmp_path / "store", "mine")
    assert len(answers) == 20
    assert answers.sizes.tolist() == [len(each.ids) - 1 for each in examples]
    for index, each in enumerate(examples):
        assert answers.tokens(index).tolist() == each.ids.tolist()
    assert answers.store.text_bytes == 7
    with pytest.raises(NextileError, match="another tokenizer"):
        open_answers(tmp_path / "store", "another")


def test_an_end_token_within_a_conversation_does_not_end_it(store):
    answers = store([Example(np.array([5, 0, 0, 6], np.uint32), np.array([False, True, False, True]))] * 2)
    assert answers.sizes.tolist() == [3, 3]


def test_what_is_asked_within_a_context_is_counted(store):
    asked = np.array([[0, 0, 1, 1, 0, 1], [1, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 0]], bool)
    answers = store([Example(np.arange(6, dtype=np.uint32), row) for row in asked])
    assert [answers.asked_within(context).tolist() for context in (1, 2, 4, 5, 99)] == [
        [0, 0, 1], [1, 0, 1], [2, 0, 1], [3, 1, 1], [3, 1, 1],
    ]  # fmt: skip
    question, answer = answers.first_answer(0)
    assert (question.tolist(), answer.tolist()) == ([0, 1], [2, 3])


# --- conversations in rows ------------------------------------------------------------------------------------------


def test_answers_alone_are_asked_one_token_later(store):
    examples = list(conversations(40))
    answers = store(examples)
    batch = packed(answers).rows(0)
    for read, asked in unpacked(batch):
        example = examples[read[0] - 100]
        assert read == example.ids[:-1].tolist()
        assert asked == np.where(example.answers, example.ids.astype(int), IGNORE)[1:].tolist()
    assert batch.weight == int((batch.targets != IGNORE).sum())
    assert (batch.targets[batch.beside[0] == 0] == IGNORE).all()


def test_every_conversation_once_an_epoch_and_others_meet_in_the_next(store):
    answers = store(conversations(200))
    data = packed(answers, batch=1)
    seen = []
    for epoch in range(2):
        steps = range(epoch * len(data), (epoch + 1) * len(data))
        rows = [[read[0] - 100 for read, _ in unpacked(data.rows(step))] for step in steps]
        assert sorted(number for row in rows for number in row) == list(range(200))
        seen.append({tuple(sorted(row)) for row in rows})
    assert len(seen[0] & seen[1]) < len(data) / 2
    once = [read[0] - 100 for batch in data.once() for read, _ in unpacked(batch)]
    assert sorted(once) == list(range(200))


def test_rows_are_nearly_full(store):
    answers = store(conversations(500))
    data = packed(answers)
    assert answers.sizes.sum() / (len(data) * LENGTH) > 0.95


def test_a_batch_is_a_function_of_seed_and_step(store):
    answers = store(conversations(60))
    first, again, other = packed(answers), packed(answers), packed(answers, seed=2)
    order = [again.rows(step).inputs for step in reversed(range(9))][::-1]
    assert all(torch.equal(first.rows(step).inputs, order[step]) for step in range(9))
    assert any(not torch.equal(first.rows(step).inputs, other.rows(step).inputs) for step in range(9))
    parts = packed(answers, batch=6).micro(4, 3)
    assert torch.equal(torch.cat([part.targets for part in parts]), packed(answers, batch=6).rows(4).targets)


def test_what_is_longer_is_cut_at_the_end_and_what_asks_nothing_then_is_left_out(store):
    long, late = (Example(np.arange(1, 31, dtype=np.uint32), np.arange(30) >= begin) for begin in (3, 20))
    data = packed(store([long, late]), batch=1)
    assert len(data) == 1
    [(read, asked)] = unpacked(data.rows(0))
    assert (read, asked) == (list(range(1, 17)), [IGNORE] * 2 + list(range(4, 18)))
    with pytest.raises(NextileError, match="no conversation answers within a context of 2 tokens: set a longer"):
        packed(store([long, late]), length=2)


# --- pairs of answers -----------------------------------------------------------------------------------------------


def compared(answers, reference=None, **changes):
    return Comparisons(answers, reference, **{"length": LENGTH, "batch": 4, "seed": 1, **changes})


def test_both_answers_of_a_pair_stand_in_one_batch_with_their_reference(store):
    examples = list(conversations(40))
    reference = -np.arange(40, dtype=np.float64)
    data = compared(store(examples), reference)
    [batch] = data.micro(3, 1)
    numbers = (batch.inputs[:, 0] - 100).view(-1, 2)
    assert torch.equal(numbers[:, 1], numbers[:, 0] + 1)
    assert (numbers[:, 0] % 2 == 0).all()
    assert batch.weight == 2
    segments, given = batch.beside
    assert torch.equal(given, -numbers.reshape(-1).double())
    for row, number in enumerate(numbers.reshape(-1).tolist()):
        size = len(examples[number].ids) - 1
        assert segments[row].tolist() == [1] * size + [0] * (LENGTH - size)


def test_every_pair_once_an_epoch_from_seed_and_step(store):
    answers = store(conversations(40))
    data, again = compared(answers, batch=10), compared(answers, batch=10)
    firsts = [data.micro(step, 1)[0].inputs[::2, 0] - 100 for step in range(8)]
    for epoch in (firsts[:4], firsts[4:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(0, 40, 2))
    assert not torch.equal(torch.cat(firsts[:4]), torch.cat(firsts[4:]))
    assert torch.equal(again.micro(5, 1)[0].inputs, data.micro(5, 1)[0].inputs)
    parts = again.micro(5, 5)
    assert [part.weight for part in parts] == [1] * 5
    assert torch.equal(torch.cat([part.inputs for part in parts]), data.micro(5, 1)[0].inputs)


@pytest.mark.parametrize(("batch", "accumulate"), [(3, 1), (4, 4), (6, 2)])
def test_a_batch_of_half_a_pair_is_refused(store, batch, accumulate):
    with pytest.raises(UsageError, match=f"a pair is two rows: .* choose a multiple of {2 * accumulate}"):
        compared(store(conversations(8)), batch=batch).micro(0, accumulate)


def test_a_pair_with_an_answer_beyond_the_context_is_left_out(store):
    short, late = (Example(np.arange(1, 31, dtype=np.uint32), np.arange(30) >= begin) for begin in (3, 20))
    answers = store([short, late, short, short])
    assert comparable(answers, LENGTH).tolist() == [1]
    assert comparable(answers, 30).tolist() == [0, 1]
    with pytest.raises(NextileError, match="no pair has both answers within a context of 2 tokens"):
        compared(answers, length=2)


def test_a_reference_belongs_to_its_store_and_context(store):
    answers = store(conversations(6))
    folder = answers.store.folder
    kept = np.linspace(-9, 0, 6, dtype=np.float32)
    write_reference(folder, 16, kept)
    assert read_reference(answers, 16).tolist() == kept.tolist()
    with pytest.raises(NextileError, match=r"reference-32\.npy' is missing"):
        read_reference(answers, 32)
    for wrong in (kept[:5], kept.astype(np.int64), kept[:, None]):
        write_reference(folder, 16, wrong)
        with pytest.raises(NextileError, match="does not belong to the conversations beside it"):
            read_reference(answers, 16)
    for broken in (b"", b"\x93NUMPY", b"\x80\x04N."):
        (folder / "reference-16.npy").write_bytes(broken)
        with pytest.raises(NextileError, match="is damaged"):
            read_reference(answers, 16)


def test_a_context_holds_nearly_all_and_several_usual_ones():
    assert usual_context(np.array([10] * 99 + [500]), 3.0) == 48
    assert usual_context(np.array([100, 101, 102]), 1.0) == 112
    assert usual_context(np.array([10**6]), 1.0) == 1024
