"""What every stack keeps to: causality, blindness to padding, cached = uncached, fast = explicit."""

import pytest
import torch

from nextile.base.errors import NextileError
from nextile.models.build import build
from nextile.nn import specs
from nextile.nn.tap import record

WIDTH, VOCAB, CONTEXT = 32, 40, 48

SHAPES = {
    "learned, layer norm": {"embed": {"position": specs.Learned(length=CONTEXT)}},
    "sinusoidal, post-norm": {"embed": {"position": specs.Sinusoidal(length=CONTEXT)}, "norm_place": "after"},
    "rotary, grouped, qk-norm": {
        "position": specs.Rotary(),
        "attention": specs.Attention(heads=4, kv_heads=2, qk_norm=specs.RMSNorm(), bias="none"),
        "norm": specs.RMSNorm(),
        "feed_forward": specs.GatedMLP(hidden=48),
    },
    "rotary, multi-query": {"position": specs.Rotary(), "attention": specs.Attention(heads=4, kv_heads=1, bias="qkv")},
    "relative bias, unscaled": {
        "position": specs.RelativeBias(buckets=8, max_distance=20),
        "attention": specs.Attention(heads=4, scale=1.0),
    },
    "alibi": {"position": specs.Alibi(), "feed_forward": specs.MLP(hidden=48, activation="relu_squared")},
}


def language_model(shape: str, causal: bool = True):
    parts = dict(SHAPES[shape])
    embed = specs.TokenEmbedding(vocab=VOCAB, **parts.pop("embed", {}))
    stack = {"attention": specs.Attention(heads=4), "feed_forward": specs.MLP(hidden=64), **parts}
    spec = specs.Transformer(
        context=CONTEXT,
        embed=embed,
        stack=specs.Stack(width=WIDTH, depth=2, causal=causal, **stack),
        head=specs.TiedHead(bias=True),
    )
    return lively(build(spec))


def lively(model):
    """Larger numbers than a fresh model has, so that a wrong path shows."""
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(i))
    return model.double().eval()


def tokens(rows: int, length: int, seed: int = 0):
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=SHAPES)
def shape(request):
    return request.param


@torch.no_grad()
def test_the_past_never_hears_of_the_future(shape):
    model, ids = language_model(shape), tokens(2, 20)
    changed = ids.clone()
    changed[:, 12] = (changed[:, 12] + 1) % VOCAB
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.equal(before[:, 12:], after[:, 12:])


@torch.no_grad()
def test_an_encoder_hears_of_everything(shape):
    model, ids = language_model(shape, causal=False), tokens(1, 20)
    changed = ids.clone()
    changed[:, 12] = (changed[:, 12] + 1) % VOCAB
    assert (model(ids) - model(changed)).abs().amax(-1).min() > 1e-9


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_padding_changes_nothing(shape, causal):
    model, ids = language_model(shape, causal), tokens(3, 20)
    keep = torch.ones(3, 20, dtype=torch.bool)
    keep[1, 13:] = keep[2, 5:] = False
    got = model(ids, segments=keep)
    for row, length in enumerate((20, 13, 5)):
        torch.testing.assert_close(got[row, :length], model(ids[row : row + 1, :length])[0], rtol=0, atol=1e-12)
    other = torch.where(keep, ids, (ids + 7) % VOCAB)
    assert torch.equal(model(other, segments=keep)[keep], got[keep])


@torch.no_grad()
def test_a_row_of_padding_alone_is_no_nan(shape):
    model = language_model(shape, causal=False)
    assert model(tokens(2, 6), segments=torch.tensor([[True] * 6, [False] * 6])).isfinite().all()


@pytest.mark.parametrize("static", [False, True])
@torch.no_grad()
def test_cached_is_uncached(shape, static):
    model, ids = language_model(shape), tokens(2, 20)
    cache = model.new_cache(2, CONTEXT, static=static)
    parts = []
    for piece in ids.split([7, 1, 1, 4, 1, 6], dim=1):
        parts.append(model(piece, cache=cache))
        cache.advance(piece.shape[1])
    torch.testing.assert_close(torch.cat(parts, 1), model(ids), rtol=0, atol=1e-12)


@pytest.mark.parametrize("static", [False, True])
@torch.no_grad()
def test_rows_of_different_lengths_are_each_alone(shape, static):
    model, lengths = language_model(shape), torch.tensor([9, 4, 1])
    prompt, following = tokens(3, 9), tokens(3, 5, seed=1)
    cache = model.new_cache(3, CONTEXT, static=static)
    model(prompt, cache=cache)
    cache.advance(lengths)
    steps = []
    for step in following.split(1, dim=1):
        steps.append(model(step, cache=cache))
        cache.advance(1)
    for row, length in enumerate(lengths):
        alone = model(torch.cat((prompt[row, :length], following[row]))[None])[0, length:]
        torch.testing.assert_close(torch.cat(steps, 1)[row], alone, rtol=0, atol=1e-12)


@torch.no_grad()
def test_selected_rows_go_on_as_they_were(shape):
    model, ids = language_model(shape), tokens(3, 8)
    cache = model.new_cache(3, CONTEXT)
    model(ids, cache=cache)
    cache.advance(torch.tensor([8, 6, 3]))
    cache.select(torch.tensor([2, 0]))
    got, step = model(tokens(2, 1, seed=3), cache=cache), tokens(2, 1, seed=3)
    torch.testing.assert_close(got[0], model(torch.cat((ids[2, :3], step[0]))[None])[0, -1:], rtol=0, atol=1e-12)
    torch.testing.assert_close(got[1], model(torch.cat((ids[0], step[1]))[None])[0, -1:], rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_full_cache_says_so(shape):
    model = language_model(shape)
    cache = model.new_cache(1, 8)
    with pytest.raises(NextileError, match="the cache holds 8 tokens and 0 \\+ 9 were given"):
        model(tokens(1, 9), cache=cache)


@torch.no_grad()
def test_the_explicit_path_is_the_fast_one(shape):
    model, ids = language_model(shape), tokens(2, 20)
    with record(model, "*.weights", "*.scores", "stack.blocks.1.stream") as seen:
        explicit = model(ids)
    torch.testing.assert_close(explicit, model(ids), rtol=0, atol=1e-12)
    weights = seen["stack.blocks.1.self_attention.inner.weights"]
    assert weights.shape == (2, 4, 20, 20)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 20, dtype=torch.double))
    assert weights.triu(1).max() == 0
    assert seen["stack.blocks.1.stream"].shape == (2, 20, WIDTH)
    assert len(seen) == 5  # of two blocks weights and scores, of one the stream


@torch.no_grad()
def test_a_recording_asks_for_one_layer_only(shape):
    model = language_model(shape)
    with record(model, "stack.blocks.0.*.weights") as seen:
        model(tokens(1, 4))
    assert list(seen) == ["stack.blocks.0.self_attention.inner.weights"]
    model(tokens(1, 6))
    assert seen["stack.blocks.0.self_attention.inner.weights"].shape[-1] == 4  # closed: nothing more is kept


def test_gradients_reach_every_parameter(shape):
    model = language_model(shape).train()
    model(tokens(2, 20)).square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert without in (
        [],
        ["stack.blocks.0.self_attention.inner.key.bias", "stack.blocks.1.self_attention.inner.key.bias"],
    )


def test_too_many_tokens_for_learned_positions():
    model = language_model("learned, layer norm")
    with pytest.raises(NextileError, match="49 tokens were given and the model has 48 positions"):
        model(tokens(1, 49))
    with pytest.raises(NextileError, match="49 tokens were asked for and the model has 48 positions"):
        model.new_cache(1, 49)


def translator(norm_place="after"):
    part = specs.Stack(
        width=WIDTH,
        depth=2,
        attention=specs.Attention(heads=4),
        feed_forward=specs.MLP(hidden=64),
        norm_place=norm_place,
    )
    decoder = part.model_copy(update={"causal": True, "cross": specs.Attention(heads=4)})
    source = specs.TokenEmbedding(vocab=VOCAB, position=specs.Sinusoidal(length=CONTEXT), scale=WIDTH**0.5)
    return lively(build(specs.EncoderDecoder(context=CONTEXT, source=source, encoder=part, decoder=decoder)))


@pytest.mark.parametrize("norm_place", ["before", "after"])
@torch.no_grad()
def test_a_decoder_with_a_memory(norm_place):
    model, source, target = translator(norm_place), tokens(2, 9), tokens(2, 7, seed=1)
    keep = torch.ones(2, 9, dtype=torch.bool)
    keep[1, 6:] = False
    whole = model(source, target, source_segments=keep)
    torch.testing.assert_close(whole[1], model(source[1:, :6], target[1:])[0], rtol=0, atol=1e-12)
    other = torch.where(keep, source, (source + 3) % VOCAB)
    assert torch.equal(model(other, target, source_segments=keep), whole)
    cache, steps = model.new_cache(2, CONTEXT), []
    cache.memory = model.encode(source, keep)
    for step in target.split(1, dim=1):
        steps.append(model.head(model.features(step, cache=cache)))
        cache.advance(1)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=0, atol=1e-12)
    changed = source.clone()
    changed[0, 0] = (changed[0, 0] + 1) % VOCAB
    assert not torch.equal(model(changed, target, source_segments=keep)[0], whole[0])


def test_a_target_needs_a_source():
    with pytest.raises(NextileError, match="give the memory of one"):
        translator().features(tokens(1, 3))


@pytest.mark.parametrize("norm_place", ["before", "after"])
@torch.no_grad()
def test_pairs_that_share_a_row_are_each_alone(norm_place):
    model, source, target = translator(norm_place), tokens(1, 12), tokens(1, 11, seed=1)
    sources, targets = torch.tensor([[1] * 5 + [2] * 4 + [0] * 3]), torch.tensor([[1] * 3 + [2] * 6 + [0] * 2])
    packed = model(source, target, source_segments=sources, target_segments=targets)
    for number in (1, 2):
        alone = model(source[sources == number][None], target[targets == number][None])
        torch.testing.assert_close(packed[targets == number], alone[0], rtol=0, atol=1e-12)
    merged = torch.where(sources == 2, 1, sources)  # control: without their borders they hear each other
    assert not torch.allclose(model(source, target, source_segments=merged, target_segments=targets), packed)


@torch.no_grad()
def test_texts_that_share_a_row_are_each_alone(shape):
    model, ids = language_model(shape), tokens(2, 20)
    segments = torch.tensor([[1] * 7 + [2] * 9 + [0] * 4, [3] * 20])
    got = model(ids, segments=segments)
    for row, number in ((0, 1), (0, 2), (1, 3)):
        there = segments[row] == number
        torch.testing.assert_close(got[row, there], model(ids[row, there][None])[0], rtol=0, atol=1e-12)


@torch.no_grad()
def test_beams_share_the_memory_of_their_source():
    model, sources, target = translator(), tokens(3, 9), tokens(6, 7, seed=1)
    keep = torch.ones(3, 9, dtype=torch.bool)
    keep[1, 6:] = False
    cache = model.new_cache(3, CONTEXT)
    cache.memory = model.encode(sources, keep)
    model.features(target[:3, :2], cache=cache)
    cache.advance(2)
    chosen = torch.tensor([2, 2, 1, 1])  # two beams each of two sources, the other source is done
    cache.select(chosen, each=2)
    assert len(cache.memory) == 2
    got = model.head(model.features(target[2:, 2:5], cache=cache))
    for row, source in enumerate(chosen.tolist()):
        text = torch.cat((target[source, :2], target[2 + row, 2:5]))[None]
        alone = model(sources[source][keep[source]][None], text)[0, 2:]
        torch.testing.assert_close(got[row], alone, rtol=0, atol=1e-12)


@torch.no_grad()
def test_cross_attention_can_be_read_per_head():
    model = translator()
    with record(model, "decoder.blocks.*.cross_attention.inner.weights") as seen:
        model(tokens(1, 9), tokens(1, 7))
    assert [tuple(weights.shape) for weights in seen.values()] == [(1, 4, 7, 9)] * 2


@torch.no_grad()
def test_the_single_row_product_of_a_compiled_step():
    from nextile.nn.linear import linear

    x, weight, bias = torch.randn(1, 1, 33), torch.randn(17, 33), torch.randn(17)
    compiled = torch.compile(linear)
    torch.testing.assert_close(compiled(x, weight, bias), torch.nn.functional.linear(x, weight, bias))
    torch.testing.assert_close(
        compiled(x.expand(2, 1, 33), weight), torch.nn.functional.linear(x.expand(2, 1, 33), weight)
    )
    whole = torch.randn(1, 5, 99)  # of which the row is a part, before and after something else was done

    def of_parts(x):
        return linear(x[:, 3:4, 33:66], weight, bias), linear((x * 2)[:, 2:3, :33].double(), weight.double())

    for got, want in zip(torch.compile(of_parts)(whole), of_parts(whole), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("length", [63, 64])
@torch.no_grad()
def test_compiled_is_eager(length):
    from nextile.models.families import gpt2

    model = lively(build(gpt2.spec(vocab=VOCAB, context=64, width=WIDTH, depth=1, heads=4)))
    ids = tokens(2, length)
    torch.testing.assert_close(torch.compile(model, dynamic=False)(ids), model(ids), rtol=0, atol=1e-10)
