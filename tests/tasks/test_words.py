"""Word vectors end to end: they learn what stands where, stop and go on, say what is wrong in one line."""

import json
import os
import signal

import numpy as np
import pytest
import torch

import nextile
from nextile.base.errors import NextileError, UsageError
from nextile.data.shards import open_store
from nextile.nn import specs
from nextile.tasks import words
from nextile.tasks.report import Silent
from nextile.tasks.settings import recorded

SETTINGS = {"threads": 1, "words.dim": 12, "words.window": 2, "words.epochs": 2, "words.subsample": 0.0, "lr": 0.05}


@pytest.fixture
def planted(tmp_path):
    """A .jsonl of 1,200 short texts, in which a and b stand in the same places, and c in others."""
    random = np.random.default_rng(0)
    places = {"a": (("red", "green", "blue"), ("big", "small")), "c": (("runs", "sits", "falls"), ("now", "then"))}
    texts = []
    for number in range(1200):
        word = "abc"[number % 3]
        beside = map(random.choice, places.get(word, places["a"]))
        texts.append(" ".join([word, *beside, f"number{number}"]))  # a rare word, so that no text is another
    path = tmp_path / "planted.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


class Heard(Silent):
    """What a run tells, kept."""

    def __init__(self):
        self.rows, self.warned, self.samples = {}, [], []

    def table(self, title, rows):
        self.rows[title] = dict(rows)

    def warn(self, text):
        self.warned.append(text)

    def sample(self, title, text):
        self.samples.append((title, text))


def train(source, folder, *, report=None, settings=None, **budget):
    return nextile.train(
        source, task="words", out=folder, settings={**SETTINGS, **(settings or {})}, report=report or Silent(), **budget
    )


def metrics(folder, field="loss"):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[field] for row in rows if field in row]


def cosines(model):
    """Of a and b, and of a and c."""
    a, b, c = (model.model.words_in.weight.detach()[model.tokenizer.encode(word)[0]] for word in "abc")
    return torch.cosine_similarity(a, b, dim=0).item(), torch.cosine_similarity(a, c, dim=0).item()


# --- what is learned ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["cbow", "skip-gram"])
@pytest.mark.parametrize(("by", "rate"), [("numba", 0.2), ("torch", 0.003)])
def test_words_in_the_same_places_become_alike(planted, tmp_path, preset, by, rate, monkeypatch):
    if by == "numba":
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr("nextile.training.words.has_kernel", lambda: False)
    heard = Heard()
    model = train(planted, tmp_path / "run", preset=preset, steps=60, report=heard, settings={"lr": rate})
    alike, apart = cosines(model)
    assert alike > 0.9
    assert alike > apart + 0.3
    assert model.spec.type == preset.replace("-", "_")
    losses = metrics(tmp_path / "run", "val_loss")
    assert losses[-1] < losses[0]
    assert metrics(tmp_path / "run", "val_told_apart")[-1] > 0.6
    title, shown = heard.samples[-1]
    assert (title, shown) == ("nearest words", "")  # so few words have none between frequent and rare


def test_untrained_words_are_not_alike(planted, tmp_path):
    model = train(planted, tmp_path / "run", steps=1, settings={"lr": 1e-9})
    alike, apart = cosines(model)
    assert alike < apart + 0.3


def test_a_built_in_text_becomes_a_whole_folder(tmp_path):
    heard, folder = Heard(), tmp_path / "run"
    model = train("python-docs", folder, report=heard, settings={"words.epochs": 1})
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "run.json", "curve.html"}
    assert names <= {path.name for path in folder.iterdir()}
    assert (model.family, model.tokenizer.kind) == ("nextile", "lexicon")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "nextile"
    assert metrics(folder)[-1] < metrics(folder)[0]
    assert heard.rows["done"]["try"] == f"nextile words {folder} near WORD"
    assert heard.samples[-1][1].count("\n") == 4
    assert not heard.warned
    again = nextile.load(folder)
    assert torch.equal(again.model.words_in.weight, model.model.words_in.weight)
    assert again.tokenizer.fingerprint() == model.tokenizer.fingerprint()


# --- how long -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [1, 3.5])
def test_steps_follow_from_the_epochs(planted, tmp_path, epochs):
    train(planted, tmp_path / "run", settings={"words.epochs": epochs})
    run = json.loads((tmp_path / "run" / "run.json").read_text())["plan"]
    words = len(open_store(tmp_path / "run" / "data" / "train"))
    assert run["steps"] == np.ceil(epochs * words / (run["batch"] * run["context"]))
    assert len(metrics(tmp_path / "run")) == run["steps"]


def test_a_budget_comes_before_the_epochs(planted, tmp_path):
    train(planted, tmp_path / "steps", steps=3, settings={"words.epochs": 1000})
    assert len(metrics(tmp_path / "steps")) == 3
    train(planted, tmp_path / "minutes", minutes=0.02, settings={"words.epochs": 0.1})
    assert len(metrics(tmp_path / "minutes")) > 10


# --- stopping and going on ------------------------------------------------------------------------------------------


class Interrupting(Silent):
    """Sends this process a signal when the first validation is due."""

    def bar(self, title, total, unit):
        bar = super().bar(title, total, unit)
        if title == "training":
            bar.refresh = lambda: os.kill(os.getpid(), signal.SIGINT) if bar.done == 20 else None
        return bar


def test_a_run_that_was_stopped_ends_as_one_that_was_not(planted, tmp_path):
    same = {"settings": {"validation.every": 20}, "steps": 50}
    train(planted, tmp_path / "whole", **same)
    with pytest.raises(KeyboardInterrupt):
        train(planted, tmp_path / "run", report=Interrupting(), **same)
    assert 20 <= len(metrics(tmp_path / "run")) < 50
    nextile.train(resume=tmp_path / "run", report=Silent())
    for name in ("model.safetensors", "metrics.jsonl", "state/step-00000050/tensors.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    train(planted, tmp_path / "other", **same | {"settings": {"validation.every": 20, "seed": 1}})
    assert metrics(tmp_path / "other") != metrics(tmp_path / "whole")


# --- settings -------------------------------------------------------------------------------------------------------


def test_the_settings_of_words_reach_the_model(planted, tmp_path):
    chosen = {"words.dim": 7, "words.window": 3, "words.negatives": 2}
    model = train(planted, tmp_path / "run", steps=1, settings=chosen)
    assert model.spec == specs.CBOW(vocab=model.tokenizer.vocab_size, width=7, window=3, negatives=2)


def test_rare_words_are_left_out_and_their_neighbours_close_up(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("often rare1 also " * 30 + "often rare2 also rare2 " * 200)
    model = train(text, tmp_path / "run", steps=1, settings={"words.min_count": 31})
    assert {model.tokenizer.token(index) for index in range(2, model.tokenizer.vocab_size)} == {
        "often",
        "also",
        "rare2",
    }
    few = train(text, tmp_path / "few", steps=1, settings={"words.min_count": 1, "tokenizer.size": 4})
    assert few.tokenizer.vocab_size == few.spec.vocab == 4
    data = words.WordEmbedding().open(tmp_path / "run" / "data", words.RunSettings(), model.tokenizer)
    assert model.tokenizer.unknown_id not in data.train[:]


def test_frequent_words_are_left_out_as_often_as_asked(planted, tmp_path):
    kept = {}
    for share in (0.0, 0.01):
        model = train(planted, tmp_path / str(share), steps=1, settings={"words.subsample": share})
        settings = words.RunSettings(words=words.Words(subsample=share))
        data = words.WordEmbedding().open(tmp_path / str(share) / "data", settings, model.tokenizer)
        kept[share] = data.chances.keep[2:] / (2**32 - 1)
    assert kept[0.0].tolist() == [1.0] * len(kept[0.0])
    assert kept[0.01].max() < 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adamw"}, "setting 'optimizer' does nothing in the task 'words': leave it out"),
        ({"optimizer.betas": [0.9, 0.99]}, "setting 'optimizer.betas' does nothing"),
        ({"dropout": 0.1}, "setting 'dropout' does nothing"),
        ({"tokenizer.kind": "bpe"}, "setting 'tokenizer.kind' does nothing"),
        ({"precision": "bf16"}, "setting 'precision' does nothing"),
        ({"images.size": 8}, "setting 'images.size' does nothing"),
        ({"words.dims": 8}, "unknown setting 'words.dims': did you mean 'words.dim'"),
        ({"words.epochs": 0}, "setting 'words.epochs'"),
        ({"words.subsample": 2}, "setting 'words.subsample'"),
        ({"words.min_count": 10**6}, r"no word occurs 1000000 times: give more text, or lower words\.min_count"),
    ],
)
def test_settings_that_are_none(planted, tmp_path, settings, message):
    with pytest.raises(NextileError, match=message) as problem:
        train(planted, tmp_path / "run", steps=1, settings=settings)
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "run" / "run.json").exists()


def test_settings_of_words_do_nothing_elsewhere(text, tmp_path):
    with pytest.raises(UsageError, match=r"setting 'words.dim' does nothing in the task 'lm'"):
        nextile.train(text, out=tmp_path / "run", steps=1, settings={"words.dim": 8}, report=Silent())


def test_an_unknown_preset_is_one_line(planted, tmp_path):
    with pytest.raises(UsageError, match="unknown preset 'gpt2': it is one of cbow, skip-gram"):
        train(planted, tmp_path / "run", steps=1, preset="gpt2")


# --- a model to begin from ------------------------------------------------------------------------------------------


def test_a_run_goes_on_with_the_words_of_another(planted, tmp_path):
    first = train(planted, tmp_path / "first", steps=40, settings={"lr": 0.2})
    other = tmp_path / "other.txt"
    other.write_text("a red big new " * 100 + "c runs now words " * 100)
    again = train(other, tmp_path / "again", steps=1, init=tmp_path / "first", settings={"lr": 1e-9})
    assert again.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    assert again.spec == first.spec
    torch.testing.assert_close(again.model.words_in.weight, first.model.words_in.weight, rtol=0, atol=1e-5)
    moved = train(other, tmp_path / "moved", steps=5, init=tmp_path / "first")
    assert not torch.allclose(moved.model.words_in.weight, first.model.words_in.weight, rtol=0, atol=1e-4)


def test_a_language_model_is_nothing_to_begin_from(text, planted, tmp_path):
    nextile.train(text, out=tmp_path / "lm", steps=1, report=Silent(), settings={
        "compile": False, "model.stack.width": 16, "model.stack.depth": 1, "tokenizer.kind": "char", "threads": 1,
    })  # fmt: skip
    with pytest.raises(UsageError, match=r"'words' cannot begin from .*lm', a model of another kind") as problem:
        train(planted, tmp_path / "run", init=tmp_path / "lm")
    assert "\n" not in str(problem.value)


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("... - ... ' " * 100, "no word occurs 1 times"),
        ("a b " * 5, r"the validation text has 1 token: give more text or a larger validation\.fraction"),
        ("a b c d " * 40, r"no held-out word has a neighbour: give more text, or a larger"),
    ],
)
def test_text_that_cannot_be_learned_from(tmp_path, content, message):
    (tmp_path / "bad.txt").write_text(content)
    with pytest.raises(NextileError, match=message) as problem:
        train(tmp_path / "bad.txt", tmp_path / "run", settings={"words.min_count": 1, "words.subsample": 1e-3})
    assert "\n" not in str(problem.value)


def test_without_numba_the_user_is_told(planted, tmp_path, monkeypatch):
    monkeypatch.setattr(words, "has_kernel", lambda: False)
    heard = Heard()
    train(planted, tmp_path / "run", steps=1, report=heard)
    assert heard.warned == [words.SLOW]
    assert "pip install 'nextile[words]'" in words.SLOW


def test_several_sources_are_refused(planted, tmp_path):
    with pytest.raises(UsageError, match="reads one source, not 2"):
        train([planted, planted], tmp_path / "run", steps=1)


@pytest.mark.parametrize("settings", ["5", "null", "[]"])
def test_a_damaged_run_file_is_one_line(tmp_path, settings):
    (tmp_path / "run.json").write_text(f'{{"settings": {settings}}}')
    with pytest.raises(NextileError, match="is damaged, its settings are no table"):
        recorded(tmp_path)
