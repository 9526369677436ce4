"""Batches: an order without replacement, windows that depend on (seed, step) alone, and every token asked once."""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np
import pytest
import torch

from nextile.base.errors import NextileError, UsageError
from nextile.data.batches import IGNORE, Batch, Order, TrainingWindows, prefetch, validation_batches
from nextile.data.shards import write_store


@pytest.fixture
def make_store(tmp_path):
    """A store of the tokens 0, 1, 2, ... n - 1: a token says where it stands."""

    def make(n: int):
        return write_store(tmp_path / f"{n}", [np.arange(n - 1)], vocab_size=n, end_id=n - 1, meta={}, shard_tokens=50)

    return make


# --- the order -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, -7, 2**80])
def test_an_order_is_a_permutation(seed):
    for n in range(1, 201):
        assert np.array_equal(np.sort(Order(n, seed)(3, np.arange(n))), np.arange(n))


def test_a_look_up_is_the_same_alone_and_among_others():
    order = Order(1000, 5)
    all_at_once = order(2, np.arange(1000))
    assert [order(2, i) for i in range(1000)] == all_at_once.tolist()
    assert np.array_equal(order(2, np.arange(1000).reshape(10, 100)), all_at_once.reshape(10, 100))
    assert all_at_once.dtype == np.int64
    assert isinstance(order(2, 0), int)
    assert order(2, np.arange(0)).shape == (0,)


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [Order(500, seed)(epoch, np.arange(500)) for seed in range(4) for epoch in range(4)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).sum() < 12  # two random permutations agree in 1 place on average


def test_places_beyond_the_end():
    for places in (-1, 7, np.array([0, 7]), np.array([-1])):
        with pytest.raises(IndexError, match="an order of 7 has places 0 to 6"):
            Order(7, 0)(0, places)


def test_the_order_never_changes_between_versions():
    """A run resumed by a later version must meet the same batches."""
    assert Order(10, 0)(0, np.arange(10)).tolist() == [4, 8, 6, 1, 5, 9, 2, 0, 7, 3]
    assert Order(10, 0)(1, np.arange(10)).tolist() == [7, 1, 3, 0, 4, 5, 8, 2, 6, 9]
    large = Order(10**12, 42)(7, np.arange(4))
    assert large.tolist() == [511860400666, 504077550704, 312454365776, 862017502534]


@pytest.mark.parametrize("n", [5, 7, 16])
def test_every_place_is_as_likely_everywhere(n):
    """Chi-square of n x n counts over 2000 epochs; 5 standard deviations above its mean would be one in millions."""
    epochs = 2000
    counts = np.zeros((n, n))
    for epoch in range(epochs):
        counts[np.arange(n), Order(n, 1)(epoch, np.arange(n))] += 1
    freedom = (n - 1) ** 2
    chi_square = ((counts - epochs / n) ** 2 / (epochs / n)).sum() * (n - 1) / n
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def test_neighbours_are_scattered():
    found = Order(10_000, 3)(0, np.arange(10_000))
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.05
    assert np.abs(np.diff(found)).mean() == pytest.approx(10_000 / 3, rel=0.05)  # as for independent draws


def test_an_order_of_a_trillion_is_quick():
    started = time.perf_counter()
    found = Order(10**12, 0)(0, np.arange(10_000))
    assert time.perf_counter() - started < 5
    assert len(set(found.tolist())) == 10_000


# --- training windows ----------------------------------------------------------------------------------------------


def test_a_window_is_followed_by_its_targets(make_store):
    batch = TrainingWindows(make_store(1000), context=8, batch=4, seed=0).windows(0)
    assert batch.inputs.shape == batch.targets.shape == (4, 8)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert batch.inputs.is_contiguous()
    assert batch.targets.is_contiguous()
    assert torch.equal(batch.targets, batch.inputs + 1)
    assert torch.equal(batch.inputs[:, 1:], batch.inputs[:, :-1] + 1)
    assert batch.weight == 32


@pytest.mark.parametrize("size", [9, 10, 16, 17, 25, 100, 1003])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_window_once_an_epoch_within_the_store(make_store, size, batch):
    windows = TrainingWindows(make_store(size), context=8, batch=batch, seed=2)
    epochs = 12
    starts = np.concatenate([windows.starts(step) for step in range(-(-epochs * len(windows) // batch))])
    assert starts.min() >= 0
    assert starts.max() + 8 + 1 <= size
    for epoch in range(epochs):
        seen = np.sort(starts[epoch * len(windows) : (epoch + 1) * len(windows)])
        assert (np.diff(seen) == 8).all()
        assert len(seen) == len(windows) == max(1, (size - 8) // 8)


def test_offsets_move_the_borders_over_all_tokens(make_store):
    windows = TrainingWindows(make_store(100), context=8, batch=11, seed=0)
    assert len(windows) == 11  # so that a step is an epoch
    assert {int(windows.starts(epoch).min()) for epoch in range(100)} == set(range(8))


def test_a_batch_is_a_function_of_seed_and_step(make_store):
    store = make_store(500)
    one, two = (TrainingWindows(store, context=8, batch=4, seed=1) for _ in range(2))
    for step in (17, 3, 10**9):
        assert torch.equal(one.windows(step).inputs, two.windows(step).inputs)
    other = TrainingWindows(store, context=8, batch=4, seed=2)
    assert not torch.equal(one.windows(0).inputs, other.windows(0).inputs)
    assert not torch.equal(one.windows(0).inputs, one.windows(1).inputs)


def test_the_examples_do_not_depend_on_the_batch_size(make_store):
    store = make_store(500)
    small, large = (TrainingWindows(store, context=8, batch=batch, seed=1) for batch in (4, 16))
    for step in range(20):  # into the second epoch and further
        parts = [small.windows(4 * step + part).inputs for part in range(4)]
        assert torch.equal(torch.cat(parts), large.windows(step).inputs)


@pytest.mark.parametrize("accumulate", [1, 2, 3, 6])
def test_accumulation_splits_the_same_rows(make_store, accumulate):
    windows = TrainingWindows(make_store(500), context=8, batch=6, seed=1)
    whole, parts = windows.windows(5), windows.micro(5, accumulate)
    assert [part.weight for part in parts] == [48 // accumulate] * accumulate
    assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)


def test_accumulation_that_does_not_divide(make_store):
    windows = TrainingWindows(make_store(500), context=8, batch=6, seed=1)
    for parts in (0, 4, 12):
        with pytest.raises(UsageError, match=f"a batch of 6 rows does not divide into {parts} equal parts"):
            windows.micro(0, parts)


def test_the_windows_never_change_between_versions(make_store):
    windows = TrainingWindows(make_store(100), context=8, batch=4, seed=0)
    starts = [windows.starts(step).tolist() for step in (0, 1, 1000)]
    assert starts == [[35, 67, 51, 11], [43, 75, 83, 3], [11, 3, 43, 51]]


def test_epochs_are_counted_in_windows(make_store):
    windows = TrainingWindows(make_store(88), context=8, batch=5, seed=1)
    assert (len(windows), windows.epoch(0), windows.epoch(3)) == (10, 0.0, 1.5)


def test_a_store_too_short_for_the_context(make_store):
    store = make_store(8)
    message = "8 tokens are too few for a context of 8 and its last target: use context=7 or less, or more text"
    with pytest.raises(NextileError, match=message):
        TrainingWindows(store, context=8, batch=1, seed=0)
    assert TrainingWindows(store, context=7, batch=2, seed=0).windows(0).inputs.tolist() == [list(range(7))] * 2
    with pytest.raises(UsageError, match="context 0 and batch 1 must be at least 1"):
        TrainingWindows(store, context=0, batch=1, seed=0)


def test_a_batch_moves_and_counts_what_it_asks():
    batch = Batch.of(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[1, IGNORE, 2], [IGNORE, IGNORE, IGNORE]]))
    assert batch.weight == 2
    assert [part.weight for part in batch.split(2)] == [2, 0]
    moved = batch.to("meta")
    assert (moved.inputs.device.type, moved.targets.device.type, moved.weight) == ("meta", "meta", 2)


# --- validation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 9, 10, 48, 49, 50, 100, 500])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_token_after_the_first_is_asked_once(make_store, size, batch):
    batches = list(validation_batches(make_store(size), context=8, batch=batch))
    asked = Counter()
    for each in batches:
        assert each.inputs.shape == each.targets.shape == (batch, 8)
        asks = each.targets != IGNORE
        assert each.weight == asks.sum() > 0
        assert torch.equal(each.inputs[asks] + 1, each.targets[asks])
        asked.update(each.targets[asks].tolist())
    assert asked == Counter(range(1, size))


def test_validation_needs_a_target(make_store):
    with pytest.raises(NextileError, match=r"1 tokens are too few .* give more text"):
        next(validation_batches(make_store(1), context=8, batch=2))


# --- preparing ahead -----------------------------------------------------------------------------------------------


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_prefetch_keeps_the_order_and_ends():
    assert list(prefetch(lambda step: step * step, 3, 9)) == [9, 16, 25, 36, 49, 64]
    assert list(prefetch(str, 5, 5)) == []
    assert threads() == []


def test_prefetch_prepares_ahead_and_no_further():
    started: list[int] = []
    ready = threading.Event()

    def prepare(step: int) -> int:
        started.append(step)
        if step == 3:
            ready.set()
        return step

    items = prefetch(prepare, 0, 100, depth=3)
    assert next(items) == 0
    assert ready.wait(5)  # 1, 2 and 3 were prepared while 0 was used
    time.sleep(0.05)
    assert started == [0, 1, 2, 3]
    assert len(threads()) == 1
    items.close()
    assert threads() == []


def test_prefetch_raises_where_the_result_was_due():
    def fail_at_3(step: int) -> int:
        if step == 3:
            raise NextileError("the text changed")
        return step

    items = prefetch(fail_at_3, 0, 100)
    assert [next(items), next(items), next(items)] == [0, 1, 2]
    with pytest.raises(NextileError, match="the text changed"):
        next(items)
    assert threads() == []


def test_a_consumer_that_stops_leaves_no_thread():
    started = time.perf_counter()
    for item in prefetch(lambda step: time.sleep(0.05) or step, 0, 10**9, depth=100):
        if item == 2:
            break
    assert threads() == []
    assert time.perf_counter() - started < 2.5  # the 100 prepared ahead are dropped
