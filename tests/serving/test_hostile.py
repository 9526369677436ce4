"""Thousands of requests that nobody should send: never a 5xx, never a hang, always an error in OpenAI's shape."""

import contextlib
import json
import random
import time
import urllib.parse
from contextlib import closing
from typing import Any

import pytest

SECONDS = 20.0  # in which every answer comes; what is asked below takes no second by itself


def told(number: int | str) -> Any:
    """A number as it would be written in JSON, which knows no such number."""
    return f"\0{number}\0"


VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 1.5, 1e308, -1e308, 5e-324, 10**9, -(10**9), 2**31, 2**53 + 1, 2**63, 2**64,
    2**70, -(2**70),
    told("NaN"), told("Infinity"), told("-Infinity"), told("1e999"), told("-1e999"), told("9" * 5000), told("01"),
    told("+1"),
    "", " ", "a", "\0", "\n\n", "\u2028", "é", "\U0001f600", "\ufffe", "\u202e", "a" * 1000, "a" * 100_000,
    "ab" * 50_000,
    told('"\\ud800"'), told('"\\udc00\\ud800"'), told('"\\u0000"'), told("'a'"), told('"\\x"'), told("undefined"),
    told(""),
    "NaN", "1", "null", "true", "<script>alert(1)</script>", "' OR 1=1 --", "../../etc/passwd", "${7*7}", "{{7*7}}",
    "data:image/png;base64,", "data:image/png;base64,AAAA", "data:image/svg+xml;base64,PHN2Zy8+", "data:text/html,<b>",
    "float", "base64", "tiny", "gpt-4", "<|endoftext|>",
    [], [None], [[]], [[[]]], [0], [-1], [2**31], [10**9], [1.5], ["a"], [""], ["a", 1], [1, "a"], [True], [["a"]],
    [[0], []],
    ["a"] * 17, ["a"] * 129, ["a"] * 3000, [["a"]] * 3000, [0] * 10_000, [[0]] * 3000,
    {}, {"a": 1}, {"": ""}, {"0": 0}, {"0": told("NaN")}, {"-1": 1}, {"9" * 400: 1}, {"1": 1e308}, {"type": "text"},
    {str(i): 1 for i in range(2000)}, {"include_usage": True}, {"include_usage": "yes"},
    [{}], [{"role": "user"}], [{"role": "user", "content": "a"}], [{"role": "user", "content": None}],
    [{"role": "\u202e", "content": "a"}], [{"role": "user", "content": ["a"]}], [{"role": "system",
    "content": "a" * 100_000}],
    [{"role": "user", "content": "a", "name": {"a": [1]}}], [{"role": "user", "content": "<|im_end|>"}] * 1001,
    [{"role": "user", "content": [{"type": "text", "text": told('"\\ud800"')}]}], [{"type": "function"}],
]  # fmt: skip
KINDS = ["talker", "translator", "painter", "classifier", "labeller", "masker", "denoiser"]
PLAIN: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "ab", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    "/v1/embeddings": {"input": "ab"},
    "/v1/translate": {"input": "ab", "max_tokens": 2},
    "/v1/classify": {"input": "ab"},
    "/v1/paint": {},
    "/v1/beams": {"input": "ab", "max_tokens": 2},
    "/v1/tokens": {"input": "ab"},
    "/v1/fill": {"input": "a[MASK]b", "max_tokens": 2},
    "/v1/inspect": {"input": "ab", "max_tokens": 2},
    "/v1/inspect/head": {"input": "ab", "layer": 0, "head": 0},
}
NAMES = (
    "model", "prompt", "messages", "input", "image", "n", "best_of", "max_tokens", "max_completion_tokens",
    "min_tokens",
    "stop", "seed", "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty",
    "repetition_penalty",
    "logit_bias", "logprobs", "top_logprobs", "echo", "stream", "stream_options", "suffix", "user", "beams",
    "length_penalty",
    "top", "target", "which", "layer", "head",
    "encoding_format", "dimensions", "tools", "tool_choice", "response_format", "__class__", "__proto__", "\0",
    "",
)  # fmt: skip


def written(body: Any) -> bytes:
    """A body in JSON, or in what JSON would be if it had such values."""
    text = json.dumps(body)
    for value in (each for each in VALUES if isinstance(each, str) and each.startswith("\0") and len(each) > 1):
        text = text.replace(json.dumps(value), value.strip("\0"))
    return text.encode()


def mutated(dice: random.Random, path: str) -> bytes:
    """A request that was sound once."""
    body = dict(PLAIN[path])
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        body[dice.choice(NAMES)] = dice.choice(VALUES)
    data = written(body)
    if dice.random() < 0.1:
        place = dice.randrange(len(data) + 1)
        data = dice.choice(
            (data[:place], data[:place] + bytes([dice.randrange(256)]) + data[place:], data * 2, data[::-1])
        )
    return data


RAW = (
    b"", b" ", b"null", b"[]", b'"a"', b"1", b"{", b"}", b"[" * 100_000, b'{"prompt":' * 50_000, b"\xff\xfe",
    b"\x00" * 100,
    b'{"prompt": "\xed\xa0\x80"}', b"\xef\xbb\xbf{}", '{"prompt": "a"}'.encode("utf-16"), b'{"n": 1, "n": 1000000000}',
    b"{'prompt': 'a'}", b'{"prompt": "a",}', b'{"prompt": "a"} {"prompt": "b"}', b'{"a":1}' * 10_000, b"9" * 100_000,
    b'{"prompt": "' + b"a" * (4 << 20) + b'"}', b'{"prompt": [' + b"1," * (1 << 20) + b"1]}",
    b'{"stop": [' + b'"a",' * 100_000 + b'"a"]}', b'{"prompt": [' + b'"a",' * 1_000_000 + b'"a"]}',
    b'{"logit_bias": {' + b",".join(b'"%d": 1' % i for i in range(50_000)) + b"}}",
    b'{"messages": [' + b"{}," * 99_999 + b"{}]}",
)  # fmt: skip


def wrong(running: Any, path: str, data: bytes) -> str | None:
    """What is wrong with an answer, if anything is."""
    began = time.monotonic()
    answer = running.ask("POST", path, data, content_type="application/json")
    seconds = time.monotonic() - began
    if seconds > SECONDS:
        return f"it took {seconds:.0f} seconds"
    if answer.status >= 500 or answer.status not in (200, 400, 404, 413, 429):
        return f"{answer.status}: {answer.content[:200]!r}"
    if answer.status == 200:
        return f"it failed on its way: {answer.content[-200:]!r}" if b'"server_error"' in answer.content else None
    said = answer.error["message"]  # fails for another shape
    return None if len(said) < 2000 and "\n" not in said else f"a message of {len(said)} characters"


def attack(running: Any, count: int, seed: int) -> None:
    dice, paths = random.Random(seed), list(PLAIN)
    for number in range(count):
        path = dice.choice(paths)
        data = mutated(dice, path)
        found = wrong(running, path, data)
        assert found is None, (number, path, data[:300], found)
    assert running.get("/health").status == 200
    assert running.post("/v1/tokens", input="a").status in (200, 400)


@pytest.mark.parametrize("path", PLAIN)
def test_bytes_that_are_no_request_are_refused(talker, path):
    for data in RAW:
        assert wrong(talker, path, data) is None, data[:50]


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_requests_are_answered(kind, request):
    attack(request.getfixturevalue(kind), 120, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["talker", "translator", "painter", "classifier", "labeller", "masker", "denoiser", "lm"]
)
def test_thousands_of_mutated_requests_are_answered(kind, request):
    attack(request.getfixturevalue(kind), 700, seed=2)


def test_no_hostile_request_leaves_anything_behind(talker):
    statistics = talker.engine.statistics()
    assert (statistics.running, statistics.waiting, statistics.jobs) == (0, 0, 0)
    assert talker.app.life.open == 0


# --- schemathesis -----------------------------------------------------------------------------------------------------


def explored(running: Any, examples: int, seed: int) -> int:
    """How many requests schemathesis made of /openapi.json; fails at a 5xx, and at an error of another shape."""
    schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")
    import hypothesis

    schema = schemathesis.openapi.from_dict(running.get("/openapi.json").json)
    count = 0
    plain = hypothesis.settings(
        max_examples=examples, deadline=None, database=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    operations = [found.ok() for found in schema.get_all_operations()]
    for operation in operations:
        for mode in schemathesis.GenerationMode:

            def check(case: Any) -> None:
                nonlocal count
                count += 1
                ask(running, case)

            given = hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # there is nothing to get wrong in some
                hypothesis.seed(seed)(plain(given(check)))()
    assert len(operations) >= len(PLAIN)
    return count


def ask(running: Any, case: Any) -> None:
    """Send what schemathesis thought of."""
    asked = case.as_transport_kwargs(base_url=running.url)
    path = urllib.parse.urlsplit(urllib.parse.quote(asked["url"], safe=":/?&=%[]")).path
    data = json.dumps(shorter(asked["json"])).encode() if "json" in asked else asked.get("data")
    headers = {name: value for name, value in asked["headers"].items() if _can_be_sent(name, value)}
    headers |= {"content-type": "application/json"} if "json" in asked else {}
    with closing(running.connection(SECONDS)) as connection:
        connection.request(asked["method"], path, data, headers)
        response = connection.getresponse()
        found = response.read()
    assert response.status < 500, (case, found[:300])
    if response.status >= 400 and asked["method"] != "HEAD":
        assert set(json.loads(found)["error"]) == {"message", "type", "param", "code"}


def shorter(body: Any) -> Any:
    """The same, of few tokens where it asks for many that it would get, in minutes."""
    if not isinstance(body, dict):
        return body
    long = {name for name in ("max_tokens", "max_completion_tokens", "min_tokens") if name in body}
    return body | {name: 4 for name in long if type(body[name]) is int and 4 < body[name] <= 1 << 17}


def _can_be_sent(name: str, value: str) -> bool:
    return f"{name}{value}".isprintable() and f"{name}{value}".isascii() and ":" not in name


def test_what_schemathesis_thinks_of_is_answered(talker):
    assert explored(talker, examples=2, seed=1) > 30


@pytest.mark.slow
def test_thousands_of_requests_of_schemathesis_are_answered(talker, painter):
    assert explored(talker, examples=250, seed=2) + explored(painter, examples=100, seed=3) > 5000
