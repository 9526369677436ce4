"""The parts of a speedrun keep to what every stack keeps to, and begin as nothing."""

import json

import pytest
import torch
from pydantic import ValidationError
from tests.nn.test_stack import CONTEXT, VOCAB, WIDTH, lively, tokens
from torch.nn import functional as F

from nextile.checkpoint.store import load_model, save_model
from nextile.models import count
from nextile.models.build import build
from nextile.models.families import qwen3
from nextile.nn import specs
from nextile.nn.convolution import ShortConvolution, shifted
from nextile.training.optim import groups

CONVOLUTION = {"attention": specs.Attention(heads=4, kv_heads=2, convolution=specs.ShortConvolution(taps=3))}
VALUES = {"value_embedding": specs.ValueEmbedding(pattern=(True, False))}
SCALARS = {"residual_scalars": specs.ResidualScalars()}
GAINLESS = {"norm": specs.GainlessRMSNorm()}
SHAPES = {
    "convolution": CONVOLUTION,
    "value embeddings": VALUES,
    "residual scalars": SCALARS,
    "gain-less norms": GAINLESS,
    "parallel": SCALARS | VALUES | CONVOLUTION | {"order": "parallel"},
    "all": CONVOLUTION | VALUES | SCALARS | GAINLESS | {"local": specs.Local(window=6, pattern=(True, False))},
}


def spec_of(**parts) -> specs.Transformer:
    stack = {"attention": specs.Attention(heads=4), "feed_forward": specs.MLP(hidden=64), "causal": True, **parts}
    return specs.Transformer(
        context=CONTEXT,
        embed=specs.TokenEmbedding(vocab=VOCAB, norm=specs.GainlessRMSNorm()),
        stack=specs.Stack(width=WIDTH, depth=2, position=specs.Rotary(), **stack),
        head=specs.LinearHead(soft_cap=5.0),
    )


@pytest.fixture(params=SHAPES)
def model(request):
    return lively(build(spec_of(**SHAPES[request.param])))


@torch.no_grad()
def test_the_past_never_hears_of_the_future(model):
    ids = tokens(2, 20)
    changed = ids.clone()
    changed[:, 12] = (changed[:, 12] + 1) % VOCAB
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.equal(before[:, 12:], after[:, 12:])


@torch.no_grad()
def test_padding_changes_nothing(model):
    ids, keep = tokens(3, 20), torch.ones(3, 20, dtype=torch.bool)
    keep[1, 13:] = keep[2, :9] = False  # on the right, and on the left
    got = model(ids, segments=keep)
    for row in range(3):
        alone = model(ids[row, keep[row]][None])[0]
        torch.testing.assert_close(got[row, keep[row]], alone, rtol=0, atol=1e-12)
    other = torch.where(keep, ids, (ids + 7) % VOCAB)
    assert torch.equal(model(other, segments=keep)[keep], got[keep])


@torch.no_grad()
def test_texts_that_share_a_row_are_each_alone(model):
    ids, segments = tokens(2, 20), torch.tensor([[1] * 7 + [2] * 9 + [0] * 4, [3] * 20])
    got = model(ids, segments=segments)
    for row, number in ((0, 1), (0, 2), (1, 3)):
        there = segments[row] == number
        torch.testing.assert_close(got[row, there], model(ids[row, there][None])[0], rtol=0, atol=1e-12)
    merged = torch.where(segments == 2, 1, segments)  # control: without their borders they hear each other
    assert not torch.allclose(model(ids, segments=merged), got)


@pytest.mark.parametrize("static", [False, True])
@torch.no_grad()
def test_cached_is_uncached(model, static):
    ids, parts = tokens(2, 20), []
    cache = model.new_cache(2, CONTEXT, static=static)
    for piece in ids.split([1, 7, 1, 4, 1, 6], dim=1):
        parts.append(model(piece, cache=cache))
        cache.advance(piece.shape[1])
    torch.testing.assert_close(torch.cat(parts, 1), model(ids), rtol=0, atol=1e-12)


@pytest.mark.parametrize("static", [False, True])
@torch.no_grad()
def test_rows_of_different_lengths_are_each_alone(model, static):
    lengths, prompt, following = torch.tensor([9, 4, 1]), tokens(3, 9), tokens(3, 5, seed=1)
    cache, steps = model.new_cache(3, CONTEXT, static=static), []
    model(prompt, cache=cache)
    cache.advance(lengths)
    for step in following.split(1, dim=1):
        steps.append(model(step, cache=cache))
        cache.advance(1)
    for row, length in enumerate(lengths):
        alone = model(torch.cat((prompt[row, :length], following[row]))[None])[0, length:]
        torch.testing.assert_close(torch.cat(steps, 1)[row], alone, rtol=0, atol=1e-12)


@torch.no_grad()
def test_selected_rows_go_on_as_they_were(model):
    ids, step = tokens(3, 8), tokens(2, 1, seed=3)
    cache = model.new_cache(3, CONTEXT)
    model(ids, cache=cache)
    cache.advance(torch.tensor([8, 6, 3]))
    cache.select(torch.tensor([2, 0]))
    got = model(step, cache=cache)
    torch.testing.assert_close(got[0], model(torch.cat((ids[2, :3], step[0]))[None])[0, -1:], rtol=0, atol=1e-12)
    torch.testing.assert_close(got[1], model(torch.cat((ids[0], step[1]))[None])[0, -1:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("lengths", [[8, 8, 8], [8, 5, 3]])
@torch.no_grad()
def test_beams_of_one_text_are_each_alone(model, lengths):
    ids, cache = tokens(3, 8), model.new_cache(3, CONTEXT)
    model(ids, cache=cache)
    cache.advance(torch.tensor(lengths))
    texts = [[ids[row, : lengths[row]]] * 2 for row in (2, 0)]  # row 1 is done: row 2 takes the first place
    chosen = torch.tensor([2, 2, 0, 0])
    for step in range(4):
        cache.branch(chosen, 2)
        new = tokens(2, 2, seed=4 + step)
        got = model(new.view(len(cache.lengths), -1), cache=cache).view(2, 2, VOCAB)  # on two rows, or on four
        cache.advance(1)
        texts = [[torch.cat((text, new[row, w : w + 1])) for w, text in enumerate(texts[row])] for row in range(2)]
        for row in range(2):
            for w in range(2):
                alone = model(texts[row][w][None])[0, -1]
                torch.testing.assert_close(got[row, w], alone, rtol=0, atol=1e-12)
        chosen = torch.tensor([1, 1, 2, 3])  # of row 0 the second text goes on twice, of row 1 both
        texts = [[texts[0][1]] * 2, texts[1]]


def test_gradients_reach_every_parameter(model):
    model.train()(tokens(2, 20)).square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert [name for name in without if not name.endswith("key.bias")] == []


@torch.no_grad()
def test_a_compiled_step_with_a_cache_is_the_eager_one():
    from nextile.training.graph import one_graph

    model, ids = lively(build(spec_of(**SHAPES["all"]))), tokens(2, 9)
    step = one_graph(lambda piece, cache: model(piece, cache=cache))
    cache, parts = model.new_cache(2, 16, static=True), []
    for piece in ids.split(1, dim=1):
        parts.append(step(piece, cache))
        cache.advance(1)
    torch.testing.assert_close(torch.cat(parts, 1), model(ids), rtol=0, atol=1e-5)  # its angles are rounded elsewhere


@torch.no_grad()
def test_a_convolution_is_torchs():
    module, x = ShortConvolution(specs.ShortConvolution(taps=3), WIDTH).double(), torch.randn(2, 9, WIDTH).double()
    module.taps.normal_()
    kernel = torch.cat((torch.ones(1, WIDTH), module.taps)).flip(0).T[:, None]  # (D, 1, J + 1), the oldest first
    expected = F.conv1d(F.pad(x.mT, (3, 0)), kernel.double(), groups=WIDTH).mT
    torch.testing.assert_close(module(x, None, None), expected, rtol=0, atol=1e-12)
    assert not torch.allclose(module(x.flip(1), None, None).flip(1), expected)


def test_what_is_further_back_than_a_text_is_long_is_nothing():
    assert shifted(torch.ones(1, 2, 3), 5, None).equal(torch.zeros(1, 2, 3))


@torch.no_grad()
def test_value_embeddings_are_added_to_the_values_of_their_blocks_alone():
    model, ids = lively(build(spec_of(**VALUES))), tokens(1, 5)
    table = model.stack.blocks[0].self_attention.inner.value_embedding
    before = model(ids)
    table.weight[ids[0, 2]] += 1.0
    assert not torch.equal(model(ids)[:, 2:], before[:, 2:])
    bias = model.stack.blocks[0].self_attention.inner.value.bias
    table.weight[ids[0, 2]] -= 1.0
    table.weight += 0.5
    bias -= 0.5
    torch.testing.assert_close(model(ids), before, rtol=0, atol=1e-12)
    assert model.stack.blocks[1].self_attention.inner.value_embedding is None


@torch.no_grad()
def test_the_parts_begin_as_nothing():
    poor = build(spec_of(attention=specs.Attention(heads=4, kv_heads=2)))
    model = build(spec_of(**VALUES, **SCALARS, **CONVOLUTION))
    model.load_state_dict(poor.state_dict(), strict=False)
    assert torch.equal(model(tokens(2, 9)), poor(tokens(2, 9)))


@torch.no_grad()
def test_blocks_that_begin_as_zero_are_the_identity_and_every_token_is_as_likely():
    spec, ids = spec_of(**SHAPES["all"]), tokens(2, 9)
    model = build(spec, init="zero_out")
    x = model.embed(ids)
    torch.testing.assert_close(model.stack(x, ids=ids), F.rms_norm(x, (WIDTH,), eps=1e-6))
    assert torch.equal(model(ids), torch.zeros(2, 9, VOCAB))
    assert not torch.equal(build(spec)(ids), torch.zeros(2, 9, VOCAB))
    assert torch.equal(model.embed.token.weight, build(spec, init="zero_out").embed.token.weight)


@torch.no_grad()
def test_what_reads_the_stream_of_a_speedrun_begins_by_its_width():
    def spread(model):
        layers = model.stack.blocks[0]
        attention, forward = layers.self_attention.inner, layers.feed_forward.inner
        return [part.weight.std().item() for part in (attention.query, attention.value, forward.up, model.embed.token)]

    model = build(spec_of(), init="zero_out")
    assert spread(model) == pytest.approx([0.5 / WIDTH**0.5] * 3 + [0.02], rel=0.15)
    assert spread(build(spec_of())) == pytest.approx([0.02] * 4, rel=0.15)


@torch.no_grad()
def test_scores_of_a_head_of_its_own_are_capped():
    model, ids = lively(build(spec_of())), tokens(2, 9)
    assert model(ids).abs().max() < 5.0
    whole = model.head.product(model.features(ids))
    torch.testing.assert_close(whole.whole(), model(ids))
    model.head.weight *= 1e-3  # hardly changed where they are small
    torch.testing.assert_close(model(ids), F.linear(model.features(ids), model.head.weight), rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_a_norm_without_a_gain_is_one_whose_gain_is_one():
    from nextile.nn.norm import make_norm

    bare, x = make_norm(specs.GainlessRMSNorm(), WIDTH), torch.randn(3, WIDTH)
    assert list(bare.parameters()) == []
    torch.testing.assert_close(bare(x), make_norm(specs.RMSNorm(), WIDTH)(x), rtol=0, atol=0)


def test_muon_takes_no_taps_and_no_tables(model):
    roles = {name.rpartition(".")[2]: group.role for group in groups(model) for name in group.names}
    tables = [name for group in groups(model) if group.role == "embedding" for name in group.names]
    assert roles.get("taps", "embedding") == "embedding"
    assert roles.get("stream", "vector") == "vector"
    assert all("value_embedding" not in name or name in tables for name, _ in model.named_parameters())


def test_all_is_counted(model):
    counted = count.parameters(model.spec)  # counted == built is asserted inside
    assert counted.total == sum(parameter.numel() for parameter in model.parameters())
    cache = model.new_cache(3, 16, dtype=torch.float32)
    kept = [kept for layer in cache.layers for kept in (layer.keys, layer.values, layer.inputs) if kept is not None]
    assert count.cache_memory(model.spec, rows=3, length=16) == sum(tensor.nbytes for tensor in kept)


def test_a_folder_keeps_the_parts(model, tmp_path):
    save_model(tmp_path, model)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "nextile"
    again, name = load_model(tmp_path, dtype=torch.float64)
    assert name == "nextile"
    assert again.spec == model.spec
    torch.testing.assert_close(again.eval()(tokens(1, 9)), model(tokens(1, 9)), rtol=0, atol=1e-12)


def test_a_model_without_the_parts_does_not_name_them():
    said = json.dumps(qwen3.spec().model_dump()) + qwen3.spec().model_dump_json()
    untied = specs.LinearHead().model_dump()
    for part in ("convolution", "value_embedding", "residual_scalars"):
        assert part not in said
    assert said.count('"type"') > 9
    assert untied == {"type": "linear", "bias": False, "vocab": None}


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ({"causal": False, **CONVOLUTION}, "a short convolution looks back"),
        ({"cross": CONVOLUTION["attention"]}, "a memory is read as it is"),
        ({"attention": {"heads": 4, "convolution": {"taps": 17}}}, "less than or equal to 16"),
        ({"attention": {"heads": 4, "convolution": {"taps": 0}}}, "greater than or equal to 1"),
        ({"value_embedding": {"pattern": ()}}, "at least 1 item"),
    ],
)
def test_what_cannot_be_is_refused(parts, complaint):
    with pytest.raises(ValidationError, match=complaint):
        spec_of(**parts)


def test_value_embeddings_need_one_stack_of_tokens():
    stack = spec_of(**VALUES).stack.model_copy(update={"causal": False})
    decoder = spec_of(cross=specs.Attention(heads=4)).stack
    embed = specs.TokenEmbedding(vocab=VOCAB)
    with pytest.raises(ValidationError, match="leave out value_embedding"):
        specs.EncoderDecoder(context=9, source=embed, encoder=stack, decoder=decoder)
    patches, head = specs.PatchEmbedding(image=8, patch=4), specs.SummaryHead(classes=("a", "b"))
    with pytest.raises(ValidationError, match=r"leave out stack\.value_embedding"):
        specs.VisionTransformer(embed=patches, stack=stack, head=head)
