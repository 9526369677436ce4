"""The pictures of a run: complete, self-contained, and drawn from whatever a killed run left behind."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextile.tasks.curve import (
    MOST,
    NOTE,
    Axis,
    Line,
    best_validation,
    page,
    read_curve,
    round_distance,
    time_distance,
    write_curve,
)


@pytest.fixture
def run(tmp_path) -> Path:
    """A run of 40 steps, four of them validated."""
    rows = []
    for step in range(1, 41):
        rows.append({"step": step, "loss": 4 / step + 1, "lr": 1e-3, "grad_norm": 1.0})
        if step % 10 == 0:
            rows.append({"step": step, "val_loss": 4 / step + 1.5, "val_perplexity": 5.0, "val_bits_per_byte": 1.25})
    write(tmp_path / "metrics.jsonl", rows)
    write(tmp_path / "speed.jsonl", [{"step": s, "seconds": s * 3.0, "tokens_per_second": 9.0} for s in range(1, 41)])
    return tmp_path


def write(path: Path, rows: list) -> None:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))


def charts(html: str) -> dict[str, ElementTree.Element]:
    """The pictures of a page by their name; they must be well-formed."""
    found = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]
    return {svg.attrib["class"]: svg for svg in found}


def data(html: str) -> dict:
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[0])


# --- what is written ----------------------------------------------------------------------------------------------


def test_both_pictures_are_written(run):
    assert write_curve(run, "book") is None
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")
    html = (run / "curve.html").read_text()
    assert "best validation: 1.6000 nats per token, 1.2500 bits per byte, at step 40" in html
    assert charts(html).keys() == {"steps", "seconds"}


def test_without_matplotlib_a_line_says_how_to_get_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert write_curve(run, "book") == NOTE
    assert "pip install" in NOTE
    assert (run / "curve.html").exists()
    assert not (run / "curve.png").exists()


def test_nothing_is_drawn_of_nothing(tmp_path):
    assert write_curve(tmp_path, "book") is None
    write(tmp_path / "metrics.jsonl", [])
    assert write_curve(tmp_path, "book") is None
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("row", [{"step": 1, "loss": 2.0}, {"step": 1, "val_loss": 2.0}])
def test_one_point_is_enough(tmp_path, row):
    write(tmp_path / "metrics.jsonl", [row])
    assert write_curve(tmp_path, "book") is None
    assert (tmp_path / "curve.png").exists()
    assert "seconds" not in charts((tmp_path / "curve.html").read_text())  # nobody timed it


# --- the page -----------------------------------------------------------------------------------------------------


class Addresses(HTMLParser):
    """Everything in a page that a browser would fetch."""

    def __init__(self, html: str):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_the_page_needs_nothing_else(run):
    html = page(read_curve(run, "book"))
    assert Addresses(html).found == []
    assert not re.search(r"@import|url\((?!#)|//\w|fetch|innerHTML|XMLHttp", html)
    assert "default-src 'none'" in html


def test_a_title_is_only_text(run):
    title = '</title><script>alert("1")</script>$best \x1b[2J'
    html = page(read_curve(run, title))
    assert html.count("<script") == page(read_curve(run, "book")).count("<script")
    assert "&lt;/title&gt;" in html
    assert "\x1b" not in html
    assert write_curve(run, "a $formula$ \\frac{ \u6f22\u5b57") is None


def test_what_hovering_says(run):
    found = data(page(read_curve(run, "book")))
    assert len(found["said"]) == len(found["steps"]) == len(found["seconds"])
    assert found["said"][0] == "step 1 \u00b7 0:03 \u00b7 training 5.0000"
    assert (
        found["said"][24]
        == "step 25 \u00b7 1:15 \u00b7 training 1.1600 \u00b7 validation 1.7000 \u00b7 bits per byte 1.2500"
    )


def test_lines_stay_within_the_picture(run):
    for svg in charts(page(read_curve(run, "book"))).values():
        _, _, width, height = map(float, svg.attrib["viewBox"].split())
        for line in svg.iter("polyline"):
            points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
            assert all(0 <= x <= width and 0 <= y <= height for x, y in points)


# --- what it is drawn from ----------------------------------------------------------------------------------------


def test_broken_lines_are_left_out(run):
    whole = read_curve(run, "book")
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 41, "loss": null}\n{"step": 42, "loss": NaN}\n[1]\n\xff\xfe\n{"step": true, "loss": 1}\n')
        file.write(b'{"loss": 3}\n{"step": "x", "loss": 1}\n' + b"[" * 100_000 + b'\n{"step": 43, "lo')
    again = read_curve(run, "book")
    assert again.training.steps.tolist() == whole.training.steps.tolist()
    assert again.validation.values.tolist() == whole.validation.values.tolist()


def test_of_a_step_that_was_repeated_the_last_counts(tmp_path):
    write(tmp_path / "metrics.jsonl", [{"step": s, "loss": v} for s, v in ((1, 9.0), (2, 8.0), (2, 7.0), (1, 6.0))])
    curve = read_curve(tmp_path, "book")
    assert curve.training.steps.tolist() == [1, 2]
    assert curve.training.values.tolist() == [6, 7]


def test_best_validation(run, tmp_path):
    assert best_validation(run) == {"step": 40, "loss": 1.6, "perplexity": 5.0, "bits_per_byte": 1.25}
    assert best_validation(tmp_path / "nowhere") == {}


@given(st.integers(1, 3 * MOST))
def test_a_long_line_is_thinned_to_means(count):
    line = Line(np.arange(1.0, count + 1), np.arange(count) % 7.0)
    thin = line.thinned()
    assert len(thin) == min(count, MOST)
    assert (np.diff(thin.steps) > 0).all()
    assert thin.values.min() >= 0
    assert thin.values.max() <= 6
    if count > 2.9 * MOST:
        assert thin.values.mean() == pytest.approx(line.values.mean(), rel=0.01)


def test_the_smooth_line_keeps_a_straight_one_and_calms_noise():
    noise = np.random.default_rng(0).normal(size=1000)
    steps = np.arange(1000.0)
    assert Line(steps, 3 * np.ones(1000)).smoothed().values == pytest.approx(3)
    assert Line(steps, -steps).smoothed().values[:980] == pytest.approx(-steps[:980])  # no lag, from the first on
    assert Line(steps, noise).smoothed().values[100:].std() < 0.4 * noise.std()


# --- axes ---------------------------------------------------------------------------------------------------------


@given(st.floats(1e-6, 1e9), st.integers(2, 12))
def test_marks_are_round_and_not_too_many(span, most):
    for distance in (round_distance(span, most), time_distance(span, most)):
        assert len(Axis(0.0, span, 0, 1).ticks(distance)) <= most + 1
    assert len(Axis(0.0, span, 0, 1).ticks(round_distance(span, most))) >= most / 2.5


@pytest.mark.parametrize(("span", "distance"), [(5000, 1000), (0.9, 0.2), (8, 1), (47, 10)])
def test_round_distances(span, distance):
    assert round_distance(span, 8) == pytest.approx(distance)


@pytest.mark.parametrize(("span", "distance"), [(60, 10), (400, 60), (7200, 900), (10**6, 172_800)])
def test_usual_times(span, distance):
    assert time_distance(span, 8) == distance
