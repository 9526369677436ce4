"""What pictures about pictures show: the pixels that went in, shares as colours, and text that stays inside."""

from __future__ import annotations

import itertools
import sys
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextile.base.errors import NextileError
from nextile.tasks import sheets
from nextile.tasks.sheets import (
    Face,
    Paper,
    Table,
    apart,
    blue,
    completions,
    confusion,
    curve_of_layers,
    mistakes,
    sheet,
)

STRANGE = [
    "",
    "猫",
    "собака",
    "قط",
    "\ud800",
    "a\nb\x1b[2J\0",
    "É" * 500,
    "W" * 5000,
    "a long name, and on it goes " * 9,
]


def pictures(*shape: int) -> np.ndarray:
    """Noise that may not be written to."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels.setflags(write=False)
    return pixels


def enlarged(picture: np.ndarray, factor: int) -> np.ndarray:
    """(H, W, C) -> (factor * H, factor * W, 3), by the definition."""
    return np.kron(picture, np.ones((factor, factor, 1), np.uint8)) * np.ones(3, np.uint8)


def places(image, tile: np.ndarray) -> Iterator[tuple[int, int]]:
    """Every (x, y) at which the tile lies in an image."""
    whole, (high, wide) = np.asarray(image), tile.shape[:2]
    ends = whole[: len(whole) - high + 1, : whole.shape[1] - wide + 1], whole[high - 1 :, wide - 1 :]
    maybe = (ends[0] == tile[0, 0]).all(-1) & (ends[1] == tile[-1, -1]).all(-1)
    return ((int(x), int(y)) for y, x in np.argwhere(maybe) if (whole[y : y + high, x : x + wide] == tile).all())


def place(image, tile: np.ndarray) -> tuple[int, int]:
    """The only (x, y) at which the tile lies."""
    (found,) = places(image, tile)
    return found


def luminance(colours) -> np.ndarray:
    """Of sRGB colours (..., 3), 0 to 1 (IEC 61966-2-1)."""
    shown = np.asarray(colours) / 255
    return np.where(shown <= 0.04045, shown / 12.92, ((shown + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


def dark(image) -> np.ndarray:
    """Whether each pixel is darker than a hairline."""
    return np.asarray(image).max(-1) < 200


def near_edge(image, width: int) -> bool:
    """Whether something dark is in the outermost pixels."""
    inner = np.zeros(image.size[::-1], bool)
    inner[width:-width, width:-width] = True
    return bool((dark(image) & ~inner).any())


@pytest.fixture
def written(monkeypatch) -> list[tuple[str, tuple[float, ...]]]:
    """What is written from now on: each text, and its left, upper, right and lower end."""
    found = []
    write, write_upward = Paper.write, Paper.write_upward

    def note(paper, text, place, face, ink=sheets.INK, anchor="la"):
        found.append((text, paper.draw.textbbox(place, text, font=face.font, anchor=anchor)))
        write(paper, text, place, face, ink, anchor)

    def note_upward(paper, text, place, face):
        (x, y), (_, top, width, bottom) = place, paper.draw.textbbox((0, 0), text, font=face.font, anchor="lm")
        found.append((text, (x + top, y - width, x + bottom, y)))
        write_upward(paper, text, place, face)

    monkeypatch.setattr(Paper, "write", note)
    monkeypatch.setattr(Paper, "write_upward", note_upward)
    return found


def overlapping(written) -> list[tuple[str, str]]:
    """The pairs of texts that share a pixel."""
    boxes = [(text, box) for text, box in written if text.strip()]
    pairs = itertools.combinations(boxes, 2)
    return [
        (one, other)
        for (one, a), (other, b) in pairs
        if max(a[0], b[0]) < min(a[2], b[2]) and max(a[1], b[1]) < min(a[3], b[3])
    ]


# --- where pixels are ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "factor"), [((8, 8, 1), 14), ((32, 32, 3), 4), ((28, 20, 1), 4), ((64, 48, 3), 2), ((200, 150, 3), 1)]
)
def test_a_sheet_has_every_pixel_as_a_square_row_by_row(shape, factor):
    pixels = pictures(5, *shape)
    found = [place(sheet(pixels, columns=3), enlarged(picture, factor)) for picture in pixels]
    width, height = factor * shape[1], factor * shape[0]
    (left, top), (right, below) = found[0], found[4]
    assert found == [(left, top), (right, top), (2 * right - left, top), (left, below), (right, below)]
    assert 0 < right - left - width == below - top - height < 10  # a thin gap
    assert not list(places(sheet(pixels[:4]), enlarged(pixels[4], factor)))


@pytest.mark.parametrize("side", [8, 16, 28, 32, 48, 64, 96])
def test_a_small_picture_becomes_about_a_hundred_pixels(side):
    assert 96 <= sheet(pictures(1, side, side, 3)).width - 12 <= 128


def test_a_grid_is_about_square_and_has_few_empty_places():
    for count in range(1, 60):
        image = sheet(np.zeros((count, 16, 16, 1), np.uint8))
        columns, rows = ((side - 6) // 118 for side in image.size)
        assert columns * rows - count < min(columns, max(3, count / 8))
        assert count <= columns**2 < 3.1 * count
    assert sheet(pictures(10, 8, 8, 1)).width > sheet(pictures(10, 8, 8, 1), columns=4).width  # 5 x 2
    assert sheet(pictures(2, 8, 8, 1), columns=9).size == sheet(pictures(2, 8, 8, 1), columns=2).size


def test_every_mistake_stands_over_its_caption():
    pixels = pictures(5, 32, 32, 3)
    image = mistakes(pixels, [("cat, 97 %", "is dog")] * 4 + [()], "the worst", columns=2)
    found = [place(image, enlarged(picture, 4)) for picture in pixels]
    assert [found[i] for i in (1, 2, 4)] == [(found[1][0], found[0][1]), (found[0][0], found[2][1]), (20, found[4][1])]
    for x, y in found:
        below = dark(image)[y + 129 : y + 129 + 36, x : x + 128]
        assert below.any() == ((x, y) != found[4])
    assert dark(image)[: found[0][1] - 1].any()  # the title


def test_a_caption_keeps_to_the_width_of_its_picture():
    long = ("a class with a name that does not fit, 97 %", "is " + "W" * 3000)
    image = mistakes(pictures(4, 28, 28, 1), [long] * 4, "the worst", columns=4)
    gaps = np.asarray(image)[60:, [20 + k * (112 + 14) - 8 for k in range(1, 4)]]
    assert (gaps == 255).all()
    assert dark(image)[180:, 100:132].any()  # and uses it


def test_a_long_caption_keeps_its_percentage():
    face = Face.of(12)
    for text in ("American Staffordshire terrier, pit bull terrier, 97.5 %", "W" * 1000 + ", 3 %"):
        cut = face.cut(text, 110)
        assert cut.endswith("…, 97.5 %" if "97.5" in text else "…, 3 %")
        assert 95 < face.width(cut) <= 110
    assert face.cut("a name with a comma, and without a percentage", 110).endswith("…")
    assert face.cut("cat, 97 %", 110) == "cat, 97 %"


def test_a_photo_is_reduced_without_aliasing():
    checks = np.indices((512, 384)).sum(0) % 2 * 255
    photo = np.broadcast_to(checks[None, ..., None].astype(np.uint8), (1, 512, 384, 3))
    image = np.asarray(mistakes(photo, [()], "a photo"))
    grey = np.abs(image.astype(int) - 127).max(-1) < 12
    rows, columns = np.flatnonzero(grey.sum(1) > 60), np.flatnonzero(grey.sum(0) > 60)
    assert (rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1) == (128, 96)
    assert grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


@pytest.mark.parametrize("rows", [0, 3, 8])
def test_completions_lie_between_what_was_given_and_the_original(rows):
    pixels = pictures(2, 5, 8, 8, 1)
    given, painted, originals = pixels[:, 0], pixels[:, 1:4], pixels[:, 4]
    image = completions(given, rows, painted, originals)
    expected = given.copy()
    expected[:, rows:] = sheets.HIDDEN
    for i in range(2):
        row = [enlarged(picture, 14) for picture in (expected[i], *painted[i], originals[i])]
        found = [place(image, tile) if rows or k else None for k, tile in enumerate(row)]
        if not rows:
            found[0] = (20, found[1][1])
            assert (np.asarray(image)[found[1][1] :][:112, 20 : 20 + 112] == sheets.HIDDEN).all()
        x, y = zip(*found, strict=True)
        assert len(set(y)) == 1
        assert list(x) == sorted(x)
        assert x[1] - x[0] > x[2] - x[1] == x[3] - x[2] < x[4] - x[3]  # three groups
    heads = [dark(image)[: y[0] - 112 - 12, start : start + 100].any() for start in x]
    assert heads == [True, True, False, False, True]


def test_inputs_stay_as_they_are_and_give_the_same_picture_again():
    pixels, matrix = pictures(3, 8, 8, 3), np.arange(9).reshape(3, 3)
    for draw in (
        lambda: completions(pixels, 4, pixels[:, None], pixels),
        lambda: confusion(matrix, ["a", "b", "c"]),
        lambda: curve_of_layers(["a", "b"], [0.1, 0.2], {"c": 0.3}),
    ):
        assert draw().tobytes() == draw().tobytes()
    assert (matrix == np.arange(9).reshape(3, 3)).all()


# --- colours -------------------------------------------------------------------------------------------------------


def oklab(colour) -> np.ndarray:
    """From sRGB, by the matrices that Ottosson (2020) gives for this direction."""
    shown = np.asarray(colour) / 255
    linear = np.where(shown <= 0.04045, shown / 12.92, ((shown + 0.055) / 1.055) ** 2.4)
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return to_lab @ np.cbrt(cones @ linear)


def test_equal_steps_of_a_share_look_equal():
    colours = np.array([oklab(blue(part)) for part in np.linspace(0, 1, 21)])
    steps = np.diff(colours, axis=0)
    assert colours[0] == pytest.approx([1, 0, 0], abs=1e-3)
    assert np.linalg.norm(steps, axis=1) == pytest.approx(np.linalg.norm(colours[-1] - colours[0]) / 20, rel=0.12)
    hues = np.arctan2(colours[3:, 2], colours[3:, 1])
    assert hues == pytest.approx(hues[-1], abs=0.1)  # one hue
    assert colours[-1][0] < 0.35  # dark


def test_a_number_can_be_read_on_every_colour():
    for part in np.linspace(0, 1, 101):
        ink = sheets.WHITE if part > sheets.DARK else sheets.INK
        low, high = sorted(luminance([ink, blue(part)]) + 0.05)
        assert high / low > 3.2


# --- the confusion matrix ------------------------------------------------------------------------------------------


def corner(image, colour) -> tuple[int, int]:
    """The left upper corner of the first cell in a colour."""
    return next(places(image, np.full((8, 8, 3), colour, np.uint8)))


def test_the_darkest_cell_is_the_largest_share():
    matrix = np.array([[500, 320, 180], [5, 940, 55], [7, 1, 2]])
    image = confusion(matrix, ["cat", "dog", "bird"])
    shares = matrix / matrix.sum(axis=1, keepdims=True)
    corners = np.array([corner(image, blue(share**0.5)) for share in shares.flat]).reshape(3, 3, 2)
    assert np.ptp(corners[..., 0], axis=0).tolist() == np.ptp(corners[..., 1], axis=1).tolist() == [0, 0, 0]
    sides = np.concatenate([np.diff(corners[0, :, 0]), np.diff(corners[:, 0, 1])])
    assert len(set(sides.tolist())) == 1  # they lie as in the matrix
    inside = np.asarray(image)[corners[..., 1] + 1, corners[..., 0] + 1]
    assert np.argsort(-luminance(inside), axis=None).tolist() == np.argsort(shares, axis=None).tolist()


def test_numbers_stand_in_the_cells_while_they_fit():
    def cell(count: int) -> np.ndarray:
        image = confusion(np.eye(count, dtype=int) * 1000, ["x"] * count)
        x, y = corner(image, blue(1))
        right = np.flatnonzero((np.asarray(image)[y, x:] != blue(1)).any(-1))[0]
        return np.asarray(image)[y : y + right, x : x + right]

    assert len(cell(2)) > len(cell(10)) > len(cell(100)) >= 12
    assert all((cell(count) == 255).all(-1).any() for count in (2, 10, 20))
    assert (cell(100) == blue(1)).all()


def test_names_of_any_length_leave_room_for_the_cells():
    sizes = [confusion(np.eye(3, dtype=int), [name] * 3).size for name in ("W" * 10, "W" * 30, "W" * 900)]
    assert sizes[0] < sizes[1]
    assert abs(sizes[2][0] - sizes[1][0]) < 8
    assert sizes[2][0] < 600


def test_zeros_stay_empty_and_a_class_without_pictures_is_white():
    image = np.asarray(confusion(np.array([[9, 0], [0, 0]]), ["cat", "dog"]))
    x, y = corner(image, blue(1))
    assert (image[y : y + 90, x + 96 : x + 96 + 90] == 255).all()
    assert (image[y + 96 : y + 96 + 90, x : x + 96 + 90].min(-1) >= 238).all()


@given(st.integers(3, 12), st.integers(1, 2), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_grouping_keeps_every_picture_and_the_worst_classes(count, most, seed):
    counts = np.random.default_rng(seed).integers(0, 50, (count, count))
    table = Table(counts, [f"class {i}" for i in range(count)]).worst(most)
    assert table.counts.sum() == counts.sum()
    kept = [int(name.split()[1]) for name in table.names[:-1]]
    assert kept == sorted(kept)
    assert (table.counts[:-1, :-1] == counts[np.ix_(kept, kept)]).all()
    assert table.counts.sum(axis=1)[:-1].tolist() == counts.sum(axis=1)[kept].tolist()
    missed = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    assert sorted(missed[kept]) == sorted(missed)[-most:]


def test_of_too_many_classes_the_worst_are_shown_and_the_title_says_so(written):
    matrix = 40 * np.eye(101, dtype=int)
    matrix[3, 50] = 7
    confusion(matrix[:100, :100], [f"class {i}" for i in range(100)])
    assert "class 99" in [text for text, _ in written]
    assert not any("others" in text for text, _ in written)
    written.clear()
    confusion(matrix, [f"class {i}" for i in range(101)])
    said = [text for text, box in written if box[2] - box[0] > box[3] - box[1] or not text.startswith("class")]
    assert said[0] == "accuracy 99.8 %: 4,040 of 4,047 right"
    assert said[1] == "the 40 of 101 classes with the most mistakes, the others as one"
    assert {"class 3", "class 50", "61 others"} < set(said)
    assert sum(text.startswith("class") for text in said) == 40
    assert "40" in said
    assert "2440" not in said  # too wide for the cell of the others


# --- accuracy by layer ---------------------------------------------------------------------------------------------


def test_the_line_goes_through_the_accuracies():
    image = np.asarray(curve_of_layers(["a", "b", "c"], [0.2, 0.8, 0.5], {}))
    y, x = np.nonzero((image == blue(0.85)).all(-1))
    first, last = y[x <= x.min() + 2].mean(), y[x >= x.max() - 2].mean()
    best = y[abs(x - (x.min() + x.max()) / 2) < 2].mean()
    assert (first - last) / (first - best) == pytest.approx(0.5, abs=0.03)
    assert first > last > best


def test_a_baseline_is_a_dashed_line_at_its_height():
    def dashed(baselines) -> list[int]:
        image = np.asarray(curve_of_layers(["a", "b", "c"], [0.2, 0.8, 0.5], baselines))
        row = (abs(image.astype(int) - sheets.SOFT[0]).max(-1) < 3)[:, 80:540]
        return [int(y) for y in np.flatnonzero(row.mean(1) > 0.4) if 0.5 < row[y].mean() < 0.75]

    assert dashed({}) == []
    low, high = dashed({"chance": 0.3}), dashed({"scratch": 0.7})
    assert low
    assert high
    assert low[0] > high[-1]
    assert len(dashed({"chance": 0.3, "scratch": 0.7})) == len(low + high)


def test_a_baseline_as_good_as_the_best_layer_meets_it():
    image = np.asarray(curve_of_layers(["a", "b", "c"], [0.2, 0.8, 0.5], {"scratch": 0.8, "chance": 0.1}))
    line = (abs(image.astype(int) - sheets.SOFT[0]).max(-1) < 3)[:, 80:540].mean(1) > 0.4
    high, low = np.flatnonzero(line)[[0, -1]]
    best = np.flatnonzero((image == blue(0.85)).all(-1).any(1))[0]  # the upper end of its dot
    assert 0 <= high - best <= 4
    assert low > np.flatnonzero((image == blue(0.85)).all(-1).any(1))[-1] + 20


@given(st.lists(st.floats(0, 400), max_size=20))
def test_names_of_baselines_stay_apart(heights):
    moved = apart(np.array(heights), 500.0)
    order = np.argsort(heights, kind="stable")
    assert (np.diff(moved[order]) >= sheets.LABEL - 1e-6).all()
    assert moved.max(initial=0) <= 500
    if len(heights) > 1 and np.diff(np.sort(heights)).min() >= sheets.LABEL:
        assert moved == pytest.approx(heights)


# --- text stays inside ---------------------------------------------------------------------------------------------

WHITE = np.full((1, 8, 8, 1), 255, np.uint8)
DRAWN = {
    "2 classes": lambda: confusion(np.array([[9, 1], [2, 8]]), ["cat", "dog"]),
    "strange classes": lambda: confusion(np.ones((9, 9), int), STRANGE),
    "20 classes": lambda: confusion(np.full((20, 20), 123_456_789), ["W" * 50] * 20),
    "100 classes": lambda: confusion(np.ones((100, 100), int), ["W" * 50] * 100),
    "1 class": lambda: confusion(np.array([[2**40]]), [""]),
    "mistakes": lambda: mistakes(pictures(9, 1, 8, 1) // 2 + 128, [(name, name) for name in STRANGE], STRANGE[-1] * 99),
    "a word": lambda: mistakes(WHITE, [("is " + "y" * 99,)], "y" * 9999, columns=1),
    "no title": lambda: mistakes(WHITE, [()], ""),
    "completions": lambda: completions(WHITE[:, :, :1], 8, WHITE[:, None, :, :1], WHITE[:, :, :1]),
    "layers": lambda: curve_of_layers(STRANGE, [i / 8 for i in range(9)], dict.fromkeys(STRANGE, 0.5)),
    "many layers": lambda: curve_of_layers(["W" * 99] * 300, [1.0] * 300, {str(i): i / 40 for i in range(40)}),
    "two layers": lambda: curve_of_layers(["W" * 99] * 2, [0.1, 0.2], {}),
    "20 layers": lambda: curve_of_layers(["a"] * 19 + ["W" * 99], [0.5] * 20, {}),
    "300 layers": lambda: curve_of_layers(["W" * 99] * 301, [0.5] * 301, {}),
    "one layer": lambda: curve_of_layers([""], [0], {}),
    "a sheet": lambda: sheet(WHITE),
}


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_runs_out_of_the_picture(name):
    image = DRAWN[name]()
    assert image.mode == "RGB"
    assert not near_edge(image, 4 if name == "a sheet" else 14)


@pytest.mark.parametrize("name", DRAWN)
def test_no_text_lies_on_another(written, name):
    DRAWN[name]()
    assert overlapping(written) == []


def test_a_text_on_another_is_found(written):
    paper = Paper(200, 100)
    for text, y in (("one", 20), ("two", 40), ("three", 44)):
        paper.write(text, (20, y), Face.of(12))
    paper.write_upward("four", (30, 40), Face.of(12))
    assert overlapping(written) == [("one", "four"), ("two", "three")]


def test_no_accuracy_above_all_is_named(written):
    curve_of_layers(["a", "b"], [0.98, 1.0], {})
    assert [text for text, _ in written if text.endswith("%")] == ["97 %", "98 %", "99 %", "100 %", "100.0 %"]


def test_what_runs_out_is_found():
    paper = Paper(200, 100)
    paper.write("inside", (20, 20), Face.of(12))
    assert not near_edge(paper.picture, 14)
    paper.write("W" * 40, (20, 40), Face.of(12))
    assert near_edge(paper.picture, 1)


def test_letters_that_the_font_lacks_lose_their_accents():
    assert Face.of(12).cut("Müller's façade\nÉ", 1000) == "Muller's facade E"


@given(st.text(max_size=300), st.integers(60, 400))
@settings(max_examples=100, deadline=None)
def test_lines_are_never_too_wide_nor_too_many(text, width):
    face = Face.of(17)
    lines = face.lines(text, width)
    assert len(lines) <= 3
    assert face.widest(lines) <= width


# --- what cannot ---------------------------------------------------------------------------------------------------


def problem(draw, *given) -> str:
    with pytest.raises(NextileError) as error:
        draw(*given)
    assert "\n" not in str(error.value)
    return str(error.value)


BLACK = np.zeros((2, 8, 8, 1), np.uint8)
BAD = {
    "three dimensions": np.zeros((8, 8, 3), np.uint8),
    "four channels": np.zeros((1, 8, 8, 4), np.uint8),
    "channels first": np.zeros((1, 3, 8, 8), np.uint8),
    "floats": np.zeros((1, 8, 8, 3), np.float32),
    "none": np.zeros((0, 8, 8, 3), np.uint8),
    "no pixels": np.zeros((1, 0, 8, 3), np.uint8),
}


@pytest.mark.parametrize("pixels", BAD.values(), ids=BAD)
def test_what_is_no_picture_is_an_error_in_one_line(pixels):
    good = np.zeros((1, 8, 8, 3), np.uint8)
    said = [
        problem(sheet, pixels),
        problem(mistakes, pixels, [()] * len(pixels), "the worst"),
        problem(completions, pixels, 0, good[:, None], good),
        problem(completions, good, 0, good[:, None], pixels),
    ]
    shape = f"{pixels.shape} {pixels.dtype} cannot be drawn: give (N, H, W, 1 or 3) uint8"
    assert said == [f"{name} {shape}" for name in ("pictures", "pictures", "given pictures", "original pictures")]
    assert "give (N, H, W" in problem(completions, good, 0, pixels[:, None], good)


@pytest.mark.parametrize(
    ("given", "painted", "originals"),
    [
        (BLACK, BLACK[:, None], BLACK[:1]),
        (BLACK, BLACK[:1, None], BLACK),
        (BLACK, BLACK, BLACK),
        (BLACK, BLACK[:, None, :4], BLACK),
    ],
)
def test_pictures_that_do_not_belong_together(given, painted, originals):
    assert problem(completions, given, 4, painted, originals) == (
        f"given {given.shape}, painted {painted.shape} and original {originals.shape} do not belong together: "
        "give (N, H, W, C), (N, M, H, W, C) and (N, H, W, C)"
    )


def test_no_completions_and_rows_that_are_not_there():
    assert problem(completions, BLACK, 4, BLACK[:, None][:, :0], BLACK).startswith("painted pictures (0, 8, 8, 1)")
    for rows in (-1, 9):
        said = problem(completions, BLACK, rows, BLACK[:, None], BLACK)
        assert said == f"{rows} rows of pictures of 8 rows: give 0 to 8"


def test_captions_that_do_not_fit():
    for captions in ([("a",)], [("a",)] * 3, [("a", "b", "c")] * 2, []):
        said = problem(mistakes, BLACK, captions, "the worst")
        assert said == f"{len(captions)} captions for 2 pictures: give each one of at most 2 lines"


def test_no_columns():
    for columns in (0, -3):
        message = f"a sheet of {columns} columns has no room: give at least 1"
        assert problem(mistakes, BLACK, [()] * 2, "the worst", columns) == message
        assert problem(sheet, BLACK, columns) == message


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (
            np.ones((2, 3), np.int64),
            "a matrix (2, 3) int64 does not belong to 2 classes: give whole numbers, a row and",
        ),
        (np.ones((3, 3), np.int64), "a matrix (3, 3) int64 does not belong to 2 classes"),
        (np.ones((2, 2)), "a matrix (2, 2) float64 does not belong to 2 classes"),
        (np.ones(4, np.int64), "a matrix (4,) int64 does not belong to 2 classes"),
        (np.zeros((2, 2), int), "the confusion matrix counts no pictures, or fewer than none: evaluate some"),
        (np.array([[5, 1], [-1, 5]]), "the confusion matrix counts no pictures, or fewer than none"),
    ],
)
def test_what_is_no_confusion_matrix(matrix, message):
    assert problem(confusion, matrix, ["cat", "dog"]).startswith(message)


def test_no_classes_at_all():
    assert problem(confusion, np.zeros((0, 0), int), []).endswith("evaluate some")


def test_what_is_no_accuracy():
    assert problem(curve_of_layers, ["a"], [float("nan")], {}) == "nan is no accuracy: give numbers from 0 to 1"
    assert problem(curve_of_layers, ["a"], [0.5], {"b": 62.0}).startswith("62.0 is no accuracy")
    assert problem(curve_of_layers, [], [], {}).endswith("cannot be drawn: give one for each layer")
    assert problem(curve_of_layers, ["a"], [0.1, 0.2], {}).startswith("1 names and accuracies (2,)")


def test_a_sheet_that_is_too_large_is_refused_before_it_is_made():
    many = np.broadcast_to(np.zeros(1, np.uint8), (10**6, 32, 32, 3))
    wide = np.broadcast_to(np.zeros(1, np.uint8), (1, 10**5, 10**5, 3))
    captions = [()] * len(many)
    tracemalloc.start()
    try:
        said = [
            problem(sheet, many),
            problem(sheet, wide),
            problem(mistakes, many, captions, "the worst"),
            problem(completions, many, 0, many[:, None], many),
        ]
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert said[1] == "a sheet of 100,012 x 100,012 pixels is too large: draw fewer or smaller pictures"
    assert all(line.endswith("is too large: draw fewer or smaller pictures") for line in said)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: sheet(BLACK),
        lambda: mistakes(BLACK, [()] * 2, "the worst"),
        lambda: completions(BLACK, 4, BLACK[:, None], BLACK),
        lambda: confusion(np.ones((2, 2), int), ["cat", "dog"]),
        lambda: curve_of_layers(["a"], [0.5], {}),
    ],
)
def test_without_pillow(monkeypatch, draw):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert problem(draw) == "pictures need Pillow: pip install 'nextile[images]'"
