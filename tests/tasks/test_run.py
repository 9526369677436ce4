"""A run end to end on real text: it learns, it is exact, it stops and goes on, it refuses in one line."""

import errno
import json
import os
import signal
import time

import pytest
import torch
import transformers
from tests.conftest import TINY

import nextile
from nextile.base import files
from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.weights import load_tensors
from nextile.tasks import plan as plans
from nextile.tasks import run
from nextile.tasks.report import Silent


def train(text, folder, *, steps=30, **settings):
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return nextile.train(text, out=folder, steps=steps, settings={**TINY, **named}, report=Silent())


def metrics(folder, field="loss"):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[field] for row in rows if field in row]


def weights(folder):
    return load_tensors(folder / "model.safetensors")


def test_text_becomes_a_model_that_writes_it(text, tmp_path):
    model = train(text, tmp_path / "run", steps=150, model__stack__width=32, context=32)
    assert metrics(tmp_path / "run")[0] > 3.0
    assert metrics(tmp_path / "run", "val_loss")[-1] < 1.0
    assert "green bottles" in model.generate("10 green bo", max_tokens=60, temperature=0.0).join(["10 green bo", ""])
    found = model.evaluate(report=Silent())
    assert found["loss"] == pytest.approx(min(metrics(tmp_path / "run", "val_loss")), rel=0.02)
    assert found["perplexity"] == pytest.approx(2.718281828 ** found["loss"])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run").eval()
    ids = torch.tensor([model.tokenizer.encode("3 green bottles")])
    with torch.no_grad():
        torch.testing.assert_close(model.model.cpu()(ids), theirs(ids).logits, rtol=0, atol=1e-5)


def test_the_same_seed_gives_the_same_hundred_losses(text, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        train(text, tmp_path / name, steps=100, seed=seed, dropout=0.1)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert len(metrics(tmp_path / "a")) == 100
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert metrics(tmp_path / "a") != metrics(tmp_path / "c")


def test_parts_of_a_batch_are_the_batch(text, tmp_path):
    train(text, tmp_path / "whole", steps=10, batch=32, optimizer="adamw")
    train(text, tmp_path / "parts", steps=10, batch=32, accumulate=4, optimizer="adamw")
    assert metrics(tmp_path / "whole") == pytest.approx(metrics(tmp_path / "parts"), abs=1e-6)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert max((a[name] - b[name]).abs().max().item() for name in a) < 1e-5


@pytest.mark.parametrize("preset", ["gpt2", "qwen3"])
def test_presets(text, tmp_path, preset):
    model = nextile.train(text, out=tmp_path / "run", preset=preset, steps=5, settings=TINY, report=Silent())
    assert model.family == preset


def test_a_model_to_begin_from(text, tmp_path):
    first = train(text, tmp_path / "first", steps=60)
    nextile.train(text, init=tmp_path / "first", out=tmp_path / "second", steps=5, report=Silent(),
                  settings={"compile": False, "batch": 4, "context": 16, "lr": 1e-5})  # fmt: skip
    assert metrics(tmp_path / "second")[0] < metrics(tmp_path / "first")[0] - 0.5
    assert nextile.load(tmp_path / "second").tokenizer.fingerprint() == first.tokenizer.fingerprint()


class Interrupting(Silent):
    """Sends this process a signal when the first validation is due."""

    def __init__(self, number: int):
        self.number = number

    def bar(self, title, total, unit):
        bar = super().bar(title, total, unit)
        if title == "training":
            bar.refresh = lambda: os.kill(os.getpid(), self.number) if bar.done == 20 else None
        return bar


@pytest.mark.parametrize(("number", "ending"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_saves_and_the_run_goes_on_exactly(text, tmp_path, number, ending):
    settings = {**TINY, "validation.every": 20, "dropout": 0.1}
    nextile.train(text, out=tmp_path / "whole", steps=60, settings=settings, report=Silent())
    with pytest.raises(ending) as stopped:
        nextile.train(text, out=tmp_path / "run", steps=60, settings=settings, report=Interrupting(number))
    if ending is SystemExit:
        assert stopped.value.code == 143
    assert 20 <= len(metrics(tmp_path / "run")) < 60
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert (tmp_path / "run" / "curve.html").exists()
    nextile.train(resume=tmp_path / "run", report=Silent())
    for name in ("model.safetensors", "metrics.jsonl", "state/step-00000060/tensors.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_time_limit_is_kept(text, tmp_path):
    began = time.monotonic()
    nextile.train(text, out=tmp_path / "run", minutes=0.2, settings=TINY, report=Silent())
    assert 6 < time.monotonic() - began < 24
    assert len(metrics(tmp_path / "run")) > 50


def test_an_existing_run_is_never_overwritten(text, tmp_path):
    train(text, tmp_path / "run", steps=2)
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(NextileError, match="holds a run already: go on with it by --resume"):
        train(text, tmp_path / "run", steps=2)
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(NextileError, match="holds a model already: choose another --out"):
        train(text, tmp_path / "run", steps=2)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_a_full_disk_keeps_the_last_good_state(text, tmp_path, monkeypatch):
    saved, whole = [], files._fsync_tree

    def full(folder):
        saved.append(folder)
        if len(saved) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(folder)

    monkeypatch.setattr(files, "_fsync_tree", full)
    with pytest.raises(NextileError, match=r"No space left on device: .* free some space"):
        train(text, tmp_path / "run", steps=40, checkpoint__every=4)
    monkeypatch.undo()
    nextile.train(resume=tmp_path / "run", report=Silent())
    train(text, tmp_path / "whole", steps=40, checkpoint__every=4)
    assert weights(tmp_path / "run").keys() == weights(tmp_path / "whole").keys()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_a_broken_latest_state_is_passed_over(text, tmp_path):
    train(text, tmp_path / "run", steps=20, checkpoint__every=5)
    newest = max((tmp_path / "run" / "state").iterdir())
    (newest / "tensors.safetensors").write_bytes(b"\0" * 100)
    said = []

    class Heard(Silent):
        def warn(self, text):
            said.append(text)

    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    nextile.train(resume=tmp_path / "run", report=Heard())
    assert len(said) == 1
    assert "going on from step 15" in said[0]
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_resuming_what_is_no_run(text, tmp_path):
    with pytest.raises(NextileError, match=r"holds no run to resume: it has no run\.json"):
        nextile.train(resume=tmp_path, report=Silent())
    (tmp_path / "run.json").write_text('{"format": 1}')
    with pytest.raises(NextileError, match=r"run\.json' is damaged"):
        nextile.train(resume=tmp_path, report=Silent())
    with pytest.raises(UsageError, match="leave out steps"):
        nextile.train(resume=tmp_path, steps=10, report=Silent())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"x", "has 1 character"),
        (b"   \n\n", "nothing but white space"),
        (b"abc\0def", "is binary, not text"),
        (b"abc\xff\xfe", "is not valid UTF-8"),
        (b"ab" * 8, "too few for a context of 16"),
        (b"abc", "too few"),
    ],
)
def test_text_that_cannot_be_learned_from(tmp_path, content, message):
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(NextileError, match=message) as problem:
        train(tmp_path / "bad.txt", tmp_path / "run", steps=2)
    assert "\n" not in str(problem.value)


def test_a_place_that_cannot_be_written(text, tmp_path):
    with pytest.raises(NextileError, match="cannot write"):
        train(text, text / "run", steps=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bath": 3}, "unknown setting 'bath': did you mean 'batch'"),
        ({"checkpoint.evry": 3}, "unknown setting 'checkpoint.evry': did you mean 'checkpoint.every'"),
        ({"model.stack.depht": 3}, "unknown setting 'model.stack.depht': did you mean 'model.stack.depth'"),
        ({"lr": "fast"}, "setting 'lr': 'fast' is not a number"),
        ({"lr": -1}, "setting 'lr'"),
        ({"batch": 3, "accumulate": 2}, "does not divide into 2 equal parts"),
        ({"tokenizer.kind": "runes"}, "'runes' is not one of"),
        ({"model.stack.attention.heads": 3}, "3 heads"),
    ],
)
def test_settings_that_are_none(text, tmp_path, settings, message):
    with pytest.raises(UsageError, match=message) as problem:
        nextile.train(text, out=tmp_path / "run", steps=2, settings={**TINY, **settings}, report=Silent())
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "run" / "run.json").exists()


def test_settings_from_a_recipe_and_the_environment(text, tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('batch = 8\ncontext = 8\nlr = 0.5\n[tokenizer]\nkind = "byte"\n')
    monkeypatch.setenv("NEXTILE_CONTEXT", "12")
    found = nextile.plan(text, steps=2, recipe=recipe, settings={"lr": 0.1, "compile": False}, report=Silent())
    assert (found.batch, found.context, found.model.embed.vocab) == (8, 12, 259)


def test_a_plan_says_what_it_will_be(text):
    found = nextile.plan(text, minutes=1, settings={"compile": False}, report=Silent())
    rows = dict(found.rows())
    assert rows.keys() == {"model", "parameters", "step", "learning rate", "run", "memory", "computing"}
    assert "1 minutes, about" in rows["run"]
    assert found.as_dict()["parameters"] > 10_000
    json.dumps(found.as_dict())


def test_what_does_not_fit_is_refused_with_what_does(text, monkeypatch):
    monkeypatch.setattr(plans, "memory_available", lambda device: 20_000_000)
    settings = {**TINY, "batch": 512, "context": 64}
    with pytest.raises(NextileError, match=r"GiB are free: --set accumulate=(\d+) gives the same"):
        nextile.plan(text, steps=2, settings=settings, report=Silent())
    monkeypatch.setattr(plans, "memory_available", lambda device: 20_000)
    with pytest.raises(NextileError, match="use a smaller model"):
        nextile.plan(text, steps=2, settings=settings, report=Silent())


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"minutes": 1, "steps": 1}, "exclude each other"),
        ({"steps": 0}, "--steps 0"),
        ({"minutes": -1}, "--minutes -1"),
    ],
)
def test_a_budget_that_is_none(text, tmp_path, budget, message):
    with pytest.raises(UsageError, match=message):
        nextile.train(text, out=tmp_path / "run", settings=TINY, report=Silent(), **budget)


def test_a_tokenizer_of_another_run_is_noticed(text, tmp_path):
    train(text, tmp_path / "run", steps=2)
    from nextile.text.characters import byte_tokenizer

    byte_tokenizer().save(tmp_path / "run")
    with pytest.raises(NextileError, match="was written with another tokenizer"):
        nextile.train(resume=tmp_path / "run", report=Silent())


def test_not_a_number_is_skipped_and_then_stopped(text, tmp_path):
    with pytest.raises(NextileError, match="5 steps in a row were skipped: lower lr"):
        train(text, tmp_path / "run", steps=40, optimizer="adamw", lr=1e38, clip=1e30, precision="fp32")


def test_a_giant_is_refused_before_it_is_built(text):
    began = time.monotonic()
    giant = {"model.stack.width": 20_000, "model.stack.depth": 100, "compile": False}
    with pytest.raises(NextileError, match="GiB are free: use a smaller model"):
        nextile.plan(text, steps=10, settings=giant, report=Silent())
    assert time.monotonic() - began < 20


def test_what_a_kill_left_in_any_store_is_cleared(tmp_path):
    for place in ("", "state", "data", "data/train"):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / ".target.9490fdc3.partial").mkdir()
    run.clear(tmp_path)
    assert not list(tmp_path.rglob("*.partial"))
