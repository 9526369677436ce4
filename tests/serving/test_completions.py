"""POST /v1/completions: what `Model.generate` writes, in OpenAI's shape, whole and as a stream."""

import threading
from typing import Any

import pytest
import torch

PATH = "/v1/completions"


def text_of(answer: Any) -> str:
    assert answer.status == 200, answer.content
    return answer.json["choices"][0]["text"]


def joined(events: list[Any], index: int = 0) -> str:
    return "".join(
        choice["text"] for event in events for choice in event["choices"] if choice["index"] == index
    )  # fmt: skip


# --- the same as alone ------------------------------------------------------------------------------------------------

DRAWN = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 7},
    {"temperature": 1.3, "seed": 7, "top_k": 5, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("drawn", DRAWN)
def test_a_completion_is_what_generate_writes(lm, drawn):
    answer = lm.post(PATH, prompt="abc", max_tokens=40, **drawn)
    assert text_of(answer) == lm.model.generate("abc", max_tokens=40, **drawn)
    assert answer.json["usage"]["prompt_tokens"] == 3


def test_another_seed_writes_another_text(lm):
    texts = {text_of(lm.post(PATH, prompt="abc", max_tokens=40, seed=seed)) for seed in (1, 2)}
    assert len(texts) == 2


def test_without_a_seed_every_text_is_another(lm):
    assert text_of(lm.post(PATH, prompt="a", max_tokens=40)) != text_of(lm.post(PATH, prompt="a", max_tokens=40))


def test_a_negative_seed_is_one_as_good(lm):
    texts = [text_of(lm.post(PATH, prompt="a", max_tokens=20, seed=seed)) for seed in (-1, -1, (1 << 64) - 1)]
    assert len(set(texts)) == 1


def test_several_texts_of_several_prompts_are_those_of_generate(lm):
    answer = lm.post(PATH, prompt=["ab", "cd"], n=3, max_tokens=20, temperature=1.0, seed=3)
    texts = [choice["text"] for choice in answer.json["choices"]]
    assert texts == lm.model.generate(["ab", "cd"], n=3, max_tokens=20, temperature=1.0, seed=3)
    assert [choice["index"] for choice in answer.json["choices"]] == list(range(6))


def test_token_ids_are_a_prompt_as_text_is(lm):
    ids = lm.model.tokenizer.encode("abc")
    wanted = text_of(lm.post(PATH, prompt="abc", max_tokens=9, seed=1))
    assert text_of(lm.post(PATH, prompt=ids, max_tokens=9, seed=1)) == wanted
    both = lm.post(PATH, prompt=[ids, ids[:1]], max_tokens=9, seed=1).json["choices"]
    assert both[0]["text"] == wanted
    assert len(both) == 2


def test_sixteen_clients_at_once_get_what_each_gets_alone(lm):
    asked = [{"prompt": "abcdefgh"[: 1 + i % 8], "max_tokens": 10 + 3 * i, "seed": i} for i in range(16)]
    found: dict[int, str] = {}

    def ask(i: int) -> None:
        found[i] = text_of(lm.post(PATH, **asked[i]))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[i] for i in range(16)] == [lm.model.generate(temperature=1.0, **each) for each in asked]


# --- ends -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["b", ["b", "h", ""], ["ab", "bc", "e\nf"]])
def test_a_stop_string_ends_a_text(lm, stop):
    asked = {"prompt": "ab", "max_tokens": 200, "seed": 5}
    answer = lm.post(PATH, stop=stop, **asked)
    stops = [stop] if isinstance(stop, str) else [each for each in stop if each]
    wanted = lm.model.generate(temperature=1.0, stop=stops, **asked)
    assert text_of(answer) == wanted
    assert answer.json["choices"][0]["finish_reason"] == "stop"
    assert joined(lm.post(PATH, stop=stop, stream=True, **asked).events) == wanted


def test_the_reason_tells_the_end_from_the_limit(lm):
    end = lm.model.tokenizer.end_id
    ended = lm.post(PATH, prompt="a", max_tokens=5, logit_bias={str(end): 100})
    assert ended.json["choices"][0] | {"logprobs": None} == {
        "index": 0, "text": "", "finish_reason": "stop", "logprobs": None
    }  # fmt: skip
    assert ended.json["usage"] == {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    limited = lm.post(PATH, prompt="a", max_tokens=5, logit_bias={str(end): -100})
    assert limited.json["choices"][0]["finish_reason"] == "length"
    assert limited.json["usage"]["completion_tokens"] == 5


def test_min_tokens_come_before_the_end(lm):
    end = str(lm.model.tokenizer.end_id)
    answer = lm.post(PATH, prompt="a", max_tokens=9, min_tokens=4, logit_bias={end: 100})
    assert answer.json["usage"]["completion_tokens"] == 5
    assert len(text_of(answer)) == 4


def test_biases_and_penalties_reach_the_draw(lm):
    (letter,) = lm.model.tokenizer.encode("c")
    always = text_of(lm.post(PATH, prompt="a", max_tokens=6, logit_bias={str(letter): 100}))
    assert always == "cccccc"
    penalised = text_of(lm.post(PATH, prompt="a", max_tokens=40, temperature=0, frequency_penalty=2))
    assert penalised != text_of(lm.post(PATH, prompt="a", max_tokens=40, temperature=0))


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_says_what_the_whole_answer_says(octets):
    asked = {"prompt": "né", "max_tokens": 50, "seed": 2, "n": 2}
    whole = octets.post(PATH, **asked).json
    events = octets.post(PATH, stream=True, stream_options={"include_usage": True}, **asked).events
    assert [joined(events, index) for index in (0, 1)] == [choice["text"] for choice in whole["choices"]]
    assert len(events) > 20
    assert {event["id"] for event in events} == {events[0]["id"]}
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == whole["usage"]
    assert all(event["usage"] is None for event in events[:-1])
    ends = [choice["finish_reason"] for event in events for choice in event["choices"] if choice["finish_reason"]]
    assert ends == ["length", "length"]


def test_a_stream_has_no_usage_unless_asked(lm):
    events = lm.post(PATH, prompt="a", stream=True).events
    assert all("usage" not in event for event in events)


def test_a_stream_comes_as_it_is_written(lm):
    connection = lm.connection()
    body = b'{"prompt": "a", "stream": true, "max_tokens": 3000, "min_tokens": 3000}'
    connection.request("POST", PATH, body, {"content-type": "application/json"})
    response = connection.getresponse()
    assert response.readline().startswith(b"data: ")
    assert lm.engine.statistics().running == 1  # there is much to come
    connection.close()
    response.close()


# --- log-probabilities ------------------------------------------------------------------------------------------------


def prompt_logprobs(running: Any, ids: list[int]) -> torch.Tensor:
    """(T - 1, V): what the model itself makes of a prompt."""
    model: Any = running.model.model
    with torch.no_grad():
        return model(torch.tensor([ids]))[0, :-1].log_softmax(-1)


def test_an_echo_shows_how_likely_the_prompt_is(lm):
    prompt = "abc, abd."
    choice = lm.post(PATH, prompt=prompt, max_tokens=0, echo=True, logprobs=2).json["choices"][0]
    ids = lm.model.tokenizer.encode(prompt)
    wanted = prompt_logprobs(lm, ids)
    own = wanted[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].tolist()
    found = choice["logprobs"]
    assert (choice["text"], choice["finish_reason"]) == (prompt, "length")
    assert found["tokens"] == list(prompt)
    assert found["text_offset"] == list(range(len(prompt)))
    assert found["token_logprobs"][0] is None
    assert found["token_logprobs"][1:] == pytest.approx(own, abs=1e-5)
    assert found["top_logprobs"][0] is None
    for place, top in enumerate(found["top_logprobs"][1:]):
        assert max(top.values()) == pytest.approx(wanted[place].max().item(), abs=1e-5)
        assert prompt[place + 1] in top


def test_an_echo_goes_on_with_what_is_written(lm):
    answer = lm.post(PATH, prompt="abc", max_tokens=4, echo=True, logprobs=0, seed=1).json["choices"][0]
    assert answer["text"] == "abc" + text_of(lm.post(PATH, prompt="abc", max_tokens=4, seed=1))
    assert "".join(answer["logprobs"]["tokens"]) == answer["text"]
    assert answer["logprobs"]["text_offset"] == list(range(7))
    assert answer["logprobs"]["top_logprobs"] is None
    again = prompt_logprobs(lm, lm.model.tokenizer.encode(answer["text"]))
    ids = lm.model.tokenizer.encode(answer["text"])[1:]
    wanted = again[torch.arange(6), torch.tensor(ids)].tolist()
    assert answer["logprobs"]["token_logprobs"][1:] == pytest.approx(wanted, abs=1e-4)


def test_a_stream_shows_the_same_tokens(lm):
    asked = {"prompt": "abc", "max_tokens": 60, "echo": True, "logprobs": 3, "seed": 4, "stop": ["a,", "de"]}
    whole = lm.post(PATH, **asked).json["choices"][0]
    events = lm.post(PATH, stream=True, **asked).events
    parts = [event["choices"][0]["logprobs"] for event in events]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [each for part in parts for each in part[name]] == whole["logprobs"][name]
    assert "".join(whole["logprobs"]["tokens"]) == whole["text"]


def test_what_a_stop_string_cut_is_not_shown(lm):
    plain = text_of(lm.post(PATH, prompt="ab", max_tokens=60, seed=5))
    stop = plain[10:13]
    choice = lm.post(PATH, prompt="ab", max_tokens=60, seed=5, stop=stop, logprobs=1).json["choices"][0]
    assert choice["text"] == plain[: plain.index(stop)]
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]


def test_parts_of_characters_are_shown_as_bytes(octets):
    choice = octets.post(PATH, prompt="é", max_tokens=0, echo=True, logprobs=1).json["choices"][0]
    assert choice["logprobs"]["tokens"] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert choice["logprobs"]["text_offset"] == [0, 0]


# --- the best of several ----------------------------------------------------------------------------------------------


def test_the_best_of_several_is_the_likeliest_per_token(lm):
    never_ends = {str(lm.model.tokenizer.end_id): -100}
    asked = {"prompt": "abc", "max_tokens": 12, "seed": 8, "logit_bias": never_ends}
    all_of_them = lm.post(PATH, n=6, logprobs=0, **asked).json["choices"]
    means = [sum(each["logprobs"]["token_logprobs"]) / 12 for each in all_of_them]
    best = lm.post(PATH, best_of=6, n=2, **asked).json
    ranked = sorted(range(6), key=lambda i: -means[i])
    assert [choice["text"] for choice in best["choices"]] == [all_of_them[i]["text"] for i in ranked[:2]]
    assert best["usage"]["completion_tokens"] == 72


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"n": 10**9}, "n", "128"),
        ({"n": "1"}, "n", "valid integer"),
        ({"prompt": ["a"] * 10**6}, "prompt", "1,000,000"),
        ({"prompt": ["a"] * 100, "n": 2}, None, "128 at a time"),
        ({"prompt": {"a": 1}}, "prompt", "give a string"),
        ({"prompt": [[]]}, "prompt", "not empty"),
        ({"prompt": [999]}, "prompt", "token id 999"),
        ({"prompt": [-1]}, "prompt", "token ids are"),
        ({"prompt": "a" * 65}, "prompt", "65 tokens, and this model reads at most 64"),
        ({"prompt": "a" * 10**6}, "prompt", "1,000,000 characters"),
        ({"min_tokens": 9, "max_tokens": 8}, None, "min_tokens is 9"),
        ({"max_tokens": 0}, None, "echo"),
        ({"max_tokens": 10**9}, "max_tokens", "131072"),
        ({"stop": ["a"] * 10**5}, "stop", "at most 16"),
        ({"stop": "a" * 1000}, "stop", "256 characters"),
        ({"seed": 2**70}, "seed", "less than"),
        ({"logprobs": -1}, "logprobs", "greater than"),
        ({"logprobs": 21}, "logprobs", "20"),
        ({"temperature": -1}, "temperature", "greater than"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty", "0.01"),
        ({"suffix": "end"}, "suffix", "left to right"),
        ({"tools": [{}]}, "tools", "call no tools"),
        ({"best_of": 1, "n": 2}, None, "best_of"),
        ({"best_of": 2, "stream": True}, None, "best_of"),
        ({"stream_options": {"include_usage": True}}, None, "stream"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "no token id"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "-100 to 100"),
        ({"promt": "a"}, "promt", "did you mean 'prompt'?"),
        ({"zzz": "a"}, "zzz", "known are"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(lm, body, param, said):
    answer = lm.post(PATH, **body)
    assert answer.status == 400
    assert answer.error["param"] == param
    assert said in answer.error["message"]
    assert answer.error["type"] == "invalid_request_error"
    assert "\n" not in answer.error["message"]
    assert len(answer.error["message"]) < 1000


@pytest.mark.parametrize(
    "body",
    [
        {"user": "u"},
        {"stop": None},
        {"tools": []},
        {"suffix": None},
        {"top_k": -1},
        {"metadata": {"a": "b"}},
        {"n": None},
    ],
)
def test_what_changes_nothing_is_passed_over(lm, body):
    assert lm.post(PATH, max_tokens=1, **body).status == 200


def test_an_unknown_model_is_404(lm):
    answer = lm.post(PATH, model="gpt-4")
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert lm.post(PATH, model="tiny", max_tokens=1).json["model"] == "tiny"


def test_the_model_is_as_it_was(lm):
    assert not lm.model.model.training
