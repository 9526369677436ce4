"""Palettes: colours that stand for pictures, the nearest of them exactly, and pictures that come back."""

from __future__ import annotations

import sys
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextile.base.errors import NextileError, UsageError
from nextile.images import palette
from nextile.images.palette import colours_of, learn_colours, nearest


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def scaled(pixels: np.ndarray) -> np.ndarray:
    return pixels / 127.5 - 1


def brute(pixels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The lowest number of the nearest colour, every distance written out."""
    distances = ((scaled(pixels)[..., None, :] - colours.astype(np.float64)) ** 2).sum(-1)
    return (distances <= distances.min(-1, keepdims=True) + 1e-12).argmax(-1)


def error(pixels: np.ndarray, colours: np.ndarray) -> float:
    """The mean squared error of a palette, in squared steps of 1 / 255."""
    return float(((colours_of(nearest(pixels, colours), colours) - pixels.astype(float)) ** 2).sum(-1).mean())


def brightness(colours: np.ndarray) -> np.ndarray:
    return colours @ [0.299, 0.587, 0.114]


# --- the nearest ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(700,), (4, 9, 9), (0,), (2, 0)])
def test_the_nearest_colour_is_the_nearest(shape, channels):
    pixels = noise(*shape, channels)
    colours = np.random.default_rng(1).uniform(-1, 1, (50, channels)).astype(np.float32)
    found = nearest(pixels, colours)
    assert found.dtype == np.int64
    assert found.shape == shape
    assert np.array_equal(found, brute(pixels, colours))


@given(st.lists(st.tuples(*[st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0])] * 3), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_of_equals_the_lowest_number_wins(rows):
    colours = np.array(rows, np.float32)
    pixels = np.concatenate([noise(40, 3), np.full((1, 3), 255, np.uint8), np.zeros((1, 3), np.uint8)])
    assert np.array_equal(nearest(pixels, colours), brute(pixels, colours))
    twice = np.concatenate([colours, colours])
    assert nearest(pixels, twice).max() < len(colours)


def test_a_colour_between_two_goes_to_the_first():
    colours = np.array([[1.0], [-1.0], [1.0]], np.float32)
    assert nearest(np.array([[0], [127], [128], [255]], np.uint8), colours).tolist() == [1, 1, 0, 0]
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    around = [[0.1, 0.7, -0.3], [0.7, -0.3, 0.1], [-0.3, 0.1, 0.7], [-0.3, 0.7, 0.1]]  # as far from every grey
    for turn in range(4):
        assert nearest(greys, np.roll(around, turn, axis=0).astype(np.float32)).max() == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_many_pixels_get_the_same_as_few(channels, monkeypatch):
    pixels, colours = noise(3000, channels), scaled(noise(40, channels, seed=1)).astype(np.float32)
    few = nearest(pixels, colours)
    monkeypatch.setattr(palette, "_FEW", 10)
    monkeypatch.setattr(palette, "_PIECE", 700)
    monkeypatch.setattr(palette, "_SCORES", 1)
    assert np.array_equal(nearest(pixels, colours), few)
    assert len(set(few.tolist())) > 20


def test_memory_stays_bounded():
    pixels, colours = noise(300, 300, 3), np.random.default_rng(0).uniform(-1, 1, (256, 3)).astype(np.float32)
    tracemalloc.start()
    nearest(pixels, colours)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20  # all of the distances at once would take 184 MB


@pytest.mark.parametrize(
    "pixels", [np.zeros((2, 3)), np.zeros((2, 2), np.uint8), np.zeros((), np.uint8), np.zeros((2, 1), np.uint8)]
)
def test_what_is_no_pixels_is_refused(pixels):
    with pytest.raises(UsageError, match=r"are no pixels|do not go with"):
        nearest(pixels, np.zeros((2, 3), np.float32))


# --- and back ------------------------------------------------------------------------------------------------------


def test_every_shade_comes_back_as_it_was():
    shades = np.arange(256, dtype=np.uint8)[:, None]
    colours = scaled(shades).astype(np.float32)
    assert np.array_equal(nearest(shades, colours), np.arange(256))
    assert np.array_equal(colours_of(np.arange(256), colours), shades)


def test_numbers_become_the_nearest_shades():
    colours = np.array([[-1.0, 0.0, 1.0], [0.001, 0.5, -0.999]], np.float32)
    found = colours_of(np.array([[0, 1]]), colours)
    assert found.dtype == np.uint8
    assert found.tolist() == [[[0, 128, 255], [128, 191, 0]]]
    assert colours_of(np.zeros((0, 4), int), colours).shape == (0, 4, 3)


@pytest.mark.parametrize("wrong", [-1, 2, 10**9])
def test_a_number_of_no_colour_is_refused(wrong):
    with pytest.raises(NextileError, match=f"token {wrong} is no colour: the palette has 0 to 1"):
        colours_of(np.array([0, wrong, 1]), np.zeros((2, 3), np.float32))


# --- learning ------------------------------------------------------------------------------------------------------


def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Pixels around eight colours, and those."""
    centres = np.array([[r, g, b] for r in (60, 190) for g in (60, 190) for b in (60, 190)])
    rng = np.random.default_rng(0)
    return (centres[rng.integers(0, 8, (40, 20, 5))] + rng.integers(-6, 7, (40, 20, 5, 3))).astype(np.uint8), centres


def test_the_colours_of_clear_groups_are_found():
    pixels, centres = blobs()
    found = learn_colours(pixels, 8, seed=0)
    assert found.dtype == np.float32
    assert found.shape == (8, 3)
    assert found.min() >= -1
    assert found.max() <= 1
    order = np.argsort(brightness(centres))
    assert np.abs((found + 1) * 127.5 - centres[order]).max() < 1
    assert error(pixels, found) < 50
    assert error(pixels, scaled(noise(8, 3)).astype(np.float32)) > 500


def test_more_colours_have_less_error():
    pixels = noise(2000, 3)
    errors = [error(pixels, learn_colours(pixels, count, seed=0)) for count in (1, 2, 8, 64)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 10 * errors[-1]
    mean = scaled(pixels).mean(0)
    assert np.abs(learn_colours(pixels, 1, seed=0)[0] - mean).max() < 1e-5


def test_colours_count_as_often_as_they_occur():
    pixels = np.array([[0]] * 9 + [[200]], np.uint8)
    assert colours_of(np.array([0]), learn_colours(pixels, 1, seed=0)).tolist() == [[20]]


def test_near_numbers_are_near_colours():
    found = brightness(learn_colours(noise(2000, 3), 32, seed=0))
    assert found.tolist() == sorted(found)
    greys = learn_colours(noise(2000, 1), 8, seed=0)[:, 0]
    assert greys.tolist() == sorted(greys)


def test_the_same_seed_learns_the_same(monkeypatch):
    monkeypatch.setattr(palette, "SAMPLE", 500)
    pixels = noise(3000, 3)
    first = learn_colours(pixels, 16, seed=1)
    assert np.array_equal(learn_colours(pixels, 16, seed=1), first)
    assert not np.array_equal(learn_colours(pixels, 16, seed=2), first)
    assert learn_colours(pixels, 16, seed=-1).shape == (16, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_few_colours_are_kept_exactly(channels, monkeypatch):
    monkeypatch.setattr(palette, "SAMPLE", 50)
    few = noise(5, channels)
    pixels = few[np.random.default_rng(0).integers(0, 5, (20, 20))]
    for count in (5, 6, 500):
        found = learn_colours(pixels, count, seed=0)
        assert found.shape == (5, channels)
        assert np.array_equal(colours_of(nearest(pixels, found), found), pixels)
    assert learn_colours(pixels, 4, seed=0).shape == (4, channels)
    rare = np.full((9000, channels), 7, np.uint8)
    rare[4321] = 9
    assert np.array_equal(colours_of([0, 1], learn_colours(rare, 2, seed=0))[:, 0], [7, 9])
    assert learn_colours(np.full((9, 3), 7, np.uint8), 4, seed=0).shape == (1, 3)


def test_colours_that_the_sample_misses_make_no_noise(monkeypatch):
    monkeypatch.setattr(palette, "SAMPLE", 100)
    pixels = np.full((100_000, 3), 7, np.uint8)
    pixels[:50] = noise(50, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = learn_colours(pixels, 40, seed=0)
    assert 1 <= len(found) < 40
    assert scaled(np.array([7, 7, 7])) == pytest.approx(found[np.abs(found - scaled(7)).sum(1).argmin()], abs=1e-5)


def test_learning_from_nothing_is_refused():
    for pixels, count in ((noise(0, 3), 2), (noise(4, 3), 0)):
        with pytest.raises(UsageError, match="give some of both"):
            learn_colours(pixels, count, seed=0)
    with pytest.raises(UsageError, match="are no pixels"):
        learn_colours(np.zeros((4, 3)), 2, seed=0)


def test_without_scikit_learn_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(NextileError, match=r"needs scikit-learn: pip install 'nextile\[images\]'"):
        learn_colours(noise(50, 3), 4, seed=0)
