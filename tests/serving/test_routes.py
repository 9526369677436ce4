"""Vectors, translations, classes, pictures, beams, tokens, models and the page: what the library itself says."""

import base64
import io
import math
from typing import Any

import numpy as np
import pytest

PICTURE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)


# --- vectors ----------------------------------------------------------------------------------------------------------


def test_vectors_are_those_of_embed(lm):
    texts = ["abc", "h", "a, b."]
    answer = lm.post("/v1/embeddings", input=texts).json
    found = np.array([each["embedding"] for each in answer["data"]])
    assert found == pytest.approx(lm.model.embed(texts), abs=1e-5)
    assert [each["index"] for each in answer["data"]] == [0, 1, 2]
    assert answer["usage"] == {"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9}


def test_vectors_in_base64_are_the_same(lm):
    plain = lm.post("/v1/embeddings", input="abc").json["data"][0]["embedding"]
    coded = lm.post("/v1/embeddings", input="abc", encoding_format="base64").json["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(coded), "<f4").tolist() == pytest.approx(plain, abs=1e-6)


def test_vectors_of_token_ids(lm):
    ids = lm.model.tokenizer.encode("abc")
    wanted = lm.post("/v1/embeddings", input="abc").json["data"]
    assert lm.post("/v1/embeddings", input=[ids]).json["data"] == wanted


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"input": "a" * 65}, "65 tokens"),
        ({"input": ""}, "no token"),
        ({"input": [[9999]]}, "token id 9999"),
        ({"input": "a", "dimensions": 8}, "width of the model"),
        ({"input": "a", "encoding_format": "int8"}, "'float' or 'base64'"),
        ({}, "'input' is missing"),
    ],
)
def test_what_has_no_vector_is_refused(lm, body, said):
    answer = lm.post("/v1/embeddings", **body)
    assert answer.status == 400
    assert said in answer.error["message"]


# --- translations -----------------------------------------------------------------------------------------------------


def test_translations_are_those_of_translate(translator):
    texts = ["ab c.", "h", "", "a b c d"]
    answer = translator.post("/v1/translate", input=texts, beams=3, n=2, max_tokens=8).json
    wanted = [translator.model.translate(text, beams=3, n=2, max_tokens=8, details=True) for text in texts]
    assert [[each["text"] for each in item["translations"]] for item in answer["data"]] == [
        [each.text for each in group] for group in wanted
    ]
    assert answer["data"][0]["translations"][0]["score"] == pytest.approx(wanted[0][0].score, abs=1e-5)
    reasons = {each["finish_reason"] for item in answer["data"] for each in item["translations"]}
    assert reasons <= {"stop", "length"}


def test_a_text_longer_than_the_translator_reads_is_refused(translator):
    answer = translator.post("/v1/translate", input="a" * 40)
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")


def test_more_translations_than_beams_are_refused(translator):
    assert translator.post("/v1/translate", input="a", beams=2, n=3).status == 400


# --- classes ----------------------------------------------------------------------------------------------------------


def test_classes_of_pictures_are_those_of_classify(classifier, data_url):
    url = data_url(PICTURE)
    answer = classifier.post("/v1/classify", input=[url, url], top=2).json
    wanted = classifier.model.classify(base64.b64decode(url.partition(",")[2]), top=2)
    for number, item in enumerate(answer["data"]):
        assert item["index"] == number
        assert [each["label"] for each in item["classes"]] == [name for name, _ in wanted]
        shares = [each["probability"] for each in item["classes"]]
        assert shares == pytest.approx([share for _, share in wanted], abs=1e-5)


def test_classes_of_texts_are_those_of_classify(labeller):
    answer = labeller.post("/v1/classify", input=["a film", "no"]).json
    wanted = labeller.model.classify(["a film", "no"], top=5)
    found = [[(each["label"], each["probability"]) for each in item["classes"]] for item in answer["data"]]
    assert [[name for name, _ in each] for each in found] == [[name for name, _ in each] for each in wanted]
    assert found[0][0][1] == pytest.approx(wanted[0][0][1], abs=1e-5)


def bomb() -> str:
    """A picture of few bytes and many pixels."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("1", (7_000, 7_000)).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("a text", "give a data URL"),
        ("https://example.org/a.png", "give a data URL"),
        ("data:text/html;base64,aaaa", "give a data URL"),
        ("data:image/png;base64,!!!!", "not in base64"),
        ("data:image/png;base64,aaaa", "no picture"),
        ("data:image/png;base64,", "no picture"),
        (bomb, "7,000 x 7,000 pixels"),
    ],
)
def test_what_is_no_picture_is_refused(classifier, url, said):
    answer = classifier.post("/v1/classify", input=url() if callable(url) else url)
    assert answer.status == 400
    assert said in answer.error["message"]


def test_a_picture_of_too_many_bytes_is_413(classifier):
    answer = classifier.post("/v1/classify", input="data:image/png;base64," + "a" * (9 << 20))
    assert answer.status == 413


# --- pictures ---------------------------------------------------------------------------------------------------------


def pixels_of(painted: dict[str, str]) -> np.ndarray:
    """(H, W, 4)."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(painted["b64_json"]))))


def test_pictures_are_those_of_paint(painter):
    answer = painter.post("/v1/paint", n=3, seed=5).json
    wanted = painter.model.paint(3, seed=5)
    found = np.stack([pixels_of(each) for each in answer["data"]])
    assert np.array_equal(found[..., :3], wanted)
    assert (found[..., 3] == 255).all()


def test_a_half_picture_is_completed(painter, data_url):
    url = data_url(PICTURE)
    answer = painter.post("/v1/paint", image=url, seed=5, temperature=0.5).json
    start = base64.b64decode(url.partition(",")[2])
    (wanted,) = painter.model.paint(1, start=start, seed=5, temperature=0.5)
    assert np.array_equal(pixels_of(answer["data"][0])[..., :3], wanted)


def test_a_stream_of_a_picture_ends_in_the_whole_one(painter):
    events = painter.post("/v1/paint", n=2, seed=5, stream=True).events
    whole = painter.post("/v1/paint", n=2, seed=5).json["data"]
    assert events[-1] == {"done": 32, "of": 32, "data": whole}
    counts = [event["done"] for event in events]
    assert counts == sorted(set(counts))
    assert len(events) > 3
    known = [(pixels_of(each)[..., 3] == 255).sum() for each in events[1]["data"]]
    assert sum(known) == events[1]["done"]


# --- beams ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "text"), [("lm", "abc"), ("translator", "a b")])
def test_the_tree_of_beams_leads_to_the_texts(kind, text, request):
    running = request.getfixturevalue(kind)
    answer = running.post("/v1/beams", input=text, beams=3, n=2, max_tokens=6).json
    nodes = {node["id"]: node for each in answer["rounds"] for node in each}
    assert [node["parent"] for node in answer["rounds"][0]] == [None] * len(answer["rounds"][0])
    for number, each in enumerate(answer["rounds"][1:]):
        above = {node["id"] for node in answer["rounds"][number] if node["kept"]}
        assert {node["parent"] for node in each} <= above
    paths = {tuple(path(nodes, node)): node["logprob"] for node in nodes.values() if node["kept"]}
    for found in answer["texts"]:
        ended = (*found["ids"], running.model.tokenizer.end_id)
        logprob = paths.get(tuple(found["ids"]), paths.get(ended))
        length = len(found["ids"]) + (ended in paths)
        assert found["score"] == pytest.approx(logprob / length, abs=1e-5)


def path(nodes: dict[int, Any], node: dict[str, Any]) -> list[int]:
    above = [] if node["parent"] is None else path(nodes, nodes[node["parent"]])
    return [*above, node["token"]]


def test_the_texts_of_beams_are_those_of_generate(lm):
    answer = lm.post("/v1/beams", input="abc", beams=4, n=4, max_tokens=6).json
    assert [each["text"] for each in answer["texts"]] == lm.model.generate("abc", beams=4, n=4, max_tokens=6)


def test_beams_beyond_the_context_are_refused(lm):
    answer = lm.post("/v1/beams", input="a" * 60, max_tokens=10)
    assert (answer.status, answer.error["param"]) == (400, "max_tokens")


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_the_tokens_of_a_text(octets):
    found = octets.post("/v1/tokens", input="aé").json["data"]
    assert [each["id"] for each in found] == octets.model.tokenizer.encode("aé")
    assert [each["text"] for each in found] == ["a", "bytes:\\xc3", "bytes:\\xa9"]
    assert octets.post("/v1/tokens", input="").json == {"data": []}


# --- models that cannot -----------------------------------------------------------------------------------------------

BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/embeddings": {"input": "a"},
    "/v1/translate": {"input": "a"},
    "/v1/classify": {"input": "a"},
    "/v1/paint": {},
    "/v1/beams": {"input": "a"},
    "/v1/tokens": {"input": "a"},
    "/v1/fill": {"input": "a[MASK]b"},
    "/v1/inspect": {"input": "a"},
}
CAN = {
    "lm": {"/v1/completions", "/v1/embeddings", "/v1/beams", "/v1/tokens", "/v1/inspect"},
    "translator": {"/v1/translate", "/v1/embeddings", "/v1/beams", "/v1/tokens", "/v1/inspect"},
    "classifier": set(),
    "painter": {"/v1/paint"},
    "labeller": {"/v1/classify", "/v1/embeddings", "/v1/tokens", "/v1/inspect"},
    "masker": {"/v1/fill", "/v1/embeddings", "/v1/tokens", "/v1/inspect"},
    "denoiser": {"/v1/fill", "/v1/embeddings", "/v1/tokens", "/v1/inspect"},
}


@pytest.mark.parametrize("kind", CAN)
def test_a_model_does_what_it_can_and_says_what_it_is(kind, request):
    running = request.getfixturevalue(kind)
    answers = {path: running.post(path, **body) for path, body in BODIES.items()}
    assert {path for path, answer in answers.items() if answer.status == 200} == CAN[kind]
    assert {answer.status for answer in answers.values()} <= {200, 400}
    for path, answer in answers.items():
        if answer.status == 400 and (kind, path) not in (
            ("lm", "/v1/chat/completions"), ("classifier", "/v1/classify"), ("classifier", "/v1/inspect"),
            ("painter", "/v1/inspect"),
        ):  # fmt: skip
            assert answer.error["code"] == "unsupported_model"
            assert "'tiny' is" in answer.error["message"]


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        ("lm", {"task": "lm", "family": "gpt2", "context": 64, "chat": False, "vocab": 14, "image": None}),
        ("talker", {"task": "lm", "family": "gpt2", "context": 128, "chat": True, "vocab": 259, "image": None}),
        ("painter", {"task": "paint", "context": 16, "chat": False, "image": {"size": 4, "channels": 3}}),
        ("classifier", {"task": "classify", "vocab": None, "image": {"size": 8, "channels": 3}}),
    ],
)
def test_the_model_is_listed_with_what_it_is(kind, facts, request):
    running = request.getfixturevalue(kind)
    (entry,) = running.get("/v1/models").json["data"]
    assert (entry["id"], entry["object"]) == ("tiny", "model")
    assert {name: entry["nextile"][name] for name in facts} == facts
    assert entry["nextile"]["parameters"] == sum(p.numel() for p in running.model.model.parameters())
    assert running.get("/v1/models/tiny").json == entry
    assert running.get("/v1/models/other").error["code"] == "model_not_found"


# --- the page, health and metrics -------------------------------------------------------------------------------------


def test_the_page_comes_with_its_files(lm):
    page = lm.get("/")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"<!doctype html>" in page.content.lower()
    script = lm.get("/page.js")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert script.headers["cache-control"] == "no-cache"
    again = lm.get("/page.js", if_none_match=script.headers["etag"])
    assert (again.status, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/../served.py", "/page.py", "/__init__.py", "/%2e%2e/served.py", "//page.js"])
def test_nothing_but_the_page_is_given_away(lm, path):
    assert lm.get(path).status == 404


def test_health_says_that_the_engine_works(lm):
    assert (lm.get("/health").status, lm.get("/health").json) == (200, {"status": "ok"})


def figures(running: Any) -> dict[str, float]:
    lines = running.get("/metrics").content.decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_metrics_count_what_happens(lm):
    before = figures(lm)
    lm.post("/v1/completions", prompt="abc", max_tokens=5, temperature=0)
    lm.post("/v1/completions", n=0)
    lm.get("/nowhere/at/all")
    after = figures(lm)

    def more(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    assert more('nextile_requests_total{route="/v1/completions",status="200"}') == 1
    assert more('nextile_requests_total{route="/v1/completions",status="400"}') == 1
    assert more('nextile_requests_total{route="other",status="404"}') == 1
    assert more("nextile_tokens_written_total") == 5
    assert more("nextile_first_token_seconds_count") == 1
    assert more("nextile_token_seconds_count") == 4
    assert after["nextile_requests_open"] == 1  # the one that asks
    assert not any(math.isnan(value) for value in after.values())


def test_the_schema_describes_what_is_asked(lm):
    schema = lm.get("/openapi.json").json
    assert set(BODIES) < set(schema["paths"])
    asked = schema["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    name = asked["$ref"].removeprefix("#/components/schemas/")
    assert {"prompt", "stream_options", "logit_bias"} < set(schema["components"]["schemas"][name]["properties"])


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/v1", "/v1/completions/", "/v1/Completions"])
def test_there_is_nothing_else(lm, path):
    answer = lm.get(path)
    assert (answer.status, answer.error["code"]) == (404, "unknown_route")


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/completions"), ("PUT", "/v1/paint"), ("POST", "/health")])
def test_another_method_is_405(lm, method, path):
    answer = lm.ask(method, path)
    assert answer.status == 405
    assert answer.error["message"]
    assert answer.headers["allow"]
