"""Beam search against transformers: the same n best texts and scores, of language models and of translators."""

from typing import Any

import pytest
import torch
import transformers

from nextile.checkpoint import convert
from nextile.generation.beam import Beams, beam_search
from nextile.generation.decode import EagerReader, SourceReader
from nextile.models.build import build
from nextile.models.families import gpt2, marian

VOCAB, PAD, END, LIMIT = 97, 96, 5, 14
EARLY = {"likely": False, "certain": "never"}
PROMPTS = [[3, 14, 15, 92, 65, 35], [89, 79, 32, 38, 46, 26], [1, 2, 3, 4, 5, 6]]  # of one length: theirs has no other
SOURCES = [[31, 41, 59, END], [26, 53, 58, 9, 79, 32, 38, END], [46, 26, END], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, END]]


def paired(family, other, spread):
    """(ours, theirs) with the same random numbers, in double precision, so that what is nearly equal falls alike."""
    spec = family.from_config(other.config.to_dict())
    ours = build(spec).double().eval()
    with torch.no_grad():
        for number, (name, parameter) in enumerate(ours.named_parameters()):
            noise = torch.Generator().manual_seed(number)
            parameter.normal_(0, 0.01 if name.endswith("bias") else spread, generator=noise)
    other.load_state_dict(convert.write(family.key_map(spec), dict(ours.named_parameters())), strict=False)
    other.tie_weights()
    return ours, other.double().eval()


@pytest.fixture(scope="module")
def writers():
    config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=VOCAB, n_positions=64)
    return paired(gpt2, transformers.GPT2LMHeadModel(config), 0.25)


@pytest.fixture(scope="module")
def translators():
    config = transformers.MarianConfig(
        vocab_size=VOCAB, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, activation_function="relu",
        scale_embedding=True, max_position_embeddings=64, pad_token_id=PAD, decoder_start_token_id=PAD,
        eos_token_id=END, forced_eos_token_id=None,
    )  # fmt: skip
    return paired(marian, transformers.MarianMTModel(config), 0.5)


Found = tuple[list[list[int]], list[float]]


def theirs(model, rows, beams: Beams, *, n, end_ids, first, **options: Any) -> Found:
    """Tokens without ends and padding, and scores, of the n best of each row, one after the other."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    result = model.generate(
        ids, attention_mask=real, num_beams=beams.width, num_return_sequences=n, do_sample=False,
        length_penalty=beams.length_penalty, early_stopping=EARLY[beams.patience], max_new_tokens=LIMIT,
        eos_token_id=sorted(end_ids) or None, pad_token_id=PAD, return_dict_in_generate=True, output_scores=True,
        **options,
    )  # fmt: skip
    texts = [[token for token in text if token not in end_ids | {PAD}] for text in result.sequences[:, first:].tolist()]
    return texts, result.sequences_scores.tolist()


def flat(results) -> Found:
    return [text.tokens for texts in results for text in texts], [text.score for texts in results for text in texts]


def written(model, rows, beams: Beams, *, n, end_ids) -> Found:
    reader = EagerReader(model, 64)
    return flat(beam_search(reader, rows, beams, limits=[LIMIT] * len(rows), end_ids=end_ids, never={PAD}, n=n))


def translated(model, rows, beams: Beams, *, n, end_ids) -> Found:
    reader, starts = SourceReader(model, rows, LIMIT), [[PAD]] * len(rows)
    return flat(beam_search(reader, starts, beams, limits=[LIMIT] * len(rows), end_ids=end_ids, never={PAD}, n=n))


def same(ours: Found, other: Found) -> bool:
    return ours[0] == other[0] and ours[1] == pytest.approx(other[1], rel=1e-5, abs=1e-5)


def common_ends(found: Found) -> set[int]:
    """Two tokens that texts have in their midst: as end tokens they end some and not all."""
    return {found[0][0][4], found[0][-1][6]}


@pytest.mark.parametrize("patience", EARLY)
@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0, -0.5])
def test_the_same_texts_of_a_language_model(writers, patience, penalty):
    ours, other = writers
    beams = Beams(width=4, length_penalty=penalty, patience=patience)
    free = written(ours, PROMPTS, beams, n=4, end_ids=set())
    ends = common_ends(free)
    for end_ids in (set(), {min(ends)}, ends):
        got = written(ours, PROMPTS, beams, n=4, end_ids=end_ids)
        assert same(got, theirs(other, PROMPTS, beams, n=4, end_ids=end_ids, first=6, bad_words_ids=[[PAD]]))
        assert got[0] != free[0] or not end_ids


@pytest.mark.parametrize("patience", EARLY)
@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0, -0.5])
def test_the_same_translations_of_sources_of_many_lengths(translators, patience, penalty):
    ours, other = translators
    beams = Beams(width=5, length_penalty=penalty, patience=patience)
    free = translated(ours, SOURCES, beams, n=5, end_ids=set())
    ends = common_ends(free)
    for end_ids in (set(), {min(ends)}, ends):
        got = translated(ours, SOURCES, beams, n=5, end_ids=end_ids)
        assert same(got, theirs(other, SOURCES, beams, n=5, end_ids=end_ids, first=1, bad_words_ids=[[PAD]]))
        assert got[0] != free[0] or not end_ids


def test_one_beam_is_their_greedy_text(writers):
    ours, other = writers
    got, _ = written(ours, PROMPTS, Beams(width=1), n=1, end_ids={END})
    ids = torch.tensor(PROMPTS)
    options = {"max_new_tokens": LIMIT, "eos_token_id": END, "pad_token_id": PAD, "bad_words_ids": [[PAD]]}
    want = other.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **options)[:, 6:].tolist()
    assert got == [[token for token in text if token not in (PAD, END)] for text in want]


@pytest.mark.parametrize(
    "change",
    [{"width": 3}, {"length_penalty": 0.0}, {"patience": "certain"}],
    ids=["width", "length_penalty", "patience"],
)
def test_control_other_beams_find_other_texts(translators, change):
    ours, other = translators
    beams = Beams(width=4, length_penalty=2.0)
    ends = common_ends(translated(ours, SOURCES, beams, n=3, end_ids=set()))
    want = theirs(other, SOURCES, beams, n=3, end_ids=ends, first=1, bad_words_ids=[[PAD]])
    assert same(translated(ours, SOURCES, beams, n=3, end_ids=ends), want)
    assert not same(translated(ours, SOURCES, beams.model_copy(update=change), n=3, end_ids=ends), want)


def test_control_another_source_and_padding_that_is_read(translators):
    ours, other = translators
    beams = Beams(width=4)
    want = theirs(other, SOURCES, beams, n=4, end_ids={END}, first=1, bad_words_ids=[[PAD]])
    for sources in (SOURCES[::-1], [source + [PAD] * (11 - len(source)) for source in SOURCES]):
        assert not same(translated(ours, sources, beams, n=4, end_ids={END}), want)
