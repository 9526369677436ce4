"""The payload of a page: its arrays are the inspection's to 1e-5, and what is too large is left out and said."""

from __future__ import annotations

import base64
import json
import re
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from tests.inspection import looks

from nextile.base.errors import UsageError
from nextile.inspection import payload as module
from nextile.inspection.payload import Payload, flags, floats, head_part, payload, pointed, shares, wholes
from nextile.nn import specs

TYPES = {"f4": "<f4", "u4": "<u4", "u2": "<u2"}
KINDS = looks.KINDS
pytestmark = pytest.mark.usefixtures("one_thread")


def unpacked(packed: Payload) -> np.ndarray:
    """What the page makes of a packed array, written anew."""
    data, shape = base64.b64decode(packed["data"]), packed["shape"]
    if packed["type"] == "bits":
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        return bits[: int(np.prod(shape))].reshape(shape).astype(bool)
    numbers = np.frombuffer(data, TYPES[packed["type"]])
    if packed["type"] != "u2":
        return numbers.reshape(shape)
    if not packed.get("lower"):
        return (numbers / 65535).reshape(shape)
    found = np.zeros(shape)
    found[..., *np.tril_indices(shape[-1])] = (numbers / 65535).reshape(*shape[:-2], -1)
    return found


@lru_cache
def looked(kind: str) -> Any:
    maker, what = KINDS[kind]
    return maker().inspect(what)


@lru_cache
def made(kind: str) -> Payload:
    return payload(looked(kind), max_tokens=4, beams=3)


def close(packed: Payload, wanted: Any) -> None:
    np.testing.assert_allclose(unpacked(packed), np.asarray(wanted), rtol=1e-6, atol=1e-5)


# --- arrays -----------------------------------------------------------------------------------------------------------


def test_arrays_come_back_as_they_went():
    draw = np.random.default_rng(0)
    numbers = draw.standard_normal((3, 4))
    close(floats(numbers), numbers)
    assert unpacked(wholes([[0, 7], [2**32 - 1, 1]])).tolist() == [[0, 7], [2**32 - 1, 1]]
    assert (unpacked(flags(numbers > 0)) == (numbers > 0)).all()
    parts = draw.random((2, 3, 5, 5))
    np.testing.assert_allclose(unpacked(shares(parts)), parts, atol=1e-5)


def test_of_squares_that_see_nothing_ahead_half_is_kept():
    parts = np.tril(np.random.default_rng(0).random((2, 9, 9)))
    packed = shares(parts)
    np.testing.assert_allclose(unpacked(packed), parts, atol=1e-5)
    assert len(packed["data"]) < 0.65 * len(shares(parts + 1e-3)["data"])


def test_an_error_of_an_array_is_seen_by_these_tests():
    with pytest.raises(AssertionError):
        close(floats([1.0, 2.0]), [1.0, 2.0001])


# --- what is in it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_plain_json_with_the_parts_that_it_has(kind):
    found = made(kind)
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again["kind"] == kind
    assert set(module.PARTS[kind]) <= set(again)
    assert again["which"] == list(looked(kind).which)
    assert again["leftOut"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_rollout_are_the_inspections(kind):
    look, found = looked(kind), made(kind)
    for which in look.which:
        assert found["weights"][which]["layers"] == list(range(look.depth(which)))
        close(found["weights"][which]["values"], look.weights(which))
        if which != "cross":
            close(found["rollout"][which], look.rollout(which))


@pytest.mark.parametrize("shape", looks.SHAPES)
def test_a_head_has_all_that_makes_its_scores(shape):
    look = looks.SHAPES[shape]().inspect(looks.TEXT)
    for layer in range(looks.DEPTH):
        part, head = head_part(look, "self", layer, 1), look.head(layer, 1)
        scores = unpacked(part["queries"]).astype(float) @ unpacked(part["keys"]).T * part["scale"]
        scores = part["cap"] * np.tanh(scores / part["cap"]) if part["cap"] else scores
        scores = scores + unpacked(part["bias"]) if part["bias"] else scores
        hidden = np.asarray(head.hidden)
        seen = ~np.tri(len(hidden), dtype=bool) if part["hidden"] == "causal" else unpacked(part["hidden"])
        assert (seen == hidden).all()
        np.testing.assert_allclose(scores, np.asarray(head.scores), rtol=1e-5, atol=1e-5)
        weights = looks.softmax(np.where(hidden, -np.inf, scores))
        np.testing.assert_allclose(weights, np.asarray(head.weights), atol=1e-5)
        close(part["weights"], head.weights)


def test_vectors_and_the_stream_are_the_inspections():
    look, found = looked("lm"), made("lm")
    close(found["embedding"]["self"]["tokens"], look.token_vectors)
    close(found["embedding"]["self"]["positions"], look.position_vectors)
    stream = np.asarray(look.stream())
    close(found["stream"]["self"]["lengths"], np.linalg.norm(stream, axis=-1))
    close(found["stream"]["self"]["added"], look.added())
    assert found["stream"]["self"]["parts"] == ["self-attention", "feed-forward"]
    assert unpacked(found["stream"]["self"]["like"])[-1] == pytest.approx(1.0)


def test_what_layers_and_neurons_say_is_the_inspections_and_has_names():
    look, found = looked("lm"), made("lm")
    lens, neurons = look.lens(module.TOP), look.neurons(module.ACTIVE)
    assert (unpacked(found["lens"]["ids"]) == np.asarray(lens.ids)).all()
    close(found["lens"]["probabilities"], lens.probabilities)
    assert (unpacked(found["lens"]["rank"]) == np.asarray(lens.rank)).all()
    close(found["neurons"]["activations"], neurons.activations)
    for name, said in found["neurons"]["promotes"].items():
        layer, neuron = map(int, name.split("."))
        assert [token for token, _ in said] == [token for token, _, _ in neurons.promotes(layer, neuron, module.TOP)]
    named = {*unpacked(found["lens"]["ids"]).ravel().tolist(), *found["distributions"][0]["ids"]}
    assert named <= set(map(int, found["words"]))
    assert all(found["words"][str(index)] == look.token_text(index) for index in named)


def test_a_distribution_has_all_of_the_vocabulary(monkeypatch):
    monkeypatch.setattr(module, "LIKELIEST", 20)
    monkeypatch.setattr(module, "TAIL", 100)  # fewer than there are tokens: neighbours share a group
    look = looked("lm")
    (found,) = module.Writer(look, None, 4, 3).distributions()
    logits = np.sort(np.asarray(look.logits)[-1])[::-1]
    first, others = unpacked(found["logits"]), unpacked(found["others"])
    assert found["size"] == 3
    counts = [min(found["size"], len(logits) - 20 - 3 * group) for group in range(len(others))]
    assert sum(counts) == len(logits) - 20
    whole = np.exp(first).sum() + (np.exp(others) * counts).sum()
    assert np.exp(first) / whole == pytest.approx(looks.softmax(logits)[:20], abs=1e-5)
    hot = np.exp(first / 2).sum() + (np.exp(others / 2) * counts).sum()
    assert np.exp(first / 2) / hot == pytest.approx(looks.softmax(logits / 2)[:20], abs=1e-5)


def test_the_gaps_of_a_masked_model_have_distributions():
    found = made("masked")
    gap = [piece["text"] for piece in found["pieces"]].index("[MASK]")
    assert [each["position"] for each in found["distributions"]] == [gap]
    assert found["chosen"]["query"] == gap


@pytest.mark.parametrize("beams", [2, 3])
def test_the_page_of_an_inspection_has_as_many_beams_as_were_asked(beams):
    shown = re.search(r'id="payload">(.*?)</script>', looks.speaker().inspect("low", beams=beams).html())
    assert shown
    rounds = json.loads(shown[1])["beam"]["rounds"]
    assert {sum(node["kept"] for node in looked) for looked in rounds} == {beams}


def test_steps_beams_and_classes_are_the_inspections():
    look, found = looked("lm"), made("lm")
    assert [step["id"] for step in found["steps"]] == [step.id for step in look.steps(4)]
    assert found["beam"]["texts"][0]["text"] == look.beam(3, 4).texts[0].text
    shares_ = {each["text"]: each["probability"] for each in made("classify")["classes"]}
    assert shares_ == dict(looked("classify").classes)


def test_a_part_of_many_passes_is_made_in_turns_and_told_once():
    told: list[int] = []
    work = module.payload_by_parts(
        looked("lm"), which=None, layer=None, head=None, max_tokens=1, beams=2, advance=lambda: told.append(1)
    )
    turns = sum(1 for _ in work)
    assert len(told) == len(module.PARTS["lm"])
    assert turns >= len(told) + looks.DEPTH * looks.HEADS


def test_a_model_that_lacks_one_thing_has_the_others():
    found = payload(looks.SHAPES["experts"]().inspect(looks.TEXT), max_tokens=2)
    assert "neurons" not in found
    assert "weights" in found
    assert any("experts" in said for said in found["leftOut"])


# --- what is chosen ---------------------------------------------------------------------------------------------------


def test_the_head_to_open_with_looks_at_single_tokens_but_the_first_and_itself():
    weights = np.zeros((1, 4, 6, 6))
    weights[0, 0, :, 0] = 1  # the first
    weights[0, 1] = np.eye(6)  # itself
    weights[0, 2, 1:, :] = np.eye(6)[:-1]  # the one before
    weights[0, 3] = np.tri(6) / np.arange(1, 7)[:, None]  # all alike
    assert pointed(weights, causal=True).argmax() == 2


def test_layer_and_head_can_be_asked_for():
    found = payload(looked("lm"), layer=1, head=-1, max_tokens=1)
    assert (found["chosen"]["layer"], found["chosen"]["head"]) == (1, looks.HEADS - 1)
    assert (found["heads"][0]["layer"], found["heads"][0]["head"]) == (1, looks.HEADS - 1)
    assert payload(looked("translate"), which="encoder", layer=2, max_tokens=1)["chosen"]["which"] == "encoder"


@pytest.mark.parametrize("asked", [{"layer": 9}, {"head": 9}, {"which": "cross"}])
def test_what_is_not_there_is_one_line(asked):
    with pytest.raises(UsageError) as error:
        payload(looked("lm"), **asked)
    assert "\n" not in str(error.value)


def test_layers_of_a_model_without_any_are_one_line():
    from nextile.text.lexicon import train_lexicon

    tokenizer = train_lexicon(["the cat and the dog"], 1)
    look = looks.loaded(specs.CBOW(vocab=tokenizer.vocab_size, width=8), tokenizer).inspect("cat")
    for asked in ({"layer": 0}, {"head": 0}, {"which": "self"}):
        with pytest.raises(UsageError, match="has no layers"):
            payload(look, **asked)


# --- what is left out -------------------------------------------------------------------------------------------------


def test_what_is_too_large_is_left_out_and_said(monkeypatch):
    look = looked("lm")
    whole = made("lm")
    each = len(shares(np.asarray(look.weights())[0])["data"])
    monkeypatch.setattr(module, "WEIGHTS", 2 * each)
    monkeypatch.setattr(
        module, "HEADS", 2 * sum(len(whole["heads"][0][name]["data"]) for name in ("queries", "keys", "values"))
    )
    monkeypatch.setattr(module, "PROMOTED", 7)
    monkeypatch.setattr(module, "GLANCE", 4)
    found = payload(look, layer=1, head=2, max_tokens=1)
    assert 1 in found["weights"]["self"]["layers"]
    assert len(found["weights"]["self"]["layers"]) == 2
    assert found["weights"]["self"]["glance"]["shape"] == [looks.DEPTH, looks.HEADS, 4, 4]
    assert (found["heads"][0]["layer"], found["heads"][0]["head"]) == (1, 2)
    assert len(found["heads"]) == 2
    assert len(found["neurons"]["promotes"]) == 7
    said = " ".join(found["leftOut"])
    assert "the weights of 1 of 3 layers (self)" in said
    assert "queries, keys and values of 10 of 12 heads" in said
    assert "neurons speak for" in said


def test_a_head_whose_layer_is_left_out_brings_its_own_weights(monkeypatch):
    look = looked("lm")
    monkeypatch.setattr(module, "WEIGHTS", 1)
    found = payload(look, max_tokens=1)
    assert found["weights"]["self"]["layers"] == []
    for part in found["heads"]:
        close(part["weights"], look.weights(layer=part["layer"], head=part["head"]))
    assert all("weights" not in part for part in made("lm")["heads"])


def test_a_glance_at_a_picture_is_the_row_of_its_query(monkeypatch):
    look = looked("classify")
    monkeypatch.setattr(module, "WEIGHTS", 1)
    found = payload(look, max_tokens=1)
    row = np.asarray(look.weights())[:, :, found["chosen"]["query"]][:, :, None]
    close(found["weights"]["self"]["glance"], row)
