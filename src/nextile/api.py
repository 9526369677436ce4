"""The public calls: train, plan, load, and the Model that they give; what the command does, in Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nextile.base.config import environment, read_toml, resolve
from nextile.base.errors import UsageError
from nextile.checkpoint.pretrained import Pretrained
from nextile.checkpoint.pretrained import load as load_pretrained
from nextile.generation.complete import Completion, complete
from nextile.generation.complete import stream as stream_text
from nextile.generation.sample import Sampling
from nextile.models import count
from nextile.tasks import language, run
from nextile.tasks.plan import Plan, make_plan
from nextile.tasks.report import Report, choose
from nextile.tasks.settings import RunSettings

RUNS = Path("runs")


class Model(Pretrained):
    """A model with its tokenizer; `.model` is the torch module, ids (B, T) -> logits (B, T, V)."""

    def generate(
        self, prompt: str | Sequence[str] = "", *, max_tokens: int = 200, temperature: float = 0.8,
        top_k: int | None = None, top_p: float | None = None, min_p: float | None = None,
        repetition_penalty: float = 1.0, n: int = 1, seed: int | None = None, stop: Sequence[str] = (),
        logprobs: int | None = None, details: bool = False,
    ) -> Any:  # fmt: skip
        """Continue a prompt, or each of several in one batch.

        temperature 0 is greedy; top_k, top_p and min_p leave out unlikely tokens; a stop string ends the text and is
        not part of it. Returns the text, or a list of them (prompt by prompt) for several prompts or n > 1; with
        details, `Completion`s that also hold the tokens, why each ended, and log-probabilities.
        Errors: UsageError for settings out of bounds.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        sampling = _sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        groups = complete(self, prompts, sampling, max_tokens=max_tokens, stop=list(stop), n=n, logprobs=logprobs)
        found: list[Completion] = [completion for group in groups for completion in group]
        results = found if details else [completion.text for completion in found]
        return results[0] if isinstance(prompt, str) and n == 1 else results

    def stream(
        self, prompt: str = "", *, max_tokens: int = 200, temperature: float = 0.8, top_k: int | None = None,
        top_p: float | None = None, min_p: float | None = None, repetition_penalty: float = 1.0,
        seed: int | None = None, stop: Sequence[str] = (),
    ) -> Iterator[str]:  # fmt: skip
        """The text that `generate` would return, piece by piece as it is made."""
        sampling = _sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        return stream_text(self, prompt, sampling, max_tokens=max_tokens, stop=list(stop))

    def evaluate(self, data: str | Path | None = None, *, report: Report | None = None) -> dict[str, float]:
        """Loss in nats per token, perplexity and bits per byte on a text; None: the run's own validation set."""
        return language.evaluate_text(self, data, report or choose())

    def describe(self) -> dict[str, Any]:
        """What the model is: family, parameters by part, tokenizer, spec tree."""
        parameters = count.parameters(self.spec)
        by_part = {field.name: getattr(parameters, field.name) for field in fields(parameters)}
        return {
            "family": self.family,
            "parameters": {"total": parameters.total, **by_part},
            "tokenizer": {"kind": self.tokenizer.kind, "vocab_size": self.tokenizer.vocab_size},
            "cache_bytes_per_token": count.cache_memory(self.spec, rows=1, length=1),
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "spec": self.spec.model_dump(),
        }


def load(name: str | Path, *, device: str | None = None, dtype: Any = None) -> Model:
    """Load a model folder of ours or Hugging Face's, or a name on the hub.

    device: "cpu", "cuda", ...; None takes the accelerator if there is one. dtype: "float32", "bfloat16", ...; None
    keeps what the file has. Errors: NextileError, in one line, for anything that is not a sound model folder.
    """
    return _model(load_pretrained(name, device=device, dtype=dtype))


def train(
    data: str | Path | None = None, *, task: str | None = None, preset: str | None = None,
    out: str | Path | None = None, minutes: float | None = None, steps: int | None = None,
    resume: str | Path | None = None, init: str | Path | None = None, recipe: str | Path | None = None,
    settings: Mapping[str, Any] | None = None, report: Report | None = None,
) -> Model:  # fmt: skip
    """Train a model and return the best one: on a file, a folder, "-" for standard input, or a built-in name.

    minutes or steps: the budget; size and learning rate follow. out: the run's folder, runs/NAME when None.
    resume: a run's folder, to go on with it exactly. init: a model to begin from. recipe: a TOML file of settings.
    settings: by dotted name, such as {"lr": 1e-3, "tokenizer.kind": "bpe"}; they win over NEXTILE_* in the
    environment, which wins over the recipe. Errors: NextileError, in one line with the remedy.
    """
    report = report or choose()
    if resume is not None:
        _refuse_beside_resume(data=data, task=task, preset=preset, out=out, minutes=minutes, steps=steps, init=init,
                              recipe=recipe, settings=settings)  # fmt: skip
        return _model(run.resume_run(Path(resume), report))
    source, found = _request(data, recipe, settings)
    folder = Path(out) if out is not None else _free_folder(source)
    return _model(
        run.new_run(
            source,
            found,
            folder=folder,
            report=report,
            task=task,
            preset=preset,
            minutes=minutes,
            steps=steps,
            init=None if init is None else str(init),
        )
    )


def plan(
    data: str | Path | None = None, *, task: str | None = None, preset: str | None = None,
    minutes: float | None = None, steps: int | None = None, init: str | Path | None = None,
    recipe: str | Path | None = None, settings: Mapping[str, Any] | None = None, report: Report | None = None,
) -> Plan:  # fmt: skip
    """What `train` with the same arguments would do: sizes, memory, FLOPs, time; nothing is kept on disk."""
    source, found = _request(data, recipe, settings)
    work = run.task_named(task)
    base = load_pretrained(init, device="cpu") if init is not None else None
    with TemporaryDirectory(prefix="nextile-plan-") as folder:
        prepared = work.prepare(source, found, Path(folder), report or choose(), base.tokenizer if base else None)
        return make_plan(
            work, prepared, found, source=source, preset=preset, minutes=minutes, steps=steps,
            fixed=base.spec if base else None,
        )  # fmt: skip


def _model(loaded: Pretrained) -> Model:
    return Model(**{field.name: getattr(loaded, field.name) for field in fields(loaded)})


def _sampling(
    temperature: float, top_k: int | None, top_p: float | None, min_p: float | None, penalty: float, seed: int | None
) -> Sampling:
    asked = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    return resolve(Sampling, asked | {"repetition_penalty": penalty})


def _request(
    data: str | Path | None, recipe: str | Path | None, settings: Mapping[str, Any] | None
) -> tuple[str, RunSettings]:
    """The source and the settings of a run: defaults < recipe < environment < what was said."""
    if data is None:
        raise UsageError("no data to train on: give a file, a folder, '-' or a built-in such as python-docs")
    layers = [read_toml(recipe)] if recipe is not None else []
    return str(data), resolve(RunSettings, *layers, environment(), settings or {})


def _refuse_beside_resume(**given: Any) -> None:
    extra = [name for name, value in given.items() if value]
    if extra:
        raise UsageError(
            f"--resume goes on with a run as it was: leave out {', '.join(extra)}, or begin a new run by --init"
        )


def _free_folder(source: str) -> Path:
    """runs/NAME, or runs/NAME-2, ... where that holds a run already."""
    name = "text" if source == "-" else Path(source).resolve().name.split(".")[0] or "text"
    for number in range(1, 10_000):
        folder = RUNS / (name if number == 1 else f"{name}-{number}")
        if not (folder / run.RUN).exists() and not (folder / "config.json").exists():
            return folder
    raise UsageError(f"'{RUNS}' holds ten thousand runs named {name}: choose an --out")
