"""The losses of a run as pictures: curve.html for every browser, curve.png where matplotlib is installed.

N points of a line.
"""

from __future__ import annotations

import json
import math
import string
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np

from nextile.base.files import atomic_write
from nextile.tasks.report import clock, one_line
from nextile.training.metrics import KINDS, kind_of, told

MOST = 2000  # points of a line
STRETCH = 80  # the smooth line looks this part of all points, one eightieth, to either side
NOTE = 'curve.png needs matplotlib: pip install "nextile[plot]"'

# --- what the run wrote down ----------------------------------------------------------------------------------------


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _rows(path: Path, *names: str) -> list[dict[str, Any]]:
    """The rows that have a step and these numbers, by step; of equal steps the last. Broken lines are left out."""
    found: dict[int, dict[str, Any]] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and all(_is_number(row.get(name)) for name in ("step", *names)):
            found[row["step"]] = row
    return [found[step] for step in sorted(found)]


def best_validation(run: Path) -> dict[str, float]:
    """Step and measures of the validation with the lowest loss; empty where there was none."""
    best = min(_rows(run / "metrics.jsonl", "val_loss"), key=lambda row: row["val_loss"], default={})
    return {name.removeprefix("val_"): value for name, value in best.items()}


@dataclass(frozen=True)
class Line:
    """Values (N,) after steps (N,)."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    def thinned(self) -> Line:
        """At most MOST points, each the mean of its neighbours."""
        if len(self) <= MOST:
            return self
        starts = np.arange(MOST) * len(self) // MOST
        counts = np.diff(starts, append=len(self))
        steps, values = (np.add.reduceat(each, starts) / counts for each in (self.steps, self.values))
        return Line(np.rint(steps), values)

    def smoothed(self) -> Line:
        """Each value as the mean of a stretch around it, narrow at the steep start: the line does not lag behind."""
        places = np.arange(len(self))
        half = np.minimum(places, len(self) // STRETCH)
        ends = np.minimum(places + half + 1, len(self))
        sums = np.concatenate([[0.0], np.cumsum(self.values)])
        return Line(self.steps, (sums[ends] - sums[places - half]) / (ends - places + half))


def _line(path: Path, name: str) -> Line:
    rows = _rows(path, name)
    return Line(*(np.array([row[key] for row in rows], dtype=float) for key in ("step", name)))


@dataclass(frozen=True)
class Curve:
    """What is drawn of a run."""

    title: str
    kind: str  # which of metrics.KINDS its measures are
    training: Line  # nats
    smooth: Line
    validation: Line
    beside: Line  # what is told besides the validation's loss
    seconds: Line  # since the run began; empty where nobody timed it

    def when(self, steps: np.ndarray) -> np.ndarray:
        """The seconds at which steps were done."""
        return np.interp(steps, self.seconds.steps, self.seconds.values)

    @property
    def best(self) -> str:
        """The lowest validation loss, in words."""
        if not len(self.validation):
            return "no validation yet"
        at = int(np.argmin(self.validation.values))
        measures = {"loss": float(self.validation.values[at])}
        if len(self.beside) == len(self.validation):
            measures[self.kind] = float(self.beside.values[at])
        return f"{told(measures, self.kind)}, at step {self.validation.steps[at]:,.0f}"

    @property
    def unit(self) -> str:
        """Of the losses."""
        return KINDS[self.kind].unit


def read_curve(run: Path, title: str) -> Curve | None:
    """The curve of a run; None where no loss was written down yet."""
    metrics = run / "metrics.jsonl"
    training, validation = _line(metrics, "loss"), _line(metrics, "val_loss")
    if not len(training) + len(validation):
        return None
    kind = kind_of(best_validation(run))
    return Curve(
        one_line(title), kind, training.thinned(), training.smoothed().thinned(), validation.thinned(),
        _line(metrics, f"val_{kind}").thinned(), _line(run / "speed.jsonl", "seconds").thinned(),
    )  # fmt: skip


# --- axes -----------------------------------------------------------------------------------------------------------

TIMES = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 43_200, 86_400)  # seconds


@dataclass(frozen=True)
class Axis:
    """Numbers from `low` to `high` along pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, values: Any) -> Any:
        """Where numbers lie."""
        return self.start + (np.asarray(values) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, distance: float) -> list[float]:
        """The multiples of `distance` within."""
        first, last = math.ceil(self.low / distance - 1e-9), math.floor(self.high / distance + 1e-9)
        return [index * distance for index in range(first, last + 1)]


def round_distance(span: float, most: int) -> float:
    """1, 2 or 5 times a power of ten, so that at most so many fit in the span."""
    least = span / most
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))


def time_distance(span: float, most: int) -> float:
    """A usual time, so that at most so many fit in the span of seconds; beyond a day, whole days."""
    days = 86_400 * math.ceil(span / most / 86_400)
    return next((time for time in TIMES if span / time <= most), days)


def loss_range(curve: Curve) -> tuple[float, float]:
    """What the smooth lines reach, with a margin; single steps may leave it."""
    values = np.concatenate([curve.smooth.values, curve.validation.values])
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


# --- the page -------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 880, 440
LEFT, RIGHT, TOP, BOTTOM = 44, 848, 30, 396

PAGE = string.Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2430; --soft: #667085; --grid: #e8ebf0;
  --training: #2563eb; --validation: #d9480f; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161d; --ink: #e6e9ef; --soft: #98a2b3; --grid: #262d38;
  --training: #6ea8fe; --validation: #ff9f5a; } }
body { margin: 0 auto; padding: 2rem 1.25rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.5rem; overflow-wrap: anywhere; }
p { margin: .25rem 0 1rem; color: var(--soft); }
form { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; font-size: .9rem; }
form span { white-space: nowrap; }
.swatch::before { content: ""; display: inline-block; width: 1.4em; margin-right: .5em; vertical-align: .25em;
  border-top: 3px solid currentColor; }
.by { margin-left: auto; }
.plot { overflow-x: auto; }
svg { display: block; width: 100%; min-width: 36rem; font: 13px system-ui, sans-serif; }
svg text { fill: var(--soft); }
.grid { stroke: var(--grid); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.training { color: var(--training); stroke: var(--training); }
.validation { color: var(--validation); stroke: var(--validation); }
.faint { stroke-width: 1; opacity: .3; }
.dot { fill: var(--paper); stroke-width: 2; }
.here { stroke: var(--soft); stroke-dasharray: 3 3; visibility: hidden; }
form:has([value=seconds]:checked) ~ .plot .steps, form:has([value=steps]:checked) ~ .plot .seconds { display: none; }
output { display: block; min-height: 1.5em; font-size: .9rem; font-variant-numeric: tabular-nums; }
</style>
</head>
<body>
<h1>$title</h1>
<p>best validation: $best</p>
<form><span class="swatch training">training</span> <span class="swatch validation">validation</span>$choice</form>
<div class="plot">
$charts
</div>
<output>Point at the curve to read it.</output>
<script type="application/json" id="data">$data</script>
<script>
const said = document.querySelector("output"), data = JSON.parse(document.getElementById("data").textContent);
for (const svg of document.querySelectorAll("svg")) {
  const here = svg.querySelector(".here"), xs = data[svg.dataset.by];
  svg.addEventListener("pointermove", event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;
    const i = xs.reduce((best, x, i) => Math.abs(x - at) < Math.abs(xs[best] - at) ? i : best, 0);
    here.setAttribute("x1", xs[i]);
    here.setAttribute("x2", xs[i]);
    here.style.visibility = "visible";
    said.textContent = data.said[i];
  });
}
</script>
</body>
</html>
""")

CHOICE = """
<span class="by">
<label><input type="radio" name="by" value="steps" checked> by step</label>
<label><input type="radio" name="by" value="seconds"> by time</label>
</span>"""


@dataclass(frozen=True)
class Chart:
    """A curve against its steps or its seconds, as SVG."""

    curve: Curve
    timed: bool

    @property
    def name(self) -> str:
        return "seconds" if self.timed else "steps"

    @property
    def x(self) -> Axis:
        steps = np.concatenate([self.curve.training.steps, self.curve.validation.steps])
        last = self.curve.when(steps).max() if self.timed else steps.max()
        return Axis(0.0, max(float(last), 1.0), LEFT, RIGHT)

    @property
    def y(self) -> Axis:
        return Axis(*loss_range(self.curve), BOTTOM, TOP)

    def across(self, steps: np.ndarray) -> np.ndarray:
        """Where steps lie, in pixels."""
        return self.x(self.curve.when(steps) if self.timed else steps)

    def svg(self) -> str:
        """The whole picture."""
        curve = self.curve
        lines = self._line(curve.training, "training faint") + self._line(curve.smooth, "training")
        return (
            f'<svg class="{self.name}" data-by="{self.name}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="losses in {curve.unit}; best validation: {curve.best}">'
            f'<clipPath id="{self.name}"><rect x="{LEFT}" y="{TOP}" width="{RIGHT - LEFT}" height="{BOTTOM - TOP}"/>'
            f'</clipPath>{self._rows()}{self._columns()}{self._names()}<g clip-path="url(#{self.name})">{lines}</g>'
            f"{self._line(curve.validation, 'validation')}{self._dots(curve.validation)}"
            f'<line class="here" x1="0" x2="0" y1="{TOP}" y2="{BOTTOM}"/></svg>'
        )

    def _places(self, line: Line) -> Iterator[tuple[float, float]]:
        return zip(self.across(line.steps), self.y(line.values), strict=True)

    def _line(self, line: Line, look: str) -> str:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in self._places(line))
        return f'<polyline class="line {look}" points="{points}"/>'

    def _dots(self, line: Line) -> str:
        """Each validation, where they are few enough to be told apart."""
        places = self._places(line) if len(line) <= 60 else ()
        return "".join(f'<circle class="dot validation" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in places)

    def _rows(self) -> str:
        """The losses at the left, each with a line."""
        distance = round_distance(self.y.high - self.y.low, most=6)
        digits = max(0, -math.floor(math.log10(distance)))
        return "".join(
            f'<path class="grid" d="M{LEFT} {self.y(tick):.1f}H{RIGHT}"/>'
            f'<text x="{LEFT - 8}" y="{self.y(tick) + 4:.1f}" text-anchor="end">{tick:.{digits}f}</text>'
            for tick in self.y.ticks(distance)
        )

    def _columns(self) -> str:
        """The steps or the times below."""
        span = self.x.high
        distance = time_distance(span, most=8) if self.timed else max(1.0, round_distance(span, most=8))
        return "".join(
            f'<text x="{self.x(tick):.1f}" y="{BOTTOM + 20}" text-anchor="middle">'
            f"{clock(tick) if self.timed else f'{tick:,.0f}'}</text>"
            for tick in self.x.ticks(distance)
        )

    def _names(self) -> str:
        """What the numbers are."""
        middle, below = (LEFT + RIGHT) // 2, "time" if self.timed else "step"
        return (
            f'<text x="0" y="14">{self.curve.unit}</text>'
            f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{below}</text>'
        )


def _said(curve: Curve, step: float) -> str:
    """What is known at a step, in words."""
    parts = [f"step {step:,.0f}"]
    if len(curve.seconds):
        parts.append(clock(float(curve.when(np.array(step)))))
    kind = KINDS[curve.kind]
    lines = (("training", curve.smooth), ("validation", curve.validation), (kind.name, curve.beside))
    for name, line in lines:
        at = int(np.searchsorted(line.steps, step, side="right")) - 1
        if at >= 0:
            value = float(line.values[at])
            parts.append(f"{name} {kind.form.format(value) if line is curve.beside else f'{value:.4f}'}")
    return " · ".join(parts)


def page(curve: Curve) -> str:
    """One HTML file that needs no other and no network."""
    charts = [Chart(curve, timed) for timed in ((False, True) if len(curve.seconds) else (False,))]
    steps = np.unique(np.concatenate([curve.smooth.steps[:: len(curve.smooth) // 500 + 1], curve.validation.steps]))
    data = {chart.name: chart.across(steps).round(1).tolist() for chart in charts}
    data["said"] = [_said(curve, float(step)) for step in steps]
    return PAGE.substitute(
        title=escape(curve.title),
        best=curve.best,
        choice=CHOICE if len(charts) > 1 else "",
        charts="\n".join(chart.svg() for chart in charts),
        data=json.dumps(data, ensure_ascii=False),
    )


# --- the picture ----------------------------------------------------------------------------------------------------


def picture(curve: Curve) -> bytes:
    """The same as PNG. Errors: ImportError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(curve.training.steps, curve.training.values, color="#2563eb", alpha=0.3, linewidth=0.8)
    axes.plot(curve.smooth.steps, curve.smooth.values, color="#2563eb", linewidth=1.8, label="training")
    dots = "o" if len(curve.validation) <= 60 else ""
    axes.plot(
        curve.validation.steps, curve.validation.values, color="#d9480f", linewidth=1.8, label="validation",
        marker=dots, markersize=5, markerfacecolor="white",
    )  # fmt: skip
    axes.set(ylim=loss_range(curve), xlim=(0, None), xlabel="step", ylabel=curve.unit)
    axes.set_title(shorten(curve.title, 70), loc="left", fontweight="bold", parse_math=False, pad=24)
    axes.annotate(f"best validation: {curve.best}", (0, 1), (0, 8), "axes fraction", "offset points", color="#667085")
    axes.grid(axis="y", color="#e8ebf0")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False)
    file = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a title in a script that the font lacks
        figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def write_curve(run_folder: str | Path, title: str) -> str | None:
    """Draw a run's metrics.jsonl as curve.html and curve.png in its folder; nothing while there are none.

    Returns a line to say where the PNG could not be drawn for want of matplotlib. Errors: NextileError when the
    folder cannot be written.
    """
    run = Path(run_folder)
    curve = read_curve(run, title)
    if curve is None:
        return None
    atomic_write(run / "curve.html", page(curve))
    try:
        atomic_write(run / "curve.png", picture(curve))
    except ImportError:
        return NOTE
    return None
