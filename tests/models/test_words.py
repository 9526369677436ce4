"""CBOW and skip-gram as modules: features by a loop, what they cost, how they begin, and their folder."""

import json

import pytest
import torch

from nextile.checkpoint.store import load_model, save_model
from nextile.checkpoint.weights import load_tensors
from nextile.models import count
from nextile.models.build import build
from nextile.models.words import LINE
from nextile.nn import specs

V, D = 30, 10
KINDS = pytest.mark.parametrize("kind", [specs.CBOW, specs.SkipGram])


def lively(kind, **sizes):
    """A model whose output vectors are not zero."""
    model = build(kind(vocab=V, width=D, **sizes))
    with torch.no_grad():
        for table in (model.words_in, model.words_out):
            table.weight.normal_(generator=torch.Generator().manual_seed(1))
    return model


def some_ids(rows=3, length=11):
    return torch.randint(0, V, (rows, length), generator=torch.Generator().manual_seed(2))


# --- what they compute ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 2, 5, 40])
@pytest.mark.parametrize("length", [1, 2, 5, 11])
def test_cbow_is_the_mean_of_the_neighbours_without_the_word_itself(window, length):
    model, ids = lively(specs.CBOW, window=window), some_ids(length=length)
    features = model.features(ids)
    assert features.shape == (3, length, D)
    for row in range(3):
        for place in range(length):
            around = [i for i in range(length) if 0 < abs(i - place) <= window]
            mean = model.words_in.weight[ids[row, around]].mean(0) if around else torch.zeros(D)
            torch.testing.assert_close(features[row, place], mean, rtol=1e-4, atol=1e-5)


def test_cbow_does_not_see_the_word_that_it_predicts():
    model, ids = lively(specs.CBOW, window=2), some_ids(rows=1)
    other = ids.clone()
    other[0, 5] = (ids[0, 5] + 1) % V
    changed = (model.features(ids) - model.features(other)).abs().amax(-1)[0] > 1e-4
    assert changed.nonzero().flatten().tolist() == [3, 4, 6, 7]


def test_skip_gram_is_the_vector_of_the_word():
    model, ids = lively(specs.SkipGram), some_ids()
    assert torch.equal(model.features(ids), model.words_in.weight[ids])


@KINDS
def test_scores_are_products_with_the_output_vectors(kind):
    model, ids = lively(kind), some_ids()
    scores = model(ids)
    assert scores.shape == (3, 11, V)
    one = model.features(ids)[1, 4] @ model.words_out.weight[7]
    torch.testing.assert_close(scores[1, 4, 7], one)


# --- what they cost -------------------------------------------------------------------------------------------------


@KINDS
def test_parameters_are_two_tables(kind):
    counted = count.parameters(kind(vocab=1000, width=100))
    assert (counted.total, counted.embedding, counted.head, counted.matrices) == (200_000, 100_000, 100_000, 0)


def test_flops_of_cbow_are_a_mean_of_neighbours_and_a_product_with_each_target():
    """Each word draws how far it looks, 1 to 3 here: 2 on either side in the mean."""
    spec = specs.CBOW(vocab=V, width=D, window=3, negatives=4)
    flops = count.forward_flops(spec, 100)
    assert flops == pytest.approx(2 * D * (2 * 2) + 2 * D * (1 + 4), rel=0.2)
    assert count.forward_flops(spec, 7) == flops  # whatever the length of a row
    assert count.training_flops(spec, 100) == 3 * flops


@KINDS
def test_training_keeps_nothing_but_the_tables_and_the_rows(kind):
    spec = kind(vocab=1000, width=100)
    assert count.training_memory(spec, rows=100, length=1000) == 2 * 1000 * 100 * 4 + 100 * 1000 * 8
    assert count.stacks_of(spec) == []
    assert count.outputs_of(spec) == 1000


# --- how they begin, and where they lie -----------------------------------------------------------------------------


@KINDS
def test_they_begin_as_word2vec_does(kind):
    spec = kind(vocab=500, width=D)
    model = build(spec, seed=3)
    table = model.words_in.weight
    assert 0.9 * 0.5 / D < table.max().item() <= 0.5 / D
    assert -0.9 * 0.5 / D > table.min().item() >= -0.5 / D
    assert abs(table.mean().item()) < 0.01 / D
    assert not model.words_out.weight.any()
    assert torch.equal(build(spec, seed=3).words_in.weight, table)
    assert not torch.equal(build(spec, seed=4).words_in.weight, table)


@pytest.mark.parametrize(("width", "stride"), [(1, 16), (10, 16), (16, 16), (17, 32), (100, 112)])
def test_rows_lie_at_cache_lines_with_zeros_between(width, stride):
    model = build(specs.CBOW(vocab=V, width=width), seed=1)
    for table in (model.words_in.weight, model.words_out.weight):
        assert table.shape == (V, width)
        assert table.stride() == (stride, 1)
        assert stride % LINE == 0
        rows = torch.as_strided(table.detach(), (V, stride), (stride, 1))
        assert not rows[:, width:].any()


@KINDS
def test_a_folder_saved_and_loaded_is_the_model(kind, tmp_path):
    model, ids = lively(kind, window=3, negatives=7), some_ids()
    save_model(tmp_path, model)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["nextile"]["type"]) == ("nextile", model.spec.type)
    tensors = load_tensors(tmp_path / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "words_in.weight": (V, D),
        "words_out.weight": (V, D),
    }
    assert (tmp_path / "model.safetensors").stat().st_size < 2 * V * D * 4 + 500  # without what lies between the rows
    again, family = load_model(tmp_path)
    assert (again.spec, family) == (model.spec, "nextile")
    assert torch.equal(again(ids), model(ids))
