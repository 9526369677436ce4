"""Classifiers of texts end to end on real files: they learn, resume exactly, are fine-tuned, and refuse in one line."""

import io
import json
import shutil
import sys

import pytest
import torch
from tests.conftest import TINY, TINY_PAIRS

import nextile
from nextile.base.errors import NextileError, UsageError
from nextile.cli import main
from nextile.data.labelled import open_labelled
from nextile.nn import specs
from nextile.tasks import run
from nextile.tasks.labelling import LabelledData, with_head
from nextile.tasks.report import Silent
from nextile.text.build import train_tokenizer
from nextile.text.masks import for_masks
from nextile.text.tokenizer import Tokenizer

SETTINGS = {name: value for name, value in TINY.items() if name != "context"} | {"batch": 8, "lr": 1e-2}
ANIMALS = {"cat": "a cat purrs and naps", "dog": "a dog barks and runs"}


def rows(count: int = 40) -> list[dict]:
    """Texts that say in a word, somewhere, what they are about."""
    return [
        {"text": f"{'so ' * (i % 7)}{text}, {i} times", "label": name}
        for i in range(count)
        for name, text in ANIMALS.items()
    ]


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "animals.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


def train(texts, folder, *, steps=30, settings=None, report=None, **given):
    return nextile.train(
        texts, out=folder, steps=steps, settings={**SETTINGS, **(settings or {})}, report=report or Silent(), **given
    )


def metrics(folder, field="loss"):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[field] for row in found if field in row]


class Told(Silent):
    """Keeps what was said."""

    def __init__(self):
        self.warned, self.samples = [], []

    def warn(self, text):
        self.warned.append(text)

    def sample(self, title, text):
        self.samples.append(text)


# --- from nothing ---------------------------------------------------------------------------------------------------


def test_texts_become_a_classifier(texts, tmp_path):
    report = Told()
    model = train(texts, tmp_path / "run", steps=60, report=report)
    assert isinstance(model.spec, specs.TextClassifier)
    assert (model.spec.head.type, model.spec.head.classes) == ("mean", ("cat", "dog"))
    assert model.task == "classify-text"
    assert metrics(tmp_path / "run", "val_accuracy")[-1] == 1.0
    assert model.evaluate(report=Silent())["accuracy"] == 1.0
    assert model.evaluate(texts, report=Silent())["accuracy"] == 1.0
    [(first, share), (second, other)] = model.classify("a dog barks and runs, 99 times")
    assert (first, second) == ("dog", "cat")
    assert share > 0.6
    assert share + other == pytest.approx(1.0)
    assert "\n  -> cat" in report.samples[-1]
    assert "\n  == dog" in report.samples[-1]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["plan"]["task"] == "classify-text"


def test_texts_that_are_classified_together_are_each_alone(texts, tmp_path):
    model = train(texts, tmp_path / "run", steps=5)
    several = ["a cat", "", "so so so so a dog barks, and so on", "a dog"]
    together = model.classify(several)
    for text, found in zip(several, together, strict=True):
        alone = model.classify(text)
        assert [name for name, _ in alone] == [name for name, _ in found]
        assert [share for _, share in alone] == pytest.approx([share for _, share in found], abs=1e-6)
    assert [len(found) for found in model.classify(several, top=1)] == [1, 1, 1, 1]


@pytest.mark.parametrize(("preset", "head"), [("gpt2", "last"), ("qwen3", "last"), ("bert", "mean")])
def test_other_shapes_learn_as_well(texts, tmp_path, preset, head):
    model = train(texts, tmp_path / "run", steps=12, preset=preset)
    assert model.spec.head.type == head
    losses = metrics(tmp_path / "run")
    assert losses[-1] < losses[0]


def test_a_run_that_was_cut_goes_on_bit_for_bit(texts, tmp_path):
    settings = {"checkpoint.every": 7, "dropout": 0.1, "r_drop": 1.0, "label_smoothing": 0.1, "accumulate": 2}
    train(texts, tmp_path / "whole", steps=20, settings=settings)
    train(texts, tmp_path / "cut", steps=20, settings=settings)
    for saved in (tmp_path / "cut" / "state").iterdir():
        if saved.is_dir() and not saved.name.endswith("7"):
            shutil.rmtree(saved)
    nextile.train(resume=tmp_path / "cut", report=Silent())
    assert len(metrics(tmp_path / "whole")) == 20
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert (tmp_path / "cut" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


def test_long_texts_are_cut_and_it_is_said_once(texts, tmp_path):
    report = Told()
    model = train(texts, tmp_path / "run", steps=2, settings={"context": 16}, report=report)
    assert [line for line in report.warned if "cut" in line] == [
        "80 of 80 texts are longer than 16 tokens: they are cut"
    ]
    assert model.spec.context == 16
    [found] = model.classify(["a cat purrs and naps"], details=True)
    assert found.note == "the text has 20 tokens and the model reads 15: it is cut"
    assert model.classify("a cat purrs and naps") == model.classify("a cat purrs and runs")
    assert model.classify(["a cat"], details=True)[0].note is None


def test_texts_of_their_own_are_validated_on(texts, tmp_path):
    (tmp_path / "test.csv").write_text('text,label\n"a cat, here",cat\n,dog\n')
    report = Told()
    model = train(
        texts, tmp_path / "run", steps=2, settings={"validation.data": str(tmp_path / "test.csv")}, report=report
    )
    assert any("1 rows without a text" in line for line in report.warned)
    assert any("nothing is held out of dog" in line for line in report.warned)
    assert "accuracy" in model.evaluate(report=Silent())
    (tmp_path / "test.csv").write_text("text,label\na fox,fox\n")
    with pytest.raises(NextileError, match="has the label 'fox', which is none of cat, dog"):
        model.evaluate(tmp_path / "test.csv", report=Silent())


def test_what_a_preview_shows_is_one_line(texts, tmp_path):
    texts.write_text("".join(json.dumps({**row, "text": f"\x1b[2J\n{row['text']}"}) + "\n" for row in rows()))
    report = Told()
    train(texts, tmp_path / "run", steps=1, report=report)
    assert "\x1b" not in report.samples[0]
    assert len(report.samples[0].splitlines()) == 12


# --- which task -----------------------------------------------------------------------------------------------------


def test_task_follows_from_the_data(texts, photos, tmp_path):
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"text": "a"}\n')
    for source, name, found in (
        (texts, None, "classify-text"), (texts, "classify", "classify-text"), (texts, "lm", "lm"),
        ("python-labels", None, "classify-text"), ("digits", "classify", "classify"), (photos, "classify", "classify"),
        (plain, None, "lm"), (plain, "classify", "classify-text"),
    ):  # fmt: skip
        assert run.task_for([str(source)], name).name == found
    with pytest.raises(NextileError, match=r'line 1 of .*plain\.jsonl. has no "label"'):
        train(plain, tmp_path / "run", task="classify")


def test_one_class_is_nothing_to_learn(texts, tmp_path):
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows() if row["label"] == "cat"))
    with pytest.raises(NextileError, match=r"all 40 texts of .* have the label 'cat'"):
        train(texts, tmp_path / "run")


# --- from a model ---------------------------------------------------------------------------------------------------


def kept(model, base, ours: str, theirs: str) -> bool:
    """Whether a part of the classifier still is the model's that it began from, at a rate of next to nothing."""
    return torch.allclose(model.model.state_dict()[ours], base.model.state_dict()[theirs], rtol=0, atol=1e-6)


def test_any_language_model_becomes_a_classifier(texts, text, tmp_path):
    base = nextile.train(text, out=tmp_path / "lm", steps=2, settings=TINY | {"context": 64}, report=Silent())
    model = train(texts, tmp_path / "run", steps=1, init=tmp_path / "lm", settings={"lr": 1e-9})
    assert (model.spec.head.type, model.spec.context) == ("last", base.spec.context)
    for name in ("embed.token.weight", "stack.blocks.0.self_attention.inner.query.weight", "stack.norm.weight"):
        assert kept(model, base, name, name)
    other = train(texts, tmp_path / "other", steps=1, init=tmp_path / "lm", settings={"lr": 1e-9, "seed": 1})
    assert not kept(other, model, "head.weight", "head.weight")  # a new head from the seed


def test_a_masked_model_and_an_encoder_decoder_become_classifiers(texts, text, pairs, tmp_path):
    masked = nextile.train(text, task="masked", out=tmp_path / "m", steps=1, settings=TINY, report=Silent())
    model = train(texts, tmp_path / "run", steps=1, init=tmp_path / "m", settings={"lr": 1e-9})
    assert model.spec.head.type == "mean"  # no token begins a text here
    assert kept(model, masked, "stack.norm.weight", "stack.norm.weight")
    translator = nextile.train(pairs, out=tmp_path / "t", steps=1, settings=TINY_PAIRS, report=Silent())
    model = train(texts, tmp_path / "two", steps=1, init=tmp_path / "t", settings={"lr": 1e-9})
    query = "blocks.0.self_attention.inner.query.weight"
    assert kept(model, translator, f"stack.{query}", f"encoder.{query}")
    assert kept(model, translator, "embed.token.weight", "source.token.weight")


def test_bert_is_read_at_the_token_that_begins_a_text():
    plain = for_masks(train_tokenizer("char", 100, ["a cat", "[CLS]"]))
    begun = Tokenizer(plain.core, {**plain.config, "cls_token": "[MASK]"})
    from nextile.models.families import bert, gpt2

    for body, tokenizer, head in (
        (bert, begun, "pooled"), (bert, plain, "mean"), (gpt2, begun, "last")
    ):  # fmt: skip
        spec = body.spec(vocab=50, context=9, width=8, depth=1, heads=1)
        assert with_head(spec, ("a", "b"), tokenizer).head.type == head


def test_a_classifier_goes_on_with_its_head_where_the_classes_are_the_same(texts, tmp_path):
    first = train(texts, tmp_path / "first", steps=5)
    again = train(texts, tmp_path / "again", steps=1, init=tmp_path / "first", settings={"lr": 1e-9})
    assert kept(again, first, "head.weight", "head.weight")
    texts.write_text(texts.read_text().replace('"cat"', '"tom"'))
    other = train(texts, tmp_path / "other", steps=1, init=tmp_path / "first", settings={"lr": 1e-9})
    assert other.spec.head.classes == ("dog", "tom")
    assert not kept(other, first, "head.weight", "head.weight")


def test_models_of_another_kind_are_refused(texts, photos, text, tmp_path):
    pictures = nextile.train(
        photos, out=tmp_path / "p", steps=1, report=Silent(),
        settings={"images.size": 8, "batch": 8, "model.stack.width": 16, "model.stack.depth": 1, "compile": False},
    )  # fmt: skip
    with pytest.raises(UsageError, match="a model of another kind"):
        train(texts, tmp_path / "run", init=tmp_path / "p")
    model = train(texts, tmp_path / "c", steps=1)
    with pytest.raises(UsageError, match="says which class a text has"):
        model.generate("a")
    with pytest.raises(UsageError, match="give strings"):
        model.classify(b"a cat")
    with pytest.raises(UsageError, match="top is 0"):
        model.classify("a cat", top=0)
    with pytest.raises(NextileError, match=r"no picture|cannot read|does not exist"):
        pictures.classify("a cat")


# --- the folder and the command line --------------------------------------------------------------------------------


def test_what_was_stored_is_what_was_read(texts, tmp_path):
    model = train(texts, tmp_path / "run", steps=1)
    data = run.TASKS["classify-text"].open(tmp_path / "run" / "data", run.RunSettings(), model.processor)
    assert isinstance(data, LabelledData)
    assert (len(data.train), len(data.held_out), data.classes) == (72, 8, ("cat", "dog"))
    corpus = open_labelled([str(texts)])
    truth = dict(zip(corpus, corpus.labels.tolist(), strict=True))
    for part in (data.train, data.held_out):
        for index in range(len(part)):
            assert truth[model.processor.decode(part.side.tokens(index))] == part.labels[index]
    assert data.held_out.labels.sum() == 4


def test_the_command_prints_a_label_and_its_share(texts, tmp_path, capsys, monkeypatch):
    train(texts, tmp_path / "run", steps=60)
    assert main.run(["classify", str(tmp_path / "run"), "a dog barks and runs"]) == 0
    name, share = capsys.readouterr().out.rstrip("\n").split("\t")
    assert name == "dog"
    assert 0.5 < float(share) <= 1.0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a cat purrs and naps\n\na dog barks and runs")))
    assert main.run(["classify", str(tmp_path / "run"), "-", "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[::2] for line in lines[::2]] == [["cat", "dog"], ["dog", "cat"]]
    assert main.run(["classify", str(tmp_path / "run"), "a cat", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["text"] == "a cat"
    assert record["classes"][0]["class"] in ("cat", "dog")
    assert main.run(["evaluate", str(tmp_path / "run"), str(texts), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1.0
