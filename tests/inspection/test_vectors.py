"""Word vectors of every kind of model: whose rows they are, how tokens are shown, and words in pieces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.pretrained import Pretrained
from nextile.checkpoint.word2vec import WordTable, write_vectors
from nextile.inspection.neighbours import near
from nextile.inspection.vectors import Lookup, open_vectors, unit, word_vectors
from nextile.models.build import build
from nextile.nn import specs
from nextile.text.bpe import train_bpe
from nextile.text.characters import byte_tokenizer, train_characters, train_words
from nextile.text.lexicon import train_lexicon
from nextile.text.tokenizer import Tokenizer

TEXT = "the red cat and the old cat, and the red hat: New York is new " * 20
STACK = specs.Stack(width=8, depth=1, attention=specs.Attention(heads=2), feed_forward=specs.MLP(hidden=8))


def transformer(vocab: int, head: Any = None) -> specs.Transformer:
    embed = specs.TokenEmbedding(vocab=vocab)
    return specs.Transformer(context=8, embed=embed, stack=STACK, head=head or specs.TiedHead())


def translator(vocab: int) -> specs.EncoderDecoder:
    embed = specs.TokenEmbedding(vocab=vocab)
    decoder = STACK.model_copy(update={"cross": specs.Attention(heads=2), "causal": True})
    return specs.EncoderDecoder(
        context=8, source=embed, encoder=STACK, target=embed, decoder=decoder, head=specs.LinearHead()
    )


def pretrained(spec: Any, tokenizer: Tokenizer) -> Pretrained:
    """The model of a spec, all of its numbers different."""
    model = build(spec)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return Pretrained(model, tokenizer, spec, "nextile")


@pytest.fixture(scope="module")
def whole() -> Tokenizer:
    return train_words([TEXT], 40)


@pytest.fixture(scope="module")
def pieces() -> Tokenizer:
    return train_bpe([TEXT], 280)


def row(lookup: Lookup, tokenizer: Tokenizer, matrix: torch.Tensor, word: str, text: str) -> bool:
    """Whether a word has the row of the one token that a text is."""
    (index,) = tokenizer.encode(text)
    return np.array_equal(lookup.vector(word), matrix[index].detach().numpy())


# --- whose rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "read", "written"),
    [
        (transformer, "embed.token.weight", "embed.token.weight"),
        (lambda vocab: transformer(vocab, specs.LinearHead()), "embed.token.weight", "head.weight"),
        (translator, "source.token.weight", "head.weight"),
        (lambda vocab: specs.CBOW(vocab=vocab, width=8), "words_in.weight", "words_out.weight"),
        (lambda vocab: specs.SkipGram(vocab=vocab, width=8), "words_in.weight", "words_out.weight"),
    ],
)
def test_a_word_has_its_own_row_of_either_side(whole, make, read, written):
    model = pretrained(make(whole.vocab_size), whole)
    matrices = dict(model.model.named_parameters())
    for word in ("cat", "York", ","):
        assert row(word_vectors(model), whole, matrices[read], word, word)
        assert row(word_vectors(model, "output"), whole, matrices[written], word, word)
        assert not row(word_vectors(model), whole, matrices[read], word, "hat")


def test_a_matrix_may_have_more_rows_than_there_are_tokens_or_fewer(whole):
    for vocab in (whole.vocab_size + 7, 5):
        lookup = word_vectors(pretrained(transformer(vocab), whole))
        assert len(lookup.table) == len(whole_words(whole, vocab))
        assert lookup.table.dim == 8


def whole_words(tokenizer: Tokenizer, most: int = 1 << 20) -> list[str]:
    tokens = [tokenizer.token(index) for index in range(min(tokenizer.vocab_size, most))]
    return [token for index, token in enumerate(tokens) if token.strip() and index not in tokenizer.special_ids]


def test_bfloat16_becomes_float32(whole):
    model = pretrained(transformer(whole.vocab_size), whole)
    model.model.to(torch.bfloat16)
    assert word_vectors(model).table.vectors.dtype == np.float32


# --- how tokens are shown -------------------------------------------------------------------------------------------


def test_the_words_of_a_word_model_are_in_its_order_without_space_and_special_tokens(whole):
    words = word_vectors(pretrained(transformer(whole.vocab_size), whole)).table.words
    assert list(words) == whole_words(whole)
    assert words[0] == "the"
    assert not {"<|endoftext|>", "<unk>", " "} & set(words)


def test_the_words_of_a_lexicon_are_found_in_any_letters():
    lexicon = train_lexicon([TEXT], least=5)
    lookup = word_vectors(pretrained(specs.CBOW(vocab=lexicon.vocab_size, width=8), lexicon))
    assert lookup.table.words[0] == "the"
    assert set(lookup.table.words) == {"the", "cat", "and", "red", "hat", "old", "new", "york", "is"}
    assert np.array_equal(lookup.vector("York"), lookup.vector("york"))
    assert not np.array_equal(lookup.vector("York"), lookup.vector("new"))
    assert "york" not in dict(near(lookup, "York", 99))
    with pytest.raises(NextileError, match="'New York' is not among"):
        lookup.vector("New York")


def test_pieces_show_whether_they_begin_a_word(pieces):
    lookup = word_vectors(pretrained(transformer(pieces.vocab_size), pieces))
    matrix = lookup_matrix(pieces)
    assert {"the", "cat", "##t", "##,"} <= set(lookup.table.words)
    assert row(lookup, pieces, matrix, "cat", " cat")
    assert row(lookup, pieces, matrix, "##t", "t")
    assert all(word.isprintable() and " " not in word for word in lookup.table.words)
    assert "" not in lookup.table.words
    assert "##" not in lookup.table.words


def lookup_matrix(tokenizer: Tokenizer) -> torch.Tensor:
    return pretrained(transformer(tokenizer.vocab_size), tokenizer).model.embed.token.weight  # pyright: ignore


def test_characters_and_bytes_are_shown_as_they_are():
    for tokenizer in (train_characters([TEXT]), byte_tokenizer()):
        words = word_vectors(pretrained(transformer(tokenizer.vocab_size), tokenizer)).table.words
        assert {"a", "N", ","} <= set(words)
        assert all(len(word) == 1 and word.isprintable() for word in words)


def test_wordpieces_and_sentencepieces_are_shown_alike():
    vocabulary = {"[UNK]": 0, "[SEP]": 1, "un": 2, "##able": 3}
    core = tokenizers.Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    bert = Tokenizer(core, {"sep_token": "[SEP]", "unk_token": "[UNK]"})
    core = tokenizers.Tokenizer(
        models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("▁un", -1.0), ("able", -1.0)], unk_id=0)
    )
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    marian = Tokenizer(core, {"eos_token": "</s>", "unk_token": "<unk>"})
    for tokenizer in (bert, marian):
        lookup = word_vectors(pretrained(transformer(4), tokenizer))
        assert lookup.table.words == ("un", "##able")
        assert np.allclose(lookup.vector("unable"), lookup.table.vectors.mean(axis=0))


# --- words that are no row ------------------------------------------------------------------------------------------


def test_a_word_in_pieces_is_the_mean_of_theirs(pieces):
    lookup, matrix = word_vectors(pretrained(transformer(pieces.vocab_size), pieces)), lookup_matrix(pieces)
    ids = pieces.encode(" hatred")
    assert len(ids) > 1
    assert "hatred" not in lookup.table.words
    assert np.allclose(lookup.vector("hatred"), matrix[ids].detach().numpy().mean(axis=0))
    assert not np.allclose(lookup.vector("hatred"), matrix[pieces.encode("hatred")].detach().numpy().mean(axis=0))


def test_an_unknown_word_is_an_error_with_those_spelled_alike(whole):
    lookup = word_vectors(pretrained(transformer(whole.vocab_size), whole))
    for word, said in (
        ("catt", "did you mean 'cat'"),
        ("New York", "'New York' is not among"),
        ("", "'' is not among"),
    ):
        with pytest.raises(NextileError) as caught:
            lookup.vector(word)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    characters = train_characters([TEXT])
    with pytest.raises(NextileError, match="'caß' is not"):
        word_vectors(pretrained(transformer(characters.vocab_size), characters)).vector("caß")


def test_a_model_that_reads_pictures_is_wrong_use(whole):
    embed = specs.PatchEmbedding(image=4, patch=2)
    spec = specs.VisionTransformer(embed=embed, stack=STACK, head=specs.MeanHead(classes=("a", "b")))
    with pytest.raises(UsageError, match="has no word vectors"):
        word_vectors(Pretrained(build(spec), whole, spec, "nextile"))


def test_the_unit_of_nothing_is_nothing():
    assert unit(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)).tolist() == [[np.float32(0.6), np.float32(0.8)], [0, 0]]


# --- from anywhere --------------------------------------------------------------------------------------------------


def test_a_folder_and_a_file_of_it_are_the_same(tmp_path, whole):
    pretrained(transformer(whole.vocab_size), whole).save(tmp_path / "model.txt")  # a folder, whatever it is called
    lookup = open_vectors(tmp_path / "model.txt")
    write_vectors(tmp_path / "x.bin", lookup.table)
    again = open_vectors(str(tmp_path / "x.bin"))
    assert again.table.words == lookup.table.words
    assert np.array_equal(again.vector("cat"), lookup.vector("cat"))


def test_what_is_no_model_and_no_file_is_one_line(tmp_path):
    write_vectors(tmp_path / "words.txt", WordTable(("a",), np.ones((1, 2), np.float32)))
    with pytest.raises(NextileError, match=r"did you mean '.*words\.txt'"):
        open_vectors(tmp_path / "word.txt")
    with pytest.raises(UsageError, match="leave out --side"):
        open_vectors(tmp_path / "words.txt", "output")
    with pytest.raises(NextileError, match="not a folder"):
        open_vectors(tmp_path / "none")
