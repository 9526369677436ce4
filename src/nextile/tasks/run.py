"""One run of any task: plan, train, evaluate, save, resume; what it tells and draws on the way.

A run lives in one folder: `run.json` says what it is, `data/` holds its tokens, `state/` what resuming needs, and the
folder itself is the model that was best on the validation set.
"""

from __future__ import annotations

import math
import signal
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nextile.base.config import Settings
from nextile.base.device import choose_device, set_threads
from nextile.base.errors import NextileError, UsageError
from nextile.base.files import atomic_write, remove_leftovers
from nextile.checkpoint import resume as states
from nextile.checkpoint.adapters import TENSORS as ADAPTER
from nextile.checkpoint.pretrained import Pretrained, load, load_processor
from nextile.checkpoint.store import save_config, save_weights
from nextile.checkpoint.tuned import save_tuned
from nextile.checkpoint.weights import WHOLE, read_json
from nextile.data.labelled import named_as_labelled
from nextile.models.build import AnyModel, build
from nextile.models.families.table import family_of
from nextile.tasks.classification import Classifying
from nextile.tasks.conversing import Conversing
from nextile.tasks.curve import write_curve
from nextile.tasks.denoising import Denoising
from nextile.tasks.labelling import Labelling
from nextile.tasks.language import LanguageModelling
from nextile.tasks.log import Log
from nextile.tasks.masking import MaskedModelling
from nextile.tasks.painting import Painting
from nextile.tasks.plan import Plan, make_plan
from nextile.tasks.preferring import Preferring
from nextile.tasks.report import Report
from nextile.tasks.settings import RunSettings
from nextile.tasks.start import Start, open_start
from nextile.tasks.task import Data, Task
from nextile.tasks.tokens import text_only
from nextile.tasks.translation import Translating
from nextile.tasks.tuning import Tuning, again, first_tuning, prepare, said_of_base
from nextile.tasks.words import WordEmbedding
from nextile.training.loop import Step, learn
from nextile.training.metrics import told
from nextile.training.state import restore, snapshot

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Classifying(),
        Labelling(),
        Translating(),
        Conversing(),
        Preferring(),
        LanguageModelling(),
        Painting(),
        WordEmbedding(),
        MaskedModelling(),
        Denoising(),
    )
}  # in the order in which they are asked whether data suits them; language takes any
RUN = "run.json"
SHOWN = 0.5  # seconds between two looks at the loss
MEASURED = 12  # steps by which a run with a time limit learns its speed
LOOK = 0.04  # of the time asked for: how often the clock is looked at
DRIFT, LURCH = 0.03, 0.25  # of the run: how far off its end may be before the number of steps is changed


class RunFile(Settings):
    """`run.json`: all that resuming needs beside the data and the state."""

    format: int = 1
    plan: Plan
    settings: RunSettings
    tuning: Tuning | None = None


@dataclass
class Progress:
    """What was done so far; saved with every state."""

    step: int = 0  # steps done
    steps: int = 0  # of so many; 0: not known yet
    seconds: float = 0.0  # that all sessions of the run took, up to the last save
    best: float = math.inf  # validation loss
    best_measures: dict[str, float] = field(default_factory=dict)  # its and those beside it
    best_step: int = 0
    due: int = 0  # the step of the next validation
    metrics_bytes: int = 0


class Stopped(Exception):
    """The run was asked to stop by a signal."""


# --- beginning ------------------------------------------------------------------------------------------------------


def task_named(name: str) -> Task:
    """The task of that name. Errors: UsageError with the names that exist."""
    if name not in TASKS:
        asked_for = sorted(set(TASKS) - {Labelling.name})  # which is asked for as classify
        raise UsageError(f"unknown task '{name}': it is one of {', '.join(asked_for)}")
    return TASKS[name]


def task_for(sources: Sequence[str], name: str | None) -> Task:
    """The task that is named, or the one that the sources mean."""
    if name == Classifying.name and named_as_labelled(sources):  # one name for both: what is classified is in the data
        name = Labelling.name
    return task_named(name) if name else next(task for task in TASKS.values() if task.suits(sources))


def begin_from(init: str | Path | None, task: Task, preset: str | None, settings: RunSettings) -> Start:
    """The model or the word vectors to begin from, if some are named. Errors: UsageError for what the task cannot."""
    start = Start() if init is None else open_start(init)
    return task.begin_with(start.words, preset, settings) if start.words else start


def new_run(
    sources: Sequence[str], settings: RunSettings, *, task: Task, folder: Path, report: Report,
    preset: str | None = None, minutes: float | None = None, steps: int | None = None, init: str | None = None,
) -> Pretrained:  # fmt: skip
    """Train a model from the beginning and return the best one. Nothing is overwritten: NextileError says why."""
    began = time.monotonic()
    set_threads(settings.threads)
    check_free(folder)
    clear(folder)
    start = begin_from(init, task, preset, settings)
    data = task.prepare(sources, settings, folder / "data", report, start.model)
    tuning, first = None, None
    if settings.lora:
        tuning, first = first_tuning(start.model, init, lambda base: task.adapt(base, data))
    elif start.model:
        first = task.adapt(start.model, data)
    plan = make_plan(
        task,
        data,
        settings,
        source=" + ".join(sources),
        preset=preset,
        minutes=minutes,
        steps=steps,
        fixed=first.spec if first else None,
        width=start.width,
    )
    report.table("plan", data.facts + plan.rows())
    if note := data.check(plan.context):
        report.warn(note)
    run = Run(folder, task, data, plan, settings, report, began, tuning, first)
    if start.words is not None:
        start.words.begin(run.model, text_only(data.processor, folder), report)
    if init is not None:
        run.save()  # what it begins from is not in the settings
    data.processor.save(folder)
    file = RunFile(plan=plan, settings=settings, tuning=tuning)
    atomic_write(folder / RUN, file.model_dump_json(indent=2) + "\n")
    return run.go()


def resume_run(folder: Path, report: Report) -> Pretrained:
    """Go on with an interrupted run exactly where its last saved state stands. Errors: NextileError for no run."""
    began = time.monotonic()
    file = read_run(folder)
    clear(folder)
    set_threads(file.settings.threads)
    task = task_named(file.plan.task)
    data = task.open(folder / "data", file.settings, load_processor(folder))
    first = again(file.tuning, lambda base: task.adapt(base, data)) if file.tuning else None
    run = Run(folder, task, data, file.plan, file.settings, report, began, file.tuning, first)
    run.recover()
    return run.go()


def check_free(folder: Path) -> None:
    """Errors: NextileError when another run or model lives there."""
    if (folder / RUN).exists():
        raise NextileError(
            f"'{folder}' holds a run already: go on with it by --resume {folder}, or choose another --out"
        )
    if (folder / "config.json").exists():
        raise NextileError(f"'{folder}' holds a model already: choose another --out")


def clear(folder: Path) -> None:
    """Forget what a run that was killed before it began, or in the middle of a save, has left."""
    parts = [path for path in (folder / "data").glob("*") if path.is_dir()]  # a store of pairs holds two stores
    for place in (folder, folder / "state", folder / "data", *parts):
        remove_leftovers(place)
    if not (folder / RUN).exists():
        states.drop_states(folder)
        Log(folder).rewind(0, 0)


def read_run(folder: Path) -> RunFile:
    """A run's `run.json`. Errors: NextileError when the folder is no run."""
    if not (folder / RUN).exists():
        raise NextileError(f"'{folder}' holds no run to resume: it has no {RUN}; name the --out of an interrupted run")
    try:
        return RunFile.model_validate(read_json(folder / RUN))
    except ValidationError as error:
        raise NextileError(f"'{folder / RUN}' is damaged ({error.error_count()} faults): train anew") from error


# --- running --------------------------------------------------------------------------------------------------------


class Run:
    """The pieces of a run put together, and what is done with each step."""

    def __init__(
        self, folder: Path, task: Task, data: Data, plan: Plan, settings: RunSettings, report: Report, began: float,
        tuning: Tuning | None = None, first: AnyModel | None = None,
    ):  # fmt: skip
        self.folder, self.task, self.data, self.plan = folder, task, data, plan
        self.settings, self.report, self.began, self.tuning = settings, report, began, tuning
        self.model = self._first_model(first)
        self.learner = task.learner(self.model, data, settings, precision=plan.dtype, compiled=plan.compiled)
        self.batches = data.batches(
            context=plan.context, batch=plan.batch, accumulate=plan.accumulate, seed=settings.seed
        )
        self.log, self.progress = Log(folder), Progress(steps=plan.steps or 0)
        self.earlier = 0.0  # seconds of earlier sessions
        self.looked = 0, 0.0  # the step and the second of the last look at the clock
        self.unlogged: list[Step] = []
        self.signal = 0

    def _first_model(self, first: AnyModel | None) -> AnyModel:
        """A new one, or that which the run begins from, with adapters where it is tuned by them."""
        device = choose_device(self.settings.device)
        if self.tuning and self.settings.lora and first is not None:
            return prepare(self.tuning, first, self.settings.lora, self.settings.seed).to(device)
        model = build(self.plan.model, seed=self.settings.seed, device=device)
        if first is not None:
            model.load_state_dict(first.state_dict())
        return model

    def recover(self) -> None:
        """Take up the last saved state, or begin again when none was saved."""
        if not states.has_state(self.folder):
            self.log.rewind(0, 0)
            return
        saved = states.latest_state(self.folder)
        if saved.note:
            self.report.warn(saved.note)
        self.progress = Progress(**restore(self.model, self.learner, saved.tensors, saved.progress))
        self.earlier = self.progress.seconds
        self.log.rewind(self.progress.metrics_bytes, self.progress.step)
        self.report.say(f"resuming '{self.folder}' after step {self.progress.step:,} of {self.progress.steps:,}")

    def go(self) -> Pretrained:
        """Train to the end and return the best model. Ctrl-C and SIGTERM save first, and say how to go on."""
        save_config(self.folder, self.model, self.data.processor, said_of_base(self.settings.lora))
        try:
            with self._listening():
                self._train()
                self._average()
        except Stopped:
            self._part()
        self._finish()
        return load(self.folder, device=self.settings.device)

    def _keep(self) -> None:
        """Make the model of the folder the one of now."""
        if self.tuning:
            save_tuned(self.folder, self.model, self.tuning.base)
        else:
            save_weights(self.folder, self.model)

    def save(self) -> None:
        """Everything that resuming needs, whole or not at all."""
        self.progress.seconds, self.progress.metrics_bytes = self._elapsed(), self.log.size()
        saved = snapshot(self.model, self.learner, asdict(self.progress))
        states.save_state(self.folder, self.progress.step, *saved, kept=self.settings.checkpoint.average)

    # --- the steps --------------------------------------------------------------------------------------------------

    def _train(self) -> None:
        progress = self.progress
        if self.plan.compiled and not 0 < progress.steps <= progress.step:
            self.report.say("compiling the step, which takes up to half a minute when it was not compiled before")
        if not progress.steps:
            progress.steps = self._measured_steps()
        if progress.step == 0:
            self._set_due()
        self.looked = progress.step, self._elapsed()
        with self.report.bar("training", progress.steps, "steps") as bar:
            bar.update(progress.step)
            while progress.step < progress.steps:
                self._leg(bar)
                if progress.step >= progress.due:
                    self._validate()
                    self._keep_to_time(bar, DRIFT)
                    self._set_due()
                    self.save()
                else:  # between validations only a machine that became another one is worth a change
                    self._keep_to_time(bar, LURCH)

    def _leg(self, bar: Any) -> None:
        """Steps up to the next validation, or to the next look at the clock when the time is limited."""
        began = shown = time.monotonic()
        for step in self._steps():
            self.progress.step = step.index + 1
            self.unlogged.append(step)
            due = self.progress.step >= self.progress.due
            if due or self.signal or time.monotonic() - shown > SHOWN:
                self._show(bar, time.monotonic() - shown)
                shown = time.monotonic()
            if due:
                return
            if self.signal:
                self.save()
                raise Stopped
            if self.plan.save_every and self.progress.step % self.plan.save_every == 0:
                self._write_down(time.monotonic() - shown)
                self.save()
            if self.plan.minutes is not None and time.monotonic() - began > LOOK * self.plan.minutes * 60:
                return

    def _steps(self) -> Iterator[Step]:
        return learn(
            self.learner, self.batches, self.settings.schedule,
            steps=self.progress.steps, start=self.progress.step, seed=self.settings.seed,
        )  # fmt: skip

    def _set_due(self) -> None:
        """When the next validation is due: at the end at the latest."""
        every = self.plan.evaluations_every(self.progress.steps, self.data.validation_tokens)
        self.progress.due = min(self.progress.step + every, self.progress.steps)

    def _show(self, bar: Any, seconds: float) -> None:
        step, rate = self.unlogged[-1], self._write_down(seconds)
        bar.update(
            step.index + 1, loss=f"{step.loss:.3f}", lr=f"{step.lr:.2g}", speed=f"{rate:,.0f} {self.task.counts}/s"
        )

    def _write_down(self, seconds: float) -> float:
        """Log the steps since the last time; their tokens per second."""
        rate = sum(step.tokens for step in self.unlogged) / max(seconds, 1e-9)
        self.log.steps(self.unlogged, self._elapsed(), rate)
        self.unlogged.clear()
        return rate

    # --- the time ---------------------------------------------------------------------------------------------------

    def _elapsed(self) -> float:
        return self.earlier + time.monotonic() - self.began

    def _left(self) -> float:
        """Seconds of the budget."""
        assert self.plan.minutes is not None
        return self.plan.minutes * 60 - self._elapsed()

    def _measured_steps(self) -> int:
        """How many steps fit in the time, from a few whose effect is taken back."""
        self.progress.steps = 1 << 40  # as long as it is unknown: the warm-up's rate
        tensors, document = snapshot(self.model, self.learner, {})
        seconds, began = [], time.monotonic()
        for step in islice(self._steps(), MEASURED):
            _ = step.loss  # waits for the device
            seconds.append(time.monotonic() - began)
            began = time.monotonic()
            if self.signal:
                break
        restore(self.model, self.learner, tensors, document)
        per_step = statistics.median(seconds[2:] or seconds)
        costs = 1 + self.data.validation_tokens / 3 / self.plan.tokens_per_step * 10 * per_step  # of all validations
        return max(1, int(max(self._left() - min(costs, 0.1 * self._left()), 0.0) / per_step))

    def _keep_to_time(self, bar: Any, drift: float) -> None:
        """Machines change their speed: move the end when it would miss the time asked for."""
        progress = self.progress
        if self.plan.minutes is None or progress.step >= progress.steps:
            return
        now = self._elapsed()
        per_step = (now - self.looked[1]) / (progress.step - self.looked[0])  # with validations and saves
        steps = progress.step + max(1, int(self._left() / per_step))
        if abs(steps - progress.steps) > drift * progress.steps:
            self.looked = (progress.step, now)
            progress.steps = steps
            progress.due = min(progress.due, steps)
            bar.resize(steps)

    # --- looking back -----------------------------------------------------------------------------------------------

    def _measures(self) -> dict[str, float]:
        return self.data.measure(self.model, context=self.plan.context, precision=self.plan.dtype)

    def _average(self) -> None:
        """The mean of the last states' weights, if it is better than any of them."""
        if self.settings.checkpoint.average == 1:
            return
        self.model.load_state_dict(states.average_weights(self.folder, self.settings.checkpoint.average), strict=False)
        measures, progress = self._measures(), self.progress
        better = measures["loss"] < progress.best
        if better:
            progress.best, progress.best_measures = measures["loss"], measures
            self._keep()
        said = f"the mean of the last {self.settings.checkpoint.average} states: {told(measures)}"
        self.report.say(f"{said}, {'kept' if better else f'no better than {progress.best:.4f}'}")

    def _validate(self) -> None:
        step, progress = self.progress.step, self.progress
        measures = self._measures()
        self.log.validation(step, measures)
        better = measures["loss"] < progress.best
        if better:
            progress.best, progress.best_measures, progress.best_step = measures["loss"], measures, step
            self._keep()
        self.report.say(
            f"step {step:,}: validation {told(measures)}{'' if better else f' (best: {progress.best:.4f})'}"
        )
        self.report.sample(*self.data.preview(self._pretrained(), self.settings.seed))

    def _pretrained(self) -> Pretrained:
        family = family_of(self.model.spec) or "nextile"
        return Pretrained(self.model, self.data.processor, self.model.spec, family, self.folder)

    # --- ending -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM let the step end; a second Ctrl-C does not. Only the main thread can listen."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: Any) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number

    def _part(self) -> None:
        """Tell how to go on, and end as the signal asks."""
        if not any((self.folder / name).exists() for name in (WHOLE, ADAPTER)):
            self._keep()
        write_curve(self.folder, self.folder.name)
        self.report.say(
            f"stopped and saved after step {self.progress.step:,}: nextile train --resume {self.folder} goes on"
        )
        if self.signal == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt

    def _finish(self) -> None:
        progress = self.progress
        note = write_curve(self.folder, self.folder.name)
        if note:
            self.report.say(note)
        self.report.table(
            "done",
            [
                ("validation loss", told(progress.best_measures)),
                (
                    "reached",
                    f"at step {progress.best_step:,} of {progress.steps:,}, {self._elapsed() / 60:.1f} minutes",
                ),
                ("model", str(self.folder)),
                ("curve", str(self.folder / "curve.html")),
                ("try", self.task.trial(self.folder)),
            ],
        )
