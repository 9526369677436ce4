"""A map of words, those with like vectors close together: a .png, or an .html to walk about in.

t-SNE keeps neighbours together; how far apart two crowds of words lie says little (van der Maaten and Hinton 2008).
Shapes: N words of the map, D numbers of a vector.
"""

from __future__ import annotations

import json
import string
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from nextile.base.errors import NextileError, UsageError
from nextile.base.files import atomic_write
from nextile.inspection.vectors import Lookup, unit

FEW = 10  # words that need no t-SNE
MOST = 5000  # words of a map; t-SNE of them takes minutes
PERPLEXITY = 30.0  # about how many neighbours a word is kept with
BESIDE = 8  # neighbours that a word shows when it is pointed at
COLOURS = ("#2563eb", "#c2410c", "#15803d", "#9333ea", "#be123c", "#0e7490", "#a16207", "#475569", "#be185d", "#4d7c0f")
AT_NIGHT = (
    "#7aa5ff",
    "#fb923c",
    "#4ade80",
    "#c58bff",
    "#fb7185",
    "#22d3ee",
    "#facc15",
    "#a5b4cb",
    "#f472b6",
    "#a3e635",
)
NEEDS = "maps of words need scikit-learn: pip install 'nextile[images]'"


# --- where words lie ------------------------------------------------------------------------------------------------


def layout(vectors: np.ndarray, seed: int = 0) -> np.ndarray:
    """Vectors (N, D) -> places (N, 2): t-SNE of their directions, or the two widest axes where they are few.

    Errors: NextileError without scikit-learn, where it is needed.
    """
    units = unit(vectors.astype(np.float64))
    if len(units) < FEW:
        return _widest(units)
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise NextileError(NEEDS) from error
    perplexity = min(PERPLEXITY, (len(units) - 1) / 3)
    spread = units + np.random.default_rng(seed).normal(scale=1e-6, size=units.shape)  # equal words, no equal places
    start = _widest(spread)
    start *= 1e-4 / max(start[:, 0].std(), 1e-12)  # so small, as in the paper
    places = TSNE(perplexity=perplexity, init=start, random_state=seed, method="barnes_hut").fit_transform(spread)
    return places.astype(np.float64)


def _widest(points: np.ndarray) -> np.ndarray:
    """The principal components: (N, D) -> (N, 2), each axis turned so that its largest value is positive."""
    centred = np.pad(points - points.mean(axis=0), ((0, 0), (0, 2)))  # two columns more, for D = 1
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    places = np.zeros((len(points), 2))
    found = (left * sizes)[:, :2]
    places[:, : found.shape[1]] = found
    largest = places[np.abs(places).argmax(axis=0), [0, 1]]
    return places * np.where(largest < 0, -1, 1)


def _clusters(units: np.ndarray, seed: int) -> np.ndarray:
    """Which of some crowds each word belongs to, (N,), by its vector."""
    if len(units) < FEW:
        return np.zeros(len(units), int)
    from sklearn.cluster import KMeans

    crowds = int(np.clip(np.sqrt(len(units) / 4), 2, len(COLOURS)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer different words than crowds
        return KMeans(crowds, n_init="auto", random_state=seed).fit_predict(units)


@dataclass(frozen=True, eq=False)
class WordMap:
    """Words, where they lie, and whom they resemble; the first are the most important."""

    title: str
    words: Sequence[str]
    places: np.ndarray  # (N, 2) from -1 to 1
    clusters: np.ndarray  # (N,)
    beside: np.ndarray  # (N, at most BESIDE) the nearest others, by the whole vectors


def make_map(lookup: Lookup, words: Sequence[str], title: str = "", seed: int = 0) -> WordMap:
    """Lay out these words, each once.

    Errors: UsageError for no word or too many, NextileError for one without a vector.
    """
    words = list(dict.fromkeys(words))
    if not 1 <= len(words) <= MOST:
        raise UsageError(f"a map of {len(words):,} words: give 1 to {MOST:,}")
    units = unit(np.stack([lookup.vector(word) for word in words]))
    places = layout(units, seed)
    places -= (places.max(axis=0) + places.min(axis=0)) / 2
    places /= max(np.abs(places).max(), 1e-12)
    cosines = units @ units.T
    np.fill_diagonal(cosines, -np.inf)
    beside = np.argsort(-cosines, axis=1, kind="stable")[:, : min(BESIDE, len(words) - 1)]
    return WordMap(title, words, places, _clusters(units, seed), beside)


# --- as a picture ---------------------------------------------------------------------------------------------------


def picture(drawn: WordMap) -> bytes:
    """A PNG; a name that would cover another is left out, later ones first. Errors: NextileError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NextileError("a map as .png needs matplotlib: pip install 'nextile[plot]', or name an .html") from error
    figure = Figure(figsize=(10, 8), dpi=160, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.92), frameon=False)
    x, y = np.maximum(np.abs(drawn.places).max(axis=0), 0.1) * 1.08
    axes.set(xlim=(-x, x), ylim=(-y, y), xticks=[], yticks=[])
    colours = [COLOURS[cluster] for cluster in drawn.clusters]
    axes.scatter(*drawn.places.T, s=9, c=colours, alpha=0.75, linewidths=0)
    figure.text(0.03, 0.955, drawn.title, fontsize=12, fontweight="bold", color="#111827", parse_math=False)
    file = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a word in a script that the font lacks
        _label(drawn, axes, canvas.get_renderer(), colours)
        figure.savefig(file, format="png")
    return file.getvalue()


def _label(drawn: WordMap, axes: Any, renderer: Any, colours: Sequence[str]) -> None:
    """Write the names beside their dots, where there is room."""
    from matplotlib.font_manager import FontProperties

    font = FontProperties(size=8.5 if len(drawn.words) <= 400 else 7.5)
    dots = axes.transData.transform(drawn.places)  # (N, 2) pixels, from below
    room = Room(axes.bbox.extents, dots)
    for index, word in enumerate(drawn.words):
        width, height, _ = renderer.get_text_width_height_descent(word, font, ismath=False)
        corner = room.take(index, width, height)
        if corner is not None:
            x, y = axes.transData.inverted().transform(corner)
            axes.text(x, y, word, color=colours[index], fontproperties=font, va="bottom", parse_math=False)


GAP = 5.0  # pixels from a dot to its name
TIGHT = 1.5  # pixels at least between two names


class Room:
    """Where names may still stand in a picture: not over another, nor over another's dot, nor beyond the edge."""

    def __init__(self, edge: Sequence[float], dots: np.ndarray):
        self._edge, self._dots = np.asarray(edge), dots
        self._taken = np.empty((0, 4))  # left, bottom, right, top

    def take(self, index: int, width: float, height: float) -> tuple[float, float] | None:
        """The lower left corner of a name beside its dot, which is then taken; None where there is no room."""
        x, y = self._dots[index]
        right, left, above, below = x + GAP, x - GAP - width, y + GAP, y - GAP - height
        beside, over = y - height / 2, x - width / 2
        for corner in ((right, beside), (left, beside), (over, above), (over, below)):
            box = np.array([*corner, corner[0] + width, corner[1] + height])
            if self._is_free(box):
                self._taken = np.vstack([self._taken, box + np.array([-TIGHT, -TIGHT, TIGHT, TIGHT])])
                return corner
        return None

    def _is_free(self, box: np.ndarray) -> bool:
        inside = (box[:2] >= self._edge[:2]).all() and (box[2:] <= self._edge[2:]).all()
        names = ((self._taken[:, :2] < box[2:]) & (self._taken[:, 2:] > box[:2])).all(axis=1)
        dots = ((self._dots > box[:2] - 1) & (self._dots < box[2:] + 1)).all(axis=1)
        return bool(inside and not names.any() and not dots.any())


# --- as a page ------------------------------------------------------------------------------------------------------

PAGE = string.Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline';
 style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { --paper: #fff; --ink: #111827; --soft: #667085; --line: #d9dee7; --panel: #ffffffe6; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #0f141b; --ink: #e8ecf2; --soft: #98a2b3; --line: #2b3442; --panel: #161d27e6; }
}
* { box-sizing: border-box; }
html, body { margin: 0; height: 100%; overflow: hidden; background: var(--paper); color: var(--ink);
  font: 15px system-ui, sans-serif; }
canvas { position: fixed; inset: 0; width: 100%; height: 100%; cursor: grab; touch-action: none; outline: none; }
canvas:active { cursor: grabbing; }
header { position: fixed; top: .8rem; left: .8rem; width: min(19rem, calc(100% - 1.6rem)); padding: .7rem .8rem;
  background: var(--panel); border: 1px solid var(--line); border-radius: .6rem; }
h1 { margin: 0 0 .5rem; font-size: 1rem; overflow-wrap: anywhere; }
input { width: 100%; padding: .35rem .5rem; font: inherit; color: inherit; background: var(--paper);
  border: 1px solid var(--line); border-radius: .35rem; }
output { display: block; margin-top: .5rem; min-height: 1.3em; font-size: .85rem; color: var(--soft);
  overflow-wrap: anywhere; }
output b { color: var(--ink); }
</style>
</head>
<body>
<canvas tabindex="0" aria-label="a map of $count words"></canvas>
<header>
<h1>$title</h1>
<input type="search" placeholder="Find a word" aria-label="Find a word" autocomplete="off" spellcheck="false">
<output>$count words. Drag to move, scroll to zoom, point at a word for those most like it.</output>
</header>
<script type="application/json" id="data">$data</script>
<script>
const {words, places, clusters, beside, colours} = JSON.parse(document.getElementById("data").textContent);
const canvas = document.querySelector("canvas"), pen = canvas.getContext("2d"), FONT = "13px system-ui, sans-serif";
const search = document.querySelector("input"), said = document.querySelector("output"), hint = said.textContent;
const dark = matchMedia("(prefers-color-scheme: dark)"), fingers = new Map();
let width = 0, height = 0, zoom = 1, left = 0, top_ = 0, waiting = false;
let pointed = -1, found = new Set(), widths = null;

const wide = () => Math.min(width, 1.6 * height) * .45 * zoom, high = () => Math.min(height, 1.6 * width) * .45 * zoom;
const at = i => [places[i][0] * wide() + left, -places[i][1] * high() + top_];
const ink = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function draw() {
  waiting = false;
  const ratio = devicePixelRatio || 1, near = new Set(pointed < 0 ? [] : beside[pointed]);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = FONT;
  pen.textBaseline = "middle";
  widths ??= words.map(word => pen.measureText(word).width);
  const chosen = i => i === pointed || near.has(i) || found.has(i), some = pointed >= 0 || found.size > 0;
  const shown = words.map((_, i) => i).filter(i => {
    const [x, y] = at(i);
    return x > -200 && x < width + 50 && y > -20 && y < height + 20;
  });
  for (const i of shown) {
    const [x, y] = at(i);
    pen.globalAlpha = !some || chosen(i) ? 1 : .25;
    pen.fillStyle = colours[dark.matches ? 1 : 0][clusters[i]];
    pen.beginPath();
    pen.arc(x, y, i === pointed ? 5 : 3, 0, 7);
    pen.fill();
  }
  const taken = new Map(), CELL = 40;  // boxes by cells of the screen: each is compared with those around it alone
  const cells = box => {
    const keys = [];
    for (let a = Math.floor(box[0] / CELL); a <= box[2] / CELL; a++)
      for (let b = Math.floor(box[1] / CELL); b <= box[3] / CELL; b++) keys.push(a + "," + b);
    return keys;
  };
  const take = (box, i) => {
    for (const cell of cells(box)) taken.get(cell)?.push([...box, i]) ?? taken.set(cell, [[...box, i]]);
  };
  const free = (box, i) => !cells(box).some(cell => taken.get(cell)?.some(o =>
    o[4] !== i && o[0] < box[2] && o[2] > box[0] && o[1] < box[3] && o[3] > box[1]));
  for (const i of shown) {
    const [x, y] = at(i);
    take([x - 3, y - 3, x + 3, y + 3], i);
  }
  for (const i of [...shown.filter(chosen), ...shown.filter(i => !chosen(i))]) {
    const [x, y] = at(i), w = widths[i];
    const corners = [[x + 6, y - 8], [x - 8 - w, y - 8], [x - w / 2, y - 20], [x - w / 2, y + 4]];
    const corner = corners.find(([a, b]) => free([a, b, a + w + 3, b + 16], i)) ?? (i === pointed ? corners[0] : null);
    if (!corner) continue;
    const [a, b] = corner;
    take([a, b, a + w + 3, b + 16], i);
    pen.globalAlpha = !some || chosen(i) ? 1 : .25;
    pen.lineWidth = 3;
    pen.strokeStyle = ink("--paper");
    pen.strokeText(words[i], a + 1, b + 8);
    pen.fillStyle = chosen(i) ? ink("--ink") : colours[dark.matches ? 1 : 0][clusters[i]];
    pen.fillText(words[i], a + 1, b + 8);
  }
  pen.globalAlpha = 1;
}
function redraw() { if (!waiting) { waiting = true; requestAnimationFrame(draw); } }
function fit() {
  const ratio = devicePixelRatio || 1, [w, h] = [width, height];
  [width, height] = [innerWidth, innerHeight];
  [canvas.width, canvas.height] = [width * ratio, height * ratio];
  [left, top_] = w ? [left + (width - w) / 2, top_ + (height - h) / 2] : [width / 2, height / 2];
  redraw();
}
function scale(factor, x = width / 2, y = height / 2) {
  const next = Math.min(200, Math.max(.5, zoom * factor)), by = next / zoom;
  [left, top_, zoom] = [x + (left - x) * by, y + (top_ - y) * by, next];
  redraw();
}
function point(i) {
  if (i === pointed) return;
  pointed = i;
  tell();
  redraw();
}
function tell() {
  if (pointed < 0) { said.textContent = found.size ? found.size + " found; Enter goes to the first" : hint; return; }
  const word = document.createElement("b");
  word.textContent = words[pointed];
  said.replaceChildren(word, " is most like " + beside[pointed].map(i => words[i]).join(", "));
}
function nearest(x, y) {
  let best = -1, least = 14;
  words.forEach((_, i) => {
    const [a, b] = at(i), far = Math.hypot(a - x, b - y);
    if (far < least) [best, least] = [i, far];
  });
  return best;
}
canvas.addEventListener("wheel", event => {
  event.preventDefault();
  scale(Math.exp(-event.deltaY * (event.deltaMode ? .05 : .0015)), event.clientX, event.clientY);
}, {passive: false});
canvas.addEventListener("pointerdown", event => {
  canvas.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, [event.clientX, event.clientY]);
});
canvas.addEventListener("pointermove", event => {
  const was = fingers.get(event.pointerId), now = [event.clientX, event.clientY];
  if (!was) { point(nearest(...now)); return; }
  if (fingers.size === 2) {
    const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
    const far = p => Math.hypot(p[0] - other[0], p[1] - other[1]);
    scale(far(now) / Math.max(1, far(was)), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
  } else {
    left += now[0] - was[0];
    top_ += now[1] - was[1];
  }
  fingers.set(event.pointerId, now);
  redraw();
});
for (const name of ["pointerup", "pointercancel"])
  canvas.addEventListener(name, event => {
    fingers.delete(event.pointerId);
    if (event.pointerType === "touch") point(nearest(event.clientX, event.clientY));
  });
canvas.addEventListener("pointerleave", () => point(-1));
canvas.addEventListener("keydown", event => {
  const step = {ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60]}[event.key];
  if (step) { left += step[0]; top_ += step[1]; redraw(); }
  else if (event.key === "+" || event.key === "=") scale(1.3);
  else if (event.key === "-") scale(1 / 1.3);
  else if (event.key === "0") { [zoom, left, top_] = [1, width / 2, height / 2]; redraw(); }
});
search.addEventListener("input", () => {
  const text = search.value.trim().toLowerCase();
  found = new Set(words.map((_, i) => i).filter(i => text && words[i].toLowerCase().includes(text)));
  pointed = -1;
  tell();
  redraw();
});
search.addEventListener("keydown", event => {
  if (event.key !== "Enter" || !found.size) return;
  const text = search.value.trim().toLowerCase(), all = [...found];
  const goal = all.find(i => words[i].toLowerCase() === text) ?? all[0];
  zoom = Math.max(zoom, 4);
  [left, top_] = [width / 2 - places[goal][0] * wide(), height / 2 + places[goal][1] * high()];
  pointed = -1;
  point(goal);
});
dark.addEventListener("change", redraw);
addEventListener("resize", fit);
fit();
</script>
</body>
</html>
""")


def page(drawn: WordMap) -> str:
    """One HTML file that needs no other and no network; what a word says is never markup."""
    data = {
        "words": drawn.words,
        "places": drawn.places.round(4).tolist(),
        "clusters": drawn.clusters.tolist(),
        "beside": drawn.beside.tolist(),
        "colours": [COLOURS, AT_NIGHT],
    }
    inert = json.dumps(data).replace("<", "\\u003c")  # no tag, so nothing ends the script that holds it
    return PAGE.substitute(title=escape(drawn.title), count=f"{len(drawn.words):,}", data=inert)


def write_map(path: str | Path, lookup: Lookup, words: Sequence[str], title: str = "", seed: int = 0) -> None:
    """Write a map of these words as .png or .html; where room for names is short, the first words have it.

    Errors: UsageError for another suffix, no word or too many; NextileError for a word without a vector, where a
    library is missing, and where the place cannot be written.
    """
    path = Path(path)
    draw = {".png": picture, ".html": page}.get(path.suffix.lower())
    if draw is None:
        raise UsageError(f"'{path}' is no .png and no .html: a map of words is written as one of them")
    atomic_write(path, draw(make_map(lookup, words, title, seed)))
