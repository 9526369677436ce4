"""How pictures become vectors and vectors become classes, and stochastic depth."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from nextile.base.errors import NextileError
from nextile.models import count
from nextile.models.build import build
from nextile.models.families import compact, vit
from nextile.nn import specs
from nextile.nn.dropout import StochasticDepth
from nextile.nn.embed import ConvEmbedding, patches, resized_places, unpatched
from nextile.nn.tap import record

NAMES = ("cat", "dog", "eel")
EMBEDS = {
    "patches": specs.PatchEmbedding(image=8, patch=2, channels=1),
    "convolutions": specs.ConvEmbedding(image=9, hidden=(5,), kernel=5),
    "tokens": specs.TokenEmbedding(vocab=7, position=specs.Learned(length=20)),
}
HEADS = {
    "summary": specs.SummaryHead(classes=NAMES),
    "mean": specs.MeanHead(classes=NAMES, bias=False),
    "weighted": specs.WeightedHead(classes=NAMES),
}
PAIRS = [(embed, head) for embed in EMBEDS for head in HEADS if (embed, head) != ("tokens", "summary")]


def stack(depth=2, **more):
    attention = specs.Attention(heads=2, bias="none")
    return specs.Stack(width=16, depth=depth, attention=attention, feed_forward=specs.MLP(hidden=20), **more)


def spec_of(embed, head, **more):
    return specs.VisionTransformer(embed=EMBEDS[embed], stack=stack(**more), head=HEADS[head])


def lively(spec, dtype=torch.float64):
    """Larger numbers than a fresh model has, so that a wrong path shows."""
    model = build(spec).to(dtype).eval()
    for i, parameter in enumerate(model.parameters()):
        parameter.data.normal_(0, 0.4, generator=torch.Generator().manual_seed(i))
    return model


def inputs(spec, rows=3):
    """Pictures, or their tokens."""
    random = torch.Generator().manual_seed(4)
    if isinstance(spec.embed, specs.TokenEmbedding):
        return torch.randint(0, 7, (rows, spec.context), generator=random)
    side = spec.embed.image
    return torch.randn(rows, spec.embed.channels, side, side, generator=random, dtype=torch.float64)


# --- patches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "side", "rows"), [(1, 1, 3), (2, 3, 2), (3, 4, 3), (5, 2, 1)])
def test_patches_are_put_together_again(channels, side, rows):
    pictures = torch.randn(2, channels, side * rows, side * rows)
    squares = patches(pictures, side)
    assert squares.shape == (2, rows**2, channels * side**2)
    assert torch.equal(unpatched(squares, side, channels), pictures)


def test_patches_go_row_by_row_from_the_top_left():
    picture = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)  # wider than high
    third = patches(picture, 2)[0, 2]
    assert third.tolist() == [4, 5, 10, 11, 28, 29, 34, 35]  # the top right; channel 0, then channel 1


@torch.no_grad()
def test_a_patch_embedding_is_a_convolution_whose_stride_is_its_side():
    embed = lively(spec_of("patches", "mean")).embed
    pictures = inputs(spec_of("patches", "mean"))
    kernel = embed.project.weight.reshape(16, 1, 2, 2)
    wanted = F.conv2d(pictures, kernel, embed.project.bias, stride=2).flatten(2).mT
    assert (embed.vectors(pictures) - wanted).abs().max() < 1e-12


@torch.no_grad()
def test_the_summary_stands_first_and_has_a_place():
    spec = spec_of("patches", "summary")
    embed = lively(spec).embed
    x, places = embed(inputs(spec)), embed.position.weight
    assert x.shape == (3, 17, 16) == (3, spec.context, 16)
    assert torch.equal(x[:, 0], (embed.summary + places[:1]).expand(3, -1))
    assert torch.allclose(x[:, 1:], embed.vectors(inputs(spec)) + places[1:])


# --- convolutions ---------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("image", range(7, 34))
def test_a_convolution_gives_as_many_vectors_as_the_spec_says(image, stages):
    spec = specs.ConvEmbedding(image=image, channels=1, hidden=(2,) * (stages - 1))
    found = ConvEmbedding(spec, 4, 0)(torch.zeros(1, 1, image, image))
    assert found.shape == (1, spec.tokens, 4)


@torch.no_grad()
def test_a_vector_sees_its_surroundings_only():
    spec = specs.VisionTransformer(embed=specs.ConvEmbedding(image=16, hidden=(5,)), stack=stack(), head=HEADS["mean"])
    embed, pictures = lively(spec).embed, inputs(spec)
    changed = pictures.clone()
    changed[:, :, 0, 15] += 100  # the top right
    moved = (embed(pictures) - embed(changed)).abs().amax((0, 2)).reshape(4, 4)
    assert moved[0, 3] > 0
    assert moved[2:].max() == 0  # vector i sees pixels 4i - 6 to 4i + 6
    assert moved[:, :3].max() == 0


def test_the_default_classifier_makes_about_eight_by_eight_vectors():
    sides = {8: 4, 12: 6, 15: 8, 16: 8, 24: 6, 28: 7, 32: 8, 48: 6, 64: 8, 96: 6, 128: 8, 224: 7}
    for image, side in sides.items():
        spec = compact.spec(classes=NAMES, image=image)
        assert spec.embed.tokens == side**2, image
        assert set(spec.embed.hidden) <= {64}
    assert compact.spec(classes=NAMES, image=32, stages=4, width=24).embed.hidden == (12, 12, 12)


# --- what is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("embed", ["patches", "convolutions"])
@pytest.mark.parametrize("shape", [(3, 3, 7, 7), (3, 2, 8, 8), (3, 1, 8, 9), (1, 8, 8)])
def test_a_picture_of_another_size_is_one_line(embed, shape):
    model = build(spec_of(embed, "mean"))
    channels, side = model.spec.embed.channels, model.spec.embed.image
    message = rf"pictures are .* reads \({channels}, {side}, {side}\).*resize"
    with pytest.raises(NextileError, match=message) as caught:
        model(torch.zeros(shape))
    assert len(str(caught.value).splitlines()) == 1


@torch.no_grad()
def test_bytes_are_numbers_too():
    spec = spec_of("patches", "summary")
    model, pictures = lively(spec), torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(model(pictures), model(pictures.double()))


@torch.no_grad()
@pytest.mark.parametrize(("embed", "head"), PAIRS)
def test_one_picture_is_classified_as_it_is_in_a_batch(embed, head):
    spec = spec_of(embed, head)
    model, given = lively(spec), inputs(spec)
    together = model(given)
    assert together.shape == (3, 3)
    assert (together.std(0) > 1e-3).all()
    assert torch.allclose(together[1:2], model(given[1:2]))


@pytest.mark.parametrize(("embed", "head"), PAIRS)
def test_every_number_learns(embed, head):
    spec = spec_of(embed, head)
    model = lively(spec)
    model(inputs(spec)).log_softmax(-1)[:, 1].sum().backward()
    still = {name for name, parameter in model.named_parameters() if not parameter.grad.abs().max() > 1e-9}
    assert still == ({"head.importance.bias"} if head == "weighted" else set())  # a softmax does not hear of it


# --- heads ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_summary_head_sees_the_first_vector_only():
    head = lively(spec_of("patches", "summary")).head
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    assert torch.equal(head(x), F.linear(x[:, 0], head.weight, head.bias))


@torch.no_grad()
def test_the_mean_head_sees_all_alike():
    head = lively(spec_of("patches", "mean")).head
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    assert torch.allclose(head(x), head(x.flip(1)))
    assert torch.allclose(head(x), F.linear(x, head.weight).mean(1))


@torch.no_grad()
def test_the_weights_of_the_weighted_head_are_a_mean():
    spec = spec_of("convolutions", "weighted")
    model = lively(spec)
    with record(model, "head.*") as seen:
        x = model.features(inputs(spec))
        logits = model.head(x)
    weights = seen["head.weights"]
    assert weights.shape == (3, 9, 1)
    assert (weights.sum(1) - 1).abs().max() < 1e-12
    assert weights.std() > 0.01
    assert torch.allclose(seen["head.pooled"], (weights * x).sum(1))
    assert torch.allclose(logits, F.linear((weights * x).sum(1), model.head.weight, model.head.bias))


@torch.no_grad()
def test_equal_weights_are_the_mean():
    weighted = lively(spec_of("convolutions", "weighted")).head
    weighted.importance.weight.zero_()
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    assert torch.allclose(weighted.pool(x), x.mean(1))


# --- stochastic depth -----------------------------------------------------------------------------------------------


def test_whole_rows_are_left_out_and_the_mean_is_kept():
    torch.manual_seed(0)
    part, x = StochasticDepth(0.3), torch.rand(4000, 3, 2) + 1
    kept = part(x)
    gone = (kept == 0).flatten(1)
    assert torch.equal(gone.any(1), gone.all(1))
    assert abs(gone.all(1).float().mean().item() - 0.3) < 0.03  # four standard deviations
    assert torch.allclose(kept[~gone.all(1)], x[~gone.all(1)] / 0.7)
    assert abs(kept.mean().item() / x.mean().item() - 1) < 0.05


def test_nothing_is_left_out_when_not_training():
    part, x = StochasticDepth(0.9).eval(), torch.rand(50, 3)
    assert part(x) is x
    assert StochasticDepth(0.0).train()(x) is x


def shares(model):
    """How often each block leaves out its two parts."""
    return [
        [part.share for part in block.modules() if isinstance(part, StochasticDepth)] or [0.0, 0.0]
        for block in model.stack.blocks
    ]


def test_deeper_parts_are_left_out_more_often():
    model = build(spec_of("patches", "summary", depth=5, stochastic_depth=0.4))
    wanted = [[0.4 * i / 4] * 2 for i in range(5)]
    assert shares(model) == [pytest.approx(pair) for pair in wanted]
    assert shares(build(spec_of("patches", "summary", depth=1, stochastic_depth=0.4))) == [[0.0, 0.0]]


def test_stochastic_depth_is_for_training_alone():
    spec = spec_of("patches", "summary", depth=4, stochastic_depth=0.9)
    model, plain = lively(spec), lively(spec_of("patches", "summary", depth=4))
    plain.load_state_dict(model.state_dict())  # it has no numbers of its own
    given = inputs(spec).expand(3, -1, -1, -1)
    assert torch.equal(model(given), plain(given))
    torch.manual_seed(0)
    assert not torch.allclose(model.train()(given), plain(given))


@torch.no_grad()
def test_a_row_whose_parts_are_left_out_is_untouched_by_the_last_block():
    spec = spec_of("patches", "summary", stochastic_depth=0.99)
    model = lively(spec).train()
    torch.manual_seed(0)
    with record(model, "stack.blocks.*.stream") as seen:
        model(inputs(spec, rows=20))
    first, last = seen["stack.blocks.0.stream"], seen["stack.blocks.1.stream"]
    untouched = (first == last).flatten(1).all(1)
    assert untouched.sum() >= 15


# --- counts and specs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("embed", "head"), PAIRS)
@pytest.mark.parametrize("norm_place", ["before", "after"])
def test_every_shape_is_counted_as_it_is_built(embed, head, norm_place):
    spec = spec_of(embed, head, norm_place=norm_place, stochastic_depth=0.1)
    assert count.parameters(spec).total > 0  # counted == built is asserted inside
    assert count.training_flops(spec, spec.context) > 0
    assert count.training_memory(spec, rows=2, length=spec.context) > 0


@pytest.mark.parametrize(("embed", "head"), [("patches", "summary"), ("convolutions", "mean"), ("tokens", "mean")])
def test_flops_are_those_that_torch_counts(embed, head):
    """Without the biases of the blocks, whose additions torch does not count."""
    spec, rows = spec_of(embed, head), 2
    spec = spec.model_copy(
        update={"stack": spec.stack.model_copy(update={"feed_forward": specs.MLP(hidden=20, bias=False)})}
    )
    model, given = build(spec), inputs(spec, rows)
    given = given.float() if given.is_floating_point() else given
    with FlopCounterMode(display=False) as counter, record(model, "*.inner.weights"):  # the explicit attention
        model(given)
    assert counter.get_total_flops() == pytest.approx(count.forward_flops(spec, spec.context) * rows * spec.context)


@pytest.mark.parametrize(("embed", "head"), PAIRS)
def test_a_spec_survives_json(embed, head):
    spec, model = spec_of(embed, head, stochastic_depth=0.1), TypeAdapter(specs.Model)
    again = model.validate_json(model.dump_json(spec))
    assert again == spec
    assert type(again) is specs.VisionTransformer


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed": {"type": "patches", "image": 9, "patch": 2}}, "9 pixels do not divide into patches of 2"),
        ({"embed": {"type": "patches", "image": 1 << 13, "patch": 1}}, "less than or equal to 4096"),
        ({"embed": {"type": "convolutions", "image": 8, "kernel": 4}}, "a kernel of 4 has no middle"),
        ({"embed": {"type": "convolutions", "image": 8, "hidden": [2] * 9}}, "at most 8 items"),
        ({"embed": {"type": "tokens", "vocab": 9}}, "need embed.position"),
        ({"embed": {"type": "tokens", "vocab": 9, "position": {"type": "learned", "length": 4}}}, "have no summary"),
        ({"head": {"type": "summary", "classes": []}}, "at least 1 item"),
        ({"head": {"type": "mean", "classes": ["x" * 1001]}}, "at most 1000 characters"),
    ],
)
def test_a_hostile_spec_is_refused(fields, message):
    good = spec_of("patches", "summary").model_dump()
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(specs.Model).validate_python(good | fields)


# --- pictures of another size ---------------------------------------------------------------------------------------


def test_places_of_the_same_size_stay_and_the_summarys_always_does():
    places = torch.randn(17, 6)
    assert torch.allclose(resized_places(places, 16, 1), places, atol=1e-6)
    for tokens in (4, 25, 64):
        moved = resized_places(places, tokens, 1)
        assert moved.shape == (tokens + 1, 6)
        assert torch.equal(moved[0], places[0])


def test_places_keep_their_side_of_the_picture():
    rows = torch.arange(4.0).repeat_interleave(4)  # how far down, of 4 x 4
    columns = torch.arange(4.0).repeat(4)
    moved = resized_places(torch.stack((rows, columns), 1), 64, 0).reshape(8, 8, 2)
    assert (moved.diff(dim=0)[..., 0] > 0).all()
    assert (moved.diff(dim=1)[..., 1] > 0).all()
    assert moved.diff(dim=1)[..., 0].abs().max() < 1e-5
    assert abs(moved[..., 0].mean().item() - 1.5) < 1e-4


@torch.no_grad()
def test_a_model_for_larger_pictures_takes_resized_places():
    small, large = (vit.spec(classes=NAMES, image=image, patch=2, width=16, depth=1, heads=2) for image in (8, 12))
    old, new = build(small, seed=1), build(large, seed=2)
    numbers = dict(old.state_dict())
    numbers["embed.position.weight"] = resized_places(numbers["embed.position.weight"], large.embed.tokens, 1)
    new.load_state_dict(numbers)
    assert new(torch.zeros(1, 3, 12, 12)).shape == (1, 3)
