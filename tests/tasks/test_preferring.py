"""Preferences end to end: DPO is the paper's, the reference is computed once, what is preferred is learned exactly."""

import json
import math

import numpy as np
import pytest
import torch
import transformers
from tests.conftest import TINY
from tests.tasks.test_conversing import Heard, Interrupting, metrics

import nextile
from nextile.base.errors import UsageError
from nextile.checkpoint.pretrained import load
from nextile.data.answers import Comparisons, read_reference
from nextile.data.batches import Batch
from nextile.tasks import preferring
from nextile.tasks.conversing import store_answers
from nextile.tasks.preferring import Preferring, reference_of
from nextile.tasks.report import Silent
from nextile.tasks.run import task_for
from nextile.tasks.settings import RunSettings
from nextile.text.build import train_tokenizer
from nextile.text.chat import Message
from nextile.training.objectives import gained, preference

BETA = 0.3
SETTINGS = {name: value for name, value in TINY.items() if not name.startswith(("model", "tokenizer"))} | {
    "context": 48,
    "optimizer": "adamw",
    "lr": 3e-3,
}


def rows(count=40):
    """Yes is always better than no."""
    return [{"prompt": f"Is {number} good?", "chosen": "Yes, it is.", "rejected": "No, no."} for number in range(count)]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("preferences") / "preferences.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small model of other text, with dropout."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "text.txt").write_text(
        "".join(f"User: Is {i} good?\nAssistant: Yes, it is. No, no.\n" for i in range(200))
    )
    settings = {**TINY, "context": 64, "dropout": 0.2, "preset": "gpt2"}
    settings.pop("preset")
    nextile.train(folder / "text.txt", preset="gpt2", out=folder / "run", steps=5, settings=settings, report=Silent())
    return folder / "run"


def train(file, base, folder, *, steps=3, settings=None, report=None):
    return nextile.train(file, init=base, out=folder, steps=steps, settings={**SETTINGS, **(settings or {})},
                         report=report or Silent())  # fmt: skip


@pytest.fixture(scope="module")
def trained(file, base, tmp_path_factory):
    heard, folder = Heard(), tmp_path_factory.mktemp("trained") / "run"
    return train(file, base, folder, steps=40, report=heard), heard


# --- parity ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Two tiny GPT-2 in float64, the second a little changed: theirs and ours of both; pairs as tokens."""
    folder, found = tmp_path_factory.mktemp("twins"), []
    talks = [
        (Message("user", row["prompt"]), Message("assistant", row[side] * (1 + number % 3)))
        for number, row in enumerate(rows(7))
        for side in ("chosen", "rejected")
    ]
    tokenizer = train_tokenizer("char", 64, ["User: Assistant:\n", *(each.content for talk in talks for each in talk)])
    answers = store_answers(talks, tokenizer, folder / "store", 1)
    config = transformers.GPT2Config(vocab_size=64, n_positions=96, n_embd=16, n_layer=2, n_head=2)
    for name in ("reference", "policy"):
        torch.manual_seed(len(name))
        theirs = transformers.GPT2LMHeadModel(config).double().eval()
        theirs.save_pretrained(folder / name)
        tokenizer.save(folder / name)
        found.append((theirs, load(folder / name, device="cpu", dtype=torch.float64).model))
    return found, answers


def their_logprob(model, answers, index):
    """Of the answer of a conversation alone: the sum of its tokens' log-probabilities."""
    question, answer = answers.first_answer(index)
    ids = torch.from_numpy(np.concatenate([question, answer]))
    with torch.no_grad():
        logprobs = model(ids[None]).logits[0].log_softmax(-1)
    return sum(logprobs[place - 1, ids[place]].item() for place in range(len(question), len(ids)))


def test_the_loss_is_that_of_the_paper_from_their_log_probabilities(twins):
    [(their_reference, our_reference), (their_policy, our_policy)], answers = twins
    reference = reference_of(our_reference, answers, 96, precision=torch.float64, report=Silent())
    assert reference.dtype == np.float64
    expected, margins = 0.0, []
    for pair in range(len(answers) // 2):
        gains = [
            their_logprob(their_policy, answers, index) - their_logprob(their_reference, answers, index)
            for index in (2 * pair, 2 * pair + 1)
        ]
        margins.append(BETA * (gains[0] - gains[1]))
        expected += math.log1p(math.exp(-margins[-1]))
    for index in range(len(answers)):
        assert reference[index] == pytest.approx(their_logprob(their_reference, answers, index), abs=1e-9)
    [batch] = Comparisons(answers, reference, length=96, batch=len(answers), seed=0).once()
    with torch.no_grad():
        assert preference(our_policy, batch, BETA).item() == pytest.approx(expected, abs=1e-9)
        assert (BETA * gained(our_policy, batch)).tolist() == pytest.approx(margins, abs=1e-9)
        swapped = Batch(batch.inputs.flip(0), batch.targets.flip(0), batch.weight,
                        tuple(tensor.flip(0) for tensor in batch.beside))  # fmt: skip
        assert abs(preference(our_policy, swapped, BETA).item() - expected) > 1e-3
        without = Batch(batch.inputs, batch.targets, batch.weight, (batch.beside[0], 0 * batch.beside[1]))
        assert abs(preference(our_policy, without, BETA).item() - expected) > 1e-3
    measured = preferring.measured(our_policy, [batch], BETA, torch.float64)
    assert measured["loss"] == pytest.approx(expected / len(margins), abs=1e-9)
    assert measured["accuracy"] == pytest.approx(np.mean(np.array(margins) > 0))
    assert measured["margin"] == pytest.approx(np.mean(margins), abs=1e-9)


# --- the reference --------------------------------------------------------------------------------------------------


def test_the_reference_is_computed_once_and_is_what_the_beginning_gives(trained, base):
    model, _ = trained
    data = Preferring().open(model.folder / "data", RunSettings(), model.tokenizer)
    first = load(base, device="cpu").model
    for store in (data.train, data.held_out):
        kept = read_reference(store, 48)
        again = reference_of(first, store, 48, precision=torch.float32, report=Silent())
        assert kept.tolist() == again.tolist()
        after = reference_of(model.model.cpu(), store, 48, precision=torch.float32, report=Silent())
        assert abs(kept - after).max() > 0.1
    assert len(list((model.folder / "data" / "train").glob("reference-*.npy"))) == 1


def test_a_run_begins_where_nothing_is_preferred(trained):
    model, _ = trained
    assert metrics(model.folder)[0] == pytest.approx(math.log(2), abs=1e-5)  # whatever the dropout of the model


# --- what is learned ------------------------------------------------------------------------------------------------


def test_what_is_preferred_is_learned(trained):
    model, heard = trained
    assert json.loads((model.folder / "run.json").read_text())["plan"]["task"] == "prefer"
    found = model.evaluate(report=Silent())
    assert found["accuracy"] == 1.0
    assert found["margin"] > 0.5
    assert found["loss"] == pytest.approx(min(metrics(model.folder, "val_loss")), rel=1e-3)
    assert found["loss"] < 0.6
    assert "nats per pair" in heard.rows["done"]["validation loss"]
    assert heard.rows["plan"]["corpus"].startswith("36 pairs to train on")
    assert heard.samples[-1][0].endswith("Assistant:")


def test_parts_of_a_batch_are_the_batch(file, base, tmp_path):
    train(file, base, tmp_path / "whole", settings={"batch": 8})
    train(file, base, tmp_path / "parts", settings={"batch": 8, "accumulate": 4})
    assert metrics(tmp_path / "whole") == pytest.approx(metrics(tmp_path / "parts"), abs=1e-6)


def test_a_stopped_run_goes_on_exactly(file, base, tmp_path, monkeypatch):
    settings = {"validation.every": 6}
    train(file, base, tmp_path / "whole", steps=12, settings=settings)
    with pytest.raises(KeyboardInterrupt):
        train(file, base, tmp_path / "run", steps=12, settings=settings, report=Interrupting())
    monkeypatch.setattr(preferring, "reference_of", None)  # no second model is needed
    nextile.train(resume=tmp_path / "run", report=Silent())
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    whole, run = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run"))
    assert whole == run


# --- what is refused ------------------------------------------------------------------------------------------------


def test_the_task_is_seen_in_the_first_line(file):
    assert task_for([str(file)], None).name == "prefer"
    assert task_for(["sums-preferences"], None).name == "prefer"


def test_a_run_without_a_beginning_is_refused(file, tmp_path):
    with pytest.raises(UsageError, match="begins from a model that gives answers already: add --init"):
        nextile.train(file, out=tmp_path / "run", steps=1, settings=SETTINGS, report=Silent())


@pytest.mark.parametrize("setting", ["label_smoothing", "dropout", "r_drop", "tokenizer.kind"])
def test_settings_that_do_nothing_are_refused(file, base, tmp_path, setting):
    with pytest.raises(UsageError, match=f"setting '{setting}' does nothing in the task 'prefer'"):
        train(file, base, tmp_path / "run", settings={setting: 0.1})


def test_other_pairs_have_no_reference(trained, file):
    model, _ = trained
    with pytest.raises(UsageError, match="measured against the model that a run began from"):
        model.evaluate(file, report=Silent())


def test_a_batch_of_half_a_pair_is_refused(file, base, tmp_path):
    with pytest.raises(UsageError, match="a pair is two rows"):
        train(file, base, tmp_path / "run", settings={"batch": 5})
