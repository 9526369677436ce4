"""The engine: one thread that owns a model, writes many texts at once, and has jobs done beside them.

`Engine.submit` and `Engine.run` are called from anywhere; what they are told comes from the engine's thread, so `tell`
must be quick. Between two rounds of the batch (`serving.batch`) one job does one piece of its work, each in its turn,
so nobody starves.

Dead, stuck, slow. A dead thread is seen at once. A round or a piece of a job that takes longer than GRACE seconds is
asked for more: while its thread still uses the processor it is at work, however slow (a long prompt, a large model);
when the thread's own clock stands still it hangs on something that does not come, and `alive` is False. Work
without end uses the processor too, and counts as stuck after PATIENCE seconds.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from nextile.base.errors import NextileError, UsageError
from nextile.generation.decode import evaluating
from nextile.serving.batch import Batch, Counts, Request, Tell, Text, is_writer, pages_for

__all__ = ["Engine", "Full", "Request", "Statistics", "Ticket"]

GRACE = 1.5  # seconds in which nobody asks whether a step is stuck
LOOK = 0.2  # seconds in which a thread that works must use the processor
PATIENCE = 60.0  # seconds that a single step may take at most
FAILURES = 3  # rounds that go wrong one after the other, and the engine has failed

T = TypeVar("T")


class Full(NextileError):
    """There is no room for another request now: try again later."""


@dataclass(frozen=True)
class Statistics:
    """What an engine does and has done."""

    running: int  # texts that are being read or written
    waiting: int  # texts that wait for a row or for pages
    jobs: int
    written: int  # tokens
    read: int  # tokens of prompts
    reused: int  # tokens of prompts that were there already
    pages_used: int
    pages: int
    steps: int


class Ticket:
    """Work that was taken on."""

    def __init__(self, engine: Engine, work: Text | Job):
        self._engine, self.work = engine, work

    def cancel(self) -> None:
        """Nobody wants it any more: it is told nothing from now on, and its row and pages are free before the next
        step. Any number of times, from any thread."""
        self._engine._cancel(self.work)


class Job:
    """Work beside the batch, in pieces."""

    def __init__(self, work: Iterator[Any], tell: Tell):
        self.work, self.tell, self.cancelled = work, tell, False

    def piece(self) -> bool:
        """Do one, and tell of it: whether there may be more."""
        try:
            found = next(self.work)
        except StopIteration:
            return False
        except Exception as error:
            if not self.cancelled:
                self.tell(error)
            return False
        if not self.cancelled:
            self.tell(found)
        return True

    def close(self) -> None:
        """Let a generator clean up behind itself."""
        close = getattr(self.work, "close", None)
        if close is not None:
            close()


class Pulse:
    """Whether a thread is at work."""

    def __init__(self, thread: threading.Thread):
        self._thread = thread
        self._since: float | None = None  # when the step began that is being done; None: nothing is to be done

    def beat(self) -> None:
        """A step begins."""
        self._since = time.monotonic()

    def rest(self) -> None:
        """There is nothing to do."""
        self._since = None

    def works(self) -> bool:
        """Whether the thread lives, and either rests or does a step that goes on. Takes LOOK seconds at most."""
        since = self._since
        if not self._thread.is_alive():
            return False
        if since is None or time.monotonic() - since < GRACE:
            return True
        return time.monotonic() - since < PATIENCE and self._moves(since)

    def _moves(self, since: float) -> bool:
        before, until = self._clock(), time.monotonic() + LOOK
        while time.monotonic() < until:
            time.sleep(LOOK / 20)
            if self._since != since or self._clock() > before:
                return True
        return False

    def _clock(self) -> float:
        """Seconds for which the thread has used a processor; where that is unknown, the process."""
        clock = getattr(time, "pthread_getcpuclockid", None)
        if clock is None or self._thread.ident is None:
            return time.process_time()
        try:
            return time.clock_gettime(clock(self._thread.ident))
        except OSError:
            return 0.0  # it has ended


class Engine:
    """Texts of one model, many at once, each as `generation.decode.decode` writes it alone; and jobs beside them.

    rows: texts at once. queue: how many more may wait, and how many jobs there may be. memory: bytes for keys and
    values, allocated once; None: what `rows` texts of full length need, at most a quarter of what is free. page: tokens
    that share and leave memory together. chunk: tokens of prompts that are read in one round. compiled: a text that is
    alone is written by a compiled step, on CPU, as soon as one is there: it is compiled beside the engine, of a model
    that is not in training. first_token is told, in the engine's thread, the seconds from request to first token of
    every text.
    Errors: UsageError for counts below 1 and for memory that does not hold a page.
    """

    def __init__(
        self,
        model: Any,
        *,
        rows: int = 32,
        queue: int = 256,
        memory: int | None = None,
        page: int = 16,
        chunk: int = 256,
        compiled: bool = False,
        first_token: Callable[[float], object] | None = None,
    ):
        for name, value in {"rows": rows, "page": page, "chunk": chunk}.items():
            if value < 1:
                raise UsageError(f"{name} is {value}: give at least 1")
        self._model, self._rows, self._queue, self._first_token = model, rows, queue, first_token
        self._batch: Batch | None = None
        if is_writer(model):
            pages = pages_for(model, rows, page, memory)
            compiled = compiled and not model.training
            self._batch = Batch(model, rows=rows, pages=pages, page=page, chunk=max(chunk, page), compiled=compiled)
        self._lock = threading.Condition()
        self._texts: set[Text] = set()  # all that are not done
        self._new: list[Text] = []  # of which the batch does not know yet
        self._jobs: deque[Job] = deque()
        self._closing, self._deadline = False, float("inf")
        self._error: BaseException | None = None
        self._failed = 0  # rounds, one after the other
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._live, name="nextile engine", daemon=True)
        self._pulse = Pulse(self._thread)
        self._thread.start()
        atexit.register(self.close)  # a thread that is at work when the process ends would end it badly

    # --- asked from anywhere ---

    def submit(self, request: Request, tell: Tell) -> Ticket:
        """Have a text written: tell(Emitted) for every token, the last with `finished`; or once tell(error).

        tell is called in the engine's thread. Errors: Full where there is no room, at once; NextileError for ids that
        the model does not know, for a text that can never fit, and when the engine is closed; UsageError for counts
        out of bounds and for a model that writes no text.
        """
        if self._batch is None:
            raise UsageError("this model writes no text token by token: ask it for what it is made for")
        self._batch.check(request)
        text = Text(request, tell, self._model.spec.context)
        text.tell = _Teller(self, text, tell)
        with self._lock:
            self._refuse_closed()
            if len(self._texts) >= self.room:
                raise Full(f"{len(self._texts):,} texts are being written or wait: try again later")
            self._texts.add(text)
            self._new.append(text)
            self._lock.notify()
        return Ticket(self, text)

    def run(self, work: Iterator[T], tell: Callable[[T | BaseException], object]) -> Ticket:
        """Have work done beside the batch, one `next` a round, in the engine's thread, without gradients.

        tell is told what each `next` gives, or the error that ends the work; of its end nothing. Work that takes long
        should yield often: in between nobody else has a turn. Errors: Full, and NextileError when the engine is closed.
        """
        job = Job(work, tell)
        with self._lock:
            self._refuse_closed()
            if len(self._jobs) >= max(1, self._queue):
                raise Full(f"{len(self._jobs):,} jobs wait: try again later")
            self._jobs.append(job)
            self._lock.notify()
        return Ticket(self, job)

    @property
    def room(self) -> int:
        """Texts that there can be at a time, those included that wait."""
        return self._rows + self._queue

    @property
    def alive(self) -> bool:
        """Whether the thread lives, and has finished a step lately, or is at one, or has nothing to do.

        False two seconds after it got stuck at the latest. Takes a fifth of a second when a step takes long.
        """
        return self._error is None and self._pulse.works()

    def statistics(self) -> Statistics:
        """What it does and has done."""
        batch = self._batch
        counts, running = (Counts(), 0) if batch is None else (batch.counts, len(batch.active))
        return Statistics(
            running=running,
            waiting=max(0, len(self._texts) - running),
            jobs=len(self._jobs),
            written=counts.written,
            read=counts.read,
            reused=counts.reused,
            pages_used=0 if batch is None else batch.pages_used,
            pages=0 if batch is None else batch.cache.pages.total,
            steps=counts.steps,
        )

    def close(self, drain: float | None = 0.0) -> None:
        """Take no more on, finish what there is within `drain` seconds (None: however long it takes), fail the rest."""
        with self._lock:
            self._closing = True
            self._deadline = float("inf") if drain is None else time.monotonic() + drain
            self._lock.notify()
        self._thread.join(None if drain is None else drain + GRACE)
        atexit.unregister(self.close)

    def _refuse_closed(self) -> None:
        if self._error is not None:
            raise NextileError(f"the engine has failed ({self._error}): start it again") from self._error
        if self._closing:
            raise NextileError("the engine is being closed: it takes on nothing more")

    def _cancel(self, work: Text | Job) -> None:
        with self._lock:
            work.cancelled = True
            if isinstance(work, Text):
                self._texts.discard(work)
            self._lock.notify()

    # --- in the thread ---

    def _live(self) -> None:
        torch.set_num_threads(self._threads)  # a thread begins with as many as there are processors
        try:
            with evaluating(self._model), torch.no_grad():
                while self._wait():
                    self._turn()
            self._fail(NextileError("the engine was closed before this was done"))
        except BaseException as error:  # whatever it is, those who wait must hear of it
            self._error = error
            self._fail(error)

    def _wait(self) -> bool:
        """Until there is something to do. False when it is time to go."""
        with self._lock:
            while not (self._closing or self._busy()):
                self._pulse.rest()
                self._lock.wait()
            self._pulse.beat()
            return not self._closing or (self._busy() and time.monotonic() < self._deadline)

    def _busy(self) -> bool:
        """Whether there is something to do."""
        return bool(self._new or self._jobs or self._batch)

    def _turn(self) -> None:
        with self._lock:
            new, self._new = self._new, []
        if self._batch is not None:
            for text in new:
                self._batch.add(text)
            self._batch.drop_cancelled()
            if len(self._batch):
                self._round(self._batch)
        self._pulse.beat()
        self._job()

    def _round(self, batch: Batch) -> None:
        """What goes wrong ends the texts of its round; again and again it is not for the texts, and ends the engine."""
        try:
            batch.round()
            self._failed = 0
        except Exception as error:
            self._failed += 1
            if self._failed == FAILURES:
                raise
            batch.fail(error)

    def _job(self) -> None:
        """A piece of the job whose turn it is."""
        with self._lock:
            gone = [job for job in self._jobs if job.cancelled]
            self._jobs = deque(job for job in self._jobs if not job.cancelled)
            job = self._jobs[0] if self._jobs else None
        for each in gone:
            each.close()
        if job is None:
            return
        more = job.piece()
        with self._lock:
            self._jobs.remove(job)
            if more:
                self._jobs.append(job)

    def _fail(self, error: BaseException) -> None:
        """Tell all that wait."""
        with self._lock:
            self._closing = True
            texts, self._texts = sorted(self._texts, key=lambda text: text.number), set()
            jobs, self._jobs = list(self._jobs), deque()
            self._new = []
        for work in (*texts, *jobs):
            if not work.cancelled:
                work.tell(error)
        for job in jobs:
            job.close()

    def _done(self, text: Text) -> None:
        with self._lock:
            self._texts.discard(text)


class _Teller:
    """Tells a text's owner, takes the time to its first token, and knows when it is done."""

    def __init__(self, engine: Engine, text: Text, tell: Tell):
        self._engine, self._text, self._tell, self._began = engine, text, tell, time.monotonic()
        self._first = True

    def __call__(self, told: Any) -> None:
        failed = isinstance(told, BaseException)
        if self._first and not failed and self._engine._first_token is not None:
            self._engine._first_token(time.monotonic() - self._began)
        self._first = False
        if failed or told.finished is not None:
            self._engine._done(self._text)
        try:
            self._tell(told)
        except Exception:  # who does not listen any more
            self._engine._cancel(self._text)
