"""Models that attend by FlexAttention: the same numbers and gradients, only where it applies, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from tests.nn.test_compiled_parts import traced
from tests.nn.test_stack import lively, tokens
from torch import Tensor

import nextile
from nextile.base.errors import UsageError
from nextile.models.transformer import Transformer
from nextile.nn import attention, specs
from nextile.nn.tap import record
from nextile.tasks import task
from nextile.tasks.report import Silent
from nextile.tasks.settings import RunSettings
from nextile.training.flex import check_step, use_flex

LENGTH = 140  # more than one block
SEGMENTS = torch.tensor([[1] * 40 + [2] * 75 + [0] * 25, [5] * 130 + [1] * 10])
SHAPES = {
    "window": {
        "attention": specs.Attention(heads=4, kv_heads=2),
        "local": specs.Local(window=9, pattern=(True, False)),
        "depth": 2,
    },
    "capped": {"attention": specs.Attention(heads=2, soft_cap=0.5)},
    "both ways": {"attention": specs.Attention(heads=2), "causal": False},
}


def model_of(**stack) -> Transformer:
    given = {"depth": 1, "causal": True, "position": specs.Rotary(), "attention": specs.Attention(heads=2)} | stack
    stack = specs.Stack(width=64, feed_forward=specs.MLP(hidden=32), **given)
    embed = specs.TokenEmbedding(vocab=40)
    return lively(Transformer(specs.Transformer(context=LENGTH, embed=embed, stack=stack, head=specs.TiedHead())))


def graph(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """One graph, as a step is, run as it was traced."""
    return torch.compile(function, backend="eager", fullgraph=True, dynamic=False)


def by_flex(model: Transformer) -> Transformer:
    use_flex(model)
    return model


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """How many queries each call of FlexAttention asks."""
    found: list[int] = []
    own = attention.block_attention
    monkeypatch.setattr(
        attention, "block_attention", lambda q, *rest, **rule: found.append(q.shape[2]) or own(q, *rest, **rule)
    )
    return found


# --- where it applies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["window", "both ways"])
@torch.no_grad()
def test_a_compiled_model_of_packed_rows_is_the_model(shape, asked):
    model, ids = model_of(**SHAPES[shape]), tokens(2, LENGTH)
    wanted = model(ids, segments=SEGMENTS)
    found = graph(by_flex(model))(ids, segments=SEGMENTS)
    assert asked == [LENGTH] * len(model.stack.blocks)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    other = torch.where(SEGMENTS == 2, 1, SEGMENTS)  # control: a border that is not there
    assert not torch.allclose(model(ids, segments=other), wanted, atol=1e-6)


@pytest.mark.parametrize(("shape", "calls"), [("both ways", 0), ("window", 1), ("capped", 1)])
@torch.no_grad()
def test_rows_of_one_text_need_it_for_windows_and_caps_alone(shape, calls, asked):
    model, ids = model_of(**SHAPES[shape]), tokens(2, LENGTH)
    wanted = model(ids)
    torch.testing.assert_close(graph(by_flex(model))(ids), wanted, rtol=0, atol=1e-12)
    assert len(asked) == calls


@torch.no_grad()
def test_uncompiled_recorded_and_cached_it_goes_the_ordinary_way(asked):
    model, ids = model_of(**SHAPES["window"]), tokens(2, LENGTH)
    wanted = model(ids, segments=SEGMENTS)
    other = by_flex(deepcopy(model))
    assert torch.equal(other(ids, segments=SEGMENTS), wanted)
    with record(other, "*.weights") as seen:
        other(ids, segments=SEGMENTS)
    assert len(seen) == 2
    cache = other.new_cache(2, LENGTH, static=True)
    found = graph(lambda ids: other(ids, cache=cache))(ids)
    torch.testing.assert_close(found, model(ids), rtol=0, atol=1e-12)
    assert not asked


def test_the_gradients_of_a_compiled_step_are_the_models(monkeypatch, asked):
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)  # it has a backward there, but no kernel
    model, ids = model_of(position=None, attention=specs.Attention(heads=4, kv_heads=2)).train(), tokens(2, LENGTH)

    def gradients(step: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(step(ids, SEGMENTS).square().sum(), list(model.parameters()))

    wanted = gradients(lambda ids, segments: model(ids, segments=segments))
    use_flex(model)
    found = gradients(traced(lambda ids, segments: model(ids, segments=segments)))
    assert asked == [LENGTH]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_it_is_no_part_of_the_model():
    model = model_of()
    spec, names = model.spec, list(model.state_dict())
    use_flex(model)
    assert (model.spec, list(model.state_dict())) == (spec, names)
    assert deepcopy(model).stack.flex


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        (
            {"attention": specs.Attention(heads=2, dropout=0.1)},
            r"attention=flex has no dropout, and attention\.dropout is 0\.1: set dropout=0, or leave .* out",
        ),
        (
            {"position": specs.Alibi()},
            r"attention=flex takes no positions that are biases of scores .*: take a model .*, or leave .* out",
        ),
        (
            {"attention": specs.Attention(heads=8)},
            r"attention=flex wants heads that are 16 wide or more, and 8 are given: choose .*, or leave .* out",
        ),
    ],
)
def test_attention_that_its_kernel_does_not_know(stack, message):
    model = model_of(**stack)
    with pytest.raises(UsageError, match=f"^{message}$"):
        use_flex(model)
    assert not model.stack.flex


def test_steps_that_have_no_kernel():
    check_step(torch.device("cuda"), True)
    with pytest.raises(UsageError, match="is for steps on cuda, and this one is on cpu: set device=cuda, or leave"):
        check_step(torch.device("cpu"), True)
    with pytest.raises(UsageError, match="is for compiled steps, and this one is not: set compile=true and leave"):
        check_step(torch.device("cuda"), False)


def test_a_learner_asks_for_it_by_the_setting(monkeypatch):
    model, met = model_of(), []

    def learner(**settings) -> None:
        given = RunSettings(**settings)
        task.GradientTask().learner(model, None, given, precision=torch.float32, compiled=True)

    learner()
    with pytest.raises(UsageError, match="this one is on cpu"):
        learner(attention="flex")
    assert not model.stack.flex
    monkeypatch.setattr(task, "check_step", lambda *given: met.append(given))
    learner(attention="flex")
    assert model.stack.flex
    assert met == [(torch.device("cpu"), True)]


def test_a_plan_refuses_what_the_run_would(tmp_path):
    (tmp_path / "text.txt").write_text("one text after the other. " * 400)
    asked = {"attention": "flex", "compile": False, "tokenizer.kind": "char"}
    with pytest.raises(UsageError, match="this one is on cpu"):
        nextile.plan(tmp_path / "text.txt", steps=4, settings=asked, report=Silent())
