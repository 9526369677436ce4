"""Pages: what they hold is what an ordinary cache holds, for every kind of block; who has them, and who may share."""

import random

import pytest
import torch
from tests.conftest import exact_rows

from nextile.generation.decode import following, padded
from nextile.models.build import build
from nextile.models.families import gpt2
from nextile.nn import specs
from nextile.nn.paged import PagedCache, Pages, Piece, bytes_a_token, chained

VOCAB, CONTEXT, PAGE = 61, 96, 4
ROTARY = specs.Rotary()
SWIGLU = specs.GatedMLP(hidden=48)


def spec_of(attention=None, embedded=None, feed_forward=SWIGLU, **stack):
    """A small language model of these parts."""
    return specs.Transformer(
        context=CONTEXT,
        embed=specs.TokenEmbedding(vocab=VOCAB, position=embedded),
        stack=specs.Stack(
            width=32, depth=3, causal=True, feed_forward=feed_forward, norm=specs.RMSNorm(),
            attention=specs.Attention(heads=4, bias="none", **(attention or {})), **stack,
        ),
        head=specs.TiedHead(),
    )  # fmt: skip


MIXED = specs.Local(window=7, pattern=(True, False))
SPECS = {
    "gpt2": gpt2.spec(vocab=VOCAB, context=CONTEXT, width=32, depth=2, heads=4),
    "learned": spec_of(embedded=specs.Learned(length=CONTEXT)),
    "sinusoidal": spec_of(embedded=specs.Sinusoidal(length=CONTEXT)),
    "rotary, grouped": spec_of({"kv_heads": 2}, position=ROTARY),
    "one key head, normed": spec_of({"kv_heads": 1, "qk_norm": specs.RMSNorm()}, position=ROTARY),
    "norm over heads": spec_of({"qk_norm": specs.RMSNorm(), "qk_norm_over": "heads"}, position=ROTARY),
    "alibi": spec_of(position=specs.Alibi()),
    "alibi, grouped": spec_of({"kv_heads": 2}, position=specs.Alibi()),
    "relative bias": spec_of(position=specs.RelativeBias(buckets=8, max_distance=20)),
    "windows": spec_of({"kv_heads": 2}, position=ROTARY, local=specs.Local(window=5)),
    "windows here and there": spec_of(position=ROTARY, local=MIXED),
    "windows and alibi": spec_of(position=specs.Alibi(), local=MIXED),
    "capped": spec_of({"soft_cap": 2.0, "kv_heads": 2}, position=ROTARY),
    "capped, windows": spec_of({"soft_cap": 2.0}, position=ROTARY, local=MIXED),
    "convolution": spec_of({"convolution": specs.ShortConvolution(taps=3)}, position=ROTARY),
    "experts": spec_of(feed_forward=specs.Experts(hidden=24, experts=4, chosen=2), position=ROTARY),
    "parallel, scalars, value embeddings": spec_of(
        position=ROTARY, order="parallel", residual_scalars=specs.ResidualScalars(),
        value_embedding=specs.ValueEmbedding(),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def model_of(spec):
    """Its weights are large enough for every token to hang on what stands before it."""
    model = build(spec).eval()
    for number, parameter in enumerate(model.parameters()):
        spread = 0.25 if parameter.dim() > 1 else 0.1
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)), alpha=spread)
    return model


def texts_of(lengths, seed=0):
    drawn = random.Random(seed)
    return [[drawn.randrange(VOCAB) for _ in range(length)] for length in lengths]


class Held:
    """Texts in pages that lie anywhere, and how far each has been read."""

    def __init__(self, model, texts, seed=0, page=PAGE):
        self.model, self.texts, self.there = model, texts, [0] * len(texts)
        self.cache = PagedCache(model.new_cache(1, 1), 400 // page, page)
        taken = [self.cache.pages.take() for _ in range(400 // page)]
        random.Random(seed).shuffle(taken)
        self.pages = [[taken.pop() for _ in range(-(-len(text) // page))] for text in texts]

    def read(self, counts):
        """So many more tokens of each text -> their logits, text by text, (count, V) each."""
        order = sorted((number for number, count in enumerate(counts) if count), key=lambda n: (counts[n] > 1, n))
        self.cache.place([Piece(self.pages[number], self.there[number], counts[number]) for number in order])
        ids = [token for n in order for token in self.texts[n][self.there[n] : self.there[n] + counts[n]]]
        logits = self.model(torch.tensor(ids)[:, None], cache=self.cache)[:, 0]  # (N, V)
        for number in order:
            self.there[number] += counts[number]
        return dict(zip(order, logits.split([counts[number] for number in order]), strict=True))


def logits_in_pages(model, texts, rounds, seed=0, page=PAGE):
    """All logits (T, V) of each text, read in so many tokens a round as `rounds` draws."""
    held, found = Held(model, texts, seed, page), [[] for _ in texts]
    while any(there < len(text) for there, text in zip(held.there, texts, strict=True)):
        counts = [min(rounds(), len(text) - there) for text, there in zip(texts, held.there, strict=True)]
        for number, logits in held.read(counts).items() if any(counts) else ():
            found[number].append(logits)
    return [torch.cat(logits) for logits in found]


def drawn_rounds(*choices, seed=0):
    drawn = random.Random(seed)
    return lambda: drawn.choice(choices)


LENGTHS = (5, 17, 33, 1, 60, 18)


@exact_rows
@pytest.mark.parametrize("name", SPECS)
def test_logits_are_those_without_a_cache(name):
    model, texts = model_of(SPECS[name]), texts_of(LENGTHS)
    for number, logits in enumerate(logits_in_pages(model, texts, drawn_rounds(0, 1, 1, 3, 8, 20))):
        torch.testing.assert_close(logits, model(torch.tensor([texts[number]]))[0], rtol=1e-5, atol=1e-5)
    changed = [[(text[0] + 1) % VOCAB, *text[1:]] for text in texts]  # the control: the first token counts everywhere
    others = logits_in_pages(model, changed, drawn_rounds(0, 1, 1, 3, 8, 20))
    assert not any(
        torch.allclose(a, b, atol=1e-2) for a, b in zip(logits_in_pages(model, texts, lambda: 5), others, strict=True)
    )


@pytest.mark.parametrize("name", SPECS)
def test_rows_of_different_lengths_are_those_of_an_ordinary_cache(name):
    model, texts = model_of(SPECS[name]), texts_of(LENGTHS)
    held = Held(model, [[*text, 7, 9] for text in texts])
    ids, counts = padded(texts)
    ordinary = model.new_cache(len(texts), CONTEXT)
    want = following(model, ids, ordinary, counts)
    got = held.read([len(text) for text in texts])
    torch.testing.assert_close(torch.stack([got[n][-1] for n in range(len(texts))]), want, rtol=1e-5, atol=1e-5)
    for token in (7, 9):
        want = following(model, torch.full((len(texts), 1), token), ordinary, 1)
        got = held.read([1] * len(texts))
        torch.testing.assert_close(torch.cat([got[n] for n in range(len(texts))]), want, rtol=1e-5, atol=1e-5)


@exact_rows
@pytest.mark.parametrize("page", [1, 3, 16, 64])
def test_any_size_of_page(page):
    model, texts = model_of(SPECS["rotary, grouped"]), texts_of((5, 33, 60))
    for number, logits in enumerate(logits_in_pages(model, texts, drawn_rounds(1, 1, 7), page=page)):
        torch.testing.assert_close(logits, model(torch.tensor([texts[number]]))[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_a_text_whose_turns_hang_on_its_length_is_read_as_one_row(name):
    scaling = {
        "dynamic": specs.DynamicScaling(factor=3.0, original=24),
        "longrope": specs.LongScaling(short=(1.0,) * 4, long=(1.5, 2.0, 2.5, 3.0), original=24),
    }[name]
    model, [text] = model_of(spec_of(position=specs.Rotary(scaling=scaling))), texts_of((40,))
    held, ordinary = Held(model, [text]), model.new_cache(1, CONTEXT)
    for count in (30, 1, 1, 8):
        ids = torch.tensor([text[held.there[0] : held.there[0] + count]])
        held.cache.place([Piece(held.pages[0], held.there[0], count)])
        got = model(ids, cache=held.cache)
        want = model(ids, cache=ordinary)
        ordinary.advance(count)
        held.there[0] += count
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_nan_of_a_text_before_is_not_read_from_its_pages():
    model, texts = model_of(SPECS["rotary, grouped"]), texts_of((5, 6, 7))
    held = Held(model, texts)
    want = held.read([len(text) for text in texts])
    again = Held(model, texts)
    for layer in again.cache.layers:
        layer.store.fill_(torch.nan)
    again.cache.clear([page for pages in again.pages for page in pages])
    again.read([len(text) - 1 for text in texts])
    got = again.read([1] * len(texts))  # in one group: the shorter ones are padded
    assert len(again.cache.slot(1).groups) == 1
    for number in want:
        torch.testing.assert_close(got[number][0], want[number][-1], rtol=1e-5, atol=1e-5)


def test_short_texts_are_looked_at_together_and_long_ones_alone():
    model = model_of(gpt2.spec(vocab=VOCAB, context=2048, width=512, depth=1, heads=4))
    cache = PagedCache(model.new_cache(1, 1), 300, 16)
    pages = list(range(128))
    cache.place([Piece(pages, there, 1) for there in (20, 21, 22, 1000, 1500)] + [Piece(pages, 0, 9)])
    groups = cache.slot(1).groups
    assert [group.last - group.first for group in groups] == [3, 1, 1, 9]
    assert groups[3].fresh
    assert groups[0].hidden is not None
    assert groups[1].hidden is None


def test_bytes_of_a_token():
    model = model_of(SPECS["rotary, grouped"])
    assert bytes_a_token(model.new_cache(1, 1)) == 3 * 2 * (2 * 8) * 4
    convolved = model_of(SPECS["convolution"])
    assert bytes_a_token(convolved.new_cache(1, 1)) == 3 * (2 * 32 + 32) * 4


# --- whose the pages are ------------------------------------------------------------------------------------------


def test_pages_are_taken_until_there_are_none_and_come_back():
    pages = Pages(3)
    taken = [pages.take() for _ in range(3)]
    assert sorted(taken) == [0, 1, 2]
    assert pages.take() is None
    pages.release(taken[:2])
    assert pages.available == 2
    assert {pages.take(), pages.take()} == set(taken[:2])


def test_a_known_page_is_shared_and_free_when_its_last_user_is_gone():
    pages, key = Pages(2), chained(b"", [1, 2])
    page = pages.take()
    assert pages.share(key) is None
    pages.know(page, key)
    assert pages.share(key) == page
    pages.release([page])
    assert pages.available == 1
    pages.release([page])
    assert pages.available == 2
    assert pages.share(key) == page  # it stays until its room is needed
    assert pages.available == 1


def test_the_least_recently_used_is_given_up_first_and_an_end_before_its_beginning():
    pages = Pages(4)
    texts = [[pages.take(), pages.take()] for _ in range(2)]
    keys = [[chained(b"", [number]), chained(b"", [number, 1])] for number in range(2)]
    for text, some in zip(texts, keys, strict=True):
        for page, key in zip(text, some, strict=True):
            pages.know(page, key)
    pages.release(texts[0])
    pages.release(texts[1])
    assert pages.share(keys[0][0]) == texts[0][0]  # used again: now the first text is the younger
    pages.release(texts[0][:1])
    assert [pages.take() for _ in range(4)] == [texts[0][1], texts[1][1], texts[1][0], texts[0][0]]
    assert pages.share(keys[0][0]) is None


def test_of_two_pages_with_the_same_tokens_the_first_stays_known():
    pages, key = Pages(2), chained(b"", [1])
    first, second = pages.take(), pages.take()
    pages.know(first, key)
    pages.know(second, key)
    pages.release([second])
    pages.release([first])
    assert pages.share(key) == first
    assert pages.take() == second


def test_keys_hang_on_all_tokens_before():
    assert chained(chained(b"", [1, 2]), [3, 4]) == chained(chained(b"", [1, 2]), [3, 4])
    assert (
        len({chained(b"", [3, 4]), chained(chained(b"", [1, 2]), [3, 4]), chained(chained(b"", [2, 1]), [3, 4])}) == 3
    )


@pytest.mark.parametrize("seed", range(3))
def test_random_taking_and_sharing_never_loses_a_page(seed):
    drawn, pages = random.Random(seed), Pages(12)
    held = []
    for _ in range(600):
        if held and drawn.random() < 0.45:
            pages.release(held.pop(drawn.randrange(len(held))))
        else:
            key = chained(b"", [drawn.randrange(8)])
            page = pages.share(key)
            page = pages.take() if page is None else page
            if page is not None:
                pages.know(page, key)
                held.append([page])
        used = {page for text in held for page in text}
        assert pages.available == 12 - len(used)
    for text in held:
        pages.release(text)
    assert pages.available == 12
    assert len({pages.take() for _ in range(12)}) == 12
