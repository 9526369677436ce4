"""Sentences in, sentences out: order kept, blank and long sources, limits, what is never written, who may translate."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from nextile.base.errors import NextileError, UsageError
from nextile.generation.beam import Beams
from nextile.generation.translate import source_ids, translate, translation_limit
from nextile.models.build import build
from nextile.models.families import gpt2
from nextile.nn import specs
from nextile.text.tokenizer import Tokenizer

CONTEXT = 24
LETTERS = "abcdefgh "
PAD, END = 0, 1
SOURCES = ["a bad cafe", "hag", "", "a faded facade", "bed", "  ", "dead beef each"]


@dataclass(frozen=True)
class Loaded:
    """What `nextile.load` returns, as far as translating goes."""

    model: Any
    tokenizer: Tokenizer
    folder: Path | None = None

    @property
    def spec(self):
        return self.model.spec


def letters():
    """A token for each letter, one that ends, and one that fills."""
    tokens = ["<pad>", "</s>", *LETTERS]
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="</s>")
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    core.decoder = tokenizers.decoders.Fuse()
    return Tokenizer(core, {"eos_token": "</s>", "pad_token": "<pad>"})


def translator(start=PAD, dropout=0.0):
    stack = specs.Stack(
        width=16, depth=2, attention=specs.Attention(heads=2), feed_forward=specs.MLP(hidden=32), dropout=dropout
    )
    spec = specs.EncoderDecoder(
        context=CONTEXT,
        start=start,
        source=specs.TokenEmbedding(vocab=len(LETTERS) + 2, position=specs.Learned(length=CONTEXT)),
        encoder=stack,
        decoder=stack.model_copy(update={"causal": True, "cross": specs.Attention(heads=2)}),
        head=specs.LinearHead(bias=True),
    )
    model = build(spec).eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            spread = 0.4 if parameter.dim() > 1 else 0.1
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)), alpha=spread)
    return Loaded(model, letters())


# --- what comes out -----------------------------------------------------------------------------------------------


def test_each_source_has_its_translations_in_its_place():
    loaded = translator()
    together = translate(loaded, SOURCES, Beams(width=3), n=3, batch=2)
    assert [[text.source for text in texts] for texts in together if len(texts) == 3] == [
        [source] * 3 for source in SOURCES if source.strip()
    ]
    for source, texts in zip(SOURCES, together, strict=True):
        [alone] = translate(loaded, [source], Beams(width=3), n=3)
        assert [text.text for text in texts] == [text.text for text in alone]
        assert [text.score for text in texts] == pytest.approx([text.score for text in alone], rel=1e-4)
        assert texts == sorted(texts, key=lambda text: -text.score)
    assert len({texts[0].text for texts in together}) > 3
    assert translate(loaded, []) == []


def test_text_tokens_and_scores_belong_together():
    loaded = translator()
    for [text] in translate(loaded, ["a bad cafe", "hag"], Beams(width=2, length_penalty=0.5)):
        assert text.text == loaded.tokenizer.decode(text.tokens) != ""
        length = len(text.tokens) + (text.finish_reason == "end")
        assert text.score == pytest.approx(text.logprob / length**0.5)
        assert text.note is None


def test_a_blank_source_is_a_blank_translation_and_the_model_is_not_asked():
    loaded = translator()
    loaded.model.encode = None
    [[blank], [space]] = translate(loaded, ["", " \n"], n=2)
    assert (blank.text, blank.tokens, blank.score, blank.logprob, blank.finish_reason) == ("", [], 0.0, 0.0, "end")
    assert space.source == " \n"
    with pytest.raises(TypeError):
        translate(loaded, ["a"])


def test_of_a_source_beyond_the_context_the_beginning_is_translated():
    loaded, long = translator(), "bad" * 20
    [[text], [same], [other]] = translate(loaded, [long, long[: CONTEXT - 1], long[1:]])
    assert text.note == "the source has 61 tokens and the model reads 24: its last 37 were left out"
    assert text.source == long
    assert (text.text, text.score) == (same.text, pytest.approx(same.score, rel=1e-4))
    assert same.note is None
    assert other.score != pytest.approx(text.score, rel=1e-4)


# --- limits and what is not written -------------------------------------------------------------------------------


def test_the_default_limit_follows_from_the_source():
    assert translation_limit(source_tokens=10, context=512) == 36
    assert translation_limit(source_tokens=300, context=512) == 511
    assert translation_limit(source_tokens=10, context=512, max_tokens=7) == 7
    assert translation_limit(source_tokens=10, context=32, max_tokens=70) == 31
    assert translation_limit(source_tokens=1, context=1) == 1


def unending(loaded):
    """The same, with an end token that it never takes."""
    with torch.no_grad():
        loaded.model.head.bias[END] = -1e9
    return loaded


def test_a_translation_without_end_has_the_limits_length():
    loaded = unending(translator())
    lengths = [len(text.tokens) for [text] in translate(loaded, ["a", "abcdefgh"])]
    assert lengths == [20, CONTEXT - 1]
    [[short]] = translate(loaded, ["a"], max_tokens=4)
    assert (len(short.tokens), short.finish_reason) == (4, "length")


@pytest.mark.parametrize("start", [PAD, END, 5])
def test_neither_padding_nor_the_start_is_written(start):
    loaded = translator(start)
    favoured = {PAD, 5}
    with torch.no_grad():
        loaded.model.head.bias[list(favoured)] = 20.0
    tokens = {token for [text] in translate(loaded, ["a bad cafe", "hag"]) for token in text.tokens}
    assert tokens & favoured == favoured - {PAD, start}


def test_a_start_that_is_the_end_token_may_end():
    loaded = translator(END)
    with torch.no_grad():
        loaded.model.head.bias[END] = 20.0
    [[text]] = translate(loaded, ["hag"])
    assert (text.text, text.finish_reason) == ("", "end")


def test_a_source_is_its_tokens_and_the_end():
    assert source_ids(letters(), "ab") == [2, 3, END]


def test_dropout_rests_while_translating_and_comes_back():
    loaded = translator(dropout=0.5)
    calm = translate(loaded, SOURCES)
    loaded.model.train()
    assert translate(loaded, SOURCES) == calm
    assert loaded.model.training


# --- errors -------------------------------------------------------------------------------------------------------


def test_a_language_model_does_not_translate():
    model = build(gpt2.spec(vocab=11, context=8, width=8, depth=1, heads=1))
    with pytest.raises(UsageError, match=r"'runs/a' is a language model, not a translator: use nextile generate"):
        translate(Loaded(model, letters(), Path("runs/a")), ["a"])
    with pytest.raises(UsageError, match="this is a language model"):
        translate(Loaded(model, letters()), [])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_tokens": 0}, "max_tokens is 0: ask for at least 1"), ({"n": 6}, "n is 6 and the beams are 5 wide")],
)
def test_bad_requests(options, message):
    with pytest.raises(UsageError, match=message):
        translate(translator(), ["a"], **options)


def test_a_tokenizer_of_another_model_is_named():
    loaded = translator()
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({"</s>": 99, "a": 0}, unk_token="</s>"))
    with pytest.raises(NextileError, match=r"source 0 has an id outside 0\.\.10"):
        translate(Loaded(loaded.model, Tokenizer(core, {"eos_token": "</s>"})), ["a"])
