"""POST /v1/chat/completions: conversations by their template, answers whole and as a stream."""

from typing import Any

import pytest

from nextile.text.chat import Chat, Message

PATH = "/v1/chat/completions"
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hé?"}], "max_tokens": 30, "seed": 3, "min_tokens": 30
}  # fmt: skip


def written(running: Any, ids: list[int], **asked: Any) -> str:
    """What a completion of the same tokens is."""
    return running.post("/v1/completions", prompt=ids, **asked).json["choices"][0]["text"]


def test_an_answer_is_a_completion_of_the_template_s_text(talker):
    answer = talker.post(PATH, **ASKED).json
    ids = Chat(talker.model.tokenizer).prompt([Message("user", "Hé?")])
    assert talker.model.tokenizer.decode(ids) == "u: Hé?\na:"
    choice = answer["choices"][0]
    assert choice["message"] == {
        "role": "assistant",
        "content": written(talker, ids, max_tokens=30, min_tokens=30, seed=3),
        "refusal": None,
    }
    assert choice["finish_reason"] == "length"
    assert (answer["object"], answer["model"]) == ("chat.completion", "tiny")
    assert answer["usage"] == {"prompt_tokens": len(ids), "completion_tokens": 30, "total_tokens": len(ids) + 30}


def test_all_roles_and_parts_of_text_are_read(talker):
    spoken = [
        {"role": "developer", "content": "Be."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "tool_calls": None},
        {"role": "user", "content": "d", "name": "x"},
    ]
    answer = talker.post(PATH, messages=spoken, max_tokens=1).json
    assert answer["usage"]["prompt_tokens"] == len("s: Be.\nu: ab\na: c\nu: d\na:")


def test_a_stream_begins_with_the_role_and_says_the_same(talker):
    whole = talker.post(PATH, n=2, **ASKED).json
    events = talker.post(PATH, n=2, stream=True, stream_options={"include_usage": True}, **ASKED).events
    assert [event["choices"][0]["delta"] for event in events[:2]] == [{"role": "assistant", "content": ""}] * 2
    for choice in whole["choices"]:
        deltas = [
            each for event in events for each in event["choices"] if each["index"] == choice["index"]
        ]  # fmt: skip
        assert "".join(each["delta"].get("content", "") for each in deltas) == choice["message"]["content"]
        assert [each["finish_reason"] for each in deltas if each["finish_reason"]] == ["length"]
    assert all(event["object"] == "chat.completion.chunk" for event in events)
    assert (events[-1]["choices"], events[-1]["usage"]) == ([], whole["usage"])


def test_log_probabilities_are_those_of_a_completion(talker):
    answer = talker.post(PATH, logprobs=True, top_logprobs=2, **ASKED).json["choices"][0]
    found = answer["logprobs"]["content"]
    ids = Chat(talker.model.tokenizer).prompt([Message("user", "Hé?")])
    asked = {"prompt": ids, "max_tokens": 30, "min_tokens": 30, "seed": 3, "logprobs": 2}
    same = talker.post("/v1/completions", **asked).json["choices"][0]["logprobs"]
    assert [each["logprob"] for each in found] == same["token_logprobs"]
    assert [each["token"] for each in found] == same["tokens"]
    assert all(len(each["top_logprobs"]) == 2 for each in found)
    data = bytes(byte for each in found for byte in each["bytes"] or ())  # special tokens have none
    assert data.decode("utf-8", "replace") == answer["message"]["content"]
    streamed = talker.post(PATH, logprobs=True, top_logprobs=2, stream=True, **ASKED).events
    parts = [each["choices"][0]["logprobs"] for each in streamed if each["choices"][0]["logprobs"]]
    assert [each for part in parts for each in part["content"]] == found


def test_max_completion_tokens_is_the_newer_name_of_max_tokens(talker):
    asked = {name: value for name, value in ASKED.items() if name not in ("max_tokens", "min_tokens")}
    assert talker.post(PATH, max_completion_tokens=7, min_tokens=7, **asked).json["usage"]["completion_tokens"] == 7


def test_an_answer_without_a_limit_fills_the_context(talker):
    end = {str(talker.model.tokenizer.end_id): -100}
    answer = talker.post(PATH, messages=ASKED["messages"], logit_bias=end).json
    assert answer["usage"]["total_tokens"] == talker.model.spec.context


def test_a_special_token_s_text_that_somebody_wrote_stays_text(talker):
    end = talker.model.tokenizer.token(talker.model.tokenizer.end_id)
    answer = talker.post(PATH, messages=[{"role": "user", "content": end}], max_tokens=1).json
    assert answer["usage"]["prompt_tokens"] == len(f"u: {end}\na:")


def test_a_model_without_a_template_says_what_to_do(lm):
    answer = lm.post(PATH, **ASKED)
    assert (answer.status, answer.error["code"]) == (400, "no_chat_template")
    assert "/v1/completions" in answer.error["message"]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "at least 1"),
        ("hello", "valid list"),
        ([{"role": "user"}], "no text"),
        ([{"role": "wizard", "content": "a"}], "none of system, developer, user, assistant"),
        ([{"role": "tool", "content": "a"}], "none of"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}], "only text"),
        ([{"role": "assistant", "content": "a", "tool_calls": [{}]}], "'tool_calls', which is not done"),
        ([{"role": "user", "content": "a" * 10**6}], "1,000,0"),
        ([{"role": "user", "content": "a" * 200}], "at most 128"),
        ([{"role": "user", "content": "a"}] * 1001, "at most 1000"),
    ],
)
def test_what_is_no_conversation_is_refused(talker, messages, said):
    answer = talker.post(PATH, messages=messages)
    assert answer.status == 400
    assert said in answer.error["message"]
    assert answer.error["param"] == "messages"


@pytest.mark.parametrize(
    "body", [{"tools": [{}]}, {"response_format": {"type": "json_object"}}, {"top_logprobs": 2}, {"functions": [{}]}]
)
def test_what_is_not_done_is_refused(talker, body):
    answer = talker.post(PATH, **ASKED, **body)
    assert answer.status == 400
    assert answer.error["message"]
