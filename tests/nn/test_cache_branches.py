"""Texts that share a row of a cache, as beams do, go on as if each were alone, and no key of theirs moves."""

import pytest
import torch

from nextile.models.build import build
from nextile.nn import specs
from nextile.nn.cache import Cache, KeyValues

VOCAB, CONTEXT = 40, 16
EARLIER = [[0, 0, 0], [2, 0, 2], [1, 1, 1], [0, 2, 1]]  # which text each goes on with, step by step

POSITIONS = {
    "learned": ({"position": specs.Learned(length=CONTEXT)}, {}),
    "rotary": ({}, {"position": specs.Rotary()}),
    "relative bias": ({}, {"position": specs.RelativeBias(buckets=8, max_distance=20)}),
    "local": ({}, {"position": specs.Rotary(), "local": specs.Local(window=3, pattern=(True, False))}),
}


@pytest.fixture(params=POSITIONS)
def model(request):
    embed, stack = POSITIONS[request.param]
    made = build(
        specs.Transformer(
            context=CONTEXT,
            embed=specs.TokenEmbedding(vocab=VOCAB, **embed),
            stack=specs.Stack(
                width=32,
                depth=2,
                causal=True,
                attention=specs.Attention(heads=4),
                feed_forward=specs.MLP(hidden=64),
                **stack,
            ),
            head=specs.TiedHead(),
        )
    )
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(number))
    return made.double().eval()


@torch.no_grad()
def branched(model, lengths):
    """Prompts of these lengths, three texts on each: (the cache, what was said last (B, W, V), the whole texts)."""
    prompts = torch.arange(8).view(2, 4) + 3
    cache = model.new_cache(2, CONTEXT)
    model(prompts, cache=cache)
    cache.advance(torch.tensor(lengths))
    texts = [[prompts[row, :length].tolist()] for row, length in enumerate(lengths)]
    said = torch.empty(0)
    for step, earlier in enumerate(EARLIER):
        width = len(texts[0])
        cache.branch(torch.tensor([row * width + text for row in range(2) for text in earlier]), each=3)
        texts = [[[*texts[row][text], step * 7 + row * 3 + i] for i, text in enumerate(earlier)] for row in range(2)]
        said = model(torch.tensor([[text[-1] for text in row] for row in texts]), cache=cache)
        cache.advance(1)
    return cache, said, texts


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[4, 4], [4, 2]], ids=["even", "uneven"])
def test_texts_that_share_a_row_are_each_alone(model, lengths):
    _, said, texts = branched(model, lengths)
    for row in range(2):
        for got, text in zip(said[row], texts[row], strict=True):
            torch.testing.assert_close(got, model(torch.tensor([text]))[0, -1], rtol=0, atol=1e-12)
    assert not torch.allclose(said[0, 0], said[0, 1])


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[4, 4], [4, 2]], ids=["even", "uneven"])
def test_a_row_that_is_done_is_replaced_by_the_last_with_all_its_texts(model, lengths):
    cache, _, texts = branched(model, lengths)
    where = cache.layers[0].keys.data_ptr()
    cache.branch(torch.tensor([5, 3, 3]), each=3)  # the first row is done
    assert cache.layers[0].keys.data_ptr() == where
    said = model(torch.tensor([[9, 8, 7]]), cache=cache)[0]
    for got, text, token in zip(said, (2, 0, 0), (9, 8, 7), strict=True):
        torch.testing.assert_close(got, model(torch.tensor([[*texts[1][text], token]]))[0, -1], rtol=0, atol=1e-12)


def test_no_key_moves_while_all_rows_go_on(model):
    cache, _, _ = branched(model, [4, 4])
    before = cache.layers[1].keys.clone()
    cache.branch(torch.tensor([2, 1, 0, 4, 4, 4]), each=3)
    used = cache.branches.seen.shape[2]
    assert used == 4 + 3 * len(EARLIER)
    assert torch.equal(cache.layers[1].keys[:, :, :used], before[:, :, :used])


def test_texts_that_a_convolution_reads_keep_rows_of_their_own():
    layer = KeyValues(*(torch.randn(2, 1, 4, 3) for _ in range(3)))
    cache = Cache([layer], torch.zeros(2, dtype=torch.long))
    cache.advance(1)
    cache.branch(torch.tensor([1, 1, 0, 0]), each=2)
    assert cache.branches is None
    assert len(cache.lengths) == 4
