"""Low-rank adapters: they begin as nothing, only they learn, and folded in they are gone."""

import copy
import warnings

import pytest
import torch
from torch import nn

from nextile.base.errors import NextileError, UsageError
from nextile.models.build import build
from nextile.models.families import gpt2, marian, mixtral
from nextile.nn.linear import Linear
from nextile.nn.lora import (
    Lora,
    LoraLinear,
    adapter_tensors,
    adapters_of,
    add_lora,
    lora_parts,
    merge,
    merged,
    narrow,
    train_only,
    unmerge,
    use_adapter,
)
from nextile.nn.quantize import Int4, Int8, quantize
from nextile.training.optim import AdamW, Muon, Optimizer, groups

ATTENTION = {"query", "key", "value", "out"}


def model(**changes):
    return build(
        gpt2.spec(**{"vocab": 40, "context": 16, "width": 32, "depth": 2, "heads": 2} | changes), seed=1
    ).eval()


def ids():
    return torch.randint(0, 40, (2, 16), generator=torch.Generator().manual_seed(0))


def loss(ours, x):
    return nn.functional.cross_entropy(ours(x)[:, :-1].flatten(0, 1).float(), x[:, 1:].flatten())


@torch.no_grad()
def stirred(ours, name="default"):
    """Adapters that do something."""
    for number, adapter in enumerate(adapters_of(ours, name).values()):
        adapter.up.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(number))
    return ours


def adapted(spec=None, ours=None):
    ours = ours or model()
    add_lora(ours, spec or Lora(rank=3), seed=2)
    return stirred(ours)


# --- adding ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_it_begins_as_nothing():
    ours = model()
    before = ours(ids())
    add_lora(ours, Lora(rank=3))
    assert torch.equal(ours(ids()), before)
    assert not torch.equal(stirred(ours)(ids()), before)  # control


@torch.no_grad()
def test_a_layer_is_its_base_and_the_product_of_two_factors():
    ours = adapted(Lora(rank=3, alpha=5))
    part = lora_parts(ours)["stack.blocks.1.self_attention.inner.query"]
    x = torch.randn(4, 32)
    down, up = part.adapter.down.weight, part.adapter.up.weight
    assert (down.shape, up.shape) == ((3, 32), (32, 3))
    weight = part.base.weight + 5 / 3 * up @ down
    torch.testing.assert_close(part(x), x @ weight.mT + part.base.bias, rtol=0, atol=1e-5)


def test_without_alpha_the_scale_is_two_at_every_rank():
    for rank in (1, 7):
        ours = model()
        add_lora(ours, Lora(rank=rank))
        assert {adapter.scale for adapter in adapters_of(ours).values()} == {2.0}


def test_the_first_factor_is_uniform_up_to_the_root_of_its_inputs():
    ours = model(width=64)
    add_lora(ours, Lora(rank=16))
    for adapter in adapters_of(ours).values():
        numbers, bound = adapter.down.weight.detach(), adapter.down.in_features**-0.5
        assert 0.95 * bound < numbers.abs().max() <= bound
        assert abs(numbers.std() - bound / 3**0.5) < 0.05 * bound
        assert not adapter.up.weight.any()


def test_a_seed_gives_the_same_numbers_and_another_others():
    def numbers(seed):
        ours = model()
        add_lora(ours, Lora(rank=3), seed=seed)
        return torch.cat([value.flatten() for value in adapter_tensors(ours).values()])

    torch.manual_seed(5)
    first = numbers(1)
    torch.manual_seed(6)
    assert torch.equal(first, numbers(1))
    assert not torch.equal(first, numbers(2))


@pytest.mark.parametrize(
    ("targets", "leaves", "number"),
    [
        ((), ATTENTION | {"up", "down"}, 12),
        (("query", "value"), {"query", "value"}, 4),
        (("*.blocks.1.*",), ATTENTION | {"up", "down"}, 6),
        (("*.feed_forward.*", "self.out"), {"up", "down", "out"}, 6),
    ],
)
def test_targets_name_parts_and_paths(targets, leaves, number):
    paths = add_lora(ours := model(), Lora(rank=2, targets=targets))
    assert {path.rpartition(".")[2] for path in paths} == leaves
    assert len(paths) == number
    assert paths == list(lora_parts(ours))


@pytest.mark.parametrize(
    ("targets", "number"), [(("query",), 6), (("cross.query",), 2), (("self.query",), 4), (("encoder.*.query",), 2)]
)
def test_targets_of_an_encoder_decoder(targets, number):
    ours = build(marian.spec(vocab=40, context=16, width=32, depth=2, heads=2, hidden=32))
    paths = add_lora(ours, Lora(rank=2, targets=targets))
    assert len(paths) == number


def test_heads_are_adapted_only_where_they_are_named_and_routers_too():
    spec = mixtral.spec(vocab=40, width=32, depth=1, heads=2, hidden=32)
    assert {path.rpartition(".")[2] for path in add_lora(build(spec), Lora(rank=2))} == ATTENTION
    assert add_lora(build(spec), Lora(rank=2, targets=("head", "router"))) == [
        "stack.blocks.0.feed_forward.inner.router",
        "head",
    ]


def test_a_head_whose_scores_are_capped_does_more_than_multiply():
    spec = mixtral.spec(vocab=40, width=32, depth=1, heads=2, hidden=32)
    capped = spec.model_copy(update={"head": spec.head.model_copy(update={"soft_cap": 30.0})})
    with pytest.raises(UsageError, match="no linear layer is called 'head'"):
        add_lora(build(capped), Lora(rank=2, targets=("head",)))


def test_targets_that_name_nothing_are_an_error_with_the_names_that_there_are():
    ours = model()
    with pytest.raises(UsageError) as caught:
        add_lora(ours, Lora(rank=2, targets=("query", "q_proj", "cross.key")))
    assert str(caught.value) == (
        "no linear layer is called 'q_proj', 'cross.key': this model has down, key, out, query, up, value"
    )
    assert not lora_parts(ours)


# --- training -------------------------------------------------------------------------------------------------------


def test_only_the_adapter_is_trained():
    ours = model()
    add_lora(ours, Lora(rank=2, targets=("query",)))
    trained = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert trained == {
        f"stack.blocks.{i}.self_attention.inner.query.adapters.default.{side}.weight"
        for i in (0, 1)
        for side in ("down", "up")
    }


@pytest.mark.parametrize("settings", [AdamW(lr=1e-2), Muon()])
@pytest.mark.parametrize("base", [None, Int8(), Int4()])
def test_it_learns_over_any_base_which_stays_as_it_is(settings, base):
    ours = model()
    if base is not None:
        quantize(ours, base)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    add_lora(ours, Lora(rank=4), seed=1)
    optimizer, first = Optimizer(ours, settings), loss(ours, ids()).item()
    for _ in range(10):
        optimizer.zero_grad()
        loss(ours, ids()).backward()
        optimizer.step(1.0)
    assert loss(ours, ids()).item() < first - 0.1
    after = {name.replace(".base.", "."): value for name, value in ours.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_factors_are_matrices_to_the_optimizer():
    ours = model()
    add_lora(ours, Lora(rank=2))
    assert [group.role for group in groups(ours)] == ["matrix"]


def test_dropout_is_of_the_adapters_input_and_follows_the_seed():
    ours = adapted(Lora(rank=2, dropout=0.5, targets=("query",)))
    part = next(iter(lora_parts(ours).values()))
    x = torch.randn(64, 32)
    still = part(x)
    assert torch.equal(still, part(x))  # nothing is dropped where nothing is trained
    part.train()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(part(x))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    use_adapter(ours, None)
    assert torch.equal(part(x), part.base(x))


def test_a_new_adapter_is_in_the_mode_of_its_model():
    for training in (True, False):
        ours = model().train(training)
        add_lora(ours, Lora(rank=2))
        assert all(part.training == training for part in ours.modules())


@pytest.mark.parametrize(("base", "half"), [(None, True), (Int8(), False), (Int4(), True)])
def test_a_step_compiles_whole_and_gives_the_same_gradients(base, half):
    ours = model(depth=1)
    if base is not None:
        quantize(ours, base)
    adapted(ours=ours)

    def measured(ours, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return loss(ours, x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(measured, fullgraph=True, backend="aot_eager")
        gradients = []
        for function in (measured, compiled):
            ours.zero_grad()
            function(ours, ids()).backward()
            gradients.append([adapter.up.weight.grad.clone() for adapter in adapters_of(ours).values()])
    for plain, fast in zip(*gradients, strict=True):
        assert plain.dtype == torch.float32
        assert plain.abs().max() > 0
        torch.testing.assert_close(fast, plain, rtol=0.02 if half else 1e-4, atol=1e-3 if half else 1e-6)


def test_a_half_base_is_multiplied_in_its_dtype_and_its_adapters_kept_in_float32():
    ours = adapted(ours=model().bfloat16())
    assert ours(ids()).dtype == torch.bfloat16
    assert {value.dtype for value in adapter_tensors(ours).values()} == {torch.float32}


def test_layers_that_are_one_matrix_elsewhere_share_their_first_factor():
    ours = model()
    paths = [f"stack.blocks.0.self_attention.inner.{part}" for part in ("query", "key", "value")]
    add_lora(ours, Lora(rank=2, targets=("query", "value", "up")), fused=[paths])
    downs = {path: adapter.down for path, adapter in adapters_of(ours).items()}
    assert downs[paths[0]] is downs[paths[2]]
    assert len({*downs.values()}) == len(downs) - 1  # control: the other block's are apart


def half_loss(ours):
    with torch.autocast("cpu", torch.bfloat16):
        return loss(ours, ids())


@pytest.mark.parametrize("targets", [(), ("query",)])
def test_a_frozen_base_held_narrow_learns_bit_for_bit_as_one_that_is_cast_in_every_step(targets):
    found = []
    for holds in (lambda ours: None, lambda ours: narrow(ours, torch.bfloat16)):
        ours = adapted(Lora(rank=3, targets=targets))
        holds(ours)
        value = half_loss(ours)
        value.backward()
        found.append([value.detach(), *(p.grad for p in ours.parameters() if p.requires_grad)])
        dtypes = {name: p.dtype for name, p in ours.named_parameters()}
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    matrices = {name for name in dtypes if "blocks" in name and name.endswith("weight") and "norm" not in name}
    frozen = {name for name in matrices if "adapters" not in name}
    assert frozen == {name for name, dtype in dtypes.items() if dtype == torch.bfloat16}
    assert {dtype for name, dtype in dtypes.items() if name not in frozen} == {torch.float32}


@torch.no_grad()
def test_a_base_held_narrow_is_widened_where_nothing_else_is_narrow():
    ours = adapted()
    before = ours(ids())
    narrow(ours, torch.bfloat16)
    after = ours(ids())
    assert after.dtype == torch.float32
    assert 0 < (after - before).abs().max() < 0.05


def test_nothing_is_made_wider_and_what_is_trained_stays():
    ours = model().bfloat16()
    up, down = (ours.get_submodule(f"stack.blocks.0.feed_forward.inner.{part}") for part in ("up", "down"))
    ours.requires_grad_(False)
    for layer in (up, down):
        layer.double()
    up.requires_grad_(True)
    narrow(ours, torch.float32)
    assert up.weight.dtype == torch.float64
    assert down.weight.dtype == torch.float32
    assert ours.get_parameter("stack.blocks.1.feed_forward.inner.up.weight").dtype == torch.bfloat16


# --- several --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_several_adapters_over_one_base_take_turns():
    ours = model()
    before = ours(ids())
    first = stirred(_with(ours, "first", ("query",)), "first")(ids())
    second = stirred(_with(ours, "second", ("up",)), "second")(ids())
    for name, wanted in (("first", first), (None, before), ("second", second)):
        use_adapter(ours, name)
        assert torch.equal(ours(ids()), wanted)
    assert not torch.equal(first, second)


def _with(ours, name, targets):
    add_lora(ours, Lora(rank=2, targets=targets), name=name)
    return ours


def test_the_last_that_was_added_is_trained_until_another_is_chosen():
    ours = _with(_with(model(), "a", ("query", "up")), "b", ("query",))
    for name, number in (("b", 4), ("a", 8)):
        trained = {path for path, parameter in ours.named_parameters() if parameter.requires_grad}
        assert all(f".adapters.{name}." in path for path in trained)
        assert len(trained) == number
        train_only(ours, "a")


def test_names_that_are_taken_or_unknown_or_none_are_refused():
    ours = _with(model(), "a", ("query",))
    for wrong in ("a", "", "b.c", "keys", "x" * 65, "\x1b"):
        with pytest.raises(NextileError) as caught:
            _with(ours, wrong, ("value",))
        assert str(caught.value).isprintable()
    assert list(lora_parts(ours)) == [f"stack.blocks.{i}.self_attention.inner.query" for i in (0, 1)]
    with pytest.raises(UsageError, match="the model has no adapter 'b': it has a"):
        use_adapter(ours, "b")


# --- merging --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_merged_it_is_a_plain_model_that_says_the_same():
    ours = adapted()
    wanted = ours(ids())
    merge(ours)
    torch.testing.assert_close(ours(ids()), wanted, rtol=0, atol=2e-5)
    assert list(ours.state_dict()) == list(model().state_dict())
    assert {type(part) for part in ours.modules()} == {type(part) for part in model().modules()}
    assert all(parameter.requires_grad for parameter in ours.parameters())
    with pytest.raises(NextileError, match="no adapters to merge"):
        merge(ours)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 2**-24), (torch.bfloat16, 2**-8)])
@torch.no_grad()
def test_unmerged_the_weights_are_as_before_to_the_rounding_that_is_promised(dtype, rounding):
    before, ours = model().to(dtype), adapted(ours=model().to(dtype))
    taken = merge(ours)
    sums = copy.deepcopy(ours)
    unmerge(ours, taken)
    assert list(lora_parts(ours)) == list(taken)
    changed = False
    for path, part in lora_parts(ours).items():
        original, added = (each.get_submodule(path).weight for each in (before, sums))
        assert part.base.weight.dtype == dtype
        assert ((part.base.weight - original).abs() <= 2 * rounding * (original.abs() + added.abs())).all()
        changed |= not torch.equal(added, original)
    assert changed
    assert all(parameter.requires_grad == ("adapters" in name) for name, parameter in ours.named_parameters())


@pytest.mark.parametrize("kind", [Int8(), Int4()])
@torch.no_grad()
def test_over_a_packed_base_it_merges_to_numbers_and_comes_back_packed(kind):
    ours = model()
    quantize(ours, kind)
    adapted(ours=ours)
    wanted = ours(ids())
    taken = merge(ours)
    assert type(ours.get_submodule("stack.blocks.0.feed_forward.inner.up")) is Linear
    torch.testing.assert_close(ours(ids()), wanted, rtol=0, atol=2e-5)
    unmerge(ours, taken)
    assert torch.equal(ours(ids()), wanted)


@torch.no_grad()
def test_merged_for_a_while_every_number_is_as_it_was_afterwards():
    ours = adapted()
    before, trained = copy.deepcopy(ours.state_dict()), [p.requires_grad for p in ours.parameters()]
    with merged(ours):
        assert not lora_parts(ours)
    assert all(isinstance(part, LoraLinear) for part in lora_parts(ours).values())
    after = ours.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert [p.requires_grad for p in ours.parameters()] == trained


@torch.no_grad()
def test_only_the_active_adapter_is_folded_in():
    ours = stirred(_with(stirred(_with(model(), "a", ("query",)), "a"), "b", ("up",)), "b")
    use_adapter(ours, "a")
    wanted = ours(ids())
    merge(ours)
    torch.testing.assert_close(ours(ids()), wanted, rtol=0, atol=2e-5)
    assert torch.equal(ours.get_parameter("stack.blocks.0.feed_forward.inner.up.weight"),
                       model().get_parameter("stack.blocks.0.feed_forward.inner.up.weight"))  # fmt: skip
