"""The compiled step: its choice is that of sampling, its texts are the eager ones, one graph serves them all."""

import copy
import threading
import time

import pytest
import torch

from nextile.generation import decode, step
from nextile.generation.sample import Sampling, draw, random_stream, temperature
from nextile.models.build import build
from nextile.models.families import qwen3
from nextile.nn.lora import Lora, add_lora, use_adapter

VOCAB, CONTEXT = 131, 96
SAMPLINGS = [
    Sampling(temperature=0.0),
    Sampling(temperature=0.9, seed=5),
    Sampling(temperature=0.9, top_k=20, top_p=0.9, min_p=0.01, seed=5),
    Sampling(temperature=0.0, repetition_penalty=1.3),
    Sampling(temperature=0.7, logit_bias={3: 2.0}, frequency_penalty=0.5, presence_penalty=0.1, seed=6),
]


@pytest.fixture(autouse=True)
def two_threads(one_thread):
    torch.set_num_threads(2)


@pytest.fixture(scope="module")
def model():
    model = build(qwen3.spec(vocab=VOCAB, context=CONTEXT, width=32, depth=2, heads=4)).eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.25)
    return model


def text(model, sampling, prompt=(1, 2, 3), *, compiled=True, max_tokens=30, **options):
    events = decode.decode(model, [prompt], sampling, max_tokens=max_tokens, compiled=compiled, **options)
    return [(event.token, pytest.approx(event.logprob, abs=1e-4), event.finished) for event in events]


# --- the choice -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", [1, 5, 64, 131, 4099])
@pytest.mark.parametrize("degree", [0.3, 1.0, 50.0])
def test_what_is_drawn_is_what_sampling_draws(vocab, degree):
    logits = torch.randn(200, vocab, generator=torch.Generator().manual_seed(vocab)) * 3
    want = draw(temperature(logits, degree), [random_stream(1, row) for row in range(200)])
    points = torch.stack([torch.rand(1, generator=random_stream(1, row), dtype=torch.float64) for row in range(200)])
    got = step.drawn(logits, torch.tensor([degree]), points)[:, 0]
    assert torch.equal(got, want)
    if vocab > 1:
        assert not torch.equal(got, step.drawn(logits, torch.tensor([degree]), 1 - points)[:, 0])


@pytest.mark.parametrize("point", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_scale_draw_what_may_be_drawn(point):
    logits = torch.full((1, 200), -torch.inf)
    logits[0, [3, 70, 190]] = torch.tensor([0.0, 1.0, 2.0])
    assert step.drawn(logits, torch.ones(1), torch.tensor([[point]], dtype=torch.float64)).item() == (
        3 if point == 0 else 190
    )


# --- the graph --------------------------------------------------------------------------------------------------------


def test_one_graph_writes_what_the_eager_model_writes(model):
    """Whatever the sampling, beyond the context, with ends and alternatives, and with a model that took over midway."""
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for sampling in SAMPLINGS:
        for options in ({}, {"min_tokens": 9, "end_ids": set(range(0, VOCAB, 3)), "alternatives": 2}):
            want = text(model, sampling, compiled=False, max_tokens=CONTEXT + 20, **options)
            assert text(model, sampling, max_tokens=CONTEXT + 20, **options) == want
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1
    assert step.is_compiled(model, 1, CONTEXT)
    torch.set_num_threads(1)
    assert not step.is_compiled(model, 1, CONTEXT)


def test_the_step_takes_over_as_soon_as_it_is_there(model, monkeypatch):
    asked, followed = [], []
    monkeypatch.setattr(decode, "compiling_pays", lambda *_: True)
    monkeypatch.setattr(decode, "is_compiled", lambda *_: False)
    monkeypatch.setattr(decode, "compile_beside", lambda *_: lambda: asked.append(0) or len(asked) > 4)
    follow = decode.CompiledReader.follow
    monkeypatch.setattr(decode.CompiledReader, "follow", lambda self, *rest: followed.append(0) or follow(self, *rest))
    for sampling in SAMPLINGS[:3]:
        for prompt in ([1, 2, 3], [7] * (CONTEXT - 5)):  # the window slides just as it takes over
            asked.clear(), followed.clear()
            assert text(model, sampling, prompt, compiled="auto") == text(model, sampling, prompt, compiled=False)
            assert len(asked) == 5
            assert len(followed) >= 20


def test_numbers_that_change_are_read_and_tensors_that_change_are_compiled_for(model):
    with torch.no_grad():
        weight = model.stack.blocks[0].feed_forward.inner.down.weight
        kept = weight.clone()
        first = text(model, SAMPLINGS[0])
        weight.mul_(-2.0)
        assert text(model, SAMPLINGS[0]) == text(model, SAMPLINGS[0], compiled=False) != first
        weight.copy_(kept)
    assert step.is_compiled(model, 1, CONTEXT)
    model.stack.blocks[0].feed_forward.inner.down.weight = torch.nn.Parameter(kept)
    assert not step.is_compiled(model, 1, CONTEXT)


def test_another_adapter_is_compiled_for(model, monkeypatch):
    monkeypatch.setattr(step, "Step", lambda *_: object())
    adapted = copy.deepcopy(model)
    add_lora(adapted, Lora(rank=2))
    step.compiled_step(adapted, 1, CONTEXT)
    assert step.is_compiled(adapted, 1, CONTEXT)
    use_adapter(adapted, None)
    assert not step.is_compiled(adapted, 1, CONTEXT)


def test_what_cannot_be_compiled_is_never_ready(monkeypatch):
    asked = threading.Event()

    def failing(*_):
        asked.set()
        raise RuntimeError("no compiler")

    monkeypatch.setattr(step, "compiled_step", failing)
    ready = step.compile_beside(torch.nn.Linear(2, 2), 1, 64)
    assert asked.wait(10)
    assert not ready()


def test_a_step_is_made_beside_what_is_read(monkeypatch):
    going = threading.Event()
    monkeypatch.setattr(step, "compiled_step", lambda *_: going.wait(10))
    ready = step.compile_beside(torch.nn.Linear(2, 2), 1, 64)
    assert not ready()
    going.set()
    assert any(ready() or time.sleep(0.01) for _ in range(1000))
