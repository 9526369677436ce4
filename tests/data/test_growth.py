"""Growth: fewer parts and shorter texts at first, all data once and in order, a step a function of its number."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch

from nextile.base.errors import UsageError
from nextile.data.batches import Batch, Steps, TrainingWindows
from nextile.data.growth import Growing, Growth, cut
from nextile.data.shards import write_store
from nextile.training.parallel import Rows, World

PARTS, ROWS, CONTEXT = 4, 8, 16


@pytest.fixture
def steps(tmp_path):
    """Steps of 4 parts of 2 rows of 16 tokens."""
    store = write_store(tmp_path / "text", [np.arange(4999)], vocab_size=5000, end_id=4999, meta={})
    return Steps(TrainingWindows(store, context=CONTEXT, batch=ROWS, seed=3), PARTS)


def inputs(source, number: int) -> torch.Tensor:
    """Of the first so many steps, row by row."""
    return torch.cat([batch.inputs.flatten() for batch in chain.from_iterable(map(source, range(number)))])


def test_without_growth_steps_are_as_they_were(steps):
    grown = Growing(steps, Growth(), PARTS)
    for step in (0, 1, 7):
        assert grown.named(step) == steps.named(step)
        for one, other in zip(grown(step), steps(step), strict=True):
            assert torch.equal(one.inputs, other.inputs)
            assert torch.equal(one.targets, other.targets)
            assert one.weight == other.weight


def test_a_step_takes_more_parts_until_it_takes_all(steps):
    grown = Growing(steps, Growth(batch=8), PARTS)
    assert [grown.taken(step) for step in range(10)] == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    assert [len(grown(step)) for step in range(10)] == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    assert Growing(steps, Growth(batch=1), PARTS).taken(0) == PARTS


def test_no_row_is_left_out_or_read_twice_while_a_batch_grows(steps):
    grown = Growing(steps, Growth(batch=8), PARTS)
    taken = sum(grown.taken(step) for step in range(12))
    assert taken % PARTS == 0
    assert torch.equal(inputs(grown, 12), inputs(steps, taken // PARTS))


def test_a_grown_step_is_a_function_of_its_number(steps):
    grown, again = (Growing(steps, Growth(batch=5, context=9), PARTS) for _ in range(2))
    backwards = {step: again(step) for step in reversed(range(12))}
    for step in range(12):
        for one, other in zip(grown(step), backwards[step], strict=True):
            assert torch.equal(one.inputs, other.inputs)


def test_the_names_of_a_step_are_of_what_it_is_made_of(steps):
    grown = Growing(steps, Growth(batch=8), PARTS)
    assert grown.named(0) == f"part of {steps.named(0)}"
    assert grown.named(3) == f"part of {steps.named(1)}"  # parts 4 and 5
    assert grown.named(5) == f"part of {steps.named(2)}"  # 9 to 11
    assert grown.named(4) == f"part of {steps.named(1)}; {steps.named(2)}"  # 6 to 8
    assert grown.named(6) == steps.named(3)


def test_texts_grow_and_keep_their_tokens(steps):
    grown = Growing(steps, Growth(context=6), PARTS)
    assert [grown.texts(step) for step in range(8)] == [8, 8, 4, 4, 2, 2, 1, 1]
    for step in range(8):
        for one, other in zip(grown(step), steps(step), strict=True):
            assert one.inputs.shape == (2 * grown.texts(step), CONTEXT // grown.texts(step))
            assert torch.equal(one.inputs.flatten(), other.inputs.flatten())
            assert torch.equal(one.targets.flatten(), other.targets.flatten())
            assert one.weight == other.weight


@pytest.mark.parametrize("readers", [2, 4])
def test_processes_read_what_one_reads(steps, readers):
    whole = Growing(Steps(steps.source, 2), Growth(batch=3, context=6), 2)
    parts = [Rows(whole, World(reader, readers, shape=(readers, 1, 1))) for reader in range(readers)]
    for step in range(8):
        for number, one in enumerate(whole(step)):
            read = [reader(step)[number] for reader in parts]
            assert torch.equal(torch.cat([batch.inputs for batch in read]), one.inputs)
            assert {batch.weight for batch in read} == {one.weight}


def test_what_cannot_grow_is_said(steps):
    with pytest.raises(UsageError, match="there is one: set accumulate"):
        Growing(steps, Growth(batch=3), 1)
    ids = torch.zeros(2, 12, dtype=torch.int64)
    with pytest.raises(UsageError, match="12 tokens do not divide: set context to a multiple of 8"):
        cut(Batch.of(ids, ids), 8)
    for batch in (Batch.of(ids, ids, (ids,)), Batch(torch.zeros(2, 3, 8, 8), torch.ones(2, 5), 2)):
        with pytest.raises(UsageError, match="is of windows of a text"):
            cut(batch, 2)
