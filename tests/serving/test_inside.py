"""Looks inside and gaps over HTTP: what the library itself says of them."""

import base64
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest

from nextile.base.errors import NextileError
from nextile.inspection.page import finite
from nextile.inspection.payload import head_part, payload
from nextile.serving import jobs, routes

# --- looking inside ---------------------------------------------------------------------------------------------------


def data_url(size=8):
    from PIL import Image

    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def of_page(running, what, target=None, **chosen):
    """What `nextile inspect` would show."""
    found = payload(running.model.inspect(what, target), **chosen)
    found["model"]["name"] = "tiny"
    return json.loads(json.dumps(finite(found)))


@pytest.mark.parametrize("kind", ["lm", "translator", "masker", "labeller", "denoiser"])
def test_a_look_inside_is_what_the_page_of_inspect_shows(kind, request):
    running, text = request.getfixturevalue(kind), "ab [MASK] c" if kind in ("masker", "denoiser") else "ab c."
    assert running.post("/v1/inspect", input=text).json == of_page(running, text)
    assert running.post("/v1/inspect", input="abc").json != of_page(running, text)  # control
    chosen = {"layer": 0, "head": 1, "max_tokens": 3, "beams": 2}
    assert running.post("/v1/inspect", input=text, **chosen).json["chosen"]["head"] == 1


@pytest.mark.parametrize("kind", ["classifier", "painter"])
def test_a_look_at_a_picture(kind, request):
    running, url = request.getfixturevalue(kind), data_url()
    data = base64.b64decode(url.partition(",")[2])
    assert running.post("/v1/inspect", input=url).json == of_page(running, data)


def test_a_target_of_ones_own_is_looked_at(translator):
    found = translator.post("/v1/inspect", input="ab c.", target="h d").json
    assert found == of_page(translator, "ab c.", "h d")
    assert [each["text"] for each in found["target"]][1:] == ["h", " ", "d"]


def test_one_head_alone(lm, translator):
    found = lm.post("/v1/inspect/head", input="ab c.", layer=0, head=2).json
    assert found == json.loads(json.dumps(head_part(lm.model.inspect("ab c."), "self", 0, 2)))
    cross = translator.post("/v1/inspect/head", input="ab", target="c", which="cross", layer=0, head=3).json
    assert cross == json.loads(json.dumps(head_part(translator.model.inspect("ab", "c"), "cross", 0, 3)))


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("inspect", {}, "'input' is missing"),
        ("inspect", {"input": ""}, "at least 1 character"),
        ("inspect", {"input": "a" * 65}, "65 tokens"),
        ("inspect", {"input": "a" * 100_000}, "100,000 characters"),
        ("inspect", {"input": "ab", "target": "c"}, "'tiny' reads no pairs: leave out the target"),
        ("inspect", {"input": "ab", "layer": 1}, "layer 1 is not there"),
        ("inspect", {"input": "ab", "head": 4}, "head 4 is not there"),
        ("inspect", {"input": "ab", "which": "cross"}, "cross"),
        ("inspect", {"input": "ab", "which": "both"}, "'self', 'encoder' or 'cross'"),
        ("inspect", {"input": "ab", "layer": -1}, "'layer' is -1"),
        ("inspect", {"input": "ab", "max_tokens": 65}, "'max_tokens' is 65"),
        ("inspect", {"input": "ab", "layers": 1}, "did you mean 'layer'"),
        ("inspect", {"input": ["ab"]}, "'input' is ['ab']"),
        ("inspect/head", {"input": "ab"}, "'layer' is missing"),
        ("inspect/head", {"input": "ab", "layer": 0, "head": 4}, "head 4 is not there"),
        (
            "inspect/head",
            {"input": "ab", "layer": 0, "head": 0, "which": "cross"},
            "no attention 'cross' in",
        ),
    ],
)
def test_what_cannot_be_looked_at_is_refused(lm, path, body, said):
    answer = lm.post(f"/v1/{path}", **body)
    assert answer.status == 400
    assert said in answer.error["message"]


def test_a_target_that_is_too_long_is_refused_before_anything_is_looked_at(translator):
    answer = translator.post("/v1/inspect", input="ab", target="a" * 33)
    assert (answer.status, answer.error["param"]) == (400, "target")


def test_nobody_is_told_in_which_folder_a_model_lies(lm, serving, monkeypatch):
    def broken(model, rows):
        raise NextileError(f"{model.called} is broken: get a sound copy of it")
        yield

    monkeypatch.setattr(jobs, "embeddings", broken)
    with serving(dataclasses.replace(lm.model, folder=Path("/secret/place"))) as running:
        answer = running.post("/v1/embeddings", input="a")
        look = running.post("/v1/inspect", input="ab")
    assert (answer.status, answer.error["message"]) == (400, "'tiny' is broken: get a sound copy of it")
    assert look.json["model"]["name"] == "tiny"


def test_what_is_no_picture_is_refused(classifier):
    for url, status in (
        ("ab", 400),
        ("data:image/png;base64,AAAA", 400),
        ("data:image/png;base64," + "A" * 9_000_000, 413),
    ):
        assert classifier.post("/v1/inspect", input=url).status == status


def test_a_look_that_would_take_too_much_memory_is_refused(lm, monkeypatch):
    monkeypatch.setattr(routes, "MOST_PIECES", 3)
    assert "there are 4 positions, and at most 3" in lm.post("/v1/inspect", input="abcd").error["message"]
    monkeypatch.setattr(routes, "MOST_PIECES", 512)
    monkeypatch.setattr(routes, "MOST_WEIGHTS", 100)
    assert "the weights of all heads are" in lm.post("/v1/inspect", input="abcd").error["message"]


def test_the_memory_of_a_target_counts_as_well(translator, monkeypatch):
    monkeypatch.setattr(routes, "MOST_WEIGHTS", 3000)
    assert translator.post("/v1/inspect", input="a", target="h").status == 200
    assert "the weights of all heads are" in translator.post("/v1/inspect", input="a", target="h" * 30).error["message"]


# --- gaps -------------------------------------------------------------------------------------------------------------


def test_masks_are_filled_as_generate_fills_them(masker):
    texts = ["ab[MASK]c [MASK]", "[MASK]h"]
    found = masker.post("/v1/fill", input=texts).json["data"]
    assert [each["texts"][0]["text"] for each in found] == masker.model.generate(texts)
    assert [each["index"] for each in found] == [0, 1]
    assert [len(each["gaps"]) for each in found] == [2, 1]
    first = found[0]["texts"][0]
    assert first["text"] == "ab{}c {}".format(*first["fills"])


def test_what_else_a_gap_may_have_is_what_the_model_says_there(masker):
    whole = masker.post("/v1/fill", input="ab[MASK]c [MASK]", top=20).json["data"][0]
    one, other = whole["texts"][0]["fills"]
    for text, place in ((f"ab[MASK]c {other}", 0), (f"ab{one}c [MASK]", 1)):
        look = masker.model.inspect(text)
        wanted = {index: share for index, _, share in look.next(top=None)}
        found = {each["id"]: each["probability"] for each in whole["gaps"][place]}
        assert found == pytest.approx(wanted, abs=1e-5)
    assert masker.post("/v1/fill", input="a[MASK]", top=0).json["data"][0]["gaps"] == [[]]


def test_masks_are_drawn_by_a_seed(masker):
    body = {"input": "ab[MASK][MASK][MASK]c", "n": 4, "temperature": 2.0, "seed": 3}
    found = [each["text"] for each in masker.post("/v1/fill", **body).json["data"][0]["texts"]]
    wanted = masker.model.generate("ab[MASK][MASK][MASK]c", n=4, temperature=2.0, seed=3)
    assert found == wanted
    assert len(set(found)) > 1


def test_a_denoiser_fills_gaps_by_beams(denoiser):
    body = {"input": "ab[MASK]c[MASK]", "n": 3, "beams": 4, "max_tokens": 8}
    found = denoiser.post("/v1/fill", **body).json["data"][0]
    wanted = denoiser.model.generate("ab[MASK]c[MASK]", n=3, beams=4, max_tokens=8, details=True)
    assert [each["text"] for each in found["texts"]] == [each.text for each in wanted]
    assert [each["score"] for each in found["texts"]] == pytest.approx([each.score for each in wanted], abs=1e-6)
    assert found["gaps"] == []
    for each in found["texts"]:
        assert each["text"] == "ab{}c{}".format(*each["fills"])


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        ("masker", {"input": "abc"}, "nothing to fill: write [MASK]"),
        ("masker", {"input": "[MASK]" * 33}, "tokens"),
        ("masker", {"input": "[MASK]" * 20, "n": 4, "temperature": 1.0}, "80 gaps are to be filled, and at most 64"),
        ("masker", {"input": "a[MASK]", "n": 2}, "n is 2 and the temperature 0: all would be alike"),
        ("masker", {"input": "a[MASK]", "beams": 2}, "'beams' does nothing here"),
        ("masker", {"input": "a" * 10_000 + "[MASK]"}, "characters"),
        ("masker", {"input": []}, "a string or a list of strings"),
        ("denoiser", {"input": "[MASK]" * 101}, "101 gaps and the model knows 100"),
        ("denoiser", {"input": "a[MASK]", "temperature": 1.0}, "'temperature' does nothing here"),
        ("denoiser", {"input": "a[MASK]", "n": 3, "beams": 2}, "n is 3 and the beams are 2"),
        ("lm", {"input": "a[MASK]"}, "'tiny' is a language model"),
    ],
)
def test_what_cannot_be_filled_is_refused(kind, body, said, request):
    answer = request.getfixturevalue(kind).post("/v1/fill", **body)
    assert answer.status == 400
    assert said in answer.error["message"]
