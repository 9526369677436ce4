"""Tiny Shakespeare: nextile's recipes and, from a clone of yours, nanoGPT's own CPU recipe, loss against seconds.

    python bench/bench_shakespeare.py input.txt [--nanogpt CLONE] [--seeds 0 1 2] [--out runs/bench-shakespeare]
                                      [--runs speedrun-shakespeare:115 speedrun-shakespeare:1900] [--set NAME=VALUE ...]

Everybody trains on the first nine tenths of the characters, which nanoGPT's data preparation takes, and is scored on
every character of the rest: windows end to end, in float32, by the same code, after the last step. Contenders take
turns. Seconds are those of steps and batches; compiling (from an empty cache at the first seed) and looking at the
loss are apart. Of the validation text the first half may have served to choose settings, the second has not.
B rows, T tokens of a window, N tokens of a text.
"""

import argparse
import json
import multiprocessing
import os
import pickle
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from nextile.base.config import parse_assignments, read_toml, resolve
from nextile.base.device import keep_memory, set_threads
from nextile.checkpoint.foreign import load_foreign
from nextile.data.growth import Growing
from nextile.models import count
from nextile.models.build import build
from nextile.tasks.language import LanguageModelling
from nextile.tasks.plan import make_plan
from nextile.tasks.report import Silent
from nextile.tasks.settings import RunSettings
from nextile.training.loop import learn
from nextile.training.state import restore, snapshot

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
LOOKS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0)  # of a run: when its loss is measured
NANOGPT = (
    "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1", "--block_size=64", "--batch_size=12",
    "--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0",
)  # fmt: skip  # as its README says
SAVING = ("--always_save_checkpoint=True", "--out_dir=out", "--eval_iters=200")  # to be scored, and a steadier line


# --- the text -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Texts:
    """The text in two files, and nanoGPT's data."""

    train: Path
    validation: Path
    nanogpt: Path  # a folder to start nanoGPT's training in

    @classmethod
    def read(cls, source: Path, folder: Path) -> "Texts":
        """Split and written as nanoGPT's data/shakespeare_char/prepare.py does, in its format."""
        text = source.read_text(encoding="utf-8")
        cut = int(len(text) * 0.9)
        texts = cls(folder / "train.txt", folder / "validation.txt", folder / "nanogpt")
        data = texts.nanogpt / "data" / "shakespeare_char"
        data.mkdir(parents=True)
        known = sorted(set(text))
        ids = {character: number for number, character in enumerate(known)}
        for path, name, part in ((texts.train, "train", text[:cut]), (texts.validation, "val", text[cut:])):
            path.write_text(part, encoding="utf-8")
            np.array([ids[character] for character in part], dtype=np.uint16).tofile(data / f"{name}.bin")
        (data / "meta.pkl").write_bytes(
            pickle.dumps({"vocab_size": len(known), "stoi": ids, "itos": dict(enumerate(known))})
        )
        return texts

    def asked(self, known: Sequence[str]) -> torch.Tensor:
        """(N,) ids of the validation text by a vocabulary."""
        ids = {character: number for number, character in enumerate(known)}
        return torch.tensor([ids[character] for character in self.validation.read_text(encoding="utf-8")])


# --- the score ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def losses(model: nn.Module, ids: torch.Tensor, context: int) -> torch.Tensor:
    """Nats of each of ids (N,) but the first and those behind the last whole window, in windows end to end."""
    training = model.training
    model.eval()
    rows = (len(ids) - 1) // context
    inputs, targets = (ids[at : at + rows * context].view(rows, context) for at in (0, 1))
    found = []
    for x, y in zip(inputs.split(4096 // context), targets.split(4096 // context), strict=True):
        found.append(F.cross_entropy(model(x).float().flatten(0, 1), y.flatten(), reduction="none"))
    model.train(training)
    return torch.cat(found)


@dataclass(frozen=True)
class Score:
    """Nats per character."""

    whole: float
    first_half: float
    second_half: float

    @classmethod
    def of(cls, model: nn.Module, ids: torch.Tensor, context: int) -> "Score":
        """Of the text and of its halves."""
        found = losses(model, ids, context).double()
        first, second = found[: len(found) // 2], found[len(found) // 2 :]
        return cls(*(round(part.mean().item(), 4) for part in (found, first, second)))


@dataclass
class Result:
    """One training."""

    name: str
    seed: int
    steps: int
    parameters: int
    seconds: float = 0.0
    compiling: float = 0.0
    tokens_per_second: float = 0.0
    context: int = 64
    training: float = 0.0  # loss of the last steps
    scores: dict[int, Score] = field(default_factory=dict)  # by the length of the windows
    line: list[tuple[float, float]] = field(default_factory=list)  # seconds, loss in windows of its own context


# --- ours -----------------------------------------------------------------------------------------------------------


def run_nextile(
    recipe: Path, texts: Texts, folder: Path, *, steps: int, seed: int, over: Sequence[str] = (),
    looks: Sequence[float] = LOOKS,
) -> Result:  # fmt: skip
    """What `nextile train` does with a recipe, step by step, so that nothing else is timed."""
    task = LanguageModelling()
    held_out = {"seed": seed, "validation": {"data": (str(texts.validation),)}}
    settings = resolve(RunSettings, task.settings, read_toml(recipe), held_out, parse_assignments(over))
    set_threads(settings.threads)
    keep_memory()
    data = task.prepare([str(texts.train)], settings, folder, Silent(), None)
    plan = make_plan(task, data, settings, source=str(texts.train), steps=steps)
    model = build(plan.model, seed=seed, init=settings.initialisation)
    learner = task.learner(model, data, settings, precision=plan.dtype, compiled=plan.compiled)
    batches = data.batches(context=plan.context, batch=plan.batch, accumulate=plan.accumulate, seed=seed)
    batches = Growing(batches, settings.growth, plan.accumulate)
    result = Result(recipe.stem, seed, steps, count.parameters(plan.model).total, context=plan.context)

    before, began = snapshot(model, learner, {}), time.perf_counter()
    for step in islice(learn(learner, batches, settings.schedule, steps=steps, seed=seed), 2):
        _ = step.loss
    result.compiling = time.perf_counter() - began
    restore(model, learner, *before)

    ids = data.processor.encode(texts.validation.read_text(encoding="utf-8"))
    ids = torch.as_tensor(ids)
    at = {max(1, round(share * steps)) for share in looks}
    recent: list[float] = []
    tokens = 0
    began = time.perf_counter()
    for step in learn(learner, batches, settings.schedule, steps=steps, seed=seed):
        recent = [*recent[-49:], step.loss]
        tokens += step.tokens
        if step.index + 1 in at:
            result.seconds += time.perf_counter() - began
            result.line.append((result.seconds, Score.of(model, ids, plan.context).whole))
            began = time.perf_counter()
    result.tokens_per_second = tokens / result.seconds
    result.training = statistics.mean(recent)
    result.scores = {length: Score.of(model, ids, length) for length in sorted({64, plan.context})}
    return result


def alone(run: Callable[..., Result], *args: Any, **options: Any) -> Result:
    """In a process of its own, as the command is: steps of a second model in one process take longer."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as worker:
        return worker.submit(run, *args, **options).result()


# --- nanoGPT --------------------------------------------------------------------------------------------------------


def run_nanogpt(clone: Path, texts: Texts, known: Sequence[str]) -> Result:
    """Its CPU recipe from its own train.py, and what it says of each step."""
    link = texts.nanogpt / "configurator.py"  # which train.py reads where it is started
    if not link.exists():
        link.symlink_to(clone.resolve() / "configurator.py")
    command = [sys.executable, clone.resolve() / "train.py", clone.resolve() / "config/train_shakespeare_char.py"]
    told = subprocess.run([*command, *NANOGPT, *SAVING], cwd=texts.nanogpt, capture_output=True, text=True, check=True)
    times = [float(found) / 1000 for found in re.findall(r"^iter \d+: loss \S+, time (\S+)ms", told.stdout, re.M)]
    seen = [(int(step), float(loss)) for step, loss in
            re.findall(r"^step (\d+): train loss \S+, val loss (\S+)", told.stdout, re.M)]  # fmt: skip
    usual = statistics.median(times)
    looked = {step for step, _ in seen}
    times = [usual if step in looked else took for step, took in enumerate(times)]  # without looking at the loss
    model = load_foreign(texts.nanogpt / "out" / "ckpt.pt").model.float()
    result = Result("nanoGPT", 1337, len(times) - 1, sum(weight.numel() for weight in model.parameters()))
    result.seconds = sum(times[1:])
    result.tokens_per_second = result.steps * 12 * 64 / result.seconds
    result.line = [(sum(times[:step]), loss) for step, loss in seen[1:]]
    result.scores = {64: Score.of(model, texts.asked(known), 64)}
    return result


# --- the table and the picture --------------------------------------------------------------------------------------

COLOURS = {"nanoGPT": "#98a2b3"}
OURS = ("#2563eb", "#d9480f", "#0f766e", "#7c3aed")


def picture(results: Sequence[Result]) -> bytes:
    """Loss against seconds, on a logarithmic axis, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    named: dict[str, str] = {}
    for result in results:
        name = result.name if result.name == "nanoGPT" else f"nextile, {result.name}, {result.steps:,} steps"
        if name not in named:
            named[name] = COLOURS.get(name, OURS[len(named.keys() - COLOURS.keys()) % len(OURS)])
            axes.plot([], [], color=named[name], linewidth=1.8, label=name)
        axes.plot(
            *zip(*result.line, strict=True), color=named[name], linewidth=1.4, alpha=0.8, marker="o", markersize=3
        )
    axes.axhline(1.4697, color="#98a2b3", linewidth=0.8, linestyle=":")
    axes.annotate("nanoGPT's figure on an A100", (0, 1.4697), (2, 3), axes.get_yaxis_transform(), "offset points",
                  color="#667085", fontsize=8)  # fmt: skip
    axes.set(xscale="log", ylim=(None, 2.7), xlabel="seconds of training on this CPU", ylabel="nats per character")
    axes.set_title("Tiny Shakespeare, validation", loc="left", fontweight="bold")
    axes.grid(axis="y", color="#e8ebf0")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([1, 2, 5, 10, 20, 50, 100, 200, 500], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlim(left=1, right=1.15 * max(line[0] for result in results for line in result.line))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def row(result: Result) -> str:
    """One line of the table."""
    scores = "; ".join(
        f"@{length} {score.whole:.4f} ({score.first_half:.4f}, {score.second_half:.4f})"
        for length, score in result.scores.items()
    )
    return (
        f"| {result.name} | {result.seed} | {result.steps:,} | {result.parameters:,} | {result.seconds:.1f} | "
        f"{result.compiling:.1f} | {result.tokens_per_second:,.0f} | {result.training:.4f} | {scores} |"
    )


def means(results: Sequence[Result]) -> None:
    """Of the seeds of each contender."""
    for name, steps in dict.fromkeys((result.name, result.steps) for result in results):
        same = [result for result in results if (result.name, result.steps) == (name, steps)]
        seconds = statistics.mean(result.seconds for result in same)
        for length in same[0].scores:
            whole = [result.scores[length].whole for result in same]
            halves = [statistics.mean(getattr(result.scores[length], half) for result in same)
                      for half in ("first_half", "second_half")]  # fmt: skip
            print(
                f"mean of {len(same)}: {name}, {steps:,} steps, {seconds:.1f} s, windows of {length}: "
                f"{statistics.mean(whole):.4f} ({min(whole):.4f} to {max(whole):.4f}), "
                f"halves {halves[0]:.4f} and {halves[1]:.4f}"
            )


def main(args: argparse.Namespace) -> None:
    """All in turn."""
    results: list[Result] = []
    args.out.mkdir(parents=True, exist_ok=True)
    print("| who | seed | steps | parameters | s | compiling, s | tokens/s | training | nats in windows (halves) |")
    print("|---|---|---|---|---|---|---|---|---|")
    with TemporaryDirectory(prefix="bench-shakespeare-") as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "compiled")  # empty
        texts = Texts.read(args.text, Path(folder))
        known = sorted(set(args.text.read_text(encoding="utf-8")))

        def show(result: Result) -> None:
            results.append(result)
            print(row(result), flush=True)
            with (args.out / "results.jsonl").open("a") as file:
                file.write(json.dumps(asdict(result)) + "\n")

        for seed in args.seeds:
            if args.nanogpt:
                show(run_nanogpt(args.nanogpt, texts, known))
            for number, (recipe, steps) in enumerate(args.runs):
                place = Path(folder) / f"{seed}-{number}"
                path = RECIPES / f"{recipe}.toml"
                show(alone(run_nextile, path, texts, place, steps=steps, seed=seed, over=args.set))
    means(results)
    (args.out / "shakespeare.png").write_bytes(picture(results))


def run_named(text: str) -> tuple[str, int]:
    """ "speedrun-shakespeare:1900" -> the recipe's name and the steps."""
    name, _, steps = text.partition(":")
    return name, int(steps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=run_named, nargs="+", default=[("speedrun-shakespeare", 1900)])
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/bench-shakespeare"))
    main(parser.parse_args())
