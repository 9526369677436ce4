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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nextile.base.config import Settings
from nextile.base.device import choose_device, choose_precision, keep_memory, set_threads
from nextile.base.errors import NextileError, UsageError
from nextile.base.files import atomic_write, remove_leftovers
from nextile.checkpoint import resume as states
from nextile.checkpoint.adapters import TENSORS as ADAPTER
from nextile.checkpoint.pretrained import Pretrained, load, load_processor
from nextile.checkpoint.store import save_config, save_weights
from nextile.checkpoint.tuned import save_tuned
from nextile.checkpoint.weights import WHOLE, read_json
from nextile.data.growth import Growing
from nextile.data.labelled import named_as_labelled
from nextile.models.build import AnyModel, build
from nextile.models.families.table import family_of
from nextile.tasks.classification import Classifying
from nextile.tasks.conversing import Conversing
from nextile.tasks.curve import write_curve
from nextile.tasks.denoising import Denoising
from nextile.tasks.labelling import Labelling
from nextile.tasks.language import LanguageModelling
from nextile.tasks.log import Log, NoLog
from nextile.tasks.masking import MaskedModelling
from nextile.tasks.painting import Painting
from nextile.tasks.plan import Plan, check_rows, make_plan
from nextile.tasks.preferring import Preferring
from nextile.tasks.report import Report
from nextile.tasks.settings import RunSettings
from nextile.tasks.start import Start, open_start
from nextile.tasks.task import Data, Task
from nextile.tasks.tokens import text_only
from nextile.tasks.translation import Translating
from nextile.tasks.tuning import Outline, Tuning, again, first_tuning, prepare, said_of_base
from nextile.tasks.words import WordEmbedding
from nextile.training.graph import compilations, sound_cache
from nextile.training.loop import Step, Watch, learn
from nextile.training.metrics import told
from nextile.training.parallel import ALONE, Rows, World, fitted
from nextile.training.spread import gathered, reshard, spread
from nextile.training.state import document_of, restore, snapshot, tensors_of

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
NOTHING = Start()
LOOK = 0.04  # of the time asked for: how often the clock is looked at
NAMED = 3  # steps that were skipped of which a session says what was in them; the others are counted
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
    skipped: int = 0  # steps whose loss or gradient was not finite
    row: int = 0  # of them without a sound one between, up to the last step


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
    if init is None:
        return Start()
    start = open_start(init)
    found = task.begin_with(start.words, preset, settings) if start.words else start
    return replace(found, name=str(init))


def begin_with(
    start: Start, task: Task, data: Data, settings: RunSettings
) -> tuple[AnyModel | None, Tuning | None, Outline | None]:
    """The model that a run begins from, made to fit its data; by adapters also what it tunes, and its outline.

    Errors: UsageError for the initialisation of a model that is there.
    """
    if start.model and settings.initialisation != "normal":
        raise UsageError(f"initialisation={settings.initialisation} is of a new model: leave it out beside --init")
    if not settings.lora:
        return (task.adapt(start.model, data) if start.model else None), None, None
    tuning, first = first_tuning(start.model, start.name, lambda base: task.adapt(base, data))
    precision = choose_precision(settings.precision, choose_device(settings.device))
    return first, tuning, Outline.of(tuning, first, settings.lora, precision)


def new_run(
    sources: Sequence[str], settings: RunSettings, *, task: Task, folder: Path, report: Report,
    preset: str | None = None, minutes: float | None = None, steps: int | None = None, start: Start = NOTHING,
    world: World = ALONE,
) -> Pretrained:  # fmt: skip
    """Train a model from the beginning and return the best one. Nothing is overwritten: NextileError says why."""
    began = time.monotonic()
    set_threads(settings.threads)
    keep_memory()
    world = world.meshed(settings.parallel, choose_device(settings.device))
    _check_divided(world, settings, start)

    def prepared() -> Data:
        check_free(folder)
        clear(folder)
        return task.prepare(sources, settings, folder / "data", report, start.model)

    data = _by_first(prepared, task, folder, settings, world)
    first, tuning, outline = begin_with(start, task, data, settings)

    def planned() -> Plan:
        return make_plan(
            task,
            data,
            settings,
            source=" + ".join(sources),
            preset=preset,
            minutes=minutes,
            steps=steps,
            fixed=first.spec if first else None,
            width=start.width,
            outline=outline,
            readers=world.readers,
        )

    made = world.after_first("planning", planned)
    plan = made if world.size == 1 and made else Plan.model_validate(world.said(made and made.model_dump(mode="json")))
    report.table("plan", data.facts + plan.rows())
    if note := data.check(plan.context):
        report.warn(note)
    run = Run(folder, task, data, plan, settings, report, began, tuning, first, world)
    if start.words is not None:
        start.words.begin(run.model, text_only(data.processor, folder), report)
    if start.name is not None:
        run.save()  # what it begins from is not in the settings
    if world.first:
        data.processor.save(folder)
        file = RunFile(plan=plan, settings=settings, tuning=tuning)
        atomic_write(folder / RUN, file.model_dump_json(indent=2) + "\n")
    return run.go()


def _by_first(prepared: Callable[[], Data], task: Task, folder: Path, settings: RunSettings, world: World) -> Data:
    """The data that the first process prepares; the others open it."""
    if world.size == 1:
        return prepared()

    def kept() -> Data:
        data = prepared()
        data.processor.save(folder)
        return data

    return world.after_first("preparing", kept) or task.open(folder / "data", settings, load_processor(folder))


def _check_divided(world: World, settings: RunSettings, start: Start) -> None:
    """Errors: UsageError for what a model that is divided over processes cannot."""
    if world.whole:
        return
    for name, asked in {
        "lora": settings.lora, "checkpoint.average": settings.checkpoint.average > 1, "word vectors": start.words,
    }.items():  # fmt: skip
        if asked:
            raise UsageError(f"{name} wants the whole model in each process: leave out parallel.shard and .tensor")


def resume_run(folder: Path, report: Report, world: World = ALONE) -> Pretrained:
    """Go on with an interrupted run exactly where its last saved state stands. Errors: NextileError for no run."""
    began = time.monotonic()
    file = read_run(folder)
    world.after_first("clearing", lambda: clear(folder))
    device = choose_device(file.settings.device)
    world = world.meshed(fitted(file.settings.parallel, world.size), device)
    set_threads(file.settings.threads)
    keep_memory()
    task = task_named(file.plan.task)
    data = task.open(folder / "data", file.settings, load_processor(folder))
    first = again(file.tuning, lambda base: task.adapt(base, data)) if file.tuning else None
    run = Run(folder, task, data, file.plan, file.settings, report, began, file.tuning, first, world)
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
        tuning: Tuning | None = None, first: AnyModel | None = None, world: World = ALONE,
    ):  # fmt: skip
        self.folder, self.task, self.data, self.plan, self.world = folder, task, data, plan, world
        self.settings, self.report, self.began, self.tuning = settings, report, began, tuning
        check_rows(plan, world.readers)
        self.model = self._first_model(first)
        spread(self.model, world)
        self.learner = task.learner(
            self.model, data, settings, precision=plan.dtype, compiled=plan.compiled, world=world
        )
        batches = data.batches(context=plan.context, batch=plan.batch, accumulate=plan.accumulate, seed=settings.seed)
        self.batches = Rows(Growing(batches, settings.growth, plan.accumulate), world)
        self.log = Log(folder) if world.first else NoLog(folder)
        self.progress = Progress(steps=plan.steps or 0)
        self.watch, self.named = Watch(self.batches.named), 0
        self.earlier = 0.0  # seconds of earlier sessions
        self.looked = 0, 0.0  # the step and the second of the last look at the clock
        self.unlogged: list[Step] = []
        self.compiled = compilations() if plan.compiled else None  # until it is told
        self.signal = 0

    def _first_model(self, first: AnyModel | None) -> AnyModel:
        """A new one, or that which the run begins from, with adapters where it is tuned by them."""
        device = choose_device(self.settings.device)
        if self.tuning and self.settings.lora and first is not None:
            return prepare(self.tuning, first, self.settings.lora, self.settings.seed, self.plan.dtype).to(device)
        settings = self.settings
        model = build(self.plan.model, seed=settings.seed, device=device, init=settings.initialisation)
        if first is not None:
            model.load_state_dict(first.state_dict())
        return model

    def recover(self) -> None:
        """Take up the last saved state, or begin again when none was saved."""
        if not states.has_state(self.folder):
            self.log.rewind(0, 0)
            return
        saved = states.latest_state(self.folder, kept=self.settings.checkpoint.average)
        if saved.note:
            self.report.warn(saved.note)
        self.progress = Progress(**restore(self.model, self.learner, saved.tensors, saved.progress))
        self.watch = Watch(self.batches.named, self.progress.skipped, self.progress.row)
        self.earlier = self.progress.seconds
        self.log.rewind(self.progress.metrics_bytes, self.progress.step)
        self.report.say(f"resuming '{self.folder}' after step {self.progress.step:,} of {self.progress.steps:,}")

    def go(self) -> Pretrained:
        """Train to the end and return the best model. Ctrl-C and SIGTERM save first, and say how to go on."""
        if self.world.first:
            save_config(self.folder, self.model, self.data.processor, said_of_base(self.settings.lora))
        try:
            with self._listening(), sound_cache():
                self._train()
                self._average()
        except Stopped:
            self._part()
        if self.world.first:
            self._finish()
        self.world.meet()
        return load(self.folder, device=self.settings.device)

    def _keep(self) -> None:
        """Make the model of the folder the one of now."""
        model = self.model if self.world.whole else gathered(self.model, self.world)
        if not self.world.first or model is None:
            return
        if self.tuning:
            save_tuned(self.folder, model, self.tuning.base)
        else:
            save_weights(self.folder, model)

    def save(self) -> None:
        """Everything that resuming needs, whole or not at all."""
        self.watch.look()
        self.progress.skipped, self.progress.row = self.watch.skipped, self.watch.row
        self.progress.seconds, self.progress.metrics_bytes = self._elapsed(), self.log.size()
        step, kept, done = self.progress.step, self.settings.checkpoint.average, asdict(self.progress)
        if not self.world.whole:
            tensors = tensors_of(self.model, self.learner)
            document = document_of(self.learner, done)
            states.save_state_together(self.folder, step, tensors, document, self.world, kept=kept)
        elif self.world.first:
            states.save_state(self.folder, step, *snapshot(self.model, self.learner, done), kept=kept)
        self.world.meet()

    # --- the steps --------------------------------------------------------------------------------------------------

    def _train(self) -> None:
        progress = self.progress
        if self.plan.compiled and not 0 < progress.steps <= progress.step:
            self.report.say("compiling the step, which takes up to half a minute when it was not compiled before")
        if not progress.steps:
            progress.steps = self._measured_steps()
        if progress.step == 0:
            self._set_due()
        self.looked = progress.step, self.world.said(self._elapsed())
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
            self._tell_compiled()
            due = self.progress.step >= self.progress.due
            self.signal, look = self.world.most(self.signal, self._looks_at_clock(began))
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
            if look:
                return

    def _tell_compiled(self) -> None:
        """Once, after the first step: how long compiling took, and what an earlier run had left of it."""
        if self.compiled is None:
            return
        new, self.compiled = compilations().since(self.compiled), None
        self.report.say(
            f"compiled in {new.seconds:.0f} s: {new.found} of {new.found + new.made} graphs were in the cache on disk"
        )

    def _looks_at_clock(self, began: float) -> bool:
        """Whether the time is limited and was not looked at for long."""
        return self.plan.minutes is not None and time.monotonic() - began > LOOK * self.plan.minutes * 60

    def _steps(self) -> Iterator[Step]:
        return learn(
            self.learner, self.batches, self.settings.schedule,
            steps=self.progress.steps, start=self.progress.step, seed=self.settings.seed, watch=self.watch,
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
        self._name_skipped([step for step in self.unlogged if step.skipped])
        self.unlogged.clear()
        return rate

    def _name_skipped(self, steps: list[Step]) -> None:
        for step in steps[: NAMED - self.named]:
            self.named += 1
            self.report.warn(
                f"step {step.index + 1:,} was skipped, its loss ({step.loss:.3g}) or gradient ({step.grad_norm:.3g}) "
                f"is not finite; it is of {self.batches.named(step.index)}"
            )

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
            (self.signal,) = self.world.most(self.signal)
            if self.signal:
                break
        restore(self.model, self.learner, tensors, document)
        self.watch = Watch(self.batches.named)
        per_step = self.world.said(statistics.median(seconds[2:] or seconds))
        costs = 1 + self.data.validation_tokens / 3 / self.plan.tokens_per_step * 10 * per_step  # of all validations
        left = self.world.said(self._left())
        return max(1, int(max(left - min(costs, 0.1 * left), 0.0) / per_step))

    def _keep_to_time(self, bar: Any, drift: float) -> None:
        """Machines change their speed: move the end when it would miss the time asked for."""
        progress = self.progress
        if self.plan.minutes is None or progress.step >= progress.steps:
            return
        now = self.world.said(self._elapsed())
        per_step = (now - self.looked[1]) / (progress.step - self.looked[0])  # with validations and saves
        steps = progress.step + max(1, int((self.plan.minutes * 60 - now) / per_step))
        if abs(steps - progress.steps) > drift * progress.steps:
            self.looked = (progress.step, now)
            progress.steps = steps
            progress.due = min(progress.due, steps)
            bar.resize(steps)

    # --- looking back -----------------------------------------------------------------------------------------------

    def _measures(self) -> dict[str, float]:
        measures = self.data.measure(self.model, context=self.plan.context, precision=self.plan.dtype)
        reshard(self.model)
        return self.world.said(measures)

    def _average(self) -> None:
        """The mean of the last states' weights, if it is better than any of them."""
        if self.settings.checkpoint.average == 1:
            return
        try:
            weights = states.average_weights(self.folder, self.settings.checkpoint.average)
        except NextileError as error:
            self.report.warn(f"no mean of the last states is made: {error}")
            return
        self.model.load_state_dict(weights, strict=False)
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
        if self.world.first and self.world.whole:
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
        if self.signal and number == signal.SIGINT and self.world.size == 1:  # torchrun sends it twice
            raise KeyboardInterrupt
        self.signal = self.signal or number

    def _part(self) -> None:
        """Tell how to go on, and end as the signal asks."""
        if not self.world.said(any((self.folder / name).exists() for name in (WHOLE, ADAPTER))):
            self._keep()
        if self.world.first:
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
                *([("skipped", f"{progress.skipped:,} steps that were not finite")] if progress.skipped else []),
                ("model", str(self.folder)),
                ("curve", str(self.folder / "curve.html")),
                ("try", self.task.trial(self.folder)),
            ],
        )
