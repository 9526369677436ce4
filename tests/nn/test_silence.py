"""A silent head is one whose columns of the output matrix are zeros, a silent layer one that is not there."""

import copy

import pytest
import torch

from nextile.base.errors import UsageError
from nextile.generation import step
from nextile.models.build import build
from nextile.models.families import gpt2, marian, mixtral, neox, olmo2, prenorm, qwen3, vit
from nextile.nn.block import ResidualAfter
from nextile.nn.lora import Lora, adapters_of, add_lora
from nextile.nn.quantize import Int4, Int8, quantize
from nextile.nn.silence import parts_of, read_part, silenced
from nextile.nn.tap import record

SIZES = {"vocab": 40, "context": 16, "width": 32, "depth": 3, "heads": 4}
PAIRS = {"vocab": 40, "context": 16, "width": 32, "depth": 2, "heads": 4}


def gpt(**changes):
    return build(gpt2.spec(**SIZES | changes), seed=1).eval()


def ids(time=16):
    return torch.randint(0, 40, (2, time), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def translator(family=marian):
    """One whose cross-attention hears something: fresh weights are too small for that."""
    model = build(family.spec(**PAIRS), seed=1).eval()
    for parameter in model.parameters():
        parameter.mul_(3.0 if parameter.ndim > 1 else 1.0)
    return model


@torch.no_grad()
def without_columns(model, path, head):
    """A copy in which a head's columns of the output matrix are zeros."""
    model = copy.deepcopy(model)
    attention = model.get_submodule(path)
    first = head * attention.head_width
    attention.out.weight[:, first : first + attention.head_width] = 0.0
    return model


def near(one, other):
    return torch.allclose(one, other, rtol=0, atol=1e-5)


# --- heads ----------------------------------------------------------------------------------------------------------

FAMILIES = {
    "gpt2": gpt,
    "grouped queries": lambda: build(qwen3.spec(**SIZES, kv_heads=2), seed=1).eval(),
    "parallel": lambda: build(neox.spec(**SIZES), seed=1).eval(),
    "norm inside": lambda: build(olmo2.spec(**SIZES), seed=1).eval(),
    "experts": lambda: build(mixtral.spec(**SIZES), seed=1).eval(),
}


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_silent_head_is_one_whose_columns_are_zeros(family):
    model = FAMILIES[family]()
    before = model(ids())
    with silenced(model, "1.2"):
        found = model(ids())
    assert near(found, without_columns(model, "stack.blocks.1.self_attention.inner", 2)(ids()))
    assert not near(found, without_columns(model, "stack.blocks.1.self_attention.inner", 1)(ids()))  # control
    assert torch.equal(model(ids()), before)
    assert not near(found, before)


@torch.no_grad()
@pytest.mark.parametrize(
    ("part", "path"),
    [
        ("encoder.1.2", "encoder.blocks.1.self_attention.inner"),
        ("decoder.1.2", "decoder.blocks.1.self_attention.inner"),
        ("cross.1.2", "decoder.blocks.1.cross_attention.inner"),
    ],
)
@pytest.mark.parametrize("family", [marian, prenorm])
def test_a_head_of_each_attention_of_an_encoder_decoder(part, path, family):
    model = translator(family)
    with silenced(model, part):
        found = model(ids(), ids(7))
    assert near(found, without_columns(model, path, 2)(ids(), ids(7)))
    assert not near(found, model(ids(), ids(7)))


@torch.no_grad()
def test_a_head_of_a_vision_transformer():
    model = build(vit.spec(classes=("a", "b", "c"), image=8, patch=4, width=32, depth=2, heads=4), seed=1).eval()
    pictures = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with silenced(model, ["0.1", "1.3"]):
        found = model(pictures)
    by_hand = without_columns(model, "stack.blocks.0.self_attention.inner", 1)
    by_hand = without_columns(by_hand, "stack.blocks.1.self_attention.inner", 3)
    assert near(found, by_hand(pictures))
    assert not near(found, model(pictures))


@torch.no_grad()
def test_several_heads_of_a_layer_may_be_silent_one_in_the_other():
    model = gpt()
    with silenced(model, ["1.0", "1.2", "1.2"]):
        together = model(ids())
    path = "stack.blocks.1.self_attention.inner"
    assert near(together, without_columns(without_columns(model, path, 0), path, 2)(ids()))
    with silenced(model, "1.0"):
        alone = model(ids())
        with silenced(model, "1.2"):
            assert torch.equal(model(ids()), together)
        assert torch.equal(model(ids()), alone)
        assert not near(alone, together)


@torch.no_grad()
def test_a_broken_head_that_is_silent_breaks_nothing():
    model = gpt(depth=1)
    model.stack.blocks[0].self_attention.inner.value.weight[8:16] = torch.nan  # of head 1
    assert model(ids()).isnan().any()
    with silenced(model, "0.1"):
        assert model(ids()).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("kind", [Int8(), Int4()])
def test_heads_of_a_packed_model_with_an_adapter(kind):
    model = gpt()
    quantize(model, kind)
    add_lora(model, Lora(rank=2), seed=2)
    for adapter in adapters_of(model).values():
        adapter.up.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    before, attention = model(ids()), model.stack.blocks[1].self_attention.inner
    weight = attention.out.base.dequantized() + attention.out.adapter.delta()
    weight[:, 16:24] = 0.0
    with silenced(model, "1.2"), record(model, "*.1.self_attention.inner.heads") as seen:
        found = model(ids())
    heads = seen["stack.blocks.1.self_attention.inner.heads"].transpose(1, 2).flatten(2)
    caught = []
    handle = attention.out.register_forward_hook(lambda module, inputs, output: caught.append(output))
    with silenced(model, "1.2"):
        model(ids())
    handle.remove()
    assert near(caught[0], heads @ weight.mT + attention.out.base.bias)
    assert torch.equal(model(ids()), before)
    assert not near(found, before)


# --- layers and their halves ------------------------------------------------------------------------------------------


def _fewer_layers(model, left_out):
    """The model built with one layer less, with the weights of the others."""
    smaller = gpt(depth=2)
    kept = [index for index in range(3) if index != left_out]
    state = {name: value for name, value in model.state_dict().items() if ".blocks." not in name}
    for new, old in enumerate(kept):
        block = model.stack.blocks[old].state_dict()
        state |= {f"stack.blocks.{new}.{name}": value for name, value in block.items()}
    smaller.load_state_dict(state)
    return smaller


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_silent_layer_is_a_model_of_one_layer_less(layer):
    model = gpt()
    with silenced(model, str(layer)):
        found = model(ids())
    assert near(found, _fewer_layers(model, layer)(ids()))
    assert not near(found, _fewer_layers(model, (layer + 1) % 3)(ids()))  # control


@torch.no_grad()
@pytest.mark.parametrize("family", [gpt2, olmo2])
def test_half_a_layer_adds_nothing(family):
    model = build(family.spec(**SIZES), seed=1).eval()
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    block = model.stack.blocks[1]
    with silenced(model, "1.attention"):
        assert near(block(x, None), x + block.feed_forward.branch(x))
        assert not near(block(x, None), x)
    with silenced(model, ["1.attention", "1.feed_forward"]):
        assert torch.equal(block(x, None), x)


@torch.no_grad()
def test_the_norm_of_a_sum_stays_where_nothing_is_added():
    model = translator()
    attention = model.encoder.blocks[1].self_attention
    assert isinstance(attention, ResidualAfter)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    with silenced(model, "encoder.1.attention"):
        assert torch.equal(attention(x), attention.norm(x))
        assert not near(attention(x), x)


@torch.no_grad()
def test_all_of_cross_attention_may_be_silent():
    model = translator()
    with silenced(model, ["cross.0", "cross.1"]):
        one, other = (model(source, ids(7)) for source in (ids(), ids().flip(1)))
    assert torch.equal(one, other)  # nothing of the source is heard
    assert not near(*(model(source, ids(7)) for source in (ids(), ids().flip(1))))


@torch.no_grad()
def test_half_a_parallel_block():
    model = FAMILIES["parallel"]()
    x, block = torch.randn(2, 5, 32), model.stack.blocks[1]
    with silenced(model, "1.attention"):
        assert near(block(x, None), x + block.feed_forward.branch(x))


# --- where a model is used --------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("part", ["1.2", "1", "1.attention", "0.feed_forward"])
def test_what_is_silent_is_silent_with_a_cache_too(part):
    model = gpt()
    with silenced(model, part):
        whole = model(ids())
        cache = model.new_cache(2, 16)
        found = []
        for first, last in ((0, 9), (9, 10), (10, 16)):
            found.append(model(ids()[:, first:last], cache=cache))
            cache.advance(last - first)
    assert near(torch.cat(found, 1), whole)
    assert not near(model(ids()), whole)


@torch.no_grad()
@pytest.mark.parametrize("part", ["1.2", "1", "1.attention"])
def test_a_compiled_model_notices_both_ways(part):
    model = gpt()
    compiled = torch.compile(model, backend="eager")
    before = model(ids())
    assert near(compiled(ids()), before)
    with silenced(compiled, part):
        without = compiled(ids())
        assert near(without, model(ids()))
        assert not near(without, before)
    assert near(compiled(ids()), before)


def test_the_step_of_a_text_is_compiled_anew(monkeypatch):
    made = []
    monkeypatch.setattr(step, "Step", lambda *_: made.append(1) or len(made))
    model = gpt(depth=2)
    found = [step.compiled_step(model, 1, 16)]
    for part in ("0", "1", "0.1", "1.attention"):
        with silenced(model, part):
            found += [step.compiled_step(model, 1, 16), step.compiled_step(model, 1, 16)]
    found.append(step.compiled_step(model, 1, 16))
    assert found == [1, 2, 2, 3, 3, 4, 4, 5, 5, 6]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("parts", [["1.2"], ["0"], ["0.attention", "0.feed_forward"]])
def test_a_compiled_step_without_parts_is_the_model_without_them(parts):
    model = gpt(depth=2)
    with silenced(model, parts):
        made = step.compiled_step(model, 1, 16)
        inputs = step.Inputs(model.new_cache(1, 16, static=True))
        inputs.ids[:] = 3
        assert near(made.on(inputs)(16)[0], model(torch.tensor([[3]]))[:, 0])


def test_the_weights_and_their_names_stay_as_they_are():
    model = gpt()
    names, types = list(model.state_dict()), [type(part) for part in model.modules()]
    with silenced(model, ["0", "1.2", "2.attention", "2.feed_forward"]):
        assert list(model.state_dict()) == names
        assert [path for path, _ in gpt().named_modules()] == [path for path, _ in model.named_modules()]
    assert [type(part) for part in model.modules()] == types
    assert list(model.buffers()) == list(gpt().buffers()) == []


@torch.no_grad()
def test_the_stream_is_recorded_where_a_layer_is_silent():
    model = gpt()
    with silenced(model, "1"), record(model, "stack.blocks.*.stream") as seen:
        model(ids())
    assert torch.equal(seen["stack.blocks.1.stream"], seen["stack.blocks.0.stream"])


@torch.no_grad()
def test_after_an_error_it_is_what_it_was():
    model = gpt()
    before = model(ids())
    with pytest.raises(RuntimeError, match="on purpose"), silenced(model, ["0.1", "1", "2.attention", "0.2"]):
        raise RuntimeError("on purpose")
    assert torch.equal(model(ids()), before)
    with pytest.raises(UsageError), silenced(model, ["0.1", "nonsense"]):
        raise AssertionError
    assert torch.equal(model(ids()), before)


def test_gradients_pass_a_silent_layer():
    model = gpt()
    with silenced(model, "1"):
        model(ids()).sum().backward()
    assert model.stack.blocks[0].feed_forward.inner.up.weight.grad is not None
    assert model.stack.blocks[1].feed_forward.inner.up.weight.grad is None


# --- names ------------------------------------------------------------------------------------------------------------


def test_all_heads_and_layers_have_names():
    model = gpt(depth=2, heads=2)
    assert parts_of(model, "head") == ["0.0", "0.1", "1.0", "1.1"]
    assert parts_of(model, "layer") == ["0", "1"]
    pairs = translator()
    assert parts_of(pairs, "layer") == ["encoder.0", "encoder.1", "decoder.0", "decoder.1"]
    heads = parts_of(pairs, "head")
    assert len(heads) == 2 * 4 * 3
    assert heads[0] == "encoder.0.0"
    assert heads[-1] == "cross.1.3"
    for name in (*heads, "cross.1", "decoder.0.feed_forward"):
        assert str(read_part(pairs, name)) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "2.", ".3", "2.3.4", "-1", "+1", "1e0", " 1", "1 ", "1\n", "\u0661", "2,3", "2.head", "2.Attention",
     "stack.2", "9" * 99, "\x1b[2J", "0x1", None, 2, 2.1, "1.attention.2"],
)  # fmt: skip
def test_what_is_no_name_is_an_error_in_one_line(name):
    with pytest.raises(UsageError, match="no part of a model: write LAYER such as 2") as caught:
        read_part(gpt(), name)
    assert str(caught.value).isprintable()
    assert "layers 0 to 2, each with heads 0 to 3" in str(caught.value)


@pytest.mark.parametrize("name", ["3", "999999", "0.4", "3.0", "encoder.0", "decoder.0.1", "cross.0", "3.attention"])
def test_what_a_model_has_not_is_an_error_that_says_what_it_has(name):
    with pytest.raises(UsageError, match="it has layers 0 to 2, each with heads 0 to 3") as caught:
        read_part(gpt(), name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["0", "0.1", "cross.0.attention", "cross.0.feed_forward", "cross.2", "encoder.0.4"])
def test_of_an_encoder_decoder_the_stack_is_named(name):
    with pytest.raises(UsageError, match=r"encoder: layers 0 to 1, each with heads 0 to 3; decoder: .*; cross: "):
        read_part(translator(), name)


def test_a_model_without_layers_has_no_parts():
    with pytest.raises(UsageError, match="this model has no layers"):
        parts_of(torch.nn.Linear(2, 2), "head")
    with pytest.raises(UsageError, match="it has no layers"):
        read_part(torch.nn.Linear(2, 2), "0")
