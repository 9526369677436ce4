"""Bias, frequency and presence penalties, and no end before min_tokens: what OpenAI's protocol asks of a draw."""

import pytest
import torch
from pydantic import ValidationError

from nextile.base.errors import UsageError
from nextile.generation.decode import decode
from nextile.generation.sample import Sampling, count_penalties, logit_bias, next_token
from nextile.models.build import build
from nextile.models.families import gpt2

VOCAB = 31
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def model():
    model = build(gpt2.spec(vocab=VOCAB, context=64, width=32, depth=2, heads=4)).eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)), alpha=0.25)
    return model


def tokens(model, sampling, prompts=((1, 2, 3),), **settings):
    found = [[] for _ in prompts]
    for event in decode(model, prompts, sampling, compiled=False, **({"max_tokens": 40} | settings)):
        found[event.row].append(event.token)
    return found


# --- the parts ----------------------------------------------------------------------------------------------------


def test_a_bias_is_added_to_its_tokens_alone():
    logits = torch.randn(2, 8)
    assert torch.equal(logit_bias(logits, {}), logits)
    want = logits.clone()
    want[:, 3] += 2.5
    want[:, 0] -= 100.0
    assert torch.equal(logit_bias(logits, {3: 2.5, 0: -100.0, 99: 7.0}), want)


def test_penalties_are_those_of_openai():
    logits, counts = torch.randn(2, 4), torch.tensor([[0.0, 1.0, 3.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
    for frequency, presence in ((0.5, 0.0), (0.0, 0.7), (-0.5, 1.5)):
        got = count_penalties(logits, counts, frequency, presence)
        for row in range(2):
            for token in range(4):
                count = float(counts[row, token])
                want = logits[row, token].item() - count * frequency - (presence if count > 0 else 0.0)
                assert got[row, token].item() == pytest.approx(want)


def test_the_order_is_that_of_the_settings():
    logits, seen, counts = torch.tensor([[2.0, 3.0]]), torch.tensor([[True, False]]), torch.tensor([[1.0, 0.0]])
    asked = {"logit_bias": {0: 2.0}, "repetition_penalty": 2.0, "frequency_penalty": -1.5, "temperature": 0.0}
    # (2 + 2) / 2 + 1.5 = 3.5 is above 3; 2 / 2 + 2 = 3 without the penalty is not, and biased last it would be 4.5
    assert next_token(logits, Sampling(**asked), [], seen, counts).item() == 0
    assert next_token(logits, Sampling(**asked | {"frequency_penalty": -0.9}), [], seen, counts).item() == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"frequency_penalty": 2.1}, {"presence_penalty": -2.1}, {"logit_bias": {3: 101.0}}, {"logit_bias": {-1: 1.0}},
        {"logit_bias": {"x": 1.0}}, {"logit_bias": {3: float("nan")}}, {"presence_penalty": float("inf")},
        {"logit_bias": dict.fromkeys(range(70_000), 1.0)},
    ],
)  # fmt: skip
def test_what_is_out_of_bounds_is_refused(wrong):
    with pytest.raises(ValidationError):
        Sampling(**wrong)


# --- texts --------------------------------------------------------------------------------------------------------


def test_100_bans_and_forces(model):
    [text] = tokens(model, GREEDY)
    [other] = tokens(model, Sampling(temperature=0.0, logit_bias={text[0]: -100.0}))
    assert text[0] not in other
    assert tokens(model, Sampling(temperature=1.0, logit_bias={7: 100.0}, seed=0)) == [[7] * 40]


def test_penalties_count_what_was_written_and_not_the_prompt(model):
    [text] = tokens(model, GREEDY)
    assert len(set(text)) < 20
    for penalty in ({"frequency_penalty": 2.0}, {"presence_penalty": 2.0}):
        [other] = tokens(model, Sampling(temperature=0.0, **penalty))
        assert other[0] == text[0]  # nothing is counted before the first
        assert len(set(other)) > len(set(text))
    [first] = tokens(model, Sampling(temperature=0.0, presence_penalty=2.0), ((1, 2, *text[:1]),), max_tokens=1)
    assert [first] == tokens(model, GREEDY, ((1, 2, *text[:1]),), max_tokens=1)


def test_reported_log_probabilities_are_the_models_own(model):
    plain = next(iter(decode(model, [[1, 2, 3]], GREEDY, max_tokens=1, alternatives=VOCAB)))
    moved = Sampling(temperature=0.0, logit_bias={plain.alternatives[4][0]: 100.0})
    got = next(iter(decode(model, [[1, 2, 3]], moved, max_tokens=1, alternatives=VOCAB)))
    assert (got.token, got.logprob) == plain.alternatives[4]
    assert got.alternatives == plain.alternatives


def test_each_row_has_its_own_counts(model):
    sampling = Sampling(temperature=0.9, seed=3, frequency_penalty=1.5, presence_penalty=0.5, logit_bias={4: 1.0})
    prompts = ((1, 2, 3), (4,) * 9, (5, 6))
    together = tokens(model, sampling, prompts)
    assert together == [tokens(model, sampling, (prompt,), streams=[n])[0] for n, prompt in enumerate(prompts)]
    assert together != tokens(model, Sampling(temperature=0.9, seed=3, logit_bias={4: 1.0}), prompts)


# --- no end before ------------------------------------------------------------------------------------------------


def test_a_text_does_not_end_before_min_tokens(model):
    [text] = tokens(model, GREEDY)
    ends = {text[2], text[5]}
    assert len(tokens(model, GREEDY, end_ids=ends)[0]) <= 3
    [longer] = tokens(model, GREEDY, end_ids=ends, min_tokens=9)
    assert len(longer) > 9
    assert not ends & set(longer[:9])
    [drawn] = tokens(model, Sampling(temperature=1.0, seed=1), end_ids=range(20), min_tokens=9)
    assert min(drawn[:9]) >= 20


@pytest.mark.parametrize("least", [-1, 6])
def test_min_tokens_out_of_bounds_are_refused(model, least):
    with pytest.raises(UsageError, match=f"min_tokens is {least}: ask for 0 to max_tokens, which is 5"):
        tokens(model, GREEDY, max_tokens=5, min_tokens=least)


def test_a_text_that_could_neither_end_nor_go_on_is_refused(model):
    with pytest.raises(UsageError, match="all tokens end the text and min_tokens is 1: take fewer end tokens"):
        tokens(model, GREEDY, end_ids=range(VOCAB), min_tokens=1)
    assert len(tokens(model, GREEDY, end_ids=range(VOCAB))[0]) == 1
