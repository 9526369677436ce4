"""Text in, text out: stop strings wherever they fall, whole characters, streams, several completions."""

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from nextile.base.errors import UsageError
from nextile.generation.complete import Completion, Text, complete, draft_by, encode_prompt, stream
from nextile.generation.sample import Sampling
from nextile.models.build import build
from nextile.models.families import gpt2
from nextile.text.characters import byte_tokenizer, train_characters
from nextile.text.tokenizer import Tokenizer

LETTERS = "abcdefgh .\n"
GREEDY = Sampling(temperature=0.0)
HOT = Sampling(temperature=1.5, seed=3)


@dataclass(frozen=True)
class Writer:
    """What `nextile.load` returns, as far as completing goes."""

    model: Any
    tokenizer: Tokenizer


def writer(tokenizer):
    model = build(gpt2.spec(vocab=tokenizer.vocab_size + 3, context=64, width=32, depth=1, heads=4)).eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            spread = 0.3 if parameter.dim() > 1 else 0.1
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)), alpha=spread)
    return Writer(model, tokenizer)


@pytest.fixture(scope="module")
def letters():
    return writer(train_characters([LETTERS]))


@pytest.fixture(scope="module")
def octets():
    return writer(byte_tokenizer())


# --- text from tokens ---------------------------------------------------------------------------------------------


class Pieces:
    """A decoder whose tokens are numbers of given pieces."""

    def __init__(self, pieces, rest=""):
        self.pieces, self.rest = pieces, rest

    def push(self, index):
        return self.pieces[index]

    def flush(self):
        return self.rest


def run(pieces, stops, rest=""):
    """(what came out, piece by piece, and whether it stopped)."""
    text = Text(Pieces(pieces, rest), stops)
    return [text.push(i) for i in range(len(pieces))] + [text.flush()], text.stopped


def expected(text, stops):
    """The text up to the stop string that is complete first, read letter by letter."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


def test_a_stop_string_over_token_borders():
    assert run(["one", " E", "N", "D two"], ["END"]) == (["one", " ", "", "", ""], True)
    assert run(["one", " E", "N", "d two"], ["END"]) == (["one", " ", "", "ENd two", ""], False)


def test_what_may_become_a_stop_string_is_held_and_released():
    assert run(["ab", "a", "b", "c"], ["abac"]) == (["", "", "ab", "abc", ""], False)
    assert run(["x", "\n"], ["\n\n"]) == (["x", "", "\n"], False)


def test_the_first_complete_stop_string_counts():
    assert "".join(run(["abc"], ["abc", "b"])[0]) == "a"
    assert "".join(run(["xabc"], ["bc", "abc"])[0]) == "x"
    assert "".join(run(["a", "b", "c"], ["b", "abc"])[0]) == "a"


def test_a_stop_string_in_what_is_left():
    assert run(["ab"], ["bc"], rest="cd") == (["a", ""], True)


def test_no_way_of_cutting_text_in_tokens_changes_the_result():
    choose = random.Random(0)
    stopped = 0
    for _ in range(3000):
        text = "".join(choose.choices("ab\n", k=choose.randint(0, 12)))
        stops = ["".join(choose.choices("ab\n", k=choose.randint(1, 4))) for _ in range(choose.randint(0, 3))]
        cuts = sorted(choose.choices(range(len(text) + 1), k=3))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        got, found = run(pieces, stops)
        assert "".join(got) == expected(text, stops), (pieces, stops)
        assert found == (expected(text, stops) != text)
        stopped += found
    assert 500 < stopped < 2900


# --- completing ---------------------------------------------------------------------------------------------------


def test_a_completion(letters):
    [[found]] = complete(letters, ["abc"], GREEDY, max_tokens=12, end_ids=())
    assert isinstance(found, Completion)
    assert (found.prompt, found.finish_reason, found.logprobs, found.note) == ("abc", "length", None, None)
    assert len(found.tokens) == 12
    assert found.text == letters.tokenizer.decode(found.tokens)


def test_a_stop_string_ends_the_text(letters):
    [[whole]] = complete(letters, ["abc"], HOT, max_tokens=60, end_ids=())
    stop = whole.text[20:23]
    [[found]] = complete(letters, ["abc"], HOT, max_tokens=60, stop=["never", stop], end_ids=())
    assert found.finish_reason == "stop"
    assert found.text == whole.text[: whole.text.index(stop)]
    assert stop not in found.text
    assert found.tokens == whole.tokens[: len(found.tokens)]
    [[other]] = complete(letters, ["abc"], HOT, max_tokens=60, stop=["never"], end_ids=())
    assert other == whole


def test_the_end_token_ends_the_text(letters):
    [[whole]] = complete(letters, ["abc"], HOT, max_tokens=60, end_ids=())
    end = whole.tokens[9]
    [[found]] = complete(letters, ["abc"], HOT, max_tokens=60, end_ids=[end])
    assert found.finish_reason == "end"
    assert found.tokens == whole.tokens[: whole.tokens.index(end)]
    assert found.text == letters.tokenizer.decode(found.tokens)


def test_the_tokenizers_end_token_is_meant_when_none_is_named(letters):
    end = letters.tokenizer.end_id
    with torch.no_grad():
        weight = letters.model.embed.token.weight
        kept = weight[end].clone()
        weight[end] *= 12  # now it is said at once, or never
        found = [complete(letters, [prompt], HOT, max_tokens=30)[0][0] for prompt in "abcdefgh"]
        weight[end] = kept
    ended = [one for one in found if one.finish_reason == "end"]
    assert ended
    assert all(end not in one.tokens for one in found)


def test_several_prompts_each_several_times(letters):
    prompts = ["a", "bc" * 9, "", "a"]
    groups = complete(letters, prompts, HOT, max_tokens=20, n=3)
    assert [[one.prompt for one in group] for group in groups] == [[prompt] * 3 for prompt in prompts]
    assert all(len({one.text for one in group}) == 3 for group in groups)
    assert groups[0] == groups[3]
    for number, prompt in enumerate(prompts):
        assert complete(letters, [prompt], HOT, max_tokens=20, n=3) == [groups[number]]
    for batch in (1, 5):
        assert complete(letters, prompts, HOT, max_tokens=20, n=3, batch=batch) == groups
    assert complete(letters, [], HOT) == []


def test_logprobs_when_asked(letters):
    [[found]] = complete(letters, ["ab"], HOT, max_tokens=4, logprobs=2)
    assert [one["id"] for one in found.logprobs] == found.tokens
    first = found.logprobs[0]
    assert set(first) == {"id", "token", "logprob", "top"}
    assert first["logprob"] < 0
    assert len(first["top"]) == 2
    assert first["top"][0]["logprob"] >= first["top"][1]["logprob"]
    assert first["token"] in (letters.tokenizer.token(first["id"]), None)
    [[bare]] = complete(letters, ["ab"], HOT, max_tokens=4, logprobs=0)
    assert [set(one) for one in bare.logprobs] == [{"id", "token", "logprob"}] * 4


def test_a_prompt_that_is_cut_is_told(letters):
    [[found]] = complete(letters, ["abcd" * 20], GREEDY, max_tokens=3)
    assert found.note == "the prompt has 80 tokens and the model reads 64: its first 16 were left out"
    [[fits]] = complete(letters, ["abcd" * 16], GREEDY, max_tokens=3)
    assert fits.note is None


def test_an_empty_prompt_begins_after_the_end_token(letters):
    assert encode_prompt(letters.tokenizer, "") == [letters.tokenizer.end_id]
    assert encode_prompt(letters.tokenizer, "a") != [letters.tokenizer.end_id]


# --- streaming ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [[], [" "], ["a", ".\n"]])
def test_a_stream_is_the_completion(letters, stops):
    for prompt in ("", "ab", "hg fe"):
        pieces = list(stream(letters, prompt, HOT, max_tokens=50, stop=stops))
        [[found]] = complete(letters, [prompt], HOT, max_tokens=50, stop=stops)
        assert "".join(pieces) == found.text
        assert "" not in pieces


def test_a_stream_comes_piece_by_piece(letters):
    assert len(list(stream(letters, "ab", HOT, max_tokens=50, end_ids=()))) > 20


def test_bytes_come_as_whole_characters(octets):
    found = complete(octets, ["é", "日本"], HOT, max_tokens=60, n=2)
    for group in found:
        for one in group:
            assert one.text == octets.tokenizer.decode(one.tokens)
    pieces = list(stream(octets, "é", HOT, max_tokens=60))
    assert "".join(pieces) == found[0][0].text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": [""]}, "stop is \\[''\\]: give a list of strings"),
        ({"stop": "END"}, "stop is 'END': give a list of strings"),
        ({"n": 0}, "n is 0: ask for at least 1"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_bad_requests(letters, options, message):
    with pytest.raises(UsageError, match=message):
        complete(letters, ["a"], GREEDY, **options)


# --- drafts -----------------------------------------------------------------------------------------------------------


def test_a_draft_changes_no_text(letters):
    prompts = ["abcabcab", "h."]
    plain = complete(letters, prompts, GREEDY, max_tokens=40, stop=["\n"], logprobs=1)
    for draft in ("lookup", writer(letters.tokenizer)):
        proposing = draft_by(letters, draft)
        got = complete(letters, prompts, GREEDY, max_tokens=40, stop=["\n"], logprobs=1, draft=proposing)
        assert [(each[0].text, each[0].tokens, each[0].finish_reason) for each in got] == [
            (each[0].text, each[0].tokens, each[0].finish_reason) for each in plain
        ]
        pieces = stream(letters, prompts[0], GREEDY, max_tokens=40, stop=["\n"], draft=proposing)
        assert "".join(pieces) == plain[0][0].text


def test_a_draft_of_other_tokens_is_an_error_in_one_line(letters, octets):
    with pytest.raises(UsageError, match="the draft has other tokens than the model: draft by a model of the same tok"):
        draft_by(letters, octets)
    with pytest.raises(UsageError, match="draft is 'lookout': give a loaded model or 'lookup'"):
        draft_by(letters, "lookout")
