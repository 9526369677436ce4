"""A translator end to end: pairs become a model that translates, is measured, and loads elsewhere."""

import json
import re
import sys

import pytest
import torch
import transformers
from tests.conftest import TINY_PAIRS

import nextile
from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.weights import load_tensors
from nextile.nn.tap import record
from nextile.tasks import run, translation
from nextile.tasks.report import Plain, Silent
from nextile.tasks.settings import RunSettings
from nextile.training import metrics as measures
from nextile.training.optim import AdamW


def train(data, folder, *, steps=6, preset=None, task=None, **settings):
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return nextile.train(
        data, out=folder, steps=steps, preset=preset, task=task, settings={**TINY_PAIRS, **named}, report=Silent()
    )


def sides(pairs, folder, name="train"):
    """The pairs as two files."""
    lines = [line.split("\t") for line in pairs.read_text().splitlines()]
    paths = folder / f"{name}.left", folder / f"{name}.right"
    for path, side in zip(paths, zip(*lines, strict=True), strict=True):
        path.write_text("".join(f"{text}\n" for text in side))
    return paths


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A small model that has learned to turn sentences round."""
    folder = tmp_path_factory.mktemp("learned")
    words = ("a", "red", "green", "blue", "bottle", "hangs", "falls", "on", "the", "wall")
    lines = [[words[i * k % 10] for k in range(1, 2 + i % 3)] + [words[i // 30]] for i in range(300)]
    source = folder / "pairs.tsv"
    source.write_text("".join(f"{' '.join(line)}\t{' '.join(reversed(line))}\n" for line in lines))
    settings = {
        **TINY_PAIRS, "model.encoder.width": 64, "context": 32, "batch": 16, "dropout": 0.0, "tokenizer.kind": "word",
        "tokenizer.size": 100,
    }  # fmt: skip
    return nextile.train(source, out=folder / "run", preset="marian", steps=250, settings=settings, report=Silent())


def test_it_learns_to_turn_sentences_round(learned):
    found = learned.evaluate(report=Silent())
    assert found["accuracy"] > 0.9
    assert found["bleu"] > 90
    assert found["chrf"] > 90
    assert found["loss"] < 0.5
    assert found["perplexity"] == pytest.approx(2.718281828 ** found["loss"])
    assert "tok:13a" in found["bleu_signature"]
    assert learned.translate("wall blue") == "blue wall"
    assert learned.translate(["wall blue", "", "on the wall"]) == ["blue wall", "", "wall the on"]


def test_several_translations_of_a_sentence(learned):
    best = learned.translate("wall blue", n=3, details=True)
    assert best[0].text == "blue wall"
    assert best[0].score > best[1].score > best[2].score
    assert learned.translate("wall blue", n=3) == [each.text for each in best]
    assert learned.translate("wall blue", beams=1) == "blue wall"


def test_transformers_translates_the_same(learned, tmp_path):
    learned.save(tmp_path / "elsewhere")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "elsewhere").eval()
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "elsewhere")
    sources = ["wall blue", "on the wall", "a red green bottle"]
    given = tokens(sources, return_tensors="pt", padding=True, return_token_type_ids=False)
    with torch.no_grad():
        found = theirs.generate(**given, num_beams=5)
    assert tokens.decode(found, skip_special_tokens=True) == learned.translate(sources)
    assert learned.translate(sources) != learned.translate(sources[::-1])


def test_cross_attention_is_read_per_head(learned):
    tokenizer, model = learned.tokenizer, learned.model
    source = torch.tensor([[*tokenizer.encode("wall blue"), tokenizer.end_id]])
    target = torch.tensor([[learned.spec.start, *tokenizer.encode("blue wall")]])
    with record(model, "decoder.blocks.*.cross_attention.inner.weights") as seen:
        model(source, target)
    [weights] = seen.values()
    heads = learned.spec.decoder.cross.heads
    assert weights.shape == (1, heads, target.shape[1], source.shape[1])
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, heads, target.shape[1]))


def test_pairs_in_two_files_are_the_pairs_of_a_table(pairs, tmp_path):
    train(pairs, tmp_path / "table")
    train(sides(pairs, tmp_path), tmp_path / "files")
    names = ("model.safetensors", "metrics.jsonl", "tokenizer.json")
    assert all((tmp_path / "table" / name).read_bytes() == (tmp_path / "files" / name).read_bytes() for name in names)


@pytest.mark.parametrize("preset", ["modern", "marian", "prenorm"])
def test_presets(pairs, tmp_path, preset):
    model = train(pairs, tmp_path / "run", preset=preset)
    assert model.family == ("marian" if preset == "marian" else "nextile")
    assert nextile.load(tmp_path / "run").spec == model.spec
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row for row in losses if "val_loss" in row]


def test_the_task_follows_from_the_data(pairs, text, tmp_path):
    assert run.task_for([str(pairs)], None).name == "translate"
    assert run.task_for(["a.en", "a.de"], None).name == "translate"
    assert run.task_for(["numbers-en-de"], None).name == "translate"
    assert run.task_for([str(text)], None).name == "lm"
    assert run.task_for([str(pairs)], "lm").name == "lm"
    known = "chat, classify, denoise, lm, masked, paint, prefer, translate, words"
    with pytest.raises(UsageError, match=f"unknown task 'mt': it is one of {known}"):
        run.task_for([str(text)], "mt")
    with pytest.raises(NextileError, match=re.escape("give a .tsv, two files whose lines belong together")):
        train(text, tmp_path / "run", task="translate")
    with pytest.raises(UsageError, match="a language model reads one source, not 2"):
        train([text, text], tmp_path / "run", task="lm")


def test_validation_pairs_of_their_own(pairs, tmp_path):
    own = tmp_path / "own.tsv"
    own.write_text("red wall\twall red\nblue\tblue\n")
    train(pairs, tmp_path / "run", validation__data=str(own))
    folder = tmp_path / "run" / "data"
    counts = [
        json.loads((folder / part / "source" / "index.json").read_text())["documents"]
        for part in ("train", "validation")
    ]
    assert counts == [300, 2]


def test_the_mean_of_the_last_states(pairs, tmp_path):
    settings = {
        "checkpoint__every": 2,
        "validation__every": 6,
        "checkpoint__average": 3,
        "lr": 0.02,
        "schedule": "constant",
    }
    said = []

    class Kept(Silent):
        def say(self, text):
            said.append(text)

    named = {name.replace("__", "."): value for name, value in settings.items()}
    nextile.train(pairs, out=tmp_path / "run", steps=18, settings={**TINY_PAIRS, **named}, report=Kept())
    states = sorted((tmp_path / "run" / "state").iterdir())
    assert [state.name for state in states] == ["step-00000014", "step-00000016", "step-00000018"]
    [line] = [line for line in said if line.startswith("the mean of the last 3 states")]
    kept = load_tensors(tmp_path / "run" / "model.safetensors")
    parts = [load_tensors(state / "tensors.safetensors") for state in states]
    mean = {name: sum(part[f"model.{name}"] for part in parts) / 3 for name in kept}
    same = all(torch.allclose(kept[name], mean[name], atol=1e-6) for name in kept)
    assert same == ("kept" in line)
    assert "kept" in line  # at a constant rate the mean lies deeper in the valley


def test_r_drop_and_label_smoothing_change_what_is_learned(pairs, tmp_path):
    found = {}
    for name, settings in {
        "plain": {"label_smoothing": 0.0}, "default": {}, "smooth": {"label_smoothing": 0.1}, "drop": {"r_drop": 1.0},
    }.items():  # fmt: skip
        train(pairs, tmp_path / name, dropout=0.1, **settings)
        found[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert found["default"] == found["smooth"]
    assert len(set(found.values())) == 3


def test_a_translator_to_begin_from(pairs, learned, tmp_path):
    model = nextile.train(
        pairs, init=learned.folder, out=tmp_path / "run", steps=3, report=Silent(),
        settings={"compile": False, "batch": 4, "lr": 1e-5},
    )  # fmt: skip
    assert model.translate("wall blue") == "blue wall"


def test_models_of_the_other_kind(learned, text, pairs, tmp_path):
    with pytest.raises(UsageError, match="is a translator, not a language model: use nextile translate"):
        learned.generate("a")
    with pytest.raises(UsageError, match="is a translator, not a language model: use nextile translate"):
        learned.stream("a")
    model = nextile.train(text, out=tmp_path / "lm", steps=2, report=Silent(), settings={
        "compile": False, "batch": 2, "context": 16, "model.stack.width": 16, "model.stack.depth": 1})  # fmt: skip
    with pytest.raises(UsageError, match="is a language model, not a translator: use nextile generate"):
        model.translate("a")
    with pytest.raises(UsageError, match="cannot begin from"):
        nextile.train(pairs, init=tmp_path / "lm", out=tmp_path / "no", steps=2, report=Silent())
    with pytest.raises(UsageError, match="cannot begin from"):
        nextile.train(text, init=learned.folder, out=tmp_path / "no", steps=2, report=Silent())


def test_without_sacrebleu_the_rest_is_measured(learned, monkeypatch, capsys):
    def absent():
        raise NextileError("BLEU and chrF need sacrebleu: pip install 'nextile[mt]'")

    monkeypatch.setattr(measures, "_sacrebleu", absent)
    found = learned.evaluate(report=Plain(sys.stderr))
    assert "bleu" not in found
    assert found["accuracy"] > 0.9
    assert "warning: BLEU and chrF need sacrebleu: pip install 'nextile[mt]'" in capsys.readouterr().err
    with pytest.raises(UsageError, match="klingon"):
        learned.evaluate(bleu_tokens="klingon", report=Silent())


def test_pairs_that_cannot_be_evaluated(learned, tmp_path):
    long = tmp_path / "long.tsv"
    long.write_text("red\twall\nred\t" + "wall " * 600 + "\n")
    with pytest.raises(NextileError, match=r"a pair has [0-9]+ tokens and the model reads 512"):
        learned.evaluate(long, report=Silent())
    learned.save(tmp_path / "alone")
    with pytest.raises(NextileError, match="has no validation pairs of its own: name pairs to evaluate on"):
        nextile.load(tmp_path / "alone").evaluate(report=Silent())


def test_a_plan_of_a_translator(pairs):
    found = nextile.plan(pairs, steps=5, report=Silent(), settings={"compile": False})
    shown = dict(found.rows())
    assert re.fullmatch(r"modern: \d \+ \d layers of width \d+, \d+ heads? of \d+", shown["model"])
    assert found.as_dict()["parameters"] > 0
    assert found.task == "translate"


def test_pairs_that_are_too_long_are_left_out_and_said(pairs, tmp_path, capsys):
    with open(pairs, "a") as file:
        file.write("red " * 30 + "\t" + "wall " * 30 + "\n")
    nextile.train(
        pairs, out=tmp_path / "run", steps=2, settings={**TINY_PAIRS, "context": 48}, report=Plain(sys.stderr)
    )
    assert re.search(
        r"warning: too long and left out: 1 of 2\d\d pairs to train on \(above 48 tokens\)", capsys.readouterr().err
    )
    with pytest.raises(NextileError, match="no pair fits in a context of 2 tokens"):
        train(pairs, tmp_path / "none", context=2)


def test_rows_are_as_long_as_the_pairs_ask_for(pairs, tmp_path):
    train(pairs, tmp_path / "run", context=None)
    data = translation.Translating().open(
        tmp_path / "run" / "data", RunSettings(), nextile.load(tmp_path / "run").processor
    )
    assert data.context(64) % 16 == 0
    assert data.context(64) >= 3 * data.train.longest.mean()
    left_out = (data.train.longest > data.context(64)).mean()
    assert left_out <= 0.001


def test_a_task_has_defaults_of_its_own_and_everybody_wins_over_them(pairs, tmp_path):
    def settings(name, **asked):
        train(pairs, tmp_path / name, steps=1, **asked)
        return run.read_run(tmp_path / name).settings

    own, other = translation.SETTINGS["optimizer"], settings("asked", label_smoothing=0.0, optimizer="adamw")
    plain = settings("plain")
    assert (plain.label_smoothing, plain.optimizer.lr, plain.optimizer.betas) == (0.1, own["lr"], own["betas"])
    assert (other.label_smoothing, other.optimizer) == (0.0, AdamW())
    assert settings("one", optimizer__lr=0.5).optimizer == plain.optimizer.model_copy(update={"lr": 0.5})
