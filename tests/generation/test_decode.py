"""Tokens: cached = uncached, batched = alone, compiled = eager, beyond the context, ends and reports."""

import pytest
import torch

from nextile.base.errors import NextileError, UsageError
from nextile.generation.decode import CompiledReader, EagerReader, compiling_pays, decode, following, padded
from nextile.generation.sample import Sampling, next_token, random_stream
from nextile.models.build import build, skeleton
from nextile.models.families import gpt2, qwen3

VOCAB, CONTEXT = 61, 48
GREEDY = Sampling(temperature=0.0)
DRAWN = Sampling(temperature=0.9, top_p=0.95, repetition_penalty=1.1, seed=5)
PROMPTS = [[1, 2, 3], [4] * 17, [5, 60, 7, 8, 9, 10], [11]]


def language_model(family, depth=2, dropout=0.0):
    """A small model whose numbers are large enough for its predictions to hang on what it has read."""
    model = build(family.spec(vocab=VOCAB, context=CONTEXT, width=32, depth=depth, heads=4, dropout=dropout)).eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            spread = 0.25 if parameter.dim() > 1 else 0.1
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)), alpha=spread)
    return model


@pytest.fixture(params=[gpt2, qwen3], ids=["gpt2", "qwen3"])
def model(request):
    return language_model(request.param)


@pytest.fixture(params=[GREEDY, DRAWN], ids=["greedy", "drawn"])
def sampling(request):
    return request.param


def texts(model, prompts, sampling=GREEDY, *, max_tokens=24, compiled=False, **options):
    """The tokens of each row."""
    found = [[] for _ in prompts]
    for event in decode(model, prompts, sampling, max_tokens=max_tokens, compiled=compiled, **options):
        found[event.row].append(event.token)
    return found


def stopping(number):
    """Ends that row at its first token."""
    return lambda row, token: row == number


@torch.no_grad()
def uncached(model, prompt, sampling, max_tokens, number=0):
    """The same by reading everything anew for each token, as the slowest honest program would, with the same window."""
    window, text = prompt[-CONTEXT:], []
    stream, seen = random_stream(sampling.seed or 0, number), torch.zeros(1, VOCAB, dtype=torch.bool)
    seen[0, prompt] = True
    for _ in range(max_tokens):
        token = next_token(model(torch.tensor([window]))[:, -1], sampling, [stream], seen).item()
        seen[0, token] = True
        text.append(token)
        window = [*window, token]
        window = window if len(window) <= CONTEXT else window[-CONTEXT // 2 :]
    return text


# --- sameness -----------------------------------------------------------------------------------------------------


def test_cached_is_uncached(model, sampling):
    assert texts(model, PROMPTS[:1], sampling) == [uncached(model, PROMPTS[0], sampling, 24)]


def test_control_another_text_is_another(model, sampling):
    text = uncached(model, PROMPTS[0], sampling, 24)
    assert texts(model, [[1, 2, 4]], sampling) != [text]
    assert texts(model, PROMPTS[:1], sampling, streams=[1]) != [text] or sampling is GREEDY
    assert len(set(text)) > 3


def test_batched_is_each_alone(model, sampling):
    together = texts(model, PROMPTS, sampling, max_tokens=60)
    for number, prompt in enumerate(PROMPTS):
        assert texts(model, [prompt], sampling, max_tokens=60, streams=[number]) == [together[number]]


def test_a_row_that_ends_leaves_the_others_as_they_are(model, sampling):
    whole = texts(model, PROMPTS, sampling)
    ends = {whole[1][3], whole[2][7]}
    for got, text in zip(texts(model, PROMPTS, sampling, end_ids=ends), whole, strict=True):
        last = next((i for i, token in enumerate(text) if token in ends), len(text) - 1)
        assert got == text[: last + 1]


@torch.no_grad()
def test_batched_logits_are_those_of_each_alone(model):
    readers = [EagerReader(model, CONTEXT), *(EagerReader(model, CONTEXT) for _ in PROMPTS)]
    together = readers[0].start(PROMPTS)
    alone = torch.cat([reader.start([prompt]) for reader, prompt in zip(readers[1:], PROMPTS, strict=True)])
    for token in (3, 9, 27):
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
        together = readers[0].read([token] * len(PROMPTS))
        alone = torch.cat([reader.read([token]) for reader in readers[1:]])
    assert not torch.allclose(together, alone.roll(1, 0), atol=1e-2)


@torch.no_grad()
def test_what_stands_in_the_padding_is_not_read(model):
    ids, counts = padded(PROMPTS)
    other = torch.where(torch.arange(ids.shape[1]) < counts[:, None], ids, 33)
    got = [following(model, some, model.new_cache(len(ids), CONTEXT), counts) for some in (ids, other)]
    assert torch.equal(*got)
    other[:, 0] = 33
    assert not torch.equal(got[0], following(model, other, model.new_cache(len(ids), CONTEXT), counts))


def test_the_same_seed_writes_the_same_and_another_another():
    model = language_model(gpt2)
    runs = [texts(model, PROMPTS, Sampling(seed=seed)) for seed in (1, 1, 2, None, None)]
    assert runs[0] == runs[1]
    assert len({str(run) for run in runs}) == 4
    same = texts(model, PROMPTS[:1] * 3, Sampling(seed=1))
    assert len(set(map(tuple, same))) == 3


def test_global_randomness_is_neither_used_nor_changed():
    model = language_model(gpt2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = texts(model, PROMPTS, DRAWN)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert texts(model, PROMPTS, DRAWN) == first


# --- beyond the context -------------------------------------------------------------------------------------------


def test_a_text_outgrows_the_context(model, sampling):
    for prompt in (PROMPTS[0], [7] * (CONTEXT - 1), [8, 9] * (CONTEXT // 2)):
        [text] = texts(model, [prompt], sampling, max_tokens=2 * CONTEXT + 5)
        assert len(text) == 2 * CONTEXT + 5
        assert text == uncached(model, prompt, sampling, 2 * CONTEXT + 5)


def test_of_a_long_prompt_the_end_is_read(model):
    long = [token % VOCAB for token in range(3 * CONTEXT)]
    text = texts(model, [long])
    assert text == texts(model, [long[-CONTEXT:]])
    assert text != texts(model, [long[: 2 * CONTEXT]])


def test_rows_outgrow_the_context_each_at_its_time():
    model, prompts = language_model(gpt2), [[1], [2] * 30, [3] * CONTEXT]
    together = texts(model, prompts, max_tokens=70)
    assert together == [uncached(model, prompt, GREEDY, 70) for prompt in prompts]


def test_a_context_of_one_token():
    model = build(gpt2.spec(vocab=VOCAB, context=1, width=8, depth=1, heads=1)).eval()
    assert len(texts(model, [[1, 2]], max_tokens=5)[0]) == 5


# --- compiled -----------------------------------------------------------------------------------------------------


def test_compiled_is_eager():
    model = language_model(qwen3)
    for sampling in (GREEDY, DRAWN):
        whole = texts(model, PROMPTS[:2], sampling, max_tokens=60)
        assert texts(model, PROMPTS[:2], sampling, max_tokens=60, compiled=True) == whole
        for done in (0, 1):  # one of the rows stays behind, the other goes on beyond the context
            got = texts(model, PROMPTS[:2], sampling, max_tokens=60, stop=stopping(done), compiled=True)
            assert got[done] == whole[done][:1]
            assert got[1 - done] == whole[1 - done]


def test_one_compiled_row_is_eager_and_compiled_once():
    model = language_model(gpt2)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for prompt in ([1, 2, 3], [4] * 20, [5] * 100):
        for sampling in (GREEDY, Sampling(temperature=0.9, seed=5), DRAWN):
            want = texts(model, [prompt], sampling, max_tokens=50)
            assert texts(model, [prompt], sampling, max_tokens=50, compiled=True) == want
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1


@torch.no_grad()
def test_blocks_that_differ_are_not_taken_for_one_another():
    model, equal = language_model(gpt2, depth=3), language_model(gpt2, depth=3)
    model.stack.blocks[1].feed_forward.inner.activation = torch.relu
    model.stack.blocks[2].self_attention.inner.out.bias = None
    readers = [CompiledReader(model, CONTEXT, 1), EagerReader(model, CONTEXT), EagerReader(equal, CONTEXT)]
    for reader in readers:
        reader.start([[1, 2, 3]])
    for token in (4, 5):
        compiled, eager, other = (reader.read([token]) for reader in readers)
        torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-5)
        assert (eager - other).abs().max() > 1e-2


def test_compiling_is_for_long_work(monkeypatch):
    monkeypatch.setattr("nextile.generation.decode.has_compiler", lambda: True)
    small, large = language_model(gpt2), skeleton(gpt2.spec()).to_empty(device="cpu")
    assert not compiling_pays(small, 1, 10_000)
    assert not compiling_pays(large, 1, 128)
    assert compiling_pays(large, 1, 2_000)
    assert not compiling_pays(large, 2, 2_000)
    monkeypatch.setattr("nextile.generation.decode.has_compiler", lambda: False)
    assert not compiling_pays(large, 1, 2_000)


# --- ends and reports ---------------------------------------------------------------------------------------------


def test_why_a_row_ended():
    model = language_model(gpt2)
    whole = texts(model, PROMPTS)
    asked = []

    def stop(row, token):
        asked.append((row, token))
        return row == 1 and len([r for r, _ in asked if r == 1]) == 4

    end = whole[0][2]
    events = list(decode(model, PROMPTS[:2], GREEDY, max_tokens=24, end_ids=[end], stop=stop))
    last = {event.row: event for event in events if event.finished}
    assert (last[0].token, last[0].finished) == (end, "end")
    assert last[1].finished == ("end" if end in whole[1][:4] else "stop")
    assert (0, end) not in asked
    [length] = [event for event in decode(model, PROMPTS[:1], GREEDY, max_tokens=3) if event.finished]
    assert (length.finished, length.token) == ("length", whole[0][2])


@torch.no_grad()
def test_logprobs_are_the_models_own(sampling):
    model = language_model(gpt2)
    events = list(decode(model, PROMPTS[:1], sampling, max_tokens=10, alternatives=3, compiled=False))
    text = PROMPTS[0] + [event.token for event in events]
    logprobs = model(torch.tensor([text]))[0].log_softmax(-1)[len(PROMPTS[0]) - 1 :]
    for event, row in zip(events, logprobs[:-1], strict=True):
        assert event.logprob == pytest.approx(row[event.token].item(), abs=1e-4)
        assert [token for token, _ in event.alternatives] == row.topk(3).indices.tolist()
        assert [share for _, share in event.alternatives] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
    some = next(decode(model, PROMPTS[:1], sampling, max_tokens=1, alternatives=1000))
    assert len(some.alternatives) == VOCAB


def test_dropout_rests_while_decoding_and_comes_back():
    model = language_model(gpt2, dropout=0.5)
    calm = texts(model, PROMPTS[:1])
    model.train()
    assert texts(model, PROMPTS[:1]) == calm
    assert model.training
    next(decode(model, PROMPTS[:1], GREEDY, max_tokens=9))
    assert model.training  # the generator that nobody goes on with is closed


def test_no_prompts_no_tokens():
    assert list(decode(language_model(gpt2), [], GREEDY, max_tokens=3)) == []


@pytest.mark.parametrize(
    ("prompts", "max_tokens", "kind", "message"),
    [
        ([[1]], 0, UsageError, "max_tokens is 0: ask for at least 1"),
        ([[1], []], 3, NextileError, "prompt 1 has no tokens"),
        ([[1, VOCAB]], 3, NextileError, "prompt 0 has an id outside 0..60"),
        ([[-1]], 3, NextileError, "prompt 0 has an id outside 0..60"),
    ],
)
def test_bad_requests(prompts, max_tokens, kind, message):
    with pytest.raises(kind, match=message):
        list(decode(language_model(gpt2), prompts, GREEDY, max_tokens=max_tokens))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_model_says_so(broken, sampling):
    model = language_model(gpt2)
    with torch.no_grad():
        model.stack.norm.weight[0] = broken
    with pytest.raises(NextileError, match="predicts NaN or infinity"):
        list(decode(model, PROMPTS, sampling, max_tokens=3))
