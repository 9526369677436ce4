"""Packed pairs: every pair once an epoch, each in its own segment of a row, as a function of seed and step."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextile.base.errors import NextileError, UsageError
from nextile.data.batches import IGNORE
from nextile.data.packing import PackedPairs, PairStore, fill_rows
from nextile.data.shards import write_store

END, START, LENGTH = 0, 99, 16


def texts(count, seed=0):
    """Pairs of 1 to 12 tokens, each begun by the pair's own number so that it is known again."""
    random = np.random.default_rng(seed)
    return [[np.array([100 + i, *random.integers(1, 90, random.integers(0, 12))]) for i in range(count)] for _ in "ab"]


@pytest.fixture
def pairs(tmp_path):
    def make(sides, shard_tokens=10**6):
        options = {"vocab_size": 5000, "end_id": END, "meta": {}, "shard_tokens": shard_tokens}
        names = ("source", "target")
        return PairStore(*(write_store(tmp_path / n, side, **options) for n, side in zip(names, sides, strict=True)))

    return make


def packed(pairs, **changes):
    return PackedPairs(pairs, **{"length": LENGTH, "batch": 3, "seed": 1, "start": START, **changes})


def unpacked(batch):
    """The pairs of a batch, row by row: (source, target inputs, targets)."""
    inputs, sources, targets = batch.beside
    for row in range(len(batch.inputs)):
        numbers = sorted(set(sources[row].tolist()) - {0})
        assert numbers == sorted(set(targets[row].tolist()) - {0}) == list(range(1, len(numbers) + 1))
        for number in numbers:
            mine, theirs = sources[row] == number, targets[row] == number
            yield batch.inputs[row][mine].tolist(), inputs[row][theirs].tolist(), batch.targets[row][theirs].tolist()


def test_a_pair_is_laid_out_whole(pairs):
    sides = texts(40)
    for source, inputs, asked in unpacked(packed(pairs(sides)).rows(0)):
        number = source[0] - 100
        assert source == [*sides[0][number], END]
        assert asked == [*sides[1][number], END]
        assert inputs == [START, *sides[1][number]]


def test_what_is_padding_is_not_asked(pairs):
    batch = packed(pairs(texts(40))).rows(0)
    assert torch.equal(batch.targets == IGNORE, batch.beside[2] == 0)
    assert batch.weight == int((batch.targets != IGNORE).sum())
    assert [tensor.shape for tensor in batch.given] == [(3, LENGTH)] * 4


@pytest.mark.parametrize("shard_tokens", [7, 10**6])
def test_every_pair_once_an_epoch(pairs, shard_tokens):
    data = packed(pairs(texts(50), shard_tokens), batch=1)
    for epoch in range(3):
        steps = range(epoch * len(data), (epoch + 1) * len(data))
        numbers = [source[0] - 100 for step in steps for source, _, _ in unpacked(data.rows(step))]
        assert sorted(numbers) == list(range(50))


def test_others_meet_in_every_epoch(pairs):
    data = packed(pairs(texts(200)), batch=1)

    def rows(epoch):
        steps = range(epoch * len(data), (epoch + 1) * len(data))
        return {tuple(sorted(source[0] for source, _, _ in unpacked(data.rows(step)))) for step in steps}

    assert len(rows(0) & rows(1)) < len(data) / 2


def test_a_batch_is_a_function_of_seed_and_step(pairs):
    store = pairs(texts(50))
    one, two, other = packed(store), packed(store), packed(store, seed=2)
    for step in (0, 7, 123, 3):
        assert all(map(torch.equal, one.rows(step).given, two.rows(step).given))
    assert not torch.equal(one.rows(0).inputs, other.rows(0).inputs)
    assert not torch.equal(one.rows(0).inputs, one.rows(1).inputs)


def test_the_rows_do_not_depend_on_the_batch_size(pairs):
    store = pairs(texts(50))
    small, large = packed(store, batch=2), packed(store, batch=8)
    parts = [small.rows(step).inputs for step in range(4, 8)]
    assert torch.equal(torch.cat(parts), large.rows(1).inputs)


def test_accumulation_splits_the_same_rows(pairs):
    data = packed(pairs(texts(50)), batch=6)
    whole, parts = data.rows(2), data.micro(2, accumulate=3)
    for i, tensor in enumerate(whole.given):
        assert torch.equal(torch.cat([part.given[i] for part in parts]), tensor)
    assert sum(part.weight for part in parts) == whole.weight
    with pytest.raises(UsageError, match="a batch of 6 rows does not divide into 4"):
        data.micro(2, accumulate=4)


def test_validation_asks_every_pair_once(pairs):
    batches = list(packed(pairs(texts(50))).once())
    assert sorted(source[0] - 100 for batch in batches for source, _, _ in unpacked(batch)) == list(range(50))


def test_the_order_never_changes_between_versions(pairs):
    data = packed(pairs(texts(30)), batch=2)
    found = [[source[0] - 100 for source, _, _ in unpacked(data.rows(step))] for step in (0, 5)]
    assert found == EXPECTED


EXPECTED = [[8, 22, 29, 26], [1, 3, 21]]


def test_pairs_that_are_too_long_are_left_out_and_counted(pairs):
    sides = texts(30)
    sides[1][4] = np.arange(1, 40)
    data = packed(pairs(sides))
    assert data.left_out == 1
    assert 104 not in [source[0] for batch in data.once() for source, _, _ in unpacked(batch)]
    with pytest.raises(NextileError, match=r"no pair fits in a context of 1 tokens, the shortest has [1-9]"):
        packed(pairs(sides), length=1)


def test_sides_that_do_not_match(pairs):
    sides = texts(5)
    with pytest.raises(NextileError, match=r"has 5 texts and '.*' has 4: tokenize the pairs again"):
        pairs([sides[0], sides[1][:4]])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 30)), min_size=1, max_size=30))
def test_rows_are_never_overfull_and_hold_everything(found):
    sizes, counts = np.array([pair[:2] for pair in found]), np.array([pair[2] for pair in found])
    rows = fill_rows(sizes, counts, 12)
    assert np.bincount(rows.classes, minlength=len(sizes)).tolist() == counts.tolist()
    for first, last in zip(rows.starts, rows.starts[1:], strict=False):
        assert 0 < sizes[rows.classes[first:last]].sum(0).max() <= 12


def test_rows_are_filled_well():
    random = np.random.default_rng(0)
    source = random.normal(14, 4, 5000)
    lengths = np.stack([source, source + random.normal(0, 2, 5000)], 1).round().astype(int).clip(3, 40)
    sizes, counts = np.unique(lengths, axis=0, return_counts=True)
    rows = fill_rows(sizes, counts, 48)
    assert (sizes * counts[:, None]).sum() / (len(rows) * 96) > 0.93
