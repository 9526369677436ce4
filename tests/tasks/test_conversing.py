"""Chats end to end: the answers alone are learned, conversations in a row stay apart, a run goes on exactly."""

import json
import os
import signal

import numpy as np
import pytest
import torch
import transformers
from tests.conftest import TINY

import nextile
from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.pretrained import load
from nextile.data.answers import PackedAnswers
from nextile.tasks.conversing import Conversing, store_answers
from nextile.tasks.report import Silent
from nextile.tasks.run import task_for
from nextile.tasks.settings import RunSettings
from nextile.text.build import train_tokenizer
from nextile.text.chat import Message
from nextile.training.loop import evaluate
from nextile.training.objectives import apart

SETTINGS = {**TINY, "context": 64}
COLOURS = ("red", "blue", "green", "grey")


def chats(count=80):
    """What somebody likes is what somebody says; the first answer of a conversation tells the second."""
    for number in range(count):
        colour = COLOURS[number % 4]
        turns = [("user", f"{number} likes {colour}. What?"), ("assistant", colour)]
        yield [{"role": role, "content": text} for role, text in (turns if number % 3 else turns * 2)]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in chats()))
    return path


class Heard(Silent):
    """What a run tells, kept."""

    def __init__(self):
        self.rows, self.samples, self.warned = {}, [], []

    def table(self, title, rows):
        self.rows[title] = dict(rows)

    def sample(self, title, text):
        self.samples.append((title, text))

    def warn(self, text):
        self.warned.append(text)


class Interrupting(Silent):
    """Sends this process a signal after so many steps."""

    def bar(self, title, total, unit):
        bar = super().bar(title, total, unit)
        if title == "training":
            bar.refresh = lambda: os.kill(os.getpid(), signal.SIGINT) if bar.done == 6 else None
        return bar


def train(file, folder, *, steps=3, settings=None, report=None, **more):
    return nextile.train(file, out=folder, steps=steps, settings={**SETTINGS, **(settings or {})},
                         report=report or Silent(), **more)  # fmt: skip


def metrics(folder, field="loss"):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[field] for row in rows if field in row]


@pytest.fixture(scope="module")
def trained(file, tmp_path_factory):
    heard, folder = Heard(), tmp_path_factory.mktemp("trained") / "run"
    settings = {"model.stack.width": 32, "batch": 8}
    return train(file, folder, steps=120, settings=settings, report=heard), heard


# --- what is learned ------------------------------------------------------------------------------------------------


def test_answers_are_learned_and_measured(trained, file):
    model, heard = trained
    assert json.loads((model.folder / "run.json").read_text())["plan"]["task"] == "chat"
    assert metrics(model.folder)[0] > 1.0
    found = model.evaluate(report=Silent())
    assert found["loss"] == pytest.approx(min(metrics(model.folder, "val_loss")), rel=0.02)
    assert found["loss"] < 0.4
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))
    assert set(model.evaluate(file, report=Silent())) == {"loss", "perplexity"}
    with pytest.raises(UsageError, match="stride is of texts"):
        model.evaluate(stride=2)
    assert heard.rows["done"]["try"] == f"nextile chat {model.folder}"
    assert "of them in answers" in heard.rows["plan"]["training"]
    title, shown = heard.samples[-1]
    answer, _, truth = shown.partition("\n== ")
    assert title.startswith("User: ")
    assert title.endswith("Assistant:")
    assert (answer.strip() in COLOURS, truth.strip() in title) == (True, True)


def test_the_task_is_seen_in_the_first_line(file, tmp_path):
    assert task_for([str(file)], None).name == "chat"
    assert task_for(["sums-chat"], None).name == "chat"
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}')
    assert task_for([str(tmp_path / "texts.jsonl")], None).name == "lm"


def test_a_run_of_its_own_validation_and_a_model_to_begin_from(trained, file, tmp_path):
    model, _ = trained
    again = train(file, tmp_path / "again", settings={"validation.data": str(file), "model.stack.width": 32},
                  init=model.folder)  # fmt: skip
    assert metrics(tmp_path / "again")[0] < 0.5
    assert again.tokenizer.fingerprint() == model.tokenizer.fingerprint()


def test_a_model_that_does_not_write_is_no_beginning(text, file, tmp_path):
    settings = {**TINY, "context": 16}
    nextile.train(text, task="masked", out=tmp_path / "masked", steps=1, settings=settings, report=Silent())
    with pytest.raises(UsageError, match="which does not write texts"):
        train(file, tmp_path / "run", init=tmp_path / "masked")
    with pytest.raises(UsageError, match=r"setting 'preference\.beta' does nothing in the task 'chat'"):
        train(file, tmp_path / "run", settings={"preference.beta": 0.2})


def test_what_is_cut_is_said_in_one_line_and_too_little_room_is_refused(file, tmp_path):
    heard = Heard()
    train(file, tmp_path / "run", settings={"context": 48}, report=heard)
    [warned] = [line for line in heard.warned if "cut" in line]
    assert "\n" not in warned
    assert "longer than 48 tokens and cut at the end:" in warned
    with pytest.raises(NextileError, match="no conversation answers within a context of 8 tokens: set a longer"):
        train(file, tmp_path / "short", settings={"context": 8})


# --- parity: packed as alone ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_positions=128, n_embd=16, n_layer=2, n_head=2)
    return transformers.GPT2LMHeadModel(config).double().eval()


def test_packed_answers_cost_what_they_cost_alone(theirs, tmp_path):
    talks = [tuple(Message(**each) for each in chat) for chat in chats(20)]
    tokenizer = train_tokenizer(
        "char", 64, ["User: Assistant:\n", *(message.content for talk in talks for message in talk)]
    )
    answers = store_answers(talks, tokenizer, tmp_path / "store", 1)
    theirs.save_pretrained(tmp_path / "gpt2")
    tokenizer.save(tmp_path / "gpt2")
    ours = load(tmp_path / "gpt2", device="cpu", dtype=torch.float64).model
    expected = 0.0
    for index in range(len(answers)):
        ids = torch.from_numpy(answers.tokens(index))
        [(read, asked)] = _alone(answers, index)
        with torch.no_grad():
            logprobs = theirs(ids[None]).logits[0, :-1].log_softmax(-1)
        assert read == ids[:-1].tolist()
        expected -= sum(logprobs[place, token].item() for place, token in enumerate(asked) if token >= 0)
    batches = list(PackedAnswers(answers, length=128, batch=4, seed=0).once())
    assert sum(int(batch.beside[0].max(1).values.sum()) for batch in batches) == len(answers)
    found, _ = evaluate(ours, batches, apart(_exact_next_token))
    assert found == pytest.approx(expected, abs=1e-9)
    together, _ = evaluate(ours, batches, lambda model, batch: _exact_next_token(lambda ids, _: model(ids), batch))
    assert abs(together - expected) > 1e-2  # as if a row were one conversation


def _alone(answers, index):
    inputs, targets, segments = answers.rows([np.array([index])], 128)
    mine = segments[0] == 1
    yield inputs[0][mine].tolist(), targets[0][mine].tolist()


def _exact_next_token(model, batch):
    """`next_token` without its rounding to float32."""
    return torch.nn.functional.cross_entropy(
        model(*batch.given).flatten(0, 1), batch.targets.flatten(), reduction="sum"
    )


# --- resuming -------------------------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_exactly(file, tmp_path):
    settings = {"validation.every": 6, "dropout": 0.1, "label_smoothing": 0.1}
    train(file, tmp_path / "whole", steps=12, settings=settings)
    with pytest.raises(KeyboardInterrupt):
        train(file, tmp_path / "run", steps=12, settings=settings, report=Interrupting())
    nextile.train(resume=tmp_path / "run", report=Silent())
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    whole, run = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run"))
    assert whole == run


def test_data_of_another_tokenizer_is_refused(trained):
    model, _ = trained
    other = train_tokenizer("char", 64, ["abc"])
    with pytest.raises(NextileError, match="written with another tokenizer"):
        Conversing().open(model.folder / "data", RunSettings(), other)
