"""Requests read from bytes: what JSON is, what a request is, and what is said of what is neither."""

import json
import time

import pytest

from nextile.serving.protocol import (
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    Refusal,
    parse,
    read_json,
)
from nextile.serving.served import sampling_of


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "Expecting value"),
        (b"[1]", "no object"),
        (b"{", "Expecting property name"),
        (b"\xff", "no UTF-8 (byte 0)"),
        (b'{"a": NaN}', "NaN is no number of JSON"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": 1e999}', "too large a number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b'{"a": "\\ud800"}', "lone surrogate"),
        (b'{"\\uDC00\\uD800": [1]}', "lone surrogate"),
        (b"[" * 10**6, "nested too deep"),
        (b'{"a":' * 10**5, "nested too deep"),
    ],
)
def test_what_is_no_json_is_refused_in_one_line(data, said):
    with pytest.raises(Refusal) as refusal:
        read_json(data)
    assert refusal.value.status == 400
    assert said in refusal.value.message
    assert "\n" not in refusal.value.message


def test_what_is_json_is_read():
    assert read_json('{"a": ["é", "\\ud83d\\ude00", 1.5e300]}'.encode()) == {"a": ["é", "\U0001f600", 1.5e300]}


@pytest.mark.parametrize(
    "data",
    [b'{"prompt": [' + b'"a",' * 10**6 + b'"a"]}', b'{"stop": [' + b'"a",' * 10**5 + b'"a"]}',
     b'{"prompt": [' + b"1," * 2 * 10**6 + b"1]}", b'{"logit_bias": {' + b'"1": 1,' * 10**6 + b'"1": 1e5}}'],
)  # fmt: skip
def test_large_nonsense_is_refused_quickly(data):
    began = time.process_time()
    with pytest.raises(Refusal) as refusal:
        parse(CompletionBody, read_json(data))
    assert time.process_time() - began < 3
    assert len(refusal.value.message) < 500


def test_an_error_names_its_parameter():
    with pytest.raises(Refusal) as refusal:
        parse(CompletionBody, {"temperature": "hot"})
    assert refusal.value.body() == {
        "error": {
            "message": "'temperature' is 'hot': input should be a valid number",
            "type": "invalid_request_error",
            "param": "temperature",
            "code": "invalid_value",
        }
    }


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
        (["a", [1]], ("a", (1,))),
    ],
)
def test_prompts_come_in_several_shapes(given, prompts):
    assert parse(CompletionBody, {"prompt": given}).prompt == prompts


def test_null_is_absent_but_not_where_something_is_needed():
    assert parse(CompletionBody, {"n": None, "stop": None, "stream_options": None}) == CompletionBody()
    with pytest.raises(Refusal, match="'input' is missing"):
        parse(EmbeddingBody, {"input": None})


def test_booleans_and_texts_are_no_numbers():
    for value in (True, "1", 1.5, [1]):
        with pytest.raises(Refusal, match="'n' is"):
            parse(CompletionBody, {"n": value})


def test_only_what_is_asked_for_reaches_the_sampling():
    asked = parse(
        ChatBody, {"messages": [{}], "seed": -1, "top_k": 0, "frequency_penalty": 0.5, "logit_bias": {"3": -1}}
    )
    sampling = sampling_of(asked)
    assert (sampling.seed, sampling.top_k, sampling.temperature) == ((1 << 64) - 1, None, 1.0)
    assert (sampling.frequency_penalty, dict(sampling.logit_bias)) == (0.5, {3: -1.0})


def test_seeds_that_nobody_gave_are_others_each_time():
    asked = parse(CompletionBody, {})
    assert sampling_of(asked).seed != sampling_of(asked).seed


def test_the_schema_is_json():
    from nextile.serving.protocol import schemas

    found = schemas([CompletionBody, ChatBody], [])
    assert json.loads(json.dumps(found)) == found
    assert found["CompletionBody"]["properties"]["n"]["maximum"] == 128
