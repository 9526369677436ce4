"""Gaps are filled: the surest mask first, each fill seen by the next, spans by their sentinels, all else unchanged."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import nextile
from nextile.base.errors import NextileError, UsageError
from nextile.generation import fill as filling
from nextile.generation.beam import Beams, Hypothesis, beam_search
from nextile.generation.fill import fill, fill_spans
from nextile.generation.sample import Sampling
from nextile.models.build import build
from nextile.models.families import bidirectional, modern
from nextile.text.build import train_tokenizer
from nextile.text.masks import for_masks, for_spans, sentinels_of
from nextile.text.pairs import start_of
from nextile.text.tokenizer import Tokenizer

LETTERS = "abcdefgh "
GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True)
class Loaded:
    """What `nextile.load` returns, as far as filling goes."""

    model: Any
    tokenizer: Tokenizer
    folder: None = None

    @property
    def spec(self):
        return self.model.spec


def masks(kind="char", texts=(LETTERS,), size=300):
    return for_masks(train_tokenizer(kind, size, texts))


class Stub(nn.Module):
    """A masked model of a rule, which gives each place of a row some scores; it remembers the rows that it saw."""

    def __init__(self, tokenizer, rule, context=64):
        super().__init__()
        self.spec = bidirectional.spec(vocab=tokenizer.vocab_size, context=context, width=8, depth=1, heads=1)
        self.weight = nn.Parameter(torch.zeros(1))
        self.rule, self.seen = rule, []

    def forward(self, ids):
        [row] = ids.tolist()
        self.seen.append(row)
        logits = torch.zeros(1, len(row), self.spec.embed.vocab)
        for place in range(len(row)):
            for token, score in self.rule(row, place).items():
                logits[0, place, token] = score
        return logits


def stub(rule, tokenizer=None, context=64):
    tokenizer = tokenizer or masks()
    return Loaded(Stub(tokenizer, rule, context), tokenizer)


def always(text, tokenizer, score=9.0):
    """The first token of a text, everywhere."""
    token = tokenizer.encode(text)[0]
    return lambda row, place: {token: score}


def filled(loaded, text, sampling=GREEDY, **more):
    [found] = fill(loaded, [text], sampling, **more)
    return [completion.text for completion in found]


# --- masks: which, in what order, by what ---------------------------------------------------------------------------


def test_each_fill_is_seen_by_the_next_and_the_surest_comes_first():
    tokenizer = masks()
    letters = tokenizer.encode("abcdefgh")

    def follower(row, place):  # the letter after the one at the left, where there is one
        left = row[place - 1]
        return {letters[letters.index(left) + 1]: 9.0} if left in letters[:-1] else {letters[0]: 1.0}

    loaded = stub(follower, tokenizer)
    assert filled(loaded, "a[MASK][MASK][MASK] c[MASK]") == ["abcd cd"]
    hidden = [[place for place, token in enumerate(row) if token == tokenizer.mask_id] for row in loaded.model.seen]
    assert hidden == [[1, 2, 3, 6], [2, 3, 6], [3, 6], [6]]


def test_the_order_is_that_of_certainty():
    tokenizer = masks()
    strength = {0: 2.0, 2: 9.0, 3: 5.0}
    loaded = stub(lambda row, place: {tokenizer.encode("h")[0]: strength.get(place, 0.0)}, tokenizer)
    assert filled(loaded, "[MASK]a[MASK][MASK]") == ["hahh"]
    assert [row.count(tokenizer.mask_id) for row in loaded.model.seen] == [3, 2, 1]
    assert [row[2] == tokenizer.mask_id for row in loaded.model.seen] == [True, False, False]
    assert loaded.model.seen[2][0] == tokenizer.mask_id  # the least certain is left to the end


@pytest.mark.parametrize("kind", ["char", "word", "byte", "bpe"])
@pytest.mark.parametrize("text", ["[MASK]", "[MASK]x", "naïve\n\n[MASK], zwölf  ☃[MASK][MASK] \t", "[MASK][MASK] [m"])
def test_each_mask_is_one_token_and_nothing_else_changes(kind, text):
    """Also what the model does not know: here everything beside the letters is unknown to characters and words."""
    tokenizer = masks(kind, LETTERS)
    loaded = stub(always("a", tokenizer), tokenizer)
    [[found]] = fill(loaded, [text], GREEDY)
    assert found.text == text.replace("[MASK]", "a")
    assert found.prompt == text
    assert found.tokens == tokenizer.encode("a") * text.count("[MASK]")


def test_two_fills_may_make_one_character():
    tokenizer = masks("byte")
    first, second = tokenizer.encode("é")
    loaded = stub(lambda row, place: {first if place == 3 else second: 9.0}, tokenizer)
    assert filled(loaded, "caf[MASK][MASK]!") == ["café!"]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, seed=0)])
def test_never_a_special_token_nor_an_id_that_is_no_token(sampling):
    tokenizer = masks()
    none = dict.fromkeys(tokenizer.special_ids, 50.0) | {tokenizer.vocab_size: 99.0}
    loaded = stub(lambda row, place: none, tokenizer)
    loaded.model.spec = bidirectional.spec(vocab=tokenizer.vocab_size + 5, context=64, width=8, depth=1, heads=1)
    for text in filled(loaded, "a[MASK]" * 8, sampling, n=5):
        assert len(text) == 16
        assert set(text) <= set(LETTERS)


def test_the_tokens_that_begin_and_end_a_text_are_there_where_the_model_knows_such():
    plain = masks()
    core, [a] = plain.core, plain.encode("a")
    loaded = stub(always("b", plain), plain)
    filled(loaded, "a[MASK]")
    assert loaded.model.seen == [[a, plain.mask_id]]
    begun = Tokenizer(core, {**plain.config, "cls_token": "h"})
    loaded = stub(always("b", begun), begun)
    assert filled(loaded, "a[MASK]") == ["ab"]
    assert loaded.model.seen == [[begun.begin_id, a, begun.mask_id, begun.end_id]]


def test_where_words_carry_their_space_a_gap_takes_it():
    tokenizer = masks("bpe", ["the quick brown fox jumps over the lazy dog"] * 9)
    loaded = stub(always(" brown", tokenizer), tokenizer)
    assert len(tokenizer.encode(" brown")) == 1
    assert filled(loaded, "the quick [MASK] fox") == ["the quick brown fox"]
    around = [*tokenizer.encode("the quick"), tokenizer.mask_id, *tokenizer.encode(" fox")]
    assert loaded.model.seen == [around]
    assert filled(loaded, "the  [MASK]") == ["the  brown"]
    letters = masks("char", ["the quick brown fox"])
    loaded = stub(always("b", letters), letters)
    assert filled(loaded, "the [MASK] fox") == ["the b fox"]


# --- drawing ----------------------------------------------------------------------------------------------------------


def uniform(tokenizer=None):
    """A model that knows nothing."""
    return stub(lambda row, place: {}, tokenizer)


def test_a_seed_gives_the_same_and_another_another():
    text, loaded = "[MASK]" * 8, uniform()
    first = filled(loaded, text, Sampling(temperature=1.0, seed=3), n=4)
    assert filled(loaded, text, Sampling(temperature=1.0, seed=3), n=4) == first
    assert len(set(first)) == 4
    assert not set(filled(loaded, text, Sampling(temperature=1.0, seed=4), n=4)) & set(first)
    assert filled(loaded, text, Sampling(temperature=1.0)) != filled(loaded, text, Sampling(temperature=1.0))


def test_without_temperature_nothing_is_drawn():
    tokenizer = masks()
    loaded = stub(lambda row, place: {token: 0.01 * token for token in range(tokenizer.vocab_size)}, tokenizer)
    assert len(set(filled(loaded, "a[MASK][MASK]", GREEDY, n=3))) == 1
    assert filled(loaded, "a[MASK][MASK]", GREEDY.model_copy(update={"seed": 5})) == filled(loaded, "a[MASK][MASK]")


def test_top_k_is_among_the_likeliest():
    tokenizer = masks()
    a, b = tokenizer.encode("ab")
    loaded = stub(lambda row, place: {a: 1.0, b: 1.0}, tokenizer)
    texts = filled(loaded, "[MASK]" * 20, Sampling(temperature=3.0, top_k=2, seed=0))
    assert set("".join(texts)) == {"a", "b"}


def test_a_text_does_not_depend_on_those_beside_it():
    tokenizer, sampling = masks(), Sampling(temperature=1.0, seed=1)
    model = build(bidirectional.spec(vocab=tokenizer.vocab_size, context=32, width=16, depth=1, heads=2, dropout=0.5))
    model.train()
    loaded = Loaded(model, tokenizer)
    [first, second] = fill(loaded, ["a[MASK]", "[MASK]b[MASK][MASK]"], sampling, n=2)
    assert fill(loaded, ["a[MASK]", "gg[MASK]"], sampling, n=2)[0] == first
    assert fill(loaded, ["[MASK]", "[MASK]b[MASK][MASK]"], sampling, n=2)[1] == second
    assert model.training  # dropout rests while gaps are filled, and comes back
    assert fill(loaded, [], sampling) == []


# --- masks: what goes wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abc", r"'abc' has nothing to fill: write \[MASK\] where a token is missing"),
        ("", r"'' has nothing to fill"),
        ("a\x1b[2J", r"'a\\x1b\[2J' has nothing to fill"),
        ("a" * 9 + "[MASK]", "the text has 10 tokens and the model reads 9: shorten it"),
        ("\ud800[MASK]", "surrogate"),
    ],
)
def test_texts_that_cannot_be_filled(text, message):
    loaded = stub(always("a", masks()), context=9)
    assert filled(loaded, "a" * 8 + "[MASK]") == ["a" * 9]
    with pytest.raises(NextileError, match=message) as problem:
        fill(loaded, ["[MASK]", text], GREEDY)
    assert "\n" not in str(problem.value)


def test_no_text_is_asked_for():
    with pytest.raises(UsageError, match="n is 0: ask for at least 1 text"):
        fill(uniform(), ["[MASK]"], GREEDY, n=0)


def test_a_tokenizer_without_a_mask_or_of_another_model_is_one_line():
    tokenizer = masks()
    with pytest.raises(NextileError, match="the tokenizer has no mask token"):
        fill(stub(None, train_tokenizer("char", 300, [LETTERS])), ["[MASK]"], GREEDY)
    loaded = Loaded(uniform(masks("char", ["ab"])).model, tokenizer)
    with pytest.raises(NextileError, match=r"an id outside 0\.\.\d+: its tokenizer is of another model"):
        fill(loaded, ["a[MASK]"], GREEDY)


@pytest.mark.parametrize("score", [math.nan, math.inf])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, seed=0)])
def test_what_is_no_number_is_not_drawn_from(score, sampling):
    tokenizer = masks()
    with pytest.raises(NextileError, match="the model predicts NaN or infinity"):
        fill(stub(always("a", tokenizer, score), tokenizer), ["[MASK]"], sampling)


# --- masks: as in transformers ----------------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "quick", "fox", "##es", "jump", "##ed", "cafe", "dog"]


@pytest.fixture
def bert(tmp_path):
    """The folder that transformers writes of a random BERT, whose embedding has room for more tokens than there are."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS) + 3, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16,
    )  # fmt: skip
    theirs = transformers.BertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=1.0 if parameter.dim() > 1 else 0.1)
    theirs.save_pretrained(tmp_path)
    transformers.BertTokenizerFast(vocab={word: index for index, word in enumerate(WORDS)}).save_pretrained(tmp_path)
    return theirs, tmp_path


def test_a_mask_is_filled_with_the_likeliest_word_of_transformers(bert):
    theirs, folder = bert
    ours, tokenizer = nextile.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    found, texts = (
        set(),
        ["the [MASK] jumped", "[MASK] foxes", "the quick [MASK]", "dog the fox [MASK]", "zebra [MASK]"],
    )
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt")
        place = inputs.input_ids[0].tolist().index(tokenizer.mask_token_id)
        with torch.no_grad():
            wanted = int(theirs(**inputs).logits[0, place, 5 : len(WORDS)].argmax()) + 5
        completion = ours.generate(text, details=True)
        assert completion.tokens == [wanted]
        row = inputs.input_ids[0].clone()
        row[place] = wanted
        assert completion.text == tokenizer.decode(row, skip_special_tokens=True)
        found.add(wanted)
    assert len(found) > 1


# --- spans: a target is put into the gaps -----------------------------------------------------------------------------


def denoiser(kind="char", texts=(LETTERS,), context=64, seed=0):
    """A random encoder-decoder, whose weights are large enough for the source to count."""
    tokenizer = for_spans(train_tokenizer(kind, 300, texts))
    spec = modern.spec(
        vocab=tokenizer.vocab_size, context=context, width=16, depth=1, heads=2, start=start_of(tokenizer), dropout=0.3
    )
    model = build(spec, seed=seed)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(noise, alpha=0.5 if parameter.dim() > 1 else 0.0)
    return Loaded(model, tokenizer)


@pytest.fixture
def written(monkeypatch):
    """Fill a text by a target that is given, "<0>" in it a sentinel; returns it and the source that was read."""

    def write(text, target, loaded):
        sentinels, encode, read = sentinels_of(loaded.tokenizer), loaded.tokenizer.encode, []
        before, *spans = target.split("<")
        tokens = encode(before)
        for number, _, span in (span.partition(">") for span in spans):
            tokens += [sentinels[int(number)], *encode(span)]
        monkeypatch.setattr(filling, "SourceReader", lambda model, sources, capacity: read.extend(sources))
        monkeypatch.setattr(filling, "beam_search", lambda *_, **__: [[Hypothesis(tokens, -0.5, -2.0, "end")]])
        [[found]] = fill_spans(loaded, [text], Beams())
        assert (found.prompt, found.tokens, found.score, found.finish_reason) == (text, tokens, -0.5, "end")
        return found.text, read[0]

    return write


@pytest.mark.parametrize(
    ("text", "target", "wanted"),
    [
        ("a[MASK]b[MASK]c", "<0>ff<1>g", "affbgc"),
        ("a[MASK]b[MASK]c", "<1>g<0>ff", "affbgc"),  # in any order
        ("a[MASK]b[MASK]c", "<1>g", "abgc"),  # one is missing
        ("a[MASK]b[MASK]c", "", "abc"),
        ("a[MASK]b", "hh<0>f", "afb"),  # what comes before the first
        ("a[MASK]b", "<0>f<0>gg", "afb"),  # the first counts
        ("a[MASK]b", "<0>f<7>gg<1>h", "afb"),  # gaps that are none
        ("[MASK][MASK]", "<0>a<1>b", "ab"),
        ("ab", "<0>cd<1>e", "abcd"),  # no gap: it goes on
        ("", "<0>cd", "cd"),
        ("naïve [MASK]\n☃", "<0>a", "naïve a\n☃"),  # what the model does not know stays
    ],
)
def test_a_target_is_parsed_into_the_gaps(written, text, target, wanted):
    assert written(text, target, denoiser())[0] == wanted


def test_the_source_has_a_sentinel_in_each_gap_and_its_end(written):
    loaded = denoiser()
    tokenizer = loaded.tokenizer
    first, second = sentinels_of(tokenizer)[:2]
    a, b, c = tokenizer.encode("abc")
    assert written("a[MASK]b[MASK]c", "", loaded)[1] == [a, first, b, second, c, tokenizer.end_id]
    assert written("ab", "", loaded)[1] == [a, b, first, tokenizer.end_id]


def test_a_span_takes_the_space_before_it_where_words_carry_it(written):
    loaded = denoiser("bpe", ["the quick brown fox jumps over the lazy dog"] * 9)
    text, source = written("the [MASK] fox", "<0> quick brown", loaded)
    assert text == "the quick brown fox"
    encode = loaded.tokenizer.encode
    assert source == [*encode("the"), sentinels_of(loaded.tokenizer)[0], *encode(" fox"), loaded.tokenizer.end_id]


# --- spans: sought by beams -------------------------------------------------------------------------------------------


def test_the_best_come_first_and_neither_order_nor_company_matters():
    loaded = denoiser()
    texts = ["a[MASK]b", "hag", "[MASK] bad [MASK] cafe[MASK]", "dead beef"]
    loaded.model.train()
    together = fill_spans(loaded, texts, Beams(width=4), n=3, max_tokens=12)
    assert loaded.model.training  # without dropout meanwhile
    for text, bests in zip(texts, together, strict=True):
        [alone] = fill_spans(loaded, [text], Beams(width=4), n=3, max_tokens=12)
        assert [best.text for best in alone] == [best.text for best in bests]
        assert [best.score for best in bests] == pytest.approx([best.score for best in alone], abs=1e-5)
        assert [best.score for best in bests] == sorted((best.score for best in bests), reverse=True)
        assert len({tuple(best.tokens) for best in bests}) == 3
        assert all(len(best.tokens) <= 12 for best in bests)
    assert len({bests[0].text for bests in together}) == 4
    assert fill_spans(loaded, [], Beams()) == []


def test_a_gap_that_is_not_there_ends_a_target(monkeypatch):
    loaded, asked = denoiser(), {}
    sentinels = list(sentinels_of(loaded.tokenizer))

    def seek(reader, prompts, beams, *, end_ids, never, **rest):
        asked[len(prompts)] = set(end_ids), set(never)
        return beam_search(reader, prompts, beams, end_ids=end_ids, never=never, **rest)

    monkeypatch.setattr(filling, "beam_search", seek)
    with torch.no_grad():  # sentinels are often the likeliest
        loaded.model.source.token.weight[sentinels] *= 4.0
    found = fill_spans(loaded, ["a[MASK]b", "[MASK]a[MASK]", "hag"], Beams(width=4), n=4, max_tokens=12)
    assert found[0][0].finish_reason == "end"
    for texts, gaps in ((2, 1), (1, 2)):
        ends, never = asked[texts]
        assert ends == {loaded.tokenizer.end_id, sentinels[gaps]}
        assert never & set(sentinels) == set(sentinels[gaps + 1 :])
    for bests, gaps in zip(found, (1, 2, 1), strict=True):
        assert not {token for best in bests for token in best.tokens} & set(sentinels[gaps:])


def test_padding_and_what_begins_a_target_are_never_written():
    loaded = denoiser()
    silent = {loaded.tokenizer.pad_id, loaded.tokenizer.unknown_id, loaded.spec.start} - {loaded.tokenizer.end_id}
    assert silent
    with torch.no_grad():  # the likeliest, if they had a chance
        loaded.model.source.token.weight[sorted(silent)] *= 50.0
    [found] = fill_spans(loaded, ["a[MASK]"], Beams(width=4), n=4, max_tokens=20)
    assert not {token for best in found for token in best.tokens} & silent


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("[MASK]" * 101, {}, "a text has 101 gaps and the model knows 100: leave fewer"),
        ("a" * 63, {}, "the text has 65 tokens and the model reads 64: shorten it"),
        ("a", {"n": 6}, "n is 6 and the beams are 5 wide"),
        ("a", {"n": 0}, "n is 0"),
        ("a", {"max_tokens": 0}, "max_tokens is 0: ask for at least 1"),
    ],
)
def test_what_cannot_be_written(text, options, message):
    with pytest.raises(NextileError, match=message) as problem:
        fill_spans(denoiser(), [text], Beams(), **options)
    assert "\n" not in str(problem.value)


def test_a_denoiser_that_is_broken_or_of_another_tokenizer_is_one_line():
    loaded = denoiser()
    with pytest.raises(NextileError, match=r"source 0 has an id outside 0\.\.\d+: its tokenizer is of another model"):
        fill_spans(Loaded(loaded.model, denoiser(texts=map(chr, range(300))).tokenizer), ["h"], Beams())
    with torch.no_grad():
        loaded.model.source.token.weight.fill_(math.nan)
    with pytest.raises(NextileError, match="the model predicts NaN or infinity"):
        fill_spans(loaded, ["a"], Beams())
