"""Pictures about pictures: a confusion matrix, a contact sheet of the worst mistakes, a sheet of what was painted.

Pure functions: arrays and names in, a picture out, which the caller saves. All need Pillow.
Shapes: N pictures of H x W pixels and C channels (1 grey, 3 red, green and blue), M completions of each, K classes.
"""

from __future__ import annotations

import math
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from nextile.base.errors import NextileError
from nextile.tasks.curve import Axis, round_distance
from nextile.tasks.report import one_line

if TYPE_CHECKING:
    from PIL.Image import Image

Colour = tuple[int, int, int]

WHITE, INK, SOFT, RULE = (255, 255, 255), (34, 34, 34), (112, 112, 112), (224, 224, 224)
LINE = (238, 238, 238)  # between cells
MARGIN = 20  # pixels of nothing around everything
LARGEST = 2**26  # pixels of a whole sheet; they take 200 MB


def _pillow() -> Any:
    """Errors: NextileError where it is not installed."""
    try:
        import PIL.Image
        import PIL.ImageDraw
        import PIL.ImageFont
    except ImportError as error:
        raise NextileError("pictures need Pillow: pip install 'nextile[images]'") from error
    return PIL


# --- text -----------------------------------------------------------------------------------------------------------

LONGEST = 2000  # characters of a text that are looked at
FIGURE = re.compile(r", [\d.]+ %$")


def _shown(text: str) -> str:
    """What can be drawn of a text: one line, and letters without accents, of which the font has none."""
    letters = unicodedata.normalize("NFKD", one_line(text[:LONGEST]))
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


@dataclass(frozen=True)
class Face:
    """The font of Pillow in one size. It has no letters but the English ones; others become boxes."""

    font: Any
    size: int  # pixels

    @classmethod
    def of(cls, size: int) -> Face:
        """Errors: NextileError without Pillow."""
        return cls(_pillow().ImageFont.load_default(size=size), size)

    @property
    def height(self) -> int:
        """Of a line, in pixels."""
        return round(1.35 * self.size)

    def width(self, text: str) -> int:
        """Of one line, in pixels."""
        return math.ceil(self.font.getlength(text))

    def widest(self, texts: Iterable[str]) -> int:
        """The width of the widest of them, in pixels."""
        return max(map(self.width, texts), default=0)

    def cut(self, text: str, width: int) -> str:
        """A text that is no wider: where it is cut it ends in an ellipsis and the figure it ended in (", 97 %")."""
        text = _shown(text)
        if self.width(text) <= width:
            return text
        figure = FIGURE.search(text)
        end = "…" + (figure[0] if figure else "")
        room = width - self.width(end)
        fitting = bisect_right(range(1, len(text) + 1), room, key=lambda count: self.width(text[:count]))
        return text[:fitting].rstrip() + end

    def lines(self, text: str, width: int, most: int = 3) -> list[str]:
        """A text as at most so many lines, none wider."""
        lines = [""]
        for word in _shown(text).split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and self.width(longer) > width:
                lines.append(word)
            else:
                lines[-1] = longer
        kept, rest = lines[: most - 1], lines[most - 1 :]
        return [self.cut(line, width) for line in [*kept, *([" ".join(rest)] if rest else [])]]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# --- paper ----------------------------------------------------------------------------------------------------------


class Paper:
    """A white picture to write and lay pictures on. Errors: NextileError when it would be too large, before it is."""

    def __init__(self, width: int, height: int):
        if width * height > LARGEST:
            raise NextileError(f"a sheet of {width:,} x {height:,} pixels is too large: draw fewer or smaller pictures")
        self.picture: Image = _pillow().Image.new("RGB", (width, height), WHITE)
        self.draw = _pillow().ImageDraw.Draw(self.picture)

    def lay(self, tile: Image, x: int, y: int) -> None:
        """A picture with its left upper corner there, in a hairline that shows where a white one ends."""
        self.draw.rectangle((x - 1, y - 1, x + tile.width, y + tile.height), outline=RULE)
        self.picture.paste(tile, (x, y))

    def write(self, text: str, place: tuple[float, float], face: Face, ink: Colour = INK, anchor: str = "la") -> None:
        """One line; the anchor says which point of it is at the place, in the letters of Pillow."""
        self.draw.text(place, text, fill=ink, font=face.font, anchor=anchor)

    def write_over(self, text: str, place: tuple[float, float], face: Face) -> None:
        """One line, its middle at the place, that hides what is behind it."""
        left, top, right, bottom = self.draw.textbbox(place, text, font=face.font, anchor="ms")
        self.draw.rectangle((left - 2, top - 2, right + 2, bottom + 2), fill=WHITE)
        self.write(text, place, face, anchor="ms")

    def write_lines(self, lines: Sequence[str], place: tuple[int, int], face: Face) -> int:
        """Lines from this left upper corner on; the height at which they end."""
        x, y = place
        for index, line in enumerate(lines):
            self.write(line, (x, y + index * face.height), face)
        return y + len(lines) * face.height

    def write_upward(self, text: str, place: tuple[int, int], face: Face) -> None:
        """One line that begins at the place and goes up, its middle there."""
        PIL = _pillow()
        strip = PIL.Image.new("L", (max(1, face.width(text)), face.height))
        PIL.ImageDraw.Draw(strip).text((0, face.height / 2), text, fill=255, font=face.font, anchor="lm")
        turned = strip.transpose(PIL.Image.Transpose.ROTATE_90)
        self.picture.paste(INK, (place[0] - turned.width // 2, place[1] - turned.height), turned)


# --- pictures -------------------------------------------------------------------------------------------------------

ABOUT = 112  # pixels: the longer side of a small picture once it is enlarged
PHOTO = 128  # pixels: the longer side of a photo once it is reduced
CAPTION = 96  # pixels: the least room of a caption
TITLE = 360  # pixels: the least room of a title
HIDDEN = 214  # the grey of what was not given


def _checked(pixels: np.ndarray, name: str = "pictures") -> np.ndarray:
    """Pictures (N, H, W, C). Errors: NextileError for all else."""
    if pixels.ndim != 4 or pixels.dtype != np.uint8 or pixels.shape[-1] not in (1, 3) or not pixels.size:
        raise NextileError(f"{name} {pixels.shape} {pixels.dtype} cannot be drawn: give (N, H, W, 1 or 3) uint8")
    return pixels


def _factor(height: int, width: int) -> int:
    """How many times a picture is enlarged, a whole number."""
    return max(1, round(ABOUT / max(height, width)))


def _tile(pixels: np.ndarray, factor: int) -> Image:
    """A picture (H, W, C), each pixel as factor x factor equal ones."""
    coloured = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    return _pillow().Image.fromarray(coloured.repeat(factor, axis=0).repeat(factor, axis=1))


def _thumbnail(pixels: np.ndarray) -> Image:
    """A picture (H, W, C) enlarged, or a photo reduced, each of its pixels averaged in."""
    height, width = pixels.shape[:2]
    tile = _tile(pixels, _factor(height, width))
    if max(height, width) <= PHOTO:
        return tile
    reduced = [max(1, round(side * PHOTO / max(tile.size))) for side in tile.size]
    return tile.resize(reduced, _pillow().Image.Resampling.LANCZOS)


def _columns(count: int, asked: int | None) -> int:
    """Those asked for, or of a grid that is square or a little wider and leaves few places empty."""
    if asked is not None and asked < 1:
        raise NextileError(f"a sheet of {asked} columns has no room: give at least 1")
    root = math.sqrt(count)
    some = range(math.ceil(root), math.floor(1.75 * root) + 1)
    return min(asked, count) if asked else min(some, key=lambda columns: -count % columns)


def sheet(pixels: np.ndarray, columns: int | None = None) -> Image:
    """Pictures (N, H, W, C) uint8, row by row in a grid; small ones are enlarged.

    Errors: NextileError for other shapes and types, no pictures, or more than fit on a sheet.
    """
    count, high, wide, _ = _checked(pixels).shape
    gap, factor, columns = 6, _factor(high, wide), _columns(count, columns)
    height, width = factor * high + gap, factor * wide + gap
    paper = Paper(columns * width + gap, -(-count // columns) * height + gap)
    for index, picture in enumerate(pixels):
        row, column = divmod(index, columns)
        paper.lay(_tile(picture, factor), gap + column * width, gap + row * height)
    return paper.picture


def mistakes(pixels: np.ndarray, captions: Sequence[Sequence[str]], title: str, columns: int = 8) -> Image:
    """A contact sheet: pictures (N, H, W, C) uint8, each over its caption of up to two lines ("cat, 97 %", "is dog").

    Small pictures are enlarged, photos reduced. A caption that is too wide is cut; a percentage at its end stays.
    Errors: NextileError for other shapes and types, no pictures, or not one caption for each.
    """
    if len(_checked(pixels)) != len(captions) or max(map(len, captions)) > 2:
        raise NextileError(f"{len(captions)} captions for {len(pixels)} pictures: give each one of at most 2 lines")
    heading, face, gap = Face.of(17), Face.of(12), 14
    wide, high = _thumbnail(pixels[0]).size
    width, below = max(wide, CAPTION), high + 4  # of a picture with its caption, and where that begins
    step = width + gap, below + max(map(len, captions)) * face.height + gap
    columns = _columns(len(pixels), columns)
    inner = max(columns * step[0] - gap, TITLE)
    lines = heading.lines(title, inner)
    top = MARGIN + len(lines) * heading.height + 10
    paper = Paper(inner + 2 * MARGIN, top + -(-len(pixels) // columns) * step[1] - gap + MARGIN)
    paper.write_lines(lines, (MARGIN, MARGIN), heading)
    for index, (picture, caption) in enumerate(zip(pixels, captions, strict=True)):
        x, y = MARGIN + index % columns * step[0], top + index // columns * step[1]
        paper.lay(_thumbnail(picture), x, y)
        paper.write_lines([face.cut(line, width) for line in caption], (x, y + below), face)
    return paper.picture


def completions(given: np.ndarray, rows_given: int, painted: np.ndarray, originals: np.ndarray) -> Image:
    """A row for each picture: its upper rows, which were given, the completions, and the original.

    given, originals: (N, H, W, C) uint8. painted: (N, M, H, W, C) uint8. Small pictures are enlarged.
    Errors: NextileError for shapes and types that do not belong together, or more than fit on a sheet.
    """
    _refuse_strangers(given, rows_given, painted, originals)
    (high, wide), many = given.shape[1:3], painted.shape[1]
    face, factor, gap = Face.of(12), _factor(high, wide), 8
    width, height = max(factor * wide, face.width("original")) + gap, factor * high + gap
    starts = [MARGIN + index * width + gap * ((index > 0) + (index > many)) for index in range(many + 2)]
    top = MARGIN + face.height + 4
    paper = Paper(starts[-1] + width - gap + MARGIN, top + len(given) * height - gap + MARGIN)
    for name, x in zip(("given", "painted", "original"), (*starts[:2], starts[-1]), strict=True):
        paper.write(name, (x, MARGIN), face)
    for index in range(len(given)):
        row = [_upper(given[index], rows_given), *painted[index], originals[index]]
        for picture, x in zip(row, starts, strict=True):
            paper.lay(_tile(picture, factor), x, top + index * height)
    return paper.picture


def _refuse_strangers(given: np.ndarray, rows_given: int, painted: np.ndarray, originals: np.ndarray) -> None:
    """Errors: NextileError for what `completions` cannot lay side by side."""
    count, *shape = _checked(given, "given pictures").shape
    _checked(originals, "original pictures")
    if given.shape != originals.shape or painted.ndim != 5 or (len(painted), *painted.shape[2:]) != (count, *shape):
        raise NextileError(
            f"given {given.shape}, painted {painted.shape} and original {originals.shape} do not belong together: "
            "give (N, H, W, C), (N, M, H, W, C) and (N, H, W, C)"
        )
    _checked(painted.reshape(-1, *shape), "painted pictures")
    if not 0 <= rows_given <= shape[0]:
        raise NextileError(f"{rows_given} rows of pictures of {shape[0]} rows: give 0 to {shape[0]}")


def _upper(picture: np.ndarray, rows: int) -> np.ndarray:
    """A picture (H, W, C) with its lower part greyed out."""
    shown = picture.copy()
    shown[rows:] = HIDDEN
    return shown


# --- the confusion matrix -------------------------------------------------------------------------------------------

MOST = 100  # classes that are all shown
WORST = 40  # those shown of more
WIDEST = 1100  # pixels: the cells together, where each holds its number
NAME = 170  # pixels of a class name
DARK = 0.5  # the part of the way to dark blue from which on white reads better than black
BAR = 200  # pixels: the scale of colours
MARKS = (0, 1, 10, 25, 50, 100)  # per cent beside it
OKLAB_TO_CONES = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
CONES_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)
DARK_BLUE = np.array([0.30, -0.014, -0.139])  # in OKLab


@lru_cache(maxsize=4096)  # of the many cells few differ
def blue(part: float) -> Colour:
    """White for 0 to dark blue for 1, straight through OKLab: equal steps look equal (Ottosson 2020)."""
    lab = (1 - part) * np.array([1.0, 0.0, 0.0]) + part * DARK_BLUE
    cones = (OKLAB_TO_CONES @ lab) ** 3
    light = (CONES_TO_RGB @ cones).clip(0, 1)
    shown = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)  # sRGB, IEC 61966-2-1
    r, g, b = np.rint(255 * shown).astype(int).tolist()
    return r, g, b


@dataclass(frozen=True)
class Table:
    """Counts (K, K), true class in the row, predicted class in the column; the last may stand for several others."""

    counts: np.ndarray
    names: Sequence[str]
    note: str = ""

    @property
    def highest(self) -> int:
        """The highest count, that of several others left out."""
        return int(self.counts[:-1, :-1].max() if self.note else self.counts.max())

    @property
    def shares(self) -> np.ndarray:
        """(K, K), of each row; a class that no picture has is a row of zeros."""
        return self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)

    def worst(self, most: int) -> Table:
        """The classes with the most mistakes, missed and wrongly seen together, in their order; the others as one."""
        missed = self.counts.sum(axis=0) + self.counts.sum(axis=1) - 2 * self.counts.diagonal()
        kept = np.sort(np.argsort(-missed, kind="stable")[:most]).tolist()
        group = np.full(len(self.names), most)
        group[kept] = np.arange(most)
        counts = np.zeros((most + 1, most + 1), dtype=np.int64)
        np.add.at(counts, (group[:, None], group[None]), self.counts)
        names = [*(self.names[index] for index in kept), f"{len(self.names) - most:,} others"]
        return Table(
            counts, names, f"the {most} of {len(self.names):,} classes with the most mistakes, the others as one"
        )


def _table(matrix: np.ndarray, classes: Sequence[str]) -> Table:
    """Errors: NextileError for what is no confusion matrix of these classes."""
    if matrix.shape != (len(classes), len(classes)) or matrix.dtype.kind not in "iu":
        raise NextileError(
            f"a matrix {matrix.shape} {matrix.dtype} does not belong to {len(classes)} classes: "
            "give whole numbers, a row and a column for each"
        )
    if matrix.min(initial=0) < 0 or matrix.max(initial=0) == 0:
        raise NextileError("the confusion matrix counts no pictures, or fewer than none: evaluate some")
    return Table(matrix.astype(np.int64), classes)


@dataclass(frozen=True)
class Grid:
    """How a table is drawn: the side of its cells in pixels, its names, and the faces of both."""

    table: Table
    side: int
    numbers: Face | None  # None: numbers do not fit into the cells
    face: Face
    names: Sequence[str]

    @classmethod
    def of(cls, table: Table) -> Grid:
        """The largest face in which every number fits into a cell, if there is one."""
        room = WIDEST // len(table.names)
        side, numbers = max(14, min(20, room)), None
        for face in map(Face.of, (14, 13, 12, 11)):
            needed = face.width(str(table.highest)) + 8
            if needed <= room and not numbers:
                side, numbers = max(needed, 20, min(96, 640 // len(table.names))), face
        face = Face.of(13 if side >= 18 else 12)
        return cls(table, side, numbers, face, [face.cut(name, NAME) for name in table.names])

    @property
    def cells(self) -> int:
        """The width and height of all cells together, in pixels."""
        return self.side * len(self.names)

    @property
    def aside(self) -> int:
        """The width of the names of the rows, which is the height of those of the columns, in pixels."""
        return max(self.face.widest(self.names), 24) + 8

    def name(self, paper: Paper, left: int, top: int) -> None:
        """Write the names around the cells, whose left upper corner this is."""
        for index, name in enumerate(self.names):
            middle = index * self.side + self.side // 2
            paper.write(name, (left - 8, top + middle), self.face, anchor="rm")
            paper.write_upward(name, (left + middle, top - 6), self.face)

    def fill(self, paper: Paper, left: int, top: int) -> None:
        """Draw the cells, each in the colour of its share, with its number where that fits; zeros stay empty."""
        end = self.cells - 1
        paper.draw.rectangle((left - 1, top - 1, left + end, top + end), fill=LINE, outline=RULE)
        for (row, column), part in np.ndenumerate(np.sqrt(self.table.shares)):
            x, y = left + column * self.side, top + row * self.side
            paper.draw.rectangle((x, y, x + self.side - 2, y + self.side - 2), fill=blue(part))
            self._number(paper, str(self.table.counts[row, column]), (x, y), WHITE if part > DARK else INK)

    def _number(self, paper: Paper, number: str, corner: tuple[int, int], ink: Colour) -> None:
        if self.numbers and number != "0" and self.numbers.width(number) < self.side - 2:
            x, y = (place + self.side / 2 - 0.5 for place in corner)
            paper.write(number, (x, y), self.numbers, ink, "mm")


def _scale(paper: Paper, place: tuple[int, int], face: Face) -> None:
    """What the colours mean."""
    x, y = place
    for step in range(BAR):
        paper.draw.line((x + step, y, x + step, y + 9), fill=blue(step / (BAR - 1)))
    paper.draw.rectangle((x - 1, y - 1, x + BAR, y + 10), outline=RULE)
    for mark in MARKS:
        paper.write(str(mark), (x + math.sqrt(mark / 100) * (BAR - 1), y + 14), face, SOFT, "ma")
    paper.write("% of the row", (x + BAR + 16, y + 14), face, SOFT)


def confusion(matrix: np.ndarray, classes: Sequence[str]) -> Image:
    """How many pictures of each class were taken for each: (K, K) whole numbers, a row is the true class.

    A colour is the root of a share of the row, so that rare mistakes are seen. Of more than MOST classes those WORST
    with the most mistakes are shown, and the others as one.
    Errors: NextileError for a matrix that does not belong to the classes, or counts nothing.
    """
    table = _table(matrix, classes)
    right, total = int(table.counts.trace()), int(table.counts.sum())
    grid = Grid.of(table if len(classes) <= MOST else table.worst(WORST))
    heading, small = Face.of(17), Face.of(12)
    inner = max(grid.aside + max(grid.cells, BAR + 100), TITLE - 2 * MARGIN)
    title = heading.lines(f"accuracy {_percent(right / total)}: {right:,} of {total:,} right", inner)
    note = small.lines(grid.table.note, inner)
    above = MARGIN + len(title) * heading.height + len(note) * small.height + 12
    left, top = MARGIN + grid.aside, above + small.height + grid.aside
    paper = Paper(inner + 2 * MARGIN, top + grid.cells + 46 + MARGIN)
    paper.write_lines(note, (MARGIN, paper.write_lines(title, (MARGIN, MARGIN), heading)), small)
    paper.write("predicted", (left, above), small, SOFT)
    paper.write("true", (left - 8, top - 8), small, SOFT, "rs")
    grid.name(paper, left, top)
    grid.fill(paper, left, top)
    _scale(paper, (left, top + grid.cells + 16), small)
    return paper.picture


# --- accuracy by layer ----------------------------------------------------------------------------------------------

NARROW, STEP, WIDE, HIGH = 480, 24, 1600, 260  # pixels: the least width, what a layer adds to it, the most, the height
LAYER, BASELINE = 120, 200  # pixels: the most of a name
FINE = 4  # lines are drawn so many times as large and then reduced, which makes them smooth
LABEL = 16  # pixels between the names of two baselines


@dataclass(frozen=True)
class Plot:
    """Accuracies (L,) of L layers and the accuracies to compare them with; x goes along layers, y along accuracies."""

    values: np.ndarray
    baselines: np.ndarray
    x: Axis
    y: Axis

    @classmethod
    def of(cls, values: np.ndarray, baselines: np.ndarray, left: int, top: int) -> Plot:
        """A plot with its left upper corner there."""
        right = left + min(WIDE, max(NARROW, STEP * len(values)))
        bottom = top + max(HIGH, LABEL * len(baselines))
        all_values = np.concatenate([values, baselines])
        low, high = float(all_values.min()), float(all_values.max())
        margin = max(0.1 * (high - low), 0.01)  # above it is room for the number of the best layer
        y = Axis(max(0.0, low - margin), high + margin, bottom, top)
        return cls(values, baselines, Axis(-0.5, len(values) - 0.5, left, right), y)

    def points(self) -> list[tuple[float, float]]:
        """Where the layers are."""
        return list(zip(self.x(np.arange(len(self.values))).tolist(), self.y(self.values).tolist(), strict=True))

    def ticks(self) -> list[tuple[str, float]]:
        """The round accuracies, and where they are."""
        distance = round_distance(self.y.high - self.y.low, most=6)
        digits = max(0, -math.floor(math.log10(100 * distance)))
        return [(f"{100 * tick:.{digits}f} %", float(self.y(tick))) for tick in self.y.ticks(distance) if tick < 1.001]


def _lines(plot: Plot, width: int, height: int) -> Image:
    """All of a plot but its text, on a picture of this size."""
    paper = Paper(FINE * width, FINE * height)
    left, right = FINE * plot.x.start, FINE * plot.x.end
    for _, y in plot.ticks():
        paper.draw.rectangle((left, FINE * round(y), right - 1, FINE * round(y) + FINE - 1), fill=RULE)
    for y in plot.y(plot.baselines).tolist():
        for start in np.arange(left, right, 8 * FINE):
            end = min(start + 5 * FINE, right) - 1
            paper.draw.rectangle((start, FINE * round(y), end, FINE * round(y) + FINE - 1), fill=SOFT)
    points = [(FINE * x, FINE * y) for x, y in plot.points()]
    paper.draw.line(points, fill=blue(0.85), width=2 * FINE, joint="curve")
    for x, y in points:
        paper.draw.circle((x, y), 3 * FINE, fill=blue(0.85))
    return paper.picture.reduce(FINE)


def apart(heights: np.ndarray, low: float) -> np.ndarray:
    """Heights on a page moved so that they are LABEL apart and none is below `low`; they keep their order."""
    order = np.argsort(heights, kind="stable")
    steps = LABEL * np.arange(len(heights))
    moved = np.maximum.accumulate(heights[order] - steps)  # each below the one above it
    apart = np.empty(len(heights))
    apart[order] = np.minimum(moved, low - steps[-1:]) + steps
    return apart


def _refuse_no_shares(names: Sequence[str], layers: np.ndarray, baselines: np.ndarray) -> None:
    """Errors: NextileError for what `curve_of_layers` cannot draw."""
    if layers.shape != (len(names),) or not len(names):
        raise NextileError(f"{len(names)} names and accuracies {layers.shape} cannot be drawn: give one for each layer")
    for value in (*layers, *baselines):
        if not 0 <= value <= 1:
            raise NextileError(f"{value} is no accuracy: give numbers from 0 to 1")


def _write_axes(paper: Paper, plot: Plot, names: Sequence[str], face: Face) -> None:
    """The accuracies at the left and the names of the layers below, of which as many as there is room for."""
    across, bottom = plot.x.end - plot.x.start, round(plot.y.start)
    paper.write("accuracy", (MARGIN, MARGIN), face, SOFT)
    for text, y in plot.ticks():
        paper.write(text, (plot.x.start - 8, y), face, SOFT, "rm")
    every = math.ceil((face.widest(names) + 12) * len(names) / across)
    for index in range(0, len(names), every):
        paper.write(names[index], (float(plot.x(index)), bottom + 8), face, anchor="ma")
    paper.write("layer", (plot.x.start + across / 2, bottom + face.height + 14), face, SOFT, "ma")


def curve_of_layers(names: Sequence[str], values: Sequence[float], baselines: Mapping[str, float]) -> Image:
    """A line through the accuracies (0 to 1) of layers, and a dashed line for each named baseline.

    Errors: NextileError for no layers, not one name for each, and what is no accuracy.
    """
    layers, others = np.asarray(values, dtype=float), np.array([*baselines.values()], dtype=float)
    _refuse_no_shares(names, layers, others)
    face = Face.of(12)
    plot = Plot.of(layers, others, MARGIN + face.width("100.0 %") + 8, MARGIN + face.height + 10)
    shown = [face.cut(name, LAYER) for name in names]
    labels = [face.cut(f"{name}, {_percent(value)}", BASELINE) for name, value in baselines.items()]
    aside = max(face.widest(labels) + 10, face.widest(shown) // 2)
    paper = Paper(round(plot.x.end) + aside + MARGIN, round(plot.y.start) + 2 * face.height + 14 + MARGIN)
    paper.picture.paste(_lines(plot, *paper.picture.size), (0, 0))
    _write_axes(paper, plot, shown, face)
    for label, y in zip(labels, apart(plot.y(others), plot.y.start), strict=True):
        paper.write(label, (plot.x.end + 10, y), face, SOFT, "lm")
    x, y = plot.points()[int(layers.argmax())]
    paper.write_over(_percent(layers.max()), (x, y - 8), face)
    return paper.picture
