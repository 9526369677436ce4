"""T5's spans: lengths and cuts as published, the text comes back, and one batch for (seed, step)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nextile.base.errors import UsageError
from nextile.data.batches import IGNORE, Batch, TrainingWindows
from nextile.data.masking import generator_of
from nextile.data.shards import write_store
from nextile.data.spans import Prefix, Spans, SpanWindows, rebuild, span_validation

END, START = 1, 0
SENTINELS = tuple(range(99_999, 99_899, -1))  # as in T5, the first is the highest
SPANS = Spans(SENTINELS, END, START)
PREFIX = Prefix(SENTINELS, END, START)
BOTH = pytest.mark.parametrize("corruption", [SPANS, PREFIX], ids=["spans", "prefix"])


@pytest.fixture
def make_store(tmp_path):
    """A store of the tokens 10, 11, ... n + 9 and the end: a token says where it stands."""

    def make(n: int):
        documents = [np.arange(10, n + 10)]
        return write_store(tmp_path / f"{n}", documents, vocab_size=n + 10, end_id=END, meta={}, shard_tokens=50)

    return make


def lines(count: int, length: int) -> np.ndarray:
    """Rows of tokens of which no two are the same."""
    return 10 + np.arange(count * length).reshape(count, length)


def corrupted(corruption: Spans | Prefix, tokens: np.ndarray, seed: int = 0) -> Batch:
    before = tokens.copy()
    batch = corruption.corrupted(tokens, generator_of("test", seed, 0))
    assert np.array_equal(tokens, before)
    source, target = corruption.shape(tokens.shape[1])
    assert batch.inputs.shape == (len(tokens), source)
    assert all(tensor.dtype == torch.int64 for tensor in (*batch.given, batch.targets))
    assert batch.targets.shape == batch.beside[0].shape == (len(tokens), target)
    return batch


def sides(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Source and target of each row without end token and padding; the target as what the decoder is given to read."""
    segments = batch.beside[1:] or (torch.ones_like(batch.inputs), torch.ones_like(batch.targets))
    found = []
    for source, so_far, heard, written in zip(batch.inputs, batch.beside[0], *segments, strict=True):
        found.append((source[heard == 1].tolist()[:-1], so_far[written == 1].tolist()[1:]))
    return found


# --- as published --------------------------------------------------------------------------------------------------


def published_lengths(tokens: int, density: float, mean: float) -> tuple[int, int]:
    """`random_spans_helper` of T5's preprocessors, line by line."""
    noise = int(round(tokens * density))  # noqa: RUF046
    nonnoise = tokens - noise
    spans = int(round(noise / mean))  # noqa: RUF046
    return nonnoise + spans + 1, noise + spans + 1


def published_sides(tokens: np.ndarray, noise: np.ndarray) -> tuple[list[int], list[int]]:
    """`noise_span_to_unique_sentinel` and `nonnoise_span_to_unique_sentinel`, with the end token behind."""

    def marked(mask: np.ndarray) -> list[int]:
        previous = np.concatenate([[False], mask[:-1]])
        first, later = mask & ~previous, mask & previous
        sentinels = SENTINELS[0] + 1 - np.cumsum(first)
        return [*np.where(first, sentinels, tokens)[~later].tolist(), END]

    return marked(noise), marked(~noise)


def test_lengths_of_t5():
    """Its pre-training: windows of 568 tokens become sources of 512 and targets of 114."""
    assert SPANS.shape(568) == published_lengths(568, 0.15, 3.0) == (512, 114)


@given(st.integers(1, 600), st.floats(0.01, 0.99), st.floats(1, 10))
@settings(max_examples=200, deadline=None)
def test_lengths_are_the_published_ones(length, share, mean):
    spans = Spans(tuple(range(1000, 2000)), END, START, share, mean)
    expected = published_lengths(length, share, mean)
    assume(round(round(length * share) / mean) >= 1)  # theirs has a source without sentinels below that
    try:
        assert spans.shape(length) == expected
    except UsageError:
        assert length - round(length * share) < round(round(length * share) / mean)


@pytest.mark.parametrize(("length", "share", "mean"), [(100, 0.15, 3), (64, 0.5, 2), (30, 0.5, 1), (7, 0.15, 3)])
def test_sides_are_the_published_ones(length, share, mean):
    spans = Spans(SENTINELS, END, START, share, mean)
    noise, parts = spans.counts(length)
    tokens = lines(20, length)
    batch = corrupted(spans, tokens)
    for row, source, targets, so_far in zip(tokens, batch.inputs, batch.targets, batch.beside[0], strict=True):
        cut = np.isin(row, targets.numpy())
        assert cut.sum() == noise
        assert (np.diff(cut.astype(int)) == 1).sum() == parts
        assert not cut[0]
        assert (source.tolist(), targets.tolist()) == published_sides(row, cut)
        assert so_far.tolist() == [START, *targets.tolist()[:-1]]
    assert batch.weight == batch.targets.numel()
    assert len(batch.beside) == 1


def test_every_way_to_cut_is_as_likely():
    """Two spans of 4 tokens in all, two kept parts of 8: 3 x 7 ways; chi-square over 8400 rows."""
    batch = corrupted(Spans(SENTINELS, END, START, share=1 / 3, mean=2), np.tile(10 + np.arange(12), (8400, 1)))
    counts = np.array(list(Counter(map(tuple, batch.targets.tolist())).values()))
    assert len(counts) == 21
    assert ((counts - 400) ** 2 / 400).sum() < 20 + 5 * 40**0.5  # 5 standard deviations above the mean


def test_a_prefix_is_cut_anywhere_but_at_the_ends():
    tokens = lines(5000, 6)
    batch = corrupted(PREFIX, tokens)
    cuts = Counter()
    for row, (source, target) in zip(tokens.tolist(), sides(batch), strict=True):
        cut = len(source) - 1
        cuts[cut] += 1
        assert source == [*row[:cut], SENTINELS[0]]
        assert target == [SENTINELS[0], *row[cut:]]
    assert set(cuts) == {1, 2, 3, 4, 5}
    assert max(cuts.values()) - min(cuts.values()) < 200  # 1000 each, standard deviation 28


def test_a_prefix_row_by_row():
    batch = corrupted(PREFIX, np.array([[11, 12, 13]] * 40))
    short = batch.inputs[:, 2] == END  # cut after the first token
    assert 5 < short.sum() < 35
    z = SENTINELS[0]
    assert [tensor[short][0].tolist() for tensor in (*batch.given, batch.targets)] == [
        [11, z, END, START], [START, z, 12, 13], [1, 1, 1, 0], [1, 1, 1, 1], [z, 12, 13, END]
    ]  # fmt: skip
    assert [tensor[~short][0].tolist() for tensor in (*batch.given, batch.targets)] == [
        [11, 12, z, END], [START, z, 13, END], [1, 1, 1, 1], [1, 1, 1, 0], [z, 13, END, IGNORE]
    ]  # fmt: skip
    assert batch.weight == 4 * short.sum() + 3 * (~short).sum()


# --- back again ----------------------------------------------------------------------------------------------------


@given(st.integers(2, 80), st.floats(0.02, 0.98), st.floats(1, 6), st.integers(0, 2**60))
@settings(max_examples=150, deadline=None)
def test_the_text_comes_back(length, share, mean, seed):
    tokens = np.random.default_rng(seed).integers(0, 8, (3, length))  # end and start tokens among them, and repetitions
    spans = Spans(SENTINELS, END, START, share, mean)
    for corruption in (spans, PREFIX):
        try:
            batch = corrupted(corruption, tokens, seed)
        except UsageError:
            assert corruption is spans
            continue
        for row, (source, target) in zip(tokens.tolist(), sides(batch), strict=True):
            assert rebuild(source, target, SENTINELS) == row
            assert rebuild(source, [], SENTINELS) != row  # the negative control: the source alone does not have it


@BOTH
def test_nothing_of_the_answer_is_in_the_input(corruption):
    tokens = lines(50, 60)
    for row, (source, target) in zip(tokens.tolist(), sides(corrupted(corruption, tokens)), strict=True):
        kept, cut = (set(side) - set(SENTINELS) for side in (source, target))
        assert kept & cut == set()
        assert kept | cut == set(row)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ([99, 1, 98, 2], [5, 1, 6, 2, 7]),
        ([98, 2, 99, 1], [5, 1, 6, 2, 7]),  # in another order
        ([99, 1, 2], [5, 1, 2, 6, 7]),  # one lacks
        ([8, 8, 99, 1, 99, 3, 98, 2], [5, 1, 6, 2, 7]),  # one comes twice, and something before the first
        ([99, 98, 97, 4, 98, 2], [5, 6, 7]),  # nothing for either, and one that the source has not
        ([], [5, 6, 7]),
    ],
)
def test_a_target_that_a_model_wrote_may_be_anything(target, text):
    assert rebuild([5, 99, 6, 98, 7], target, (99, 98, 97)) == text


# --- what cannot be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "window", "message"),
    [
        ({"share": 0}, 100, "a share of 0 leaves nothing to ask"),
        ({"share": 1.0}, 100, "a share of 1.0 leaves nothing to ask"),
        ({"mean": 0.5}, 100, "a mean span of 0.5 tokens is too short: choose at least 1"),
        ({"mean": float("nan")}, 100, "a mean span of nan tokens is too short"),
        ({}, 3, "a window of 3 tokens cannot lose 0 of them in 1 span: set a longer context or another share"),
        ({}, 1, "a window of 1 tokens cannot lose 0 of them"),
        ({"share": 0.9, "mean": 1}, 20, "a window of 20 tokens cannot lose 18 of them in 18 spans"),
        ({"share": 0.99}, 4, "a window of 4 tokens cannot lose 4 of them in 1 span"),
        ({}, 2100, "a window of 2100 tokens has 105 spans, and there are 100 sentinels: set a shorter context"),
        ({"sentinels": ()}, 100, "a window of 100 tokens has 5 spans, and there are 0 sentinels"),
    ],
)
def test_spans_that_cannot_be_are_refused_in_one_line(make_store, given, window, message):
    def make(step):
        with pytest.raises(UsageError) as caught:
            step(Spans(**{"sentinels": SENTINELS, "end_id": END, "start": START, **given}))
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)

    make(lambda spans: spans.shape(window))
    make(lambda spans: spans.corrupted(lines(2, window), generator_of("test", 0, 0)))
    make(lambda spans: SpanWindows(make_store(3000), spans, context=window, batch=2, seed=0))


def test_a_prefix_that_cannot_be_is_refused_in_one_line():
    with pytest.raises(UsageError, match="a prefix needs a sentinel, and there is none: take a tokenizer made for"):
        Prefix((), END, START)
    with pytest.raises(UsageError, match="a window of 1 tokens cannot be cut in two: set a longer context"):
        PREFIX.corrupted(lines(2, 1), generator_of("test", 0, 0))
    assert PREFIX.shape(2) == (3, 3)


# --- training ------------------------------------------------------------------------------------------------------


def windows(store, corruption, context=40, batch=4, seed=1) -> SpanWindows:
    return SpanWindows(store, corruption, context=context, batch=batch, seed=seed)


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [*batch.given, batch.targets]


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(*pair) for pair in zip(tensors(one), tensors(other), strict=True))


@BOTH
def test_a_batch_is_corrupted_windows_of_the_text(make_store, corruption):
    store = make_store(500)
    plain = TrainingWindows(store, context=40, batch=4, seed=1).windows(7).inputs.tolist()
    assert [rebuild(*pair, SENTINELS) for pair in sides(windows(store, corruption).rows(7))] == plain


@BOTH
def test_a_batch_is_a_function_of_seed_and_step(make_store, corruption):
    store = make_store(500)
    one, two = (windows(store, corruption) for _ in range(2))
    two.rows(2)
    for step in (17, 3, 10**9):
        assert same(one.rows(step), two.rows(step))
    assert not same(one.rows(0), one.rows(1))
    assert not same(one.rows(0), windows(store, corruption, seed=2).rows(0))


def test_the_spans_never_change_between_versions(make_store):
    """A run resumed by a later version must meet the same batches."""
    store = make_store(500)
    assert windows(store, SPANS, context=20, batch=2, seed=0).rows(5).targets.tolist() == [
        [99_999, 358, 359, 360, END],
        [99_999, 258, 259, 260, END],
    ]
    prefix = windows(store, PREFIX, context=20, batch=4, seed=0).rows(5)
    assert (prefix.targets != IGNORE).sum(1).tolist() == [11, 17, 11, 12]


@BOTH
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_accumulation_splits_the_same_rows(make_store, corruption, accumulate):
    found = windows(make_store(500), corruption)
    whole, parts = found.rows(5), found.micro(5, accumulate)
    assert len(parts) == accumulate
    assert sum(part.weight for part in parts) == whole.weight == int((whole.targets != IGNORE).sum())
    for joined, tensor in zip(zip(*map(tensors, parts), strict=True), tensors(whole), strict=True):
        assert torch.equal(torch.cat(joined), tensor)
    with pytest.raises(UsageError, match="a batch of 4 rows does not divide into 3 equal parts"):
        found.micro(5, 3)


@BOTH
def test_each_epoch_has_other_spans(make_store, corruption):
    found = windows(make_store(40), corruption, batch=1)  # one window, always the same: the end token is a target only
    assert len(found) == 1
    seen = {tuple(found.rows(step).inputs.flatten().tolist()) for step in range(40)}
    assert len(seen) > 20  # a prefix of 40 tokens has 39 cuts


# --- validation ----------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("size", [1, 19, 20, 99, 500])
@pytest.mark.parametrize("batch", [1, 3])
def test_each_held_out_token_is_in_exactly_one_row(make_store, corruption, size, batch):
    store = make_store(size)
    tokens: list[int] = []
    for found in span_validation(store, corruption, context=20, batch=batch):
        source, target = corruption.shape(20)
        assert (found.inputs.shape, found.targets.shape) == ((batch, source), (batch, target))
        assert found.weight == (found.targets != IGNORE).sum() > 0
        assert all((tensor >= 0).all() for tensor in found.given)
        for pair in sides(found):
            tokens += rebuild(*pair, SENTINELS)
    assert tokens == [*store[0 : size + 1].tolist(), *[END] * (len(tokens) - size - 1)]
    assert len(tokens) - size - 1 < batch * 20


@pytest.mark.parametrize("corruption", [Spans(SENTINELS, END, START, 0.5, 2), PREFIX], ids=["spans", "prefix"])
@pytest.mark.parametrize("size", [21, 29, 38])
def test_what_is_filled_up_is_not_asked(make_store, corruption, size):
    """Against a longer text, of which the same spans are cut out: 10, 11, ... 69 in three rows of 20."""
    [found] = span_validation(make_store(size), corruption, context=20, batch=3)
    whole = next(span_validation(make_store(60), corruption, context=20, batch=3))
    assert torch.equal(found.targets[0], whole.targets[0])
    assert (found.targets[2] == IGNORE).all()
    asked = found.targets[1][found.targets[1] != IGNORE].tolist()
    expected = [END if token == size + 10 else token for token in whole.targets[1].tolist() if token != IGNORE]
    filler = [place for place, token in enumerate(expected) if size + 10 < token < 70]
    assert asked == expected[: filler[0] if filler else None]
    assert torch.isin(found.inputs[2], torch.tensor([START, END, *SENTINELS])).all()


@BOTH
def test_validation_is_always_the_same_whatever_the_batch_size(make_store, corruption):
    store = make_store(500)
    kept = []
    for batch in (1, 4, 7, 4):
        found = [tensors(each) for each in span_validation(store, corruption, context=20, batch=batch)]
        kept.append([torch.cat(parts)[:26] for parts in zip(*found, strict=True)])
    for other in kept[1:]:
        assert all(torch.equal(*pair) for pair in zip(kept[0], other, strict=True))


def test_sizes_that_are_none(make_store):
    for context, batch in ((0, 1), (20, 0)):
        with pytest.raises(UsageError, match=f"context {context} and batch {batch} must be at least 1"):
            next(span_validation(make_store(40), SPANS, context=context, batch=batch))
    with pytest.raises(UsageError, match="a window of 3 tokens cannot lose 0"):
        next(span_validation(make_store(40), SPANS, context=3, batch=2))
