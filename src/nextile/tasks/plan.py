"""What a run will be before anything is spent: size, batch, steps, memory and time, from the data and the budget.

The size is the one that reaches the lowest validation loss in the time asked for, by a ladder of sizes measured for
each width on this machine (docs/benchmarks.md, "which size for how many minutes"); pictures must also be seen often.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from nextile.base.config import Settings, resolve
from nextile.base.device import choose_device, choose_precision, has_compiler, memory_available
from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.store import Spec
from nextile.models import count
from nextile.models.build import build, skeleton
from nextile.nn import specs
from nextile.nn.float8 import use_float8
from nextile.tasks.settings import RunSettings
from nextile.tasks.task import Data, Task
from nextile.tasks.tuning import Outline
from nextile.training.flex import check_step, use_flex
from nextile.training.loop import learn
from nextile.training.optim import Muon, OptimizerSettings
from nextile.training.parallel import indivisible
from nextile.training.schedule import Constant

MINUTES = 5.0  # when nothing is asked for
COMPILED_GAIN = 2.0  # how much faster a compiled step is, about
WORTH_COMPILING = 75.0  # seconds of uncompiled training; a cold compilation takes 15 to 30
EVALUATIONS = 10  # of the validation set, in a run
BETWEEN = 50_000_000  # tokens between them in a run of so many passes over its data: some ten seconds


@dataclass(frozen=True)
class Rung:
    """A size of the ladder with the batch that suits it."""

    width: int
    depth: int
    context: int
    tokens: int  # of a step


LADDER = (
    Rung(64, 2, 64, 1024),
    Rung(128, 4, 128, 2048),
    Rung(192, 6, 128, 2048),
    Rung(256, 6, 256, 4096),
    Rung(384, 6, 256, 4096),
    Rung(512, 8, 512, 8192),
    Rung(768, 12, 1024, 65_536),
    Rung(1024, 24, 1024, 262_144),
)
TOKENS_PER_PARAMETER = 1.5  # below this many seen for each parameter of the blocks, a smaller model learns more
PARAMETERS_PER_TOKEN = 8.0  # above this many for each token of the corpus, a larger model only remembers it
SCARCE = 2.0  # from this many on, dropout: the text will be read often


class Plan(Settings):
    """What a run is; kept in its folder, so that resuming needs nothing else."""

    task: str
    source: str
    preset: str
    model: specs.Model
    batch: int
    context: int
    accumulate: int
    steps: int | None  # None: from the minutes, once the step was measured
    minutes: float | None
    evaluate_every: int | None
    save_every: int | None
    precision: Literal["fp32", "bf16", "fp8"]
    device: str
    compiled: bool
    seconds_per_step: float | None  # measured before it was compiled
    tuned: count.Tuned | None = None  # by adapters; None: all of it is trained
    optimizer: OptimizerSettings | None = None  # None: the task has its own

    @property
    def tokens_per_step(self) -> int:
        """Targets asked in a step."""
        return self.batch * self.context

    @property
    def dtype(self) -> torch.dtype:
        """The type of the matrix products; with fp8 that of the others beside the blocks'."""
        return torch.float32 if self.precision == "fp32" else torch.bfloat16

    def evaluations_every(self, steps: int, validation_tokens: int) -> int:
        """Steps between validations: ten in a run, fewer where they would take more than a tenth of its time."""
        costs = validation_tokens / 3 / self.tokens_per_step  # in steps: forward alone is a third of one
        return self.evaluate_every or max(1, round(steps / EVALUATIONS), round(10 * costs))

    def memory(self) -> int:
        """Bytes at the peak of training."""
        kind = self.device.partition(":")[0]
        return count.training_memory(
            self.model, rows=self.batch // self.accumulate, length=self.context, precision=self.precision,
            tuned=self.tuned, device=kind, scores="stored" if kind == "cpu" and self.compiled else "fused",
        )  # fmt: skip

    def rows(self) -> list[tuple[str, str]]:
        """What the user is told of it."""
        parameters = count.parameters(self.model)
        flops = count.training_flops(self.model, self.context) * self.tokens_per_step
        step = "" if self.seconds_per_step is None else f", about {self._seconds():.3g} s on this {self.device}"
        return [
            ("model", f"{self.preset}: {_shape(self.model)}"),
            ("parameters", f"{parameters.total:,} ({parameters.embedding + parameters.head:,} in the embedding)"),
            *self._learning(),
            ("step", f"{self.batch} rows of {self.context} tokens, {flops:.2g} FLOPs{step}"),
            ("run", self._length()),
            ("memory", f"about {self.memory() / 2**20:,.0f} MiB"),
            ("computing", f"{self.precision} on {self.device}, {'' if self.compiled else 'not '}compiled"),
        ]

    def _learning(self) -> list[tuple[str, str]]:
        """What is trained, if not all, and at which rates."""
        trained = [("trained", f"{self.tuned.trained:,} parameters beside a frozen base")] if self.tuned else []
        if self.optimizer is None:
            return trained
        rates = f"{self.optimizer.lr:g} at its peak, {type(self.optimizer).__name__}"
        if isinstance(self.optimizer, Muon):
            rates += f", {self.optimizer.matrix_lr:g} for matrices"
        return [*trained, ("learning rate", rates)]

    def _seconds(self) -> float:
        return (self.seconds_per_step or 0.0) / (COMPILED_GAIN if self.compiled else 1.0)

    def _length(self) -> str:
        if self.steps is None:
            expected = round((self.minutes or MINUTES) * 60 / max(self._seconds(), 1e-9))
            return f"{self.minutes:g} minutes, about {expected:,} steps"
        tokens = self.steps * self.tokens_per_step
        return f"{self.steps:,} steps, {tokens:,} tokens"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        figures = {
            "parameters": count.parameters(self.model).total,
            "memory_bytes": self.memory(),
            "flops_per_step": count.training_flops(self.model, self.context) * self.tokens_per_step,
        }
        return self.model_dump() | figures


def _shape(spec: Spec) -> str:
    """4 layers of width 128, 4 heads of 32; of an encoder-decoder 4 + 4 layers; of words 100 numbers for each."""
    if isinstance(spec, specs.WordModel):
        return f"{spec.width} numbers for each of {spec.vocab:,} words"
    stacks = count.stacks_of(spec)
    last = stacks[-1]
    heads, depth = last.attention.heads, " + ".join(str(stack.depth) for stack in stacks)
    head_width = last.attention.head_width(last.width)
    return f"{depth} layers of width {last.width}, {heads} head{'s' if heads > 1 else ''} of {head_width}"


class _Overlay(Settings):
    """A spec under the name that users set it by."""

    model: specs.Model


def make_plan(
    task: Task, data: Data, settings: RunSettings, *, source: str, preset: str | None = None,
    minutes: float | None = None, steps: int | None = None, fixed: Spec | None = None, width: int | None = None,
    outline: Outline | None = None, readers: int = 1,
) -> Plan:  # fmt: skip
    """Decide all that was left open. `fixed`: the model is given (`--init`). `width`: its width is, by word vectors.

    outline: that model with its adapters, where it is tuned by them. readers: how many processes divide the rows.

    Errors: UsageError for a budget that is none, for another width, and for fp8 and FlexAttention where they cannot be,
    NextileError for what does not fit in memory or in the data.
    """
    _check_budget(minutes, steps)
    rows = settings.batch or task.rows or 0
    if rows % settings.accumulate:
        raise UsageError(f"batch {rows} does not divide into {settings.accumulate} equal parts: change one")
    if settings.compile is True and not has_compiler():
        raise UsageError(
            "compile=true needs a C++ compiler (CXX, else g++) and the headers of this Python, and one is missing: "
            "install them (Debian: apt install g++ python3-dev), or leave compile out"
        )
    epochs = task.epochs(settings) if minutes is None and steps is None else None
    minutes = MINUTES if minutes is None and steps is None and epochs is None else minutes
    asked = _with_width(_asked(settings.model, task.sizes), width)
    device = choose_device(settings.device)
    usual = "bf16" if choose_precision(settings.precision, device) == torch.bfloat16 else "fp32"
    precision = usual if settings.precision == "auto" else settings.precision

    def draft(rung: Rung) -> Plan:
        context = settings.context or data.context(rung.context)
        spec = fixed or _spec(task, preset or task.preset, data, settings, asked, rung, context)
        context = min(context, spec.context)
        batch = settings.batch or task.rows or _rows(rung.tokens, context, settings.accumulate * readers)
        epoch = data.train_tokens / (batch * context)  # in steps
        return Plan(
            task=task.name,
            source=source,
            preset=preset or task.preset,
            model=spec,  # type: ignore[arg-type]
            batch=batch,
            context=context,
            accumulate=settings.accumulate,
            steps=steps if epochs is None else math.ceil(epochs * epoch),
            minutes=minutes,
            evaluate_every=settings.validation.every or (math.ceil(BETWEEN / (batch * context)) if epochs else None),
            save_every=settings.checkpoint.every,
            precision=precision,
            device=device.type,
            compiled=settings.compile is True and _compiles(settings, 0.0),
            seconds_per_step=None,
            tuned=outline and count.Tuned(trained=outline.trained, bytes=outline.bytes),
            optimizer=None if "optimizer" in task.unread else settings.optimizer_settings(),
        )

    data.check(draft(LADDER[0]).context)
    plan = _choose(draft, task, data, settings, minutes, outline)
    if precision == "fp8":
        use_float8(skeleton(plan.model))  # refuses a model without such products
    if settings.attention == "flex":
        check_step(device, plan.compiled and settings.parallel.shard * settings.parallel.tensor == 1)
        use_flex(skeleton(plan.model))  # refuses attention that it does not know
    data.check(plan.context)
    return plan


def check_rows(plan: Plan, readers: int) -> None:
    """Errors: UsageError when the rows of a step do not divide over the processes that read them."""
    if plan.batch % (plan.accumulate * readers):
        raise UsageError(indivisible(plan.batch // plan.accumulate, readers))


def _check_budget(minutes: float | None, steps: int | None) -> None:
    if minutes is not None and steps is not None:
        raise UsageError("--minutes and --steps exclude each other: give one of them")
    if minutes is not None and not 0 < minutes < 1e7:
        raise UsageError(f"--minutes {minutes:g} is no time to train for: give a positive number")
    if steps is not None and not 0 < steps < 1 << 40:
        raise UsageError(f"--steps {steps} is no number of steps to train for: give a positive one")


def _rows(tokens: int, context: int, parts: int) -> int:
    """Rows of a step of about so many tokens, divisible by the parts it is worked on in."""
    return max(1, round(tokens / context / parts)) * parts


def _spec(
    task: Task, preset: str, data: Data, settings: RunSettings, asked: Mapping[str, int], rung: Rung, context: int
) -> Spec:
    size = {"width": rung.width, "depth": rung.depth}

    def with_dropout(share: float) -> Spec:
        model = task.spec(preset, size, asked, data=data, context=context, dropout=share)
        return resolve(_Overlay, {"model": model.model_dump()}, {"model": settings.model}).model

    plain = with_dropout(settings.dropout or 0.0)
    scarce = count.parameters(plain).matrices > SCARCE * data.train_tokens
    return with_dropout(task.dropout) if settings.dropout is None and scarce else plain


def _asked(model: dict[str, Any], sizes: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The sizes among the settings of the model: what is left open follows from them."""
    found = {}
    for name, path in ((name, path) for name, paths in sizes.items() for path in paths):
        value: Any = model
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, int) and value > 0:
            found.setdefault(name, value)
    return found


def _with_width(asked: dict[str, int], width: int | None) -> dict[str, int]:
    """With the width that word vectors have. Errors: UsageError where another one is asked for."""
    if width is None:
        return asked
    if asked.get("width", width) != width:
        raise UsageError(f"the model is to be {asked['width']} wide and the word vectors have {width} numbers: "
                         "leave the width out, or take other vectors")  # fmt: skip
    return {**asked, "width": width}


def _choose(
    draft, task: Task, data: Data, settings: RunSettings, minutes: float | None, outline: Outline | None
) -> Plan:
    """Climb while the next size still sees enough tokens in the time, and has enough data to learn from."""
    best, seconds, compiled = None, None, False
    for rung in LADDER:
        plan = draft(rung)
        if best is not None and (plan.model == best.model or _too_large(plan, data) or not _fits(plan, settings)):
            break
        plan = _in_memory(plan, settings)  # before a model of this size is built to be measured
        if minutes is not None:
            seconds = probe(plan, task, data, settings, outline)
            compiled = _compiles(settings, minutes * 60)
            steps = minutes * 60 / seconds * (COMPILED_GAIN if compiled else 1.0)
            many = steps * plan.tokens_per_step >= TOKENS_PER_PARAMETER * _blocks(plan)
            if best is not None and not (many and data.enough(steps * plan.batch)):
                break
        best = plan.model_copy(update={"seconds_per_step": seconds, "compiled": compiled or plan.compiled})
    assert best is not None
    if minutes is None and settings.compile == "auto":
        seconds = probe(best, task, data, settings, outline)
        compiled = _compiles(settings, (best.steps or 0) * seconds)
        best = best.model_copy(update={"seconds_per_step": seconds, "compiled": compiled})
    return best


def _too_large(plan: Plan, data: Data) -> bool:
    return _blocks(plan) > PARAMETERS_PER_TOKEN * data.train_tokens


def _blocks(plan: Plan) -> int:
    return count.parameters(plan.model).matrices


def _compiles(settings: RunSettings, seconds: float) -> bool:
    if settings.compile == "auto":
        return seconds > WORTH_COMPILING and has_compiler()
    return settings.compile


def probe(
    plan: Plan, task: Task, data: Data, settings: RunSettings, outline: Outline | None = None, steps: int = 3
) -> float:
    """Seconds of one step of a throw-away model of this plan, uncompiled: the fastest of a few, on one micro-batch."""
    device = choose_device(settings.device)
    model = outline.built(device) if outline else build(plan.model, device=device)
    rows = plan.batch // plan.accumulate
    batch = data.batches(context=plan.context, batch=rows, accumulate=1, seed=settings.seed)(0)
    uncompiled = settings.model_copy(update={"attention": "auto"})
    learner = task.learner(model, data, uncompiled, precision=plan.dtype, compiled=False)
    began = time.perf_counter()
    timed = []
    for step in learn(learner, lambda _: batch, Constant(), steps=steps):
        _ = step.loss  # wait for the device
        timed.append(time.perf_counter() - began)
        began = time.perf_counter()
        if sum(timed) > 4.0:
            break
    return min(timed) * plan.accumulate


def _free(settings: RunSettings) -> int:
    """Bytes that a run may take, where it is divided over accelerators of all of them."""
    device = choose_device(settings.device)
    devices = 1 if device.type == "cpu" else settings.parallel.shard * settings.parallel.tensor
    return int(0.9 * memory_available(device)) * devices


def _fits(plan: Plan, settings: RunSettings) -> bool:
    return plan.memory() <= _free(settings)


def _in_memory(plan: Plan, settings: RunSettings) -> Plan:
    """The plan, in as many parts as it needs to fit. Errors: NextileError with a setting that fits, if any does."""
    free = _free(settings)
    if plan.memory() <= free:
        return plan
    parts = next((n for n in range(1, plan.batch + 1) if plan.batch % n == 0 and _in_parts(plan, n) <= free), None)
    need = f"training needs about {plan.memory() / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free"
    if parts is None:
        raise NextileError(
            f"{need}: use a smaller model, such as --set model.stack.depth=4 --set model.stack.width=256"
        )
    if settings.accumulate == 1 and settings.batch is None:
        return plan.model_copy(update={"accumulate": parts})
    raise NextileError(f"{need}: --set accumulate={parts} gives the same result in less")


def _in_parts(plan: Plan, parts: int) -> int:
    return plan.model_copy(update={"accumulate": parts}).memory()
