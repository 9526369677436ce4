"""Texts become vectors: the mean of a model's features, whoever is beside them, and one line where there is none."""

import math

import numpy as np
import pytest
import torch
from tests.conftest import TINY_PICTURES, exact_rows
from torch import nn

import nextile
from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.pretrained import Pretrained
from nextile.generation.pool import embed, features_of, pooled
from nextile.models.build import build
from nextile.models.families import bert, bidirectional, gpt2, marian, modern, qwen3
from nextile.nn import specs
from nextile.tasks.report import Silent
from nextile.text.build import train_tokenizer
from nextile.text.lexicon import lexicon_of
from nextile.text.masks import for_masks, for_spans
from nextile.text.pairs import start_of
from nextile.text.tokenizer import Tokenizer

WORDS = ["the", "green", "bottle", "hangs", "on", "wall"]
TEXTS = ["the green bottle hangs on the wall", "the", "the wall hangs", "green green green green green bottle"]
SIZE = {"width": 16, "depth": 2, "heads": 2}


def characters():
    return train_tokenizer("char", 300, TEXTS)


def loaded(spec, tokenizer, seed=0):
    """A random model whose features are unlike from token to token."""
    model = build(spec, seed=seed)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(noise, alpha=0.3 if parameter.dim() > 1 else 0.0)
    return Pretrained(model, tokenizer, spec, "any")


def language(family):
    tokenizer = characters()
    return loaded(family.spec(vocab=tokenizer.vocab_size, context=40, dropout=0.5, **SIZE), tokenizer)


def masked(family):
    tokenizer = for_masks(characters())
    return loaded(family.spec(vocab=tokenizer.vocab_size, context=40, dropout=0.5, **SIZE), tokenizer)


def begun():
    """A masked model whose tokenizer begins and ends texts by tokens of their own, as BERT's."""
    core, config = (plain := for_masks(characters())).core, plain.config
    core.add_special_tokens(["[CLS]", "[SEP]"])
    tokenizer = Tokenizer(core, {**config, "cls_token": "[CLS]", "eos_token": "[SEP]"})
    return loaded(bert.spec(vocab=tokenizer.vocab_size, context=40, **SIZE), tokenizer)


def stacks(family):
    tokenizer = for_spans(characters())
    spec = family.spec(vocab=tokenizer.vocab_size, context=40, dropout=0.5, start=start_of(tokenizer), **SIZE)
    return loaded(spec, tokenizer)


def vectors():
    tokenizer = lexicon_of(WORDS)
    return loaded(specs.CBOW(vocab=tokenizer.vocab_size, width=16), tokenizer)


MODELS = {
    "qwen3": lambda: language(qwen3),
    "gpt2": lambda: language(gpt2),
    "bidirectional": lambda: masked(bidirectional),
    "bert": lambda: masked(bert),
    "bert with [CLS]": begun,
    "modern": lambda: stacks(modern),
    "marian": lambda: stacks(marian),
    "words": vectors,
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def by_hand(model, text):
    """The features of one text without company, and their mean."""
    tokenizer, module = model.tokenizer, model.model.eval()
    row = tokenizer.encode(text)
    if tokenizer.begin_id is not None:
        row = [tokenizer.begin_id, *row, tokenizer.end_id]
    ids = torch.tensor([row])
    with torch.no_grad():
        if isinstance(model.spec, specs.WordModel):
            features = module.words_in.weight[ids]
        elif isinstance(model.spec, specs.EncoderDecoder):
            features = module.encoder(module.source(ids, torch.arange(len(row))))
        else:
            features = module.features(ids)
    return features[0].mean(0).numpy()


@exact_rows
def test_a_vector_is_the_mean_of_the_features(model):
    found = embed(model, TEXTS)
    assert (found.dtype, found.shape) == (np.float32, (len(TEXTS), 16))
    for vector, text in zip(found, TEXTS, strict=True):
        np.testing.assert_allclose(vector, by_hand(model, text), rtol=0, atol=1e-6)
    distances = np.linalg.norm(found[:, None] - found[None], axis=-1) + np.eye(len(TEXTS))
    assert distances.min() > 1e-3  # the texts count


@exact_rows
def test_a_text_does_not_depend_on_those_beside_it(model):
    together = embed(model, TEXTS)
    for batch in (1, 2, 3):
        np.testing.assert_allclose(embed(model, TEXTS, batch=batch), together, rtol=0, atol=1e-6)
    for vector, text in zip(together, TEXTS, strict=True):
        np.testing.assert_allclose(embed(model, [text])[0], vector, rtol=0, atol=1e-6)


def test_dropout_rests_meanwhile_and_comes_back(model):
    model.model.train()
    found = embed(model, TEXTS)
    assert model.model.training
    assert np.array_equal(embed(model, TEXTS), found)


def test_padding_has_no_part_in_the_mean():
    features, there = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [math.pi, 99.0]]]), torch.tensor([[1, 1, 0]])
    assert pooled(features, there).tolist() == [[2.0, 3.0]]
    assert pooled(features.bfloat16(), there).dtype == torch.float32


def test_what_words_do_not_know_is_left_out():
    model = vectors()
    known, beside = embed(model, ["green wall", "Green xyzzy, wall!"])
    np.testing.assert_allclose(known, beside, rtol=0, atol=1e-6)
    table = model.model.words_in.weight.detach().numpy()
    green, wall = (table[model.tokenizer.encode(word)[0]] for word in ("green", "wall"))
    np.testing.assert_allclose(known, (green + wall) / 2, rtol=0, atol=1e-6)


def test_one_text_is_a_vector_and_several_are_rows(text, tmp_path):
    settings = {
        "compile": False,
        "batch": 4,
        "context": 16,
        "model.stack.width": 16,
        "model.stack.depth": 1,
        "threads": 1,
    }
    model = nextile.train(text, out=tmp_path / "run", steps=1, settings=settings, report=Silent())
    one, several = model.embed("green bottles"), model.embed(["green bottles", "wall"])
    assert (one.shape, several.shape) == ((16,), (2, 16))
    np.testing.assert_allclose(several[0], one, rtol=0, atol=1e-6)
    assert len(model.embed([])) == 0


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' has no token that the model knows: give another text"),
        ("☃\x1b", r"'☃\\x1b' has no token that the model knows"),
        ("a" * 41, "the text has 41 tokens and the model reads 40: shorten it"),
    ],
)
@pytest.mark.parametrize("name", ["qwen3", "bert", "modern"])
def test_texts_without_a_vector(name, text, message):
    with pytest.raises(NextileError, match=message) as problem:
        embed(MODELS[name](), ["the", text.replace("a", "t")])
    assert "\n" not in str(problem.value)


def test_words_that_none_of_them_knows():
    with pytest.raises(NextileError, match="'xyzzy' has no token that the model knows"):
        embed(vectors(), ["green", "xyzzy"])


@pytest.mark.parametrize("name", ["qwen3", "modern", "words"])
def test_a_tokenizer_of_another_model_is_one_line(name):
    model, larger = MODELS[name](), lexicon_of([*WORDS, *(f"word{number}" for number in range(200))])
    other = Pretrained(model.model, larger, model.spec, "any")
    assert embed(other, ["green"]).shape == (1, 16)
    with pytest.raises(NextileError, match=r"text 0 has an id outside 0\.\.\d+: its tokenizer is of another model"):
        embed(other, ["green word199"])


@pytest.mark.parametrize(("task", "use"), [("classify", "classify"), ("paint", "paint")])
def test_a_model_of_pictures_has_no_vectors_of_texts(photos, tmp_path, task, use):
    settings = TINY_PICTURES | ({"images.colours": 8} if task == "paint" else {})
    model = nextile.train(photos, task=task, out=tmp_path / "run", steps=1, settings=settings, report=Silent())
    with pytest.raises(UsageError, match=f"reads pictures, not text: use nextile {use}"):
        model.embed("a cat")


def test_any_other_module_is_refused():
    with pytest.raises(UsageError, match="this model reads pictures, not text: it has no vectors of texts"):
        features_of(nn.Linear(2, 2))
