"""BERT's masks: exact shares, no special token, nothing of the answer in the input, and one batch for (seed, step)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from nextile.base.errors import UsageError
from nextile.data.batches import IGNORE, TrainingWindows
from nextile.data.masking import MaskedWindows, Masker, generator_of, masked_validation
from nextile.data.shards import write_store

MASK, END = 3, 0
ORDINARY = np.arange(10, 1000)
MASKER = Masker(MASK, ORDINARY)


@pytest.fixture
def make_store(tmp_path):
    """A store of the tokens 10, 11, ... n + 9 and the end: a token says where it stands."""

    def make(n: int):
        documents = [np.arange(10, n + 10)]
        return write_store(tmp_path / f"{n}", documents, vocab_size=n + 10, end_id=END, meta={}, shard_tokens=50)

    return make


def rows(count: int, length: int, seed: int = 0) -> np.ndarray:
    """Tokens that are ordinary."""
    return np.random.default_rng(seed).choice(ORDINARY, (count, length))


def masked(tokens: np.ndarray, masker: Masker = MASKER, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    before = tokens.copy()
    inputs, targets = masker.masked(tokens, generator_of("test", seed, 0))
    assert np.array_equal(tokens, before)
    assert inputs.shape == targets.shape == tokens.shape
    assert inputs.dtype == targets.dtype == np.int64
    assert np.array_equal(inputs[targets == IGNORE], tokens[targets == IGNORE])
    assert np.array_equal(targets[targets != IGNORE], tokens[targets != IGNORE])
    return inputs, targets


# --- how many ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "share", "asked"), [(1, 0.15, 1), (7, 0.15, 1), (256, 0.15, 38), (10, 0.25, 2),
                                                        (30, 0.25, 8), (100, 0.999, 100), (64, 0.001, 1)])  # fmt: skip
def test_every_row_asks_exactly_its_share(length, share, asked):
    _, targets = masked(rows(50, length), Masker(MASK, ORDINARY, share))
    assert ((targets != IGNORE).sum(1) == asked).all()
    assert Masker(MASK, ORDINARY, share).count(length) == asked


def kinds(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """How many places of each row show the mask, another token, and the token itself: (B, 3)."""
    asked, shown = targets != IGNORE, (inputs == MASK, (inputs != MASK) & (inputs != targets), inputs == targets)
    return np.stack([(asked & kind).sum(1) for kind in shown], axis=1)


def test_of_ten_places_eight_are_masked_one_is_another_and_one_stays():
    other = Masker(MASK, np.arange(10_000, 20_000), share=0.2)  # shows nothing that stands in the rows
    tokens = rows(200, 200)
    asking = Masker(MASK, np.concatenate([ORDINARY, other.ordinary]), share=0.2)
    found = kinds(*masked(tokens, asking))
    assert found.sum(1).tolist() == [40] * 200
    assert (found[:, 0] == 32).all()
    assert np.abs(found[:, 1:] - 4).max() <= 1  # a random token may be the token itself
    assert found[:, 1].mean() == pytest.approx(4, abs=0.02)


def test_counts_that_are_not_whole_are_rounded_up_or_down_and_right_on_average():
    found = kinds(*masked(rows(4000, 32), Masker(MASK, np.arange(10, 10**6), share=0.15)))  # 5 places: 4, 0.5, 0.5
    assert (found[:, 0] == 4).all()
    assert set(found[:, 1].tolist()) == {0, 1}
    assert found[:, 1].mean() == pytest.approx(0.5, abs=0.04)  # 5 standard deviations
    found = kinds(*masked(rows(4000, 20), Masker(MASK, np.arange(10, 10**6), share=0.15)))  # 3 places: 2.4, 0.3, 0.3
    assert set(found[:, 0].tolist()) == {2, 3}
    assert found.mean(0) == pytest.approx([2.4, 0.3, 0.3], abs=0.04)


def test_the_input_shows_an_answer_only_where_it_stays():
    tokens = rows(100, 100)
    inputs, targets = masked(tokens, Masker(MASK, ORDINARY, share=0.2, random_share=0.2))
    asked = targets != IGNORE
    assert (inputs[asked] == targets[asked]).mean() < 0.004  # none stays; one of 990 random tokens is the right one
    # The negative control: were everything left to stay, the input would be the answer.
    inputs, targets = masked(tokens, Masker(MASK, ORDINARY, share=0.2, masked_share=0, random_share=0))
    assert np.array_equal(inputs, tokens)
    assert ((targets != IGNORE).sum(1) == 20).all()


def test_random_tokens_are_any_ordinary_ones():
    few = np.array([500, 7, 12])  # in no order
    masker = Masker(MASK, few, share=0.5, masked_share=0, random_share=1)
    inputs, targets = masked(np.full((100, 60), 7), masker)
    shown = Counter(inputs[targets != IGNORE].tolist())
    assert set(shown) == {500, 7, 12}
    assert min(shown.values()) > 850  # of 3000: 5 standard deviations below a third


def test_every_place_is_as_likely_asked():
    _, targets = masked(rows(8000, 20), Masker(MASK, ORDINARY, share=0.15))
    counts = (targets != IGNORE).sum(0)  # 1200 expected in each place, standard deviation 32
    assert np.abs(counts - 1200).max() < 160


def test_what_is_masked_does_not_depend_on_where_it_stands():
    """The kinds are dealt in the order of the lots, not in that of the text."""
    inputs, targets = masked(rows(4000, 20), Masker(MASK, ORDINARY, share=0.5))
    asked = targets != IGNORE
    shares = ((inputs == MASK) & asked).sum(0) / asked.sum(0)
    assert np.abs(shares - 0.8).max() < 0.05


# --- special tokens ------------------------------------------------------------------------------------------------


def test_special_tokens_are_never_asked():
    tokens = rows(100, 64)
    special = np.random.default_rng(1).random(tokens.shape) < 0.5
    tokens[special] = np.random.default_rng(2).choice([END, 1, 2, MASK, 5000], special.sum())
    inputs, targets = masked(tokens)
    assert (targets[special] == IGNORE).all()
    assert ((targets != IGNORE).sum(1) == 10).all()
    assert np.isin(inputs[targets != IGNORE], [MASK, *ORDINARY]).all()


def test_a_row_with_few_ordinary_tokens_asks_them_all():
    tokens = np.full((3, 40), END)
    tokens[1, 7], tokens[2, :6] = 50, 60
    inputs, targets = masked(tokens)
    assert (targets != IGNORE).sum(1).tolist() == [0, 1, 6]
    assert (inputs[0] == END).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 0}, "a share of 0 leaves nothing to ask or nothing to read: choose one between 0 and 1"),
        ({"share": 1}, "a share of 1 leaves"),
        ({"share": -0.1}, "a share of -0.1 leaves"),
        ({"share": float("nan")}, "a share of nan leaves"),
        ({"masked_share": 0.95}, "masked_share 0.95 and random_share 0.1 are not parts of a whole"),
        ({"random_share": -0.1}, "masked_share 0.8 and random_share -0.1 are not parts"),
        ({"masked_share": float("nan")}, "masked_share nan and"),
        ({"ordinary": np.array([], dtype=np.int64)}, "no token may be asked: give the tokens that text is made of"),
    ],
)
def test_a_masker_that_cannot_be_is_refused_in_one_line(given, message):
    with pytest.raises(UsageError) as caught:
        Masker(**{"mask_id": MASK, "ordinary": ORDINARY, **given})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


# --- training ------------------------------------------------------------------------------------------------------


def windows(store, context=40, batch=4, seed=1) -> MaskedWindows:
    return MaskedWindows(store, MASKER, context=context, batch=batch, seed=seed)


def test_a_batch_is_masked_windows_of_the_text(make_store):
    store = make_store(500)
    found = windows(store).rows(7)
    plain = TrainingWindows(store, context=40, batch=4, seed=1).windows(7).inputs
    asked = found.targets != IGNORE
    assert torch.equal(torch.where(asked, found.targets, found.inputs), plain)
    assert found.weight == asked.sum() == 4 * 6
    assert found.inputs.is_contiguous()
    assert found.beside == ()


def test_a_batch_is_a_function_of_seed_and_step(make_store):
    store = make_store(500)
    one, two = windows(store), windows(store)
    two.rows(2)
    for step in (17, 3, 10**9):
        assert torch.equal(one.rows(step).inputs, two.rows(step).inputs)
        assert torch.equal(one.rows(step).targets, two.rows(step).targets)
    assert not torch.equal(one.rows(0).targets, windows(store, seed=2).rows(0).targets)


def test_the_masks_never_change_between_versions(make_store):
    """A run resumed by a later version must meet the same batches."""
    batch = windows(make_store(500), context=20, batch=2, seed=0).rows(5)
    assert (batch.targets != IGNORE).nonzero().tolist() == [[0, 2], [0, 15], [0, 19], [1, 3], [1, 6], [1, 14]]
    assert batch.inputs[batch.targets != IGNORE].tolist() == [MASK, 848, MASK, MASK, MASK, MASK]


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_accumulation_splits_the_same_rows(make_store, accumulate):
    found = windows(make_store(500))
    whole, parts = found.rows(5), found.micro(5, accumulate)
    assert [part.weight for part in parts] == [24 // accumulate] * accumulate
    assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    with pytest.raises(UsageError, match="a batch of 4 rows does not divide into 3 equal parts"):
        found.micro(5, 3)


def test_each_epoch_has_other_masks(make_store):
    store = make_store(61)  # one window, always the same: 62 tokens with the end, of which the last is a target only
    found = windows(store, context=61, batch=1)
    assert len(found) == 1
    asked = [found.rows(step).targets != IGNORE for step in range(30)]
    assert len({tuple(row.flatten().tolist()) for row in asked}) == 30
    assert torch.stack(asked).any(0).all()  # in 30 epochs each of the 61 tokens was asked


# --- validation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 8, 48, 49, 100, 500])
@pytest.mark.parametrize("batch", [1, 3])
def test_each_held_out_token_is_in_exactly_one_row(make_store, size, batch):
    store, masker = make_store(size), Masker(MASK, np.arange(10, 600))
    tokens = []
    batches = list(masked_validation(store, masker, context=8, batch=batch))
    for found in batches:
        assert found.inputs.shape == found.targets.shape == (batch, 8)
        assert found.inputs.dtype == found.targets.dtype == torch.int64
        asked = found.targets != IGNORE
        assert found.weight == asked.sum()
        tokens += torch.where(asked, found.targets, found.inputs).flatten().tolist()
    assert tokens == [*store[0 : size + 1].tolist(), *[END] * (len(tokens) - size - 1)]
    assert len(tokens) - size - 1 < batch * 8
    rest = size % 8  # of the last row, without the end token
    assert sum(found.weight for found in batches) == size // 8 + (rest > 0)


def test_a_last_row_asks_its_share_of_what_it_has(make_store):
    [found] = masked_validation(make_store(120), Masker(MASK, ORDINARY), context=100, batch=3)
    assert (found.targets != IGNORE).sum(1).tolist() == [15, 3, 0]  # 100 tokens, 21 with the end, none


def test_validation_is_always_the_same_whatever_the_batch_size(make_store):
    store = make_store(500)
    kept = []
    for batch in (1, 4, 7, 4):
        found = list(masked_validation(store, MASKER, context=20, batch=batch))
        targets = torch.cat([each.targets.flatten() for each in found])[:501]
        inputs = torch.cat([each.inputs.flatten() for each in found])[:501]
        kept.append(torch.stack([inputs, targets]))
    assert all(torch.equal(kept[0], other) for other in kept[1:])
    assert (
        len({tuple((row != IGNORE).tolist()) for row in kept[0][1][:500].reshape(25, 20)}) > 20
    )  # not one mask for all


def test_sizes_that_are_none(make_store):
    store = make_store(20)
    for context, batch in ((0, 1), (8, 0), (-1, 2)):
        message = f"context {context} and batch {batch} must be at least 1"
        with pytest.raises(UsageError, match=message):
            next(masked_validation(store, MASKER, context=context, batch=batch))
        with pytest.raises(UsageError, match=message):
            windows(store, context=context, batch=batch)
