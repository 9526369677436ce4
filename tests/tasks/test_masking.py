"""Masked models end to end: they fill what they learned, stop and go on, are BERT's folder, refuse in one line."""

import json
import os
import random
import signal

import numpy as np
import pytest
import torch
import transformers
from tests.conftest import TINY

import nextile
from nextile.base.errors import NextileError, UsageError
from nextile.cli.main import run
from nextile.data.masking import MaskedWindows
from nextile.tasks.masking import MaskedModelling, masker_of
from nextile.tasks.report import Silent
from nextile.tasks.settings import Masking, RunSettings
from nextile.text.masks import MASK, mask_of


class Heard(Silent):
    """What a run tells, kept."""

    def __init__(self):
        self.rows, self.samples = {}, []

    def table(self, title, rows):
        self.rows[title] = dict(rows)

    def sample(self, title, text):
        self.samples.append((title, text))


def train(text, folder, *, steps=3, settings=None, report=None, **more):
    return nextile.train(text, task="masked", out=folder, steps=steps, settings={**TINY, **(settings or {})},
                         report=report or Silent(), **more)  # fmt: skip


def metrics(folder, field="loss"):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[field] for row in rows if field in row]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A file in which letters take turns: a hidden one is certain from either side, and only from its neighbours."""
    path = tmp_path_factory.mktemp("planted") / "turns.txt"
    chosen = random.Random(0)
    path.write_text("".join("".join(chosen.sample("ab", 2)) * 16 for _ in range(300)))
    return path


@pytest.fixture(scope="module")
def trained(planted, tmp_path_factory):
    """A model of it, and what the run said."""
    heard = Heard()
    settings = {"model.stack.width": 32, "batch": 16, "context": 32}
    model = train(planted, tmp_path_factory.mktemp("trained") / "run", steps=100, settings=settings, report=heard)
    return model, heard


# --- what is learned ------------------------------------------------------------------------------------------------


def test_what_is_certain_is_filled_in_right(trained, planted):
    model, _ = trained
    assert metrics(model.folder, "val_filled")[-1] > 0.9
    assert metrics(model.folder)[0] > 1.0
    found = model.evaluate(report=Silent())
    assert set(found) == {"loss", "perplexity", "accuracy"}
    assert found["accuracy"] == pytest.approx(max(metrics(model.folder, "val_filled")), abs=0.02)
    assert found["loss"] == pytest.approx(min(metrics(model.folder, "val_loss")), rel=0.02)
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))
    beside = model.evaluate(planted, report=Silent())
    assert beside["accuracy"] == pytest.approx(found["accuracy"], abs=0.05)


def test_a_model_that_has_learned_nothing_fills_by_chance(planted, tmp_path):
    model = train(planted, tmp_path / "run", steps=1, settings={"lr": 1e-9})
    assert model.evaluate(report=Silent())["accuracy"] < 0.7


def test_the_folder_is_whole_and_the_run_tells_what_it_does(trained):
    model, heard = trained
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "run.json", "curve.html"}
    assert names <= {path.name for path in model.folder.iterdir()}
    assert (model.family, model.task, model.spec.stack.causal) == ("nextile", "masked", False)
    assert heard.rows["done"]["try"] == f'nextile generate {model.folder} "... [MASK] ..."'
    assert "filled in right" in heard.rows["done"]["validation loss"]
    title, shown = heard.samples[-1]
    assert title.count(MASK) == 2
    assert MASK not in shown
    filled, _, truth = shown.partition("\n== ")
    assert len(filled) == len(truth) == 16
    again = nextile.load(model.folder)
    assert again.generate("aba[MASK]") == model.generate("aba[MASK]")
    assert mask_of(again.tokenizer) == again.spec.embed.vocab - 1


def test_masks_are_filled_from_python(trained):
    model, _ = trained
    assert model.generate("abab[MASK]bab[MASK]baba") == "ababababababa"
    assert model.generate(["[MASK]babababa", "babababa[MASK]aba"]) == ["ababababa", "babababababa"]
    drawn = model.generate("ab[MASK]", temperature=5.0, n=6, seed=1)
    assert drawn == model.generate("ab[MASK]", temperature=5.0, n=6, seed=1)
    assert len(drawn) == 6
    assert len(set(drawn)) > 1
    details = model.generate("abab[MASK]baba", details=True)
    assert (details.tokens, details.finish_reason) == (model.tokenizer.encode("a"), "end")


def test_masks_are_filled_on_the_command_line(trained, capsys):
    model, _ = trained
    assert run(["generate", str(model.folder), "abab[MASK]baba"]) == 0
    assert capsys.readouterr().out == "ababababa\n"
    assert run(["generate", str(model.folder), "abab[MASK]baba", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "ababababa"
    assert run(["generate", str(model.folder), "abab"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "'abab' has nothing to fill: write [MASK] where a token is missing" in said.err
    assert run(["evaluate", str(model.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] > 0.9


def test_what_does_nothing_where_masks_are_filled_is_refused(trained):
    model, _ = trained
    for given in ({"beams": 3}, {"stop": ["a"]}, {"logprobs": 1}, {"repetition_penalty": 1.2}):
        with pytest.raises(UsageError, match=f"does nothing where gaps are filled: leave out {next(iter(given))}"):
            model.generate("a[MASK]", **given)
    assert not model.streams
    with pytest.raises(UsageError, match="fills gaps and does not write from left to right: use generate"):
        model.stream("ab")


# --- stopping, going on, beginning from another ---------------------------------------------------------------------


class Interrupting(Silent):
    """Sends this process a signal when the first validation is due."""

    def bar(self, title, total, unit):
        bar = super().bar(title, total, unit)
        if title == "training":
            bar.refresh = lambda: os.kill(os.getpid(), signal.SIGINT) if bar.done == 10 else None
        return bar


def test_a_run_that_was_stopped_ends_as_one_that_was_not(text, tmp_path):
    settings = {"validation.every": 10, "dropout": 0.1}
    train(text, tmp_path / "whole", steps=25, settings=settings)
    with pytest.raises(KeyboardInterrupt):
        train(text, tmp_path / "run", steps=25, settings=settings, report=Interrupting())
    assert 10 <= len(metrics(tmp_path / "run")) < 25
    nextile.train(resume=tmp_path / "run", report=Silent())
    for name in ("model.safetensors", "metrics.jsonl", "state/step-00000025/tensors.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_run_begins_from_a_masked_model(trained, planted, tmp_path):
    first, _ = trained
    again = nextile.train(planted, task="masked", init=first.folder, out=tmp_path / "again", steps=1, report=Silent(),
                          settings={"compile": False, "batch": 4, "context": 32, "lr": 1e-9})  # fmt: skip
    assert again.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    assert metrics(tmp_path / "again")[0] < metrics(first.folder)[0] - 0.5


@pytest.mark.parametrize("task", ["lm", "denoise"])
def test_a_run_does_not_begin_from_a_model_of_another_kind(text, tmp_path, task):
    sizes = {"model.encoder.width": 16, "model.encoder.depth": 1, "model.decoder.depth": 1}
    settings = {name: value for name, value in TINY.items() if task == "lm" or not name.startswith("model")}
    nextile.train(text, task=task, out=tmp_path / "first", steps=1, report=Silent(),
                  settings=settings | (sizes if task == "denoise" else {}))  # fmt: skip
    with pytest.raises(
        UsageError, match=r"'masked' cannot begin from .*first', (which fills no|a model of)"
    ) as problem:
        train(text, tmp_path / "run", init=tmp_path / "first")
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "run" / "run.json").exists()


# --- BERT -------------------------------------------------------------------------------------------------------------


def test_a_bert_is_a_folder_that_transformers_loads(text, tmp_path):
    model = train(text, tmp_path / "run", preset="bert", steps=5)
    assert model.family == "bert"
    theirs, info = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert isinstance(theirs, transformers.BertForMaskedLM)
    assert not any(info.values()), info
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run")
    ids = tokenizer("3 green [MASK]ottles", return_tensors="pt").input_ids
    assert ids[0].tolist().count(mask_of(model.tokenizer)) == 1
    with torch.no_grad():
        torch.testing.assert_close(model.model.eval()(ids), theirs.eval()(ids).logits, rtol=0, atol=1e-5)


def test_presets(text, tmp_path):
    plain = {name: value for name, value in TINY.items() if not name.startswith("model")}
    asked = nextile.plan(text, task="masked", preset="bert-tiny", steps=1, settings=plain, report=Silent())
    assert (asked.model.stack.width, asked.model.stack.depth, asked.model.stack.attention.heads) == (128, 2, 2)
    with pytest.raises(UsageError, match="unknown preset 'gpt2': it is one of bidirectional, bert"):
        train(text, tmp_path / "run", preset="gpt2")


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "asked"), [(0.15, 2), (0.5, 8)])
def test_the_share_that_is_set_is_asked(text, tmp_path, share, asked):
    model = train(text, tmp_path / "run", steps=1, settings={"masking.share": share})
    kept = RunSettings(masking=Masking(share=share))
    data = MaskedModelling().open(tmp_path / "run" / "data", kept, model.tokenizer)
    [batch] = data.batches(context=16, batch=4, accumulate=1, seed=0)(0)
    assert (batch.targets >= 0).sum(1).tolist() == [asked] * 4
    assert metrics(tmp_path / "run", "loss")[0] != 0.0
    written = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert written.get("masking", {}).get("share", 0.15) == share


def test_what_is_asked_in_training_follows_the_settings(text, tmp_path):
    """The first loss is that of the batch that these settings give, with the model as it was built."""
    losses = set()
    for share in (0.1, 0.6):
        train(text, tmp_path / str(share), steps=1, settings={"masking.share": share, "dropout": 0.0})
        losses.update(metrics(tmp_path / str(share)))
    assert len(losses) == 2


def test_other_masks_each_epoch_and_the_same_when_asked_again(text, tmp_path):
    model = train(text, tmp_path / "run", steps=1)
    data = MaskedModelling().open(tmp_path / "run" / "data", RunSettings(), model.tokenizer)
    windows = MaskedWindows(data.train, masker_of(model.tokenizer, Masking()), context=16, batch=4, seed=7)
    batches = data.batches(context=16, batch=4, accumulate=2, seed=7)
    halves = batches(3)
    assert torch.equal(torch.cat([half.inputs for half in halves]), windows.rows(3).inputs)
    assert not torch.equal(windows.rows(3).inputs, windows.rows(4).inputs)
    for first, second in zip(data.once(16), data.once(16), strict=True):
        assert torch.equal(first.inputs, second.inputs)


def test_a_text_is_evaluated_as_the_model_was_trained(planted, tmp_path):
    """What is hidden of it is what the run of the model hid."""
    model = train(planted, tmp_path / "run", steps=40, settings={"masking.share": 0.7})
    trained_as = model.evaluate(report=Silent())["loss"]
    assert trained_as == pytest.approx(min(metrics(tmp_path / "run", "val_loss")), rel=0.01)
    (tmp_path / "run" / "run.json").unlink()
    assert model.evaluate(report=Silent())["loss"] != pytest.approx(trained_as, rel=0.03)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"masking.share": 0}, "setting 'masking.share'"),
        ({"masking.share": 1.0}, "setting 'masking.share'"),
        ({"masking.shar": 0.2}, r"unknown setting 'masking.shar': did you mean 'masking.share'"),
        ({"masking.masked_share": 0.8, "masking.random_share": 0.3}, "are not parts of a whole"),
        ({"denoise.share": 0.2}, "setting 'denoise.share' does nothing in the task 'masked': leave it out"),
        ({"words.dim": 8}, "setting 'words.dim' does nothing in the task 'masked'"),
    ],
)
def test_settings_that_are_none(text, tmp_path, settings, message):
    with pytest.raises(NextileError, match=message) as problem:
        train(text, tmp_path / "run", settings=settings)
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "run" / "run.json").exists()


def test_settings_of_masks_do_nothing_elsewhere(text, tmp_path):
    with pytest.raises(UsageError, match=r"setting 'masking.share' does nothing in the task 'lm'"):
        nextile.train(text, out=tmp_path / "run", steps=1, settings={"masking.share": 0.2}, report=Silent())


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty"), ("ab" * 8, "too few for a context of 16"), (" \n" * 9, "nothing but white space")],
)
def test_text_that_cannot_be_learned_from(tmp_path, content, message):
    (tmp_path / "bad.txt").write_text(content)
    with pytest.raises(NextileError, match=message) as problem:
        train(tmp_path / "bad.txt", tmp_path / "run")
    assert "\n" not in str(problem.value)


def test_a_folder_without_its_data_and_several_sources_are_one_line(trained, text, tmp_path):
    model, _ = trained
    model.save(tmp_path / "alone")
    with pytest.raises(NextileError, match="has no validation text of its own: name a text to evaluate on"):
        nextile.load(tmp_path / "alone").evaluate(report=Silent())
    with pytest.raises(UsageError, match="reads one source, not 2"):
        train([text, text], tmp_path / "run")
