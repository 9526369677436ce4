"""What is not a number: the step is skipped, counted, named by what is in its batch, and after five the run stops."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from tests.tasks.tiny import KINDS, prepare, work

import nextile
from nextile.base.errors import NextileError
from nextile.checkpoint.pretrained import load
from nextile.checkpoint.store import save_weights
from nextile.data.batches import Batch, Steps, listed
from nextile.tasks import run
from nextile.tasks.report import Silent


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.warned: list[str] = []
        self.tables: dict[str, dict[str, str]] = {}

    def warn(self, text):
        self.warned.append(text)

    def table(self, title, rows):
        self.tables[title] = dict(rows)


@pytest.fixture
def given(tmp_path) -> Path:
    prepare("lm", tmp_path / "given", Silent())
    return tmp_path / "given"


def metrics(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def poison(monkeypatch, steps: set[int], where: str) -> None:
    """Not a number, in the gradient or in the loss of these steps, counted from 0."""
    backward = nextile.training.learner.GradientLearner._backward

    def poisoned(self, micros, index):
        loss, asked = backward(self, micros, index)
        if index in steps and where == "gradient":
            next(self.model.parameters()).grad.view(-1)[3] = math.nan
        return (loss * math.nan if index in steps and where == "loss" else loss), asked

    monkeypatch.setattr(nextile.training.learner.GradientLearner, "_backward", poisoned)


@pytest.mark.parametrize("where", ["gradient", "loss"])
def test_skipped_steps_are_counted_and_named(given, tmp_path, monkeypatch, where):
    poison(monkeypatch, {4, 5, 11}, where)
    heard = Heard()
    work("lm", given, tmp_path / "run", heard)
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows if row.get("skipped")] == [5, 6, 12]
    assert all((row["loss"] is None or row["grad_norm"] is None) == ("skipped" in row) for row in rows)
    assert heard.tables["done"]["skipped"].startswith("3 steps")
    assert len(heard.warned) == 3
    assert re.fullmatch(
        r"step 5 was skipped, .* is not finite; it is of data/train, counted from 0, windows of 16 tokens at "
        r"\d+, \d+, \d+, \d+", heard.warned[0],
    )  # fmt: skip
    for name, weights in load(tmp_path / "run").model.named_parameters():
        assert weights.isfinite().all(), name


def test_they_are_counted_across_an_interruption(given, tmp_path, monkeypatch):
    poison(monkeypatch, {4, 5, 11}, "gradient")
    saved = run.states.save_state

    def killed(folder, step, *rest, **more):
        saved(folder, step, *rest, **more)
        if step == 9:
            raise KeyboardInterrupt

    monkeypatch.setattr(run.states, "save_state", killed)
    with pytest.raises(KeyboardInterrupt):
        work("lm", given, tmp_path / "run", Silent())
    heard = Heard()
    work("lm", given, tmp_path / "run", heard)
    assert heard.tables["done"]["skipped"].startswith("3 steps")
    assert len(heard.warned) == 1


@pytest.mark.parametrize("every", [2, 7])
def test_five_in_a_row_stop_the_run_however_often_it_validates(given, tmp_path, monkeypatch, every):
    poison(monkeypatch, set(range(8, 20)), "gradient")
    with pytest.raises(NextileError) as stopped:
        work("lm", given, tmp_path / "run", Silent(), **{"validation.every": every})
    assert re.fullmatch(
        r"step 13 of data/train, counted from 0, windows of 16 tokens at \d+, \d+, \d+, \d+: loss \d\.\d+, gradient "
        r"norm nan, and 5 steps in a row were skipped: lower lr .*", str(stopped.value),
    )  # fmt: skip
    with pytest.raises(NextileError, match="step 13 of"):  # and again, from wherever it was saved
        work("lm", given, tmp_path / "run", Silent())


def test_a_model_that_is_not_a_number_is_no_fault_of_the_rate(given, tmp_path):
    work("lm", given, tmp_path / "first", Silent(), steps=2)
    first = load(tmp_path / "first")
    with torch.no_grad():
        first.model.embed.token.weight[5] = math.nan
    save_weights(tmp_path / "first", first.model)
    source = Path((given / "source").read_text())
    with pytest.raises(NextileError, match=r"step 5 of .*: begin from a sound model, with sound data"):
        nextile.train(source, init=tmp_path / "first", out=tmp_path / "run", steps=9, report=Silent(),
                      settings={"compile": False, "batch": 4, "context": 16, "threads": 1})  # fmt: skip


def test_a_batch_that_is_not_a_number_is_named(tmp_path, monkeypatch):
    """Pictures are numbers: what makes inputs of one of them fails."""
    prepare("classify", tmp_path / "given", Silent())
    micro = Steps.__call__

    def broken(self, step):
        batches = micro(self, step)
        if step == 6:
            batches = [Batch(batch.inputs * math.nan, batch.targets, batch.weight) for batch in batches]
        return batches

    monkeypatch.setattr(Steps, "__call__", broken)
    heard = Heard()
    work("classify", tmp_path / "given", tmp_path / "run", heard)
    assert len(heard.warned) == 1
    assert re.search(r"step 7 was skipped.* counted from 0, pictures( \d+,){7} \d+$", heard.warned[0])


NAMES = {
    "masked": r"windows of 16 tokens at( \d+,){3} \d+",
    "denoise": r"windows of 16 tokens at( \d+,){3} \d+",
    "translate": r"pairs( \d+,){3,} \d+( and \d+ more)?",
    "classify-text": r"texts( \d+,){3} \d+",
    "paint": r"pictures( \d+,){7} \d+",
    "words": r"windows of \d+ tokens at( \d+,){3} \d+",
    "chat": r"conversations \d+(, \d+)+( and \d+ more)?",
    "prefer": r"pairs \d+, \d+",
}


@pytest.mark.parametrize("kind", NAMES)
def test_every_kind_of_data_names_its_batches(kind, tmp_path, monkeypatch):
    found: list[tuple[str, str]] = []
    go = run.Run.go

    def asked(self):
        found.append((self.batches.named(3), self.batches.named(4)))
        return go(self)

    monkeypatch.setattr(run.Run, "go", asked)
    prepare(kind, tmp_path / "given", Silent())
    found.clear()  # of the model that it begins from
    work(kind, tmp_path / "given", tmp_path / "run", Silent(), steps=1)
    for name in found[0]:
        assert re.fullmatch(rf"data/train, counted from 0, {NAMES[kind]}", name)
    assert found[0][0] != found[0][1]
    assert set(NAMES) < set(KINDS)


def test_of_many_the_first_are_listed():
    numbers = torch.arange(1000, 2300, 100).numpy()
    assert listed("pairs", numbers[:3]) == "pairs 1000, 1100, 1200"
    assert listed("pairs", numbers, most=2) == "pairs 1000, 1100 and 11 more"
