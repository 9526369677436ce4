"""Proposed tokens: the same text as without them, the same distribution, drafts that are right and wrong."""

import pytest
import torch

from nextile.base.errors import NextileError, UsageError
from nextile.generation import speculate
from nextile.generation.decode import decode
from nextile.generation.sample import Sampling, random_stream
from nextile.generation.speculate import Lookup, ModelDraft, Reading, confirmed
from nextile.models.build import build
from nextile.models.families import gpt2, qwen3

VOCAB, CONTEXT = 61, 48
GREEDY = Sampling(temperature=0.0)
DRAWN = Sampling(temperature=0.9, top_p=0.95, repetition_penalty=1.1, frequency_penalty=0.2, seed=5)
PROMPTS = [[1, 2, 3], [4, 5] * 8, [5, 60, 7, 8, 9, 10], [11]]


def language_model(family, seed=0, spread=0.25, context=CONTEXT, vocab=VOCAB, depth=2):
    """A small model whose predictions hang on what it has read; another with another seed."""
    model = build(family.spec(vocab=vocab, context=context, width=32, depth=depth, heads=4)).eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(1000 * seed + number)
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=spread)
    return model


@pytest.fixture(params=[gpt2, qwen3], ids=["gpt2", "qwen3"])
def model(request):
    return language_model(request.param)


def drafts():
    same, other = language_model(gpt2), language_model(qwen3, seed=3)
    return {
        "lookup": Lookup(),
        "the same model": ModelDraft(same),
        "another": ModelDraft(other),
        "a shorter one": ModelDraft(language_model(gpt2, context=9)),
    }


def texts(model, prompts, sampling, draft=None, max_tokens=30, **options):
    """(tokens, logprobs, why it ended) of each row, plainly or with a draft."""
    if draft is None:
        events = decode(model, prompts, sampling, max_tokens=max_tokens, compiled=False, **options)
    else:
        events = speculate.speculate(model, prompts, sampling, draft, max_tokens=max_tokens, **options)
    found = [([], [], []) for _ in prompts]
    for event in events:
        for kept, value in zip(found[event.row], (event.token, event.logprob, event.finished), strict=True):
            kept.append(value)
    return found


def tokens(found):
    return [row[0] for row in found]


# --- sameness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(drafts()))
def test_greedy_is_what_decode_writes(model, kind):
    """Beyond the context too, where the text is read anew from its half."""
    plain = texts(model, PROMPTS[:2], GREEDY, max_tokens=CONTEXT + 25)
    got = texts(model, PROMPTS[:2], GREEDY, drafts()[kind], max_tokens=CONTEXT + 25)
    assert tokens(got) == tokens(plain)
    for row, want in zip(got, plain, strict=True):
        assert row[1] == pytest.approx(want[1], abs=1e-4)
        assert row[2] == want[2]


def test_a_lookup_draws_what_decode_draws(model):
    plain = texts(model, PROMPTS, DRAWN, max_tokens=60)
    assert tokens(texts(model, PROMPTS, DRAWN, Lookup(shortest=1), max_tokens=60)) == tokens(plain)
    assert tokens(texts(model, PROMPTS, DRAWN, Lookup(), max_tokens=60, streams=[4, 5, 6, 7])) != tokens(plain)


def test_a_text_hangs_on_its_own_prompt_and_stream_alone(model):
    draft = ModelDraft(language_model(qwen3, seed=3))
    together = tokens(texts(model, PROMPTS, DRAWN, draft))
    for number, prompt in enumerate(PROMPTS):
        assert tokens(texts(model, [prompt], DRAWN, draft, streams=[number])) == [together[number]]


def test_ends_stops_and_least_lengths_are_those_of_decode():
    model = language_model(gpt2)
    whole = tokens(texts(model, PROMPTS, GREEDY))
    ends = {whole[0][3], whole[1][7]}
    for options in (
        {"end_ids": ends},
        {"end_ids": ends, "min_tokens": 9},
        {"stop": lambda row, token: row == 1 and token == whole[1][5]},
        {"alternatives": 3},
    ):
        for draft in (Lookup(), ModelDraft(model)):
            got, want = texts(model, PROMPTS, GREEDY, draft, **options), texts(model, PROMPTS, GREEDY, **options)
            assert [(row[0], row[2]) for row in got] == [(row[0], row[2]) for row in want]


# --- the distribution -----------------------------------------------------------------------------------------------

LIMIT = 27.9  # of chi-square with 9 degrees of freedom, exceeded once in a thousand


def chi_square(counts, shares):
    expected = shares.double() * counts.sum()
    return ((counts - expected) ** 2 / expected).sum().item()


def first_tokens(rule, own, share, count=10_000):
    """How often each token comes out when a draft's are confirmed by a rule, (V,)."""
    random, drafts = random_stream(1, 0), random_stream(1, 1)
    proposed = torch.multinomial(share, count, replacement=True, generator=drafts).tolist()
    sampling = Sampling(temperature=1.0)
    drawn = [rule(own.log()[None], sampling, token, share.double(), random) for token in proposed]
    return torch.bincount(torch.tensor(drawn), minlength=len(own))


def always(logits, sampling, token, share, random):
    """A wrong rule: what is proposed is taken if it is probable enough, and else the model draws as if nothing was."""
    own = logits[0].double().softmax(-1)
    if torch.rand(1, generator=random).item() * share[token] < own[token]:
        return token
    return int(torch.multinomial(own, 1, generator=random))


def shares():
    own = torch.tensor([0.22, 0.18, 0.14, 0.12, 0.1, 0.08, 0.06, 0.05, 0.03, 0.02])
    return own, torch.roll(own, 3)


def test_what_is_drawn_follows_the_model_and_not_the_draft():
    own, share = shares()
    assert chi_square(first_tokens(confirmed, own, share), own) < LIMIT


def test_control_a_wrong_rule_is_seen():
    own, share = shares()
    assert chi_square(first_tokens(always, own, share), own) > 3 * LIMIT


def test_two_tokens_of_a_text_follow_the_model():
    """Pairs, of which the second was proposed after the first, and whole chains of both models."""
    model = language_model(gpt2, vocab=5, depth=1, context=8, spread=0.15)
    draft, sampling = ModelDraft(language_model(qwen3, seed=3, vocab=5, depth=1, context=8, spread=0.15)), 0.8
    with torch.no_grad():
        first = (model(torch.tensor([[1]]))[0, -1] / sampling).softmax(-1)
        second = torch.stack([(model(torch.tensor([[1, t]]))[0, -1] / sampling).softmax(-1) for t in range(5)])
    count = 800
    found = tokens(texts(model, [[1]] * count, Sampling(temperature=sampling, seed=1), draft, max_tokens=3))
    pairs = torch.bincount(torch.tensor([5 * text[0] + text[1] for text in found]), minlength=25)
    assert chi_square(pairs, (first[:, None] * second).flatten()) < 51.2  # 24 degrees of freedom, once in a thousand
    assert chi_square(pairs, (first[:, None] * first).flatten()) > 51.2


# --- drafts -----------------------------------------------------------------------------------------------------------


def test_what_followed_the_same_words_is_proposed():
    assert Lookup().propose([1, 2, 3, 4, 9, 1, 2, 3], 3).tokens == [4, 9, 1]
    assert Lookup().propose([1, 2, 3, 4, 7, 2, 3, 5, 2, 3], 9).tokens == [5, 2, 3]  # the latest, as far as there is
    assert Lookup().propose([1, 2, 3, 7, 2, 3, 5, 1, 2, 3], 1).tokens == [7]  # the longest first
    assert Lookup().propose([6, 6, 6, 6], 4).tokens == [6]
    assert Lookup().propose([1, 2, 3, 4], 4).tokens == []
    assert Lookup().propose([1], 4).tokens == []
    assert Lookup().propose([256, 1, 65536, 1, 0], 4).tokens == []  # no number is found between two others


def test_a_draft_that_is_right_saves_readings(monkeypatch):
    model, readings = language_model(gpt2), []
    last = Reading.last
    monkeypatch.setattr(
        Reading, "last", lambda self, text, count: readings.append(self.model is model) or last(self, text, count)
    )
    texts(model, PROMPTS[:1], GREEDY, ModelDraft(language_model(gpt2)), max_tokens=30)
    assert sum(readings) < 8
    readings.clear()
    texts(model, PROMPTS[:1], GREEDY, ModelDraft(language_model(qwen3, seed=3)), max_tokens=30)
    assert sum(readings) > 20


@torch.no_grad()
def test_a_reading_goes_on_from_what_is_common():
    model = language_model(qwen3)
    reading = Reading(model)
    for text in ([1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 9, 9], [1, 2, 9, 9], [7], list(range(40)), list(range(39))):
        got = reading.last(text, min(2, len(text)))
        want = model(torch.tensor([text]))[0, -2:]
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_errors_are_one_line():
    model = language_model(gpt2)
    with pytest.raises(UsageError, match="the draft knows 5 tokens and the model 61: draft by a model of the same"):
        texts(model, PROMPTS, GREEDY, ModelDraft(language_model(gpt2, vocab=5)))
    with pytest.raises(NextileError, match="prompt 0 has no tokens"):
        texts(model, [[]], GREEDY, Lookup())
    with pytest.raises(UsageError, match="max_tokens is 0"):
        texts(model, PROMPTS, GREEDY, Lookup(), max_tokens=0)
