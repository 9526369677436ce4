"""Denoisers end to end: they write what was cut out, stop and go on, read their settings, refuse in one line."""

import json
import os
import random
import signal

import numpy as np
import pytest
import torch
from tests.conftest import TINY, TINY_PAIRS

import nextile
from nextile.base.errors import NextileError, UsageError
from nextile.cli.main import run
from nextile.data.spans import Prefix, Spans
from nextile.nn import specs
from nextile.tasks.denoising import Denoising, corruption_of
from nextile.tasks.report import Silent
from nextile.tasks.settings import PrefixNoise, RunSettings, SpanNoise
from nextile.text.masks import MASK, sentinels_of


class Heard(Silent):
    """What a run tells, kept."""

    def __init__(self):
        self.rows, self.samples = {}, []

    def table(self, title, rows):
        self.rows[title] = dict(rows)

    def sample(self, title, text):
        self.samples.append((title, text))


def train(text, folder, *, steps=3, settings=None, report=None, **more):
    return nextile.train(text, task="denoise", out=folder, steps=steps, settings={**TINY_PAIRS, **(settings or {})},
                         report=report or Silent(), **more)  # fmt: skip


def metrics(folder, field="loss"):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[field] for row in rows if field in row]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A file in which letters come in their order, from a random one on, for a line at a time."""
    path, chosen = tmp_path_factory.mktemp("planted") / "turns.txt", random.Random(0)
    starts = [chosen.randrange(4) for _ in range(400)]
    path.write_text("".join(("abcd" * 9)[start : start + 32] for start in starts))
    return path


@pytest.fixture(scope="module")
def trained(planted, tmp_path_factory):
    """A model of it, and what the run said."""
    heard, folder = Heard(), tmp_path_factory.mktemp("trained") / "run"
    settings = {"model.encoder.width": 32, "batch": 16, "context": 32, "denoise.share": 0.25}
    return train(planted, folder, steps=300, settings=settings, report=heard), heard


# --- what is learned ------------------------------------------------------------------------------------------------


def test_what_was_cut_out_is_written_again(trained):
    model, _ = trained
    losses = metrics(model.folder)
    assert np.mean(losses[-10:]) < losses[0] / 2
    found = model.evaluate(report=Silent())
    assert set(found) == {"loss", "perplexity"}
    assert found["loss"] == pytest.approx(min(metrics(model.folder, "val_loss")), rel=0.02)
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))


def test_any_text_is_evaluated_in_windows_as_long_as_in_training(trained, planted, tmp_path):
    model, _ = trained
    (tmp_path / "short.txt").write_text("abcd" * 4)
    beside, short = (model.evaluate(path, report=Silent())["loss"] for path in (planted, tmp_path / "short.txt"))
    assert beside == pytest.approx(model.evaluate(report=Silent())["loss"], abs=0.2)
    assert short < metrics(model.folder)[0]
    model.save(tmp_path / "alone")
    alone = nextile.load(tmp_path / "alone")
    assert alone.evaluate(planted, report=Silent())["loss"] > beside  # longer ones, of which it knows nothing
    with pytest.raises(NextileError, match="has no validation text of its own: name a text to evaluate on"):
        alone.evaluate(report=Silent())


def test_the_folder_is_whole_and_the_run_tells_what_it_does(trained):
    model, heard = trained
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "run.json", "curve.html"}
    assert names <= {path.name for path in model.folder.iterdir()}
    assert (model.task, type(model.spec)) == ("denoise", specs.EncoderDecoder)
    assert len(sentinels_of(model.tokenizer)) == 100
    assert heard.rows["done"]["try"] == f'nextile generate {model.folder} "... [MASK] ..."'
    assert "nats per token" in heard.rows["done"]["validation loss"]
    title, shown = heard.samples[-1]
    filled, _, truth = shown.partition("\n== ")
    before, after = title.split(MASK)
    assert (len(before), len(after), len(truth)) == (12, 8, 24)
    assert truth.startswith(before)
    assert filled.startswith(before)
    assert filled.endswith(after)
    again = nextile.load(model.folder)
    assert again.generate("abcd[MASK]abcd") == model.generate("abcd[MASK]abcd")


def test_gaps_are_filled_from_python(trained):
    model, _ = trained
    filled = model.generate("abcdabcdab[MASK]bcdabcdabcdab")
    assert filled.startswith("abcdabcdab")
    assert filled.endswith("bcdabcdabcdab")
    assert filled[10] == "c"
    best = model.generate("abcdab[MASK]abcdab", n=3, details=True)
    assert [found.score for found in best] == sorted((found.score for found in best), reverse=True)
    assert model.generate(["ab[MASK]ab", "abcd"])[1].startswith("abcd")
    assert model.generate([]) == []
    assert len(model.generate("abcd[MASK]a", max_tokens=3, details=True).tokens) <= 3


def test_gaps_are_filled_on_the_command_line(trained, capsys):
    model, _ = trained
    prompt = "abcdabcdab[MASK]bcdabcdabcdab"
    assert run(["generate", str(model.folder), prompt]) == 0
    assert capsys.readouterr().out == model.generate(prompt) + "\n"
    assert run(["generate", str(model.folder), prompt, "--n", "2", "--beams", "3", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["text"] for record in records] == model.generate(prompt, n=2, beams=3)
    assert run(["generate", str(model.folder), prompt, "--temperature", "1"]) == 2
    assert "does nothing where gaps are filled: leave out temperature" in capsys.readouterr().err
    assert run(["evaluate", str(model.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(model.evaluate(report=Silent())["loss"])


def test_what_does_nothing_where_gaps_are_filled_is_refused(trained):
    model, _ = trained
    for given in ({"temperature": 1.0}, {"top_k": 3}, {"seed": 1}, {"stop": ["a"]}, {"repetition_penalty": 1.2}):
        with pytest.raises(UsageError, match=f"does nothing where gaps are filled: leave out {next(iter(given))}"):
            model.generate("a[MASK]", **given)
    assert not model.streams
    with pytest.raises(UsageError, match="fills gaps and does not write from left to right: use generate"):
        model.stream("ab")


def test_a_model_of_prefixes_goes_on_from_a_text(planted, tmp_path):
    heard = Heard()
    settings = {"denoise.type": "prefix", "model.encoder.width": 32, "batch": 16}
    model = train(planted, tmp_path / "run", steps=150, settings=settings, report=heard)
    assert metrics(tmp_path / "run")[-1] < metrics(tmp_path / "run")[0] / 2
    assert model.generate("abcdabcd", max_tokens=6) == "abcdabcdabcda"  # a sentinel, and five letters
    title, shown = heard.samples[-1]
    assert MASK not in title
    assert shown.startswith(title)


# --- stopping, going on, beginning from another ---------------------------------------------------------------------


class Interrupting(Silent):
    """Sends this process a signal when the first validation is due."""

    def bar(self, title, total, unit):
        bar = super().bar(title, total, unit)
        if title == "training":
            bar.refresh = lambda: os.kill(os.getpid(), signal.SIGINT) if bar.done == 10 else None
        return bar


@pytest.mark.parametrize("noise", ["spans", "prefix"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(text, tmp_path, noise):
    settings = {"validation.every": 10, "dropout": 0.1, "denoise.type": noise}
    train(text, tmp_path / "whole", steps=25, settings=settings)
    with pytest.raises(KeyboardInterrupt):
        train(text, tmp_path / "run", steps=25, settings=settings, report=Interrupting())
    assert 10 <= len(metrics(tmp_path / "run")) < 25
    nextile.train(resume=tmp_path / "run", report=Silent())
    for name in ("model.safetensors", "metrics.jsonl", "state/step-00000025/tensors.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_run_begins_from_a_denoiser(trained, planted, tmp_path):
    first, _ = trained
    settings = {"compile": False, "batch": 4, "context": 32, "lr": 1e-9, "denoise.share": 0.25}
    again = nextile.train(planted, task="denoise", init=first.folder, out=tmp_path / "again", steps=1,
                          report=Silent(), settings=settings)  # fmt: skip
    assert again.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    assert again.spec == first.spec
    assert metrics(tmp_path / "again")[0] < metrics(first.folder)[0] / 2


def test_a_language_model_is_nothing_to_begin_from(text, tmp_path):
    nextile.train(text, out=tmp_path / "lm", steps=1, report=Silent(), settings=TINY)
    refused(text, tmp_path, "lm", r"'denoise' cannot begin from .*lm', a model of another kind")


def test_a_translator_is_nothing_to_begin_from(text, pairs, tmp_path):
    nextile.train(pairs, out=tmp_path / "mt", steps=1, report=Silent(), settings=TINY_PAIRS)
    refused(text, tmp_path, "mt", r"'denoise' cannot begin from .*mt', which has no sentinels")


def refused(text, folder, first, message):
    with pytest.raises(UsageError, match=message) as problem:
        train(text, folder / "run", init=folder / first)
    assert "\n" not in str(problem.value)
    assert not (folder / "run" / "run.json").exists()


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_noise_that_is_set_reaches_the_data(text, tmp_path):
    shapes = {}
    for name, settings in {
        "usual": {}, "more": {"denoise.share": 0.5, "denoise.mean": 2.0}, "prefix": {"denoise.type": "prefix"},
    }.items():  # fmt: skip
        model = train(text, tmp_path / name, steps=1, settings=settings)
        kept = json.loads((tmp_path / name / "run.json").read_text())["settings"]
        stored = RunSettings.model_validate({"denoise": kept["denoise"]})
        data = Denoising().open(tmp_path / name / "data", stored, model.tokenizer)
        [batch] = data.batches(context=16, batch=4, accumulate=1, seed=0)(0)
        shapes[name] = (type(data.corruption), batch.inputs.shape[1], batch.targets.shape[1])
        assert (batch.inputs == sentinels_of(model.tokenizer)[0]).sum(1).tolist() == [1] * 4
    # Kept tokens, a sentinel for each span, the end; a sentinel for each span, what is cut out, the end.
    assert shapes == {"usual": (Spans, 14 + 1 + 1, 1 + 2 + 1), "more": (Spans, 8 + 4 + 1, 4 + 8 + 1),
                      "prefix": (Prefix, 17, 17)}  # fmt: skip
    first = {name: metrics(tmp_path / name)[0] for name in shapes}
    assert len(set(first.values())) == 3


def test_settings_make_their_corruption(text, tmp_path):
    tokenizer = train(text, tmp_path / "run", steps=1).tokenizer
    spans = corruption_of(tokenizer, SpanNoise(share=0.2, mean=2.0))
    assert isinstance(spans, Spans)
    assert (spans.share, spans.mean, spans.end_id) == (0.2, 2.0, tokenizer.end_id)
    prefix = corruption_of(tokenizer, PrefixNoise())
    assert isinstance(prefix, Prefix)
    assert prefix.sentinels == spans.sentinels == sentinels_of(tokenizer)


def test_parts_of_a_batch_are_the_batch_and_validation_is_always_the_same(text, tmp_path):
    model = train(text, tmp_path / "run", steps=1)
    data = Denoising().open(tmp_path / "run" / "data", RunSettings(), model.tokenizer)
    asked = {"context": 16, "batch": 4, "seed": 7}
    [whole], halves = (data.batches(**asked, accumulate=parts)(3) for parts in (1, 2))
    assert torch.equal(torch.cat([half.inputs for half in halves]), whole.inputs)
    for first, second in zip(data.once(16), data.once(16), strict=True):
        assert torch.equal(first.inputs, second.inputs)
        assert torch.equal(first.targets, second.targets)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"denoise.share": 0}, "setting 'denoise.share'"),
        ({"denoise.mean": 0.5}, "setting 'denoise.mean'"),
        ({"denoise.typ": "prefix"}, r"unknown setting 'denoise.typ': did you mean 'denoise.type'"),
        ({"denoise.type": "holes"}, "'holes' is not one of"),
        ({"denoise.type": "prefix", "denoise.share": 0.2}, "denoise"),
        ({"denoise.share": 0.01}, "a window of 16 tokens cannot lose 0 of them in 1 span: set a longer context"),
        ({"denoise.share": 0.9, "denoise.mean": 1.0}, "a window of 16 tokens cannot lose 14 of them in 14 spans"),
        ({"masking.share": 0.2}, "setting 'masking.share' does nothing in the task 'denoise': leave it out"),
    ],
)
def test_settings_that_are_none(text, tmp_path, settings, message):
    with pytest.raises(NextileError, match=message) as problem:
        train(text, tmp_path / "run", settings=settings)
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "run" / "run.json").exists()


def test_an_unknown_preset_and_several_sources_are_one_line(text, tmp_path):
    with pytest.raises(UsageError, match="unknown preset 'bert': it is one of"):
        train(text, tmp_path / "run", preset="bert")
    with pytest.raises(UsageError, match="reads one source, not 2"):
        train([text, text], tmp_path / "run")


@pytest.mark.parametrize("preset", ["marian", "modern"])
def test_presets(text, tmp_path, preset):
    model = train(text, tmp_path / "run", preset=preset, steps=1)
    assert (model.task, model.family) == ("denoise", "marian" if preset == "marian" else "nextile")
    assert nextile.load(tmp_path / "run").generate("3 green [MASK]", max_tokens=4).startswith("3 green ")
