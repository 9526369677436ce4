"""Word vectors: each way against autograd's gradients, the draws against what was published, borders and repetition."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nextile.base.errors import NextileError
from nextile.data.batches import Batch
from nextile.models.build import build
from nextile.models.words import WordVectors
from nextile.nn import specs
from nextile.training.words import (
    FULL,
    ByKernel,
    ByTorch,
    Chances,
    WordLearner,
    alias_table,
    draw_seed,
)

word_kernel = pytest.importorskip("nextile.training.word_kernel", reason="needs numba", exc_type=ImportError)
V, D = 40, 12
RATE = 0.1


def lively(kind, **sizes) -> WordVectors:
    """A model whose output vectors are not zero."""
    model = build(kind(vocab=V, width=D, **sizes), seed=1)
    assert isinstance(model, WordVectors)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for table in (model.words_in, model.words_out):
            table.weight.normal_(0.0, 0.5, generator=generator)
    return model


def chances(subsample=0.0):
    counts = np.arange(V) * 3
    counts[0] = 0
    return Chances.of(counts, subsample)


def autograd(model, seen, right, wrong, weight=1.0):
    """A prediction's gradients by autograd: of the mean of the words seen, and of the output vectors."""
    hidden = model.words_in.weight[seen].mean(0).detach().requires_grad_()
    output = model.words_out.weight.detach().clone().requires_grad_()
    wrong = [word for word in wrong if word != right]
    nats = F.softplus(-hidden @ output[right]) + weight * F.softplus(output[wrong] @ hidden).sum()
    return nats.item(), *torch.autograd.grad(nats, (hidden, output))


# --- the gradient ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [[3, 9, 11], [3, 7, 11], [7, 7, 7]], ids=["others", "one is right", "all are right"])
def test_the_kernel_moves_a_prediction_as_autograd_would(wrong):
    model, seen, right = lively(specs.CBOW), [1, 2, 5], 7
    nats, towards, output = autograd(model, seen, right, wrong)
    table = model.words_out.weight.detach().numpy().copy()
    hidden = model.words_in.weight[seen].mean(0).detach().numpy()
    change, scores = np.empty(D, np.float32), np.empty(4, np.float32)
    fine = word_kernel.logistic_tables(2**20)
    targets = np.array([right, *wrong], np.uint64)
    told = word_kernel.predict(hidden, change, targets, scores, table, np.float32(RATE), *fine, D)
    assert told == pytest.approx(nats, abs=1e-5)
    assert change == pytest.approx(-RATE * towards.numpy(), abs=1e-6)
    assert table - model.words_out.weight.detach().numpy() == pytest.approx(-RATE * output.numpy(), abs=1e-6)


@pytest.mark.parametrize("kind", [specs.CBOW, specs.SkipGram])
def test_torch_moves_a_block_as_autograd_would(kind):
    """One block of predictions at the vectors that it began with, with the same shared negatives."""
    model = lively(kind, window=2, negatives=4)
    before = [table.weight.detach().clone() for table in (model.words_in, model.words_out)]
    rows = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    way = ByTorch(model, chances(), 0)
    way.size = 1024
    draws = torch.Generator().manual_seed(5 >> 1)
    sight = way._look(rows, draws)
    wrong = torch.multinomial(way.weights, 64, replacement=True, generator=draws)
    told = way.learn(rows, RATE, 5)

    fresh = [table.clone().requires_grad_() for table in before]
    asked = asked_of(kind, sight)
    nats, weight = torch.zeros(()), 4 / 64
    means = [fresh[0][seen].mean(0) for seen, _ in asked]
    for hidden, (_, right) in zip(means, asked, strict=True):
        others = wrong[wrong != right]
        nats = nats + F.softplus(-hidden @ fresh[1][right]) + weight * F.softplus(fresh[1][others] @ hidden).sum()
    towards = torch.autograd.grad(nats, [*means, fresh[1]])
    moved = torch.zeros_like(before[0])
    for change, (seen, _) in zip(towards, asked, strict=False):
        moved.index_add_(0, torch.tensor(seen), change.expand(len(seen), -1))  # undivided, as in word2vec
    assert told.nats.item() == pytest.approx(nats.item(), rel=1e-5)
    assert told.predicted == len(asked)
    torch.testing.assert_close(model.words_in.weight.detach(), before[0] - RATE * moved, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.words_out.weight.detach(), before[1] - RATE * towards[-1], rtol=1e-4, atol=1e-6)


def asked_of(kind, sight):
    """What is seen and what is right, of every prediction."""
    found = []
    for place, (word, first, last) in enumerate(zip(*(part.tolist() for part in sight), strict=True)):
        around = [sight.words[i].item() for i in range(first, last) if i != place]
        found += [(around, word)] if kind is specs.CBOW else [([other], word) for other in around]
    return [(seen, right) for seen, right in found if seen]


# --- the whole kernel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [specs.CBOW, specs.SkipGram])
def test_the_kernel_learns_word_by_word_as_it_would_by_hand(kind):
    """With one word to draw as a negative and a window of 1 nothing is left to chance."""
    model = lively(kind, window=1, negatives=1)
    counts = np.zeros(V, np.int64)
    counts[9] = 5  # the only negative
    way = ByKernel(model, Chances.of(counts, 0.0), 0)
    way.logistic = word_kernel.logistic_tables(2**20)
    table, output = (part.weight.detach().clone() for part in (model.words_in, model.words_out))
    rows = [[1, 2, 3, 0, 4], [5, 6, 0, 7, 8]]
    nats, predicted = way.learn(torch.tensor(rows), RATE, 3)
    total = asked = 0
    for text in ([1, 2, 3], [4], [5, 6], [7, 8]):
        for place, right in enumerate(text):
            around = text[max(0, place - 1) : place] + text[place + 1 : place + 2]
            for seen in [around] * bool(around) if kind is specs.CBOW else [[word] for word in around]:
                hidden = table[seen].mean(0)
                up, down = torch.sigmoid(-hidden @ output[right]), torch.sigmoid(hidden @ output[9])
                total += (F.softplus(-hidden @ output[right]) + F.softplus(hidden @ output[9])).item()
                change = RATE * (up * output[right] - down * output[9])
                output[right] += RATE * up * hidden
                output[9] -= RATE * down * hidden
                table[seen] += change
                asked += 1
    assert (predicted, nats) == (asked, pytest.approx(total, rel=1e-4))
    torch.testing.assert_close(model.words_in.weight.detach(), table, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.words_out.weight.detach(), output, rtol=1e-4, atol=1e-5)


def test_the_kernel_stays_within_its_tables_where_scores_are_extreme():
    for score in (1e30, -1e30, 6.0, -6.0, 5.9999995):
        hidden, table = np.full(D, score / D, np.float32), np.ones((2, D), np.float32)
        change, scores = np.empty(D, np.float32), np.empty(2, np.float32)
        targets, sigmoid = np.array([0, 1], np.uint64), word_kernel.logistic_tables()
        told = word_kernel.predict(hidden, change, targets, scores, table, np.float32(RATE), *sigmoid, D)
        assert np.isfinite(told)
        assert np.isfinite(table).all()
        assert np.isfinite(change).all()


@pytest.mark.parametrize("way", [ByKernel, ByTorch])
@pytest.mark.parametrize("kind", [specs.CBOW, specs.SkipGram])
def test_words_of_other_texts_are_no_neighbours(way, kind):
    model = lively(kind, window=5)
    before = model.words_in.weight.detach().clone()
    way(model, chances(), 0).learn(torch.tensor([[1, 0, 2, 0, 3], [4, 0, 0, 0, 5]]), RATE, 1)
    assert torch.equal(model.words_in.weight, before)  # nobody stands beside anybody
    way(model, chances(), 0).learn(torch.tensor([[1, 0, 2, 0, 3], [4, 5, 0, 0, 0]]), RATE, 1)
    moved = (model.words_in.weight != before).any(1).nonzero().flatten().tolist()
    assert moved == [4, 5]


# --- chances --------------------------------------------------------------------------------------------------------


def test_the_alias_table_draws_in_proportion():
    weights = np.array([0.0, 3.0, 1.0, 6.0, 0.0])
    chance, other = alias_table(weights)
    found = np.zeros(5)
    for place in range(5):
        found[place] += chance[place] / 5
        found[other[place]] += (1 - chance[place]) / 5
    assert found == pytest.approx(weights / 10, abs=1e-12)


def test_frequent_words_are_left_out_as_word2vec_does():
    counts = np.array([0, 900, 90, 9, 1])
    keep = Chances.of(counts, 0.01).keep / FULL
    share = counts[1:] / 1000
    assert keep[1:] == pytest.approx(np.minimum(1, (np.sqrt(share / 0.01) + 1) * 0.01 / share), abs=1e-6)
    assert Chances.of(counts, 0.0).keep.tolist() == [FULL] * 5


@pytest.mark.parametrize("way", [ByKernel, ByTorch])
def test_as_many_words_are_left_out_as_their_chance_says(way):
    model, counts = lively(specs.CBOW, window=1), np.zeros(V, np.int64)
    counts[[1, 2]] = 500
    rare = Chances.of(counts, 0.05)
    keep = rare.keep[1] / FULL
    rows = torch.tensor([[1, 2] * 5_000])
    told = way(model, rare, 0).learn(rows, 1e-9, 7)
    assert told[-1] == pytest.approx(keep * 10_000, abs=4 * (10_000 * keep) ** 0.5)


# --- repetition -----------------------------------------------------------------------------------------------------


def batch(step):
    rows = np.random.default_rng(step).integers(0, V, (6, 50))
    return Batch(torch.from_numpy(rows), torch.from_numpy(rows), 300)


@pytest.mark.parametrize("kind", [specs.CBOW, specs.SkipGram])
def test_a_step_is_a_function_of_seed_and_number(kind):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runs = {}
        for name, seed, order in (
            ("once", 0, (0, 1, 2)),
            ("again", 0, (0, 1, 2)),
            ("seed", 1, (0, 1, 2)),
            ("step", 0, (0, 1, 3)),
        ):
            model = lively(kind)
            learner = WordLearner(model, chances(), end=0, seed=seed)
            for step in order:
                learner.learn([batch(step)], step, 1.0)
            runs[name] = model.words_in.weight.detach().clone()
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(runs["once"], runs["again"])
    assert not torch.equal(runs["once"], runs["seed"])
    assert not torch.equal(runs["once"], runs["step"])
    assert draw_seed(0, 1, 0) != draw_seed(1, 0, 0)


def test_accumulated_parts_are_the_whole_step():
    model, other = lively(specs.CBOW), lively(specs.CBOW)
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        WordLearner(model, chances(), end=0).learn([batch(1)], 1, 0.5)
        WordLearner(other, chances(), end=0).learn(batch(1).split(3), 1, 0.5)
    finally:
        torch.set_num_threads(torch_threads)
    assert torch.equal(model.words_in.weight, other.words_in.weight)


def test_without_numba_torch_does_the_work(monkeypatch):
    monkeypatch.setattr("nextile.training.words.has_kernel", lambda: False)
    learner = WordLearner(lively(specs.CBOW), chances(), end=0)
    assert isinstance(learner.way, ByTorch)
    learned = learner.learn([batch(0)], 0, 1.0)
    assert 0 < learned.loss.item() < 20
    assert learned.targets == 300


def test_a_rate_of_nothing_measures_and_moves_nothing():
    model = lively(specs.CBOW)
    before = [table.weight.detach().clone() for table in (model.words_in, model.words_out)]
    told = ByTorch(model, chances(), 0).learn(batch(0).inputs, 0.0, 1)
    assert 0 < told.nats < 1e4
    assert 0 <= told.right <= told.predicted
    assert all(torch.equal(x, y.weight) for x, y in zip(before, (model.words_in, model.words_out), strict=True))


def test_a_model_of_other_words_is_one_line():
    with pytest.raises(NextileError, match="the model has 40 words and its tokens are 41"):
        WordLearner(lively(specs.CBOW), Chances.of(np.arange(V + 1), 0.0), end=0)


@pytest.mark.parametrize("word", [-1, V, 2**40])
def test_a_word_without_a_row_never_reaches_the_machine_code(word):
    with pytest.raises(NextileError, match=r"outside 0..39: tokenize the text again"):
        ByKernel(lively(specs.CBOW), chances(), 0).learn(torch.tensor([[1, 2, word, 3]]), RATE, 1)
