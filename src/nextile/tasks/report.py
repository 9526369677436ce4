"""What a run tells: to a terminal, to a log, or to nobody."""

from __future__ import annotations

import os
import re
import sys
import textwrap
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from nextile.data.batches import Batch

DELAY = 2.0  # seconds; what ends sooner shows no bar
EVERY = 5.0  # seconds between the lines of a log, or more: a long run gets longer pauses
WINDOW = 30.0  # seconds that the estimate of the time left looks back

Rows = Sequence[tuple[str, str]]

# --- text that may be shown ---------------------------------------------------------------------------------------

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # C0, DEL and C1, but for tab and newline


def printable(text: str) -> str:
    """The text without control characters, so that what a model or a file says cannot drive the terminal."""
    return _CONTROL.sub("", text)


def one_line(text: str) -> str:
    """The printable text with its line breaks as spaces."""
    return printable(" ".join(text.splitlines()))


def clock(seconds: float) -> str:
    """63 -> "1:03", 3_723 -> "1:02:03"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


# --- how far something is -----------------------------------------------------------------------------------------


class Bar:
    """How far something is, shown to nobody: the bars of a terminal and of a log add how it is shown.

    Nothing is shown of what ends within DELAY seconds. Fields, such as loss="1.234", are shown beside the bar.
    """

    def __init__(self, title: str, total: float, unit: str):
        self.title, self.total, self.unit = one_line(title), max(total, 0), unit
        self.done: float = 0
        self.fields: dict[str, str] = {}
        self.started = time.monotonic()
        self._seen: deque[tuple[float, float]] = deque()  # (when, how much was done)

    def advance(self, n: float = 1, **fields: str) -> None:
        """Say that `n` more units are done."""
        self.update(self.done + n, **fields)

    def update(self, done: float, **fields: str) -> None:
        """Say that `done` units are done in all. The first call of a resumed run says where it starts."""
        now = time.monotonic()
        self.done = done
        self.fields |= fields
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] > WINDOW:
            self._seen.popleft()
        self.refresh()

    def resize(self, total: float) -> None:
        """Say that there are `total` units in all, more or fewer than was thought."""
        self.total = max(total, 0)
        self.refresh()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def percent(self) -> str:
        """How much is done; never 100% before the end."""
        return f"{int(100 * min(self.done / self.total, 1)) if self.total else 100}%"

    @property
    def timing(self) -> str:
        """The time left at the pace of the last WINDOW seconds; at the end, the time it took."""
        if self.done >= self.total:
            return f"in {clock(self.elapsed)}"
        (first, before), (last, after) = (self._seen[0], self._seen[-1]) if self._seen else ((0, 0), (0, 0))
        if last == first or after <= before:
            return ""
        behind = time.monotonic() - last
        return f"{clock(max((self.total - after) * (last - first) / (after - before) - behind, 0))} left"

    @property
    def beside(self) -> str:
        """The fields in a row; a value with a unit explains itself."""
        shown = (value if " " in value else f"{name} {value}" for name, value in self.fields.items())
        return one_line("  ".join(shown))

    def refresh(self) -> None:
        """Show how far it is now."""

    def close(self) -> None:
        """Show how far it came."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()


def counted(batches: Iterable[Batch], bar: Bar) -> Iterator[Batch]:
    """The batches, while a bar is told how many targets went by."""
    for batch in batches:
        yield batch
        bar.advance(batch.weight)


class Report(Protocol):
    """Where a run's words to people go; its results go elsewhere."""

    def say(self, text: str) -> None:
        """One line."""
        ...

    def warn(self, text: str) -> None:
        """One line that should not be missed."""
        ...

    def table(self, title: str, rows: Rows) -> None:
        """Names and values under a title."""
        ...

    def sample(self, title: str, text: str) -> None:
        """A piece of a model's work."""
        ...

    def bar(self, title: str, total: float, unit: str) -> Bar:
        """How far something is, for a `with` block; unit is "B" for bytes, else the plural of what is counted."""
        ...


# --- to nobody ----------------------------------------------------------------------------------------------------


class Silent:
    """A report to nobody."""

    def say(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""

    def table(self, title: str, rows: Rows) -> None:
        """Nothing."""

    def sample(self, title: str, text: str) -> None:
        """Nothing."""

    def bar(self, title: str, total: float, unit: str) -> Bar:
        """A bar that nobody sees."""
        return Bar(title, total, unit)


# --- to a log -----------------------------------------------------------------------------------------------------


def _amount(count: float, unit: str) -> str:
    """1_234 steps -> "1,234"; bytes in thousands: 1_234_567 -> "1.2 MB"."""
    if unit != "B":
        return f"{count:,.0f}"
    for prefix in ("", "k", "M", "G"):
        if count < 999.5:
            return f"{count:.0f} {prefix}B" if not prefix else f"{count:.1f} {prefix}B"
        count /= 1000
    return f"{count:,.1f} TB"


class _PlainBar(Bar):
    """A line now and then."""

    def __init__(self, report: Plain, title: str, total: float, unit: str):
        super().__init__(title, total, unit)
        self._report = report
        self._due = self.started + DELAY

    def refresh(self) -> None:
        now = time.monotonic()
        if now >= self._due and self.done < self.total:
            self._due = now + max(EVERY, self.elapsed / 50)
            self._report.say(self._line())

    def close(self) -> None:
        if self.elapsed >= DELAY:
            self._report.say(self._line())

    def _line(self) -> str:
        count = f"{_amount(self.done, self.unit)} of {_amount(self.total, self.unit)}"
        counted = count if self.unit == "B" else f"{count} {self.unit}"
        parts = (f"{self.title}: {self.percent}", counted, self.timing, self.beside)
        return "  ".join(part for part in parts if part)


class Plain:
    """A report in plain lines without control characters: to a file, a pipe or a simple terminal."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def say(self, text: str) -> None:
        """One line."""
        self._write(one_line(text))

    def warn(self, text: str) -> None:
        """One line that should not be missed."""
        self._write(f"warning: {one_line(text)}")

    def table(self, title: str, rows: Rows) -> None:
        """Names and values in two columns under a title."""
        width = max((len(name) for name, _ in rows), default=0)
        lines = [one_line(f"  {name:<{width}}  {value}") for name, value in rows]
        self._write("\n".join([one_line(title), *lines]))

    def sample(self, title: str, text: str) -> None:
        """A piece of a model's work, indented under its title."""
        self._write(f"{one_line(title)}\n{textwrap.indent(printable(text).rstrip(), '  ')}")

    def bar(self, title: str, total: float, unit: str) -> Bar:
        """A line now and then, and one at the end."""
        return _PlainBar(self, title, total, unit)

    def _write(self, text: str) -> None:
        with suppress(OSError):  # a full disk under the log, or a reader gone, is no reason to lose a run
            print(text, file=self._stream, flush=True)


# --- to a terminal ------------------------------------------------------------------------------------------------


class _Display:
    """The live lines at the bottom of a terminal, one for each bar; the last to end stays."""

    def __init__(self, console: Console):
        self._console = console
        self._live: Progress | None = None

    def add(self, bar: Bar) -> TaskID:
        if self._live is None:
            self._live = self._new()
            self._live.start()
        return self._live.add_task(bar.title, total=bar.total, bar=bar)

    def update(self, task: TaskID, bar: Bar) -> None:
        if self._live is not None:
            self._live.update(task, total=bar.total, completed=bar.done)

    def remove(self, task: TaskID) -> None:
        if self._live is None:
            return
        if len(self._live.tasks) == 1:
            self._live.stop()
            self._live = None
        else:
            self._live.remove_task(task)

    def _new(self) -> Progress:
        texts = ("{task.fields[bar].percent:>4}", "{task.fields[bar].timing}", "{task.fields[bar].beside}")
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(max(8, min(40, self._console.width - 70)), complete_style="cyan", finished_style="green"),
            *(TextColumn(text, markup=False) for text in texts),
            console=self._console,
            refresh_per_second=4,
            redirect_stdout=False,  # results go there as they are
        )


class _TerminalBar(Bar):
    """A line of the display, once DELAY has passed, whether or not there is news until then."""

    def __init__(self, display: _Display, title: str, total: float, unit: str):
        super().__init__(title, total, unit)
        self._display = display
        self._task: TaskID | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(DELAY, self._show)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def refresh(self) -> None:
        if self._task is not None:
            self._display.update(self._task, self)

    def close(self) -> None:
        self._timer.cancel()
        with self._lock:
            if self._task is not None:
                self.refresh()
                self._display.remove(self._task)
            self._task = None

    def _show(self) -> None:
        with self._lock:
            if not self._timer.finished.is_set():  # else it was closed just now
                self._task = self._display.add(self)
                self.refresh()


class Terminal:
    """A report to a terminal: colours, and bars that move. NO_COLOR leaves the colours out."""

    def __init__(self, stream: TextIO):
        self._console = Console(file=stream, force_terminal=True, highlight=False, markup=False, emoji=False)
        self._display = _Display(self._console)

    def say(self, text: str) -> None:
        """One line, as long as it is: a path stays in one piece."""
        self._console.print(Text(one_line(text)), soft_wrap=True)

    def warn(self, text: str) -> None:
        """One line that should not be missed."""
        self._console.print(Text.assemble(("warning: ", "bold yellow"), one_line(text)), soft_wrap=True)

    def table(self, title: str, rows: Rows) -> None:
        """Names and values in two columns under a title."""
        table = Table.grid(padding=(0, 2))
        for name, value in rows:
            table.add_row(Text(one_line(name), "dim"), Text(one_line(value)))
        self._console.print(Text(one_line(title), "bold"), Padding(table, (0, 0, 0, 2), expand=False), sep="\n")

    def sample(self, title: str, text: str) -> None:
        """A piece of a model's work, dimmed and indented under its title."""
        self._console.print(Text(one_line(title), "bold"), soft_wrap=True)
        self._console.print(Padding(Text(printable(text).rstrip(), "dim"), (0, 0, 0, 2), expand=False))

    def bar(self, title: str, total: float, unit: str) -> Bar:
        """A bar that moves, with percent, time left and fields."""
        return _TerminalBar(self._display, title, total, unit)


# --- which one ----------------------------------------------------------------------------------------------------


def choose(stream: TextIO | None = None, quiet: bool = False) -> Report:
    """The report for a stream (standard error if none is given): a terminal's where it can move its cursor."""
    stream = stream or sys.stderr
    if quiet or stream is None:  # Python without a console has no standard error
        return Silent()
    moves = stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
    return Terminal(stream) if moves else Plain(stream)
