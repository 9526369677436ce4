"""What a run begins from: a model's tokens have the vectors of their words, a model of words has just those words."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from tests.conftest import TINY

import nextile
from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.word2vec import WordTable, write_vectors
from nextile.models.build import build
from nextile.models.families import modern, qwen3
from nextile.tasks.report import Silent
from nextile.tasks.start import WordStart, open_start
from nextile.text.bpe import train_bpe
from nextile.text.characters import train_characters, train_words
from nextile.text.lexicon import lexicon_of

WORDS = ("green", "bottles", "wall", "elephant", "hanging")
LM = {name: value for name, value in TINY.items() if name != "model.stack.width"} | {"tokenizer.kind": "word"}
QUICK = {"threads": 1, "words.min_count": 1, "words.epochs": 1, "words.dim": 12}


def table_of(*words, dim=12, size=3.0):
    return WordTable(words, np.random.default_rng(0).normal(0, size, (len(words), dim)).astype(np.float32))


@pytest.fixture(autouse=True)
def by_torch(monkeypatch):
    """Compiling machine code takes longer than all that is tested here."""
    monkeypatch.setattr("nextile.training.words.has_kernel", lambda: False)


@pytest.fixture
def vectors(tmp_path):
    path = tmp_path / "vectors.txt"
    write_vectors(path, table_of(*WORDS))
    return path


def start_of(*words, **shape):
    return WordStart(table_of(*words, **shape), "'these'")


def small(tokenizer, dim=12):
    return build(qwen3.spec(vocab=tokenizer.vocab_size, context=16, width=dim, depth=1, heads=2), seed=1)


def unit(rows):
    return rows / rows.norm(dim=-1, keepdim=True)


class Heard(Silent):
    def __init__(self):
        self.said, self.warned = [], []

    def say(self, text):
        self.said.append(text)

    def warn(self, text):
        self.warned.append(text)


# --- filling --------------------------------------------------------------------------------------------------------


def test_words_have_their_vectors_in_the_size_of_what_was_there_and_others_keep_theirs():
    tokenizer = train_words(["the green wall, a green hat"], 100)
    model, start = small(tokenizer), start_of("wall", "green", "red")
    before = model.embed.token.weight.detach().clone()
    assert start.fill(model, tokenizer) == 2
    after = model.embed.token.weight.detach()
    ids = [tokenizer.encode(word)[0] for word in ("wall", "green")]
    torch.testing.assert_close(unit(after[ids]), unit(torch.from_numpy(start.table.vectors[:2])))
    rms = [rows[ids].square().mean().sqrt().item() for rows in (before, after)]
    assert rms[0] == pytest.approx(rms[1])
    ratio = after[ids[0]].norm() / after[ids[1]].norm()
    assert ratio.item() == pytest.approx(float(np.divide(*np.linalg.norm(start.table.vectors[:2], axis=1))))
    others = [index for index in range(tokenizer.vocab_size) if index not in ids]
    assert torch.equal(after[others], before[others])


def test_a_token_is_a_word_with_or_without_its_space_and_in_any_case_where_all_words_are_small():
    tokenizer = train_bpe(["The wall the wall The the"] * 9, 300)
    spellings = [tokenizer.encode(text) for text in ("The", " The", " the", "the")]
    assert [len(ids) for ids in spellings] == [1, 1, 1, 1]
    model = small(tokenizer)
    start = start_of("the", "zzz")
    assert start.fill(model, tokenizer) == 4
    rows = model.embed.token.weight.detach()[[ids[0] for ids in spellings]]
    torch.testing.assert_close(unit(rows), unit(torch.from_numpy(start.table.vectors[[0, 0, 0, 0]])))
    assert start_of("the", "Wall").fill(small(tokenizer), tokenizer) == 2  # capitals count: "the" and " the"


def test_special_tokens_are_no_words():
    tokenizer = lexicon_of(["a", "<unk>", "b"])
    words = train_words(["a b"], 10)
    assert tokenizer.vocab_size == 4
    assert start_of("a", "<unk>", "<|endoftext|>").fill(small(words), words) == 1


def test_an_encoder_and_a_decoder_begin_alike():
    tokenizer = train_words(["green wall"], 10)
    shape = {"vocab": tokenizer.vocab_size, "context": 16, "start": 0, "width": 12, "depth": 1, "heads": 2}
    spec = modern.spec(**shape)
    model = build(spec.model_copy(update={"target": spec.source}), seed=1)  # tables of their own
    assert start_of("green").fill(model, tokenizer) == 1
    for embedding in (model.source, model.target):
        row = embedding.token.weight.detach()[tokenizer.encode("green")[0]]
        torch.testing.assert_close(unit(row), unit(torch.from_numpy(table_of("green").vectors[0])))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (start_of("elephant"), "'these' has no word that is a token of the text: take other vectors"),
        (start_of("a", "elephant", size=0.0), "'these' has only zeros for those tokens that have vectors"),
        (start_of("A", "B"), "no word that is a token"),
    ],
)
def test_what_fills_nothing_is_an_error_in_one_line(start, message):
    tokenizer = train_characters(["a cab"])
    model = small(tokenizer)
    before = model.embed.token.weight.detach().clone()
    with pytest.raises(NextileError, match=message):
        start.fill(model, tokenizer)
    assert torch.equal(model.embed.token.weight, before)


def test_vectors_as_large_as_numbers_are_do_not_overflow():
    tokenizer = train_words(["a b"], 10)
    model = small(tokenizer)
    start_of("a", size=1e37).fill(model, tokenizer)
    assert model.embed.token.weight.isfinite().all()


# --- a run ----------------------------------------------------------------------------------------------------------


def test_a_language_model_is_as_wide_as_the_vectors_and_says_what_it_took(text, vectors, tmp_path):
    heard = Heard()
    model = nextile.train(text, init=vectors, out=tmp_path / "run", steps=2, settings=LM, report=heard)
    assert model.spec.stack.width == 12
    [said] = [line for line in heard.said if "begin with" in line]
    assert said.startswith(f"4 of {model.tokenizer.vocab_size:,} tokens begin with the vectors of words in '")
    assert not heard.warned


def test_what_begins_with_vectors_moves_little_from_them(text, vectors, tmp_path):
    settings = {**LM, "lr": 1e-6}
    model = nextile.train(text, init=vectors, out=tmp_path / "run", steps=1, settings=settings, report=Silent())
    rows = model.model.embed.token.weight.detach().cpu()[[model.tokenizer.encode(word)[0] for word in WORDS[:3]]]
    torch.testing.assert_close(unit(rows), unit(torch.from_numpy(table_of(*WORDS).vectors[:3])), rtol=0, atol=1e-2)


def test_few_words_among_the_tokens_are_said_with_the_remedy(text, tmp_path):
    write_vectors(tmp_path / "a.bin", table_of("a", "elephant"))
    heard = Heard()
    nextile.train(text, init=tmp_path / "a.bin", out=tmp_path / "run", steps=1, report=heard,
                  settings={**LM, "tokenizer.kind": "char"})  # fmt: skip
    assert heard.warned == ["few tokens are words that have vectors: tokenizer.kind=word makes each word a token"]


def test_a_hundred_numbers_are_a_width_that_heads_divide(text, tmp_path):
    write_vectors(tmp_path / "v.txt", table_of(*WORDS, dim=100))
    plan = nextile.plan(text, init=tmp_path / "v.txt", steps=1, settings=LM, report=Silent())
    stack = plan.model.stack
    assert stack.width == 100
    assert 100 % (2 * stack.attention.heads) == 0 < stack.attention.heads - 1
    same = nextile.plan(
        text, init=tmp_path / "v.txt", steps=1, report=Silent(), settings={**LM, "model.stack.width": 100}
    )
    assert same.model == plan.model


@pytest.mark.parametrize("task", ["masked", "denoise"])
def test_masked_models_and_denoisers_begin_so_too(text, vectors, tmp_path, task):
    settings = {name: value for name, value in LM.items() if not name.startswith("model")} | {"lr": 1e-7, "context": 32}
    model = nextile.train(
        text, task=task, init=vectors, out=tmp_path / "run", steps=1, settings=settings, report=Silent()
    )
    table = dict(model.model.named_parameters())["source.token.weight" if task == "denoise" else "embed.token.weight"]
    row = table.detach().cpu()[model.tokenizer.encode("green")[0]]
    torch.testing.assert_close(unit(row), unit(torch.from_numpy(table_of(*WORDS).vectors[0])), rtol=0, atol=1e-2)


def test_another_width_is_an_error_that_names_both(text, vectors):
    with pytest.raises(UsageError, match="is to be 64 wide and the word vectors have 12 numbers"):
        nextile.plan(text, init=vectors, steps=1, settings={**LM, "model.stack.width": 64}, report=Silent())


class Interrupting(Silent):
    """Sends this process Ctrl-C at the first step that is shown as due."""

    def bar(self, title, total, unit):
        bar = super().bar(title, total, unit)
        if title == "training":
            bar.refresh = lambda: os.kill(os.getpid(), signal.SIGINT) if bar.done == 4 else None
        return bar


def test_a_run_that_began_with_vectors_goes_on_exactly(text, vectors, tmp_path):
    settings = {**LM, "validation.every": 4}
    nextile.train(text, init=vectors, out=tmp_path / "whole", steps=8, settings=settings, report=Silent())
    with pytest.raises(KeyboardInterrupt):
        nextile.train(text, init=vectors, out=tmp_path / "run", steps=8, settings=settings, report=Interrupting())
    vectors.unlink()  # it is in the state
    nextile.train(resume=tmp_path / "run", report=Silent())
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_state_is_saved_before_the_first_step(text, vectors, tmp_path, monkeypatch):
    monkeypatch.setattr("nextile.tasks.run.Run.go", lambda run: None)
    monkeypatch.setattr("nextile.api._model", lambda loaded: loaded)
    nextile.train(text, init=vectors, out=tmp_path / "run", steps=8, settings=LM, report=Silent())
    assert [path.name for path in (tmp_path / "run" / "state").iterdir()] == ["step-00000000"]


# --- models of words ------------------------------------------------------------------------------------------------


def rows_of(model, words):
    return model.model.words_in.weight.detach().cpu()[[model.tokenizer.encode(word)[0] for word in words]]


def test_words_go_on_from_a_file_with_its_words_alone(text, vectors, tmp_path):
    settings = {**QUICK, "words.dim": 100, "lr": 1e-9}
    model = nextile.train(text, task="words", init=vectors, out=tmp_path / "run", settings=settings, report=Silent())
    assert [model.tokenizer.token(index) for index in range(2, 7)] == list(WORDS)
    assert model.spec.vocab == 7
    assert model.spec.width == 12
    torch.testing.assert_close(rows_of(model, WORDS), torch.from_numpy(table_of(*WORDS).vectors), rtol=0, atol=1e-4)
    assert model.model.words_out.weight.abs().max() < 1e-3
    assert model.spec.type == "cbow"


def test_the_preset_and_the_settings_of_words_count_for_a_file(text, vectors, tmp_path):
    found = nextile.plan(text, task="words", init=vectors, preset="skip-gram", report=Silent(),
                         settings={"words.window": 3, "words.negatives": 7})  # fmt: skip
    assert (found.model.type, found.model.window, found.model.negatives) == ("skip_gram", 3, 7)


def test_words_go_on_from_a_model_with_its_output_vectors(text, tmp_path):
    first = nextile.train(text, task="words", out=tmp_path / "first", settings=QUICK, report=Silent())
    settings = {"threads": 1, "words.epochs": 1, "lr": 1e-9}
    again = nextile.train(text, task="words", init=tmp_path / "first", out=tmp_path / "again", settings=settings,
                          report=Silent())  # fmt: skip
    for name in ("words_in", "words_out"):
        a, b = (getattr(model.model, name).weight.detach().cpu() for model in (first, again))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    assert again.model.words_out.weight.abs().max() > 1e-3
    assert again.tokenizer.fingerprint() == first.tokenizer.fingerprint()


def test_a_language_model_begins_with_a_model_of_words(text, tmp_path):
    first = nextile.train(text, task="words", out=tmp_path / "first", settings=QUICK, report=Silent())
    heard = Heard()
    model = nextile.train(text, init=tmp_path / "first", out=tmp_path / "run", steps=1, report=heard,
                          settings={**LM, "lr": 1e-7})  # fmt: skip
    assert any("begin with the vectors of words in" in line for line in heard.said)
    row = model.model.embed.token.weight.detach().cpu()[model.tokenizer.encode("green")[0]]
    torch.testing.assert_close(unit(row), unit(rows_of(first, ["green"])[0]), rtol=0, atol=1e-2)


def test_a_models_special_tokens_are_not_among_its_words(text, tmp_path):
    nextile.train(text, task="words", out=tmp_path / "first", settings=QUICK, report=Silent())
    words = open_start(tmp_path / "first").words
    assert words is not None
    assert "green" in words.table.words
    assert not {"<unk>", "<|endoftext|>"} & set(words.table.words)


# --- what is refused ------------------------------------------------------------------------------------------------


def refused(*arguments, **named):
    with pytest.raises(NextileError) as problem:
        nextile.plan(*arguments, report=Silent(), **named)
    assert "\n" not in str(problem.value)
    return str(problem.value)


def test_other_tasks_begin_from_a_model(pairs, photos, vectors):
    for source in (pairs, photos):
        assert "begins from a model, not from word vectors as in" in refused(source, init=vectors, steps=1)
    assert "'paint' begins from a model" in refused(photos, task="paint", init=vectors, steps=1)


def test_files_that_are_none(text, tmp_path):
    assert "does not exist: name a model folder" in refused(text, init=tmp_path / "absent.txt", steps=1)
    (tmp_path / "broken.txt").write_text("no header\n")
    assert "line 1 of" in refused(text, init=tmp_path / "broken.txt", steps=1)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 99)
    assert "line 1 of" in refused(text, init=tmp_path / "model.safetensors", steps=1)


def test_words_of_another_size_or_another_text(text, vectors, tmp_path):
    said = refused(text, task="words", init=vectors, settings={"words.dim": 50})
    assert "vectors of 12 numbers and words.dim is 50" in said
    write_vectors(tmp_path / "other.txt", table_of("elephant", "Green"))
    said = refused(text, task="words", init=tmp_path / "other.txt")
    assert said.startswith("no word of the text is among those of")
    assert "unknown preset 'bow'" in refused(text, task="words", init=vectors, preset="bow")


def test_a_run_that_was_refused_leaves_no_run(text, tmp_path):
    write_vectors(tmp_path / "other.txt", table_of("elephant"))
    with pytest.raises(NextileError, match="no word that is a token"):
        nextile.train(text, init=tmp_path / "other.txt", out=tmp_path / "run", steps=1, settings=LM, report=Silent())
    assert not (tmp_path / "run" / "run.json").exists()
    plain = nextile.train(text, out=tmp_path / "run", steps=1, settings=TINY, report=Silent())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["plan"]["steps"] == 1
    assert plain.spec.stack.width == 16
