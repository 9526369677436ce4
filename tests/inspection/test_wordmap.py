"""Maps of words: like words lie together, names never cover one another, and no word is markup."""

from __future__ import annotations

import io
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.word2vec import WordTable
from nextile.inspection.vectors import Lookup
from nextile.inspection.wordmap import Room, layout, make_map, page, write_map

HOSTILE = "</script><script>alert(1)</script>", "$x$", "<b>", "\x1b[2J", "漢字", "\\frac{"


def crowds(each: int = 8) -> Lookup:
    """Three crowds of words, each in a direction of its own."""
    random = np.random.default_rng(0)
    vectors = np.repeat(np.eye(3, 6), each, axis=0) * 5 + random.normal(size=(3 * each, 6)) * 0.2
    return Lookup(WordTable(tuple(f"w{number}" for number in range(3 * each)), vectors.astype(np.float32)))


def together(places: np.ndarray, each: int = 8) -> bool:
    """Whether the nearest of each is of its own crowd."""
    far = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.fill_diagonal(far, np.inf)
    crowd = np.arange(len(places)) // each
    return bool((crowd[far.argmin(axis=1)] == crowd).all())


def test_like_words_lie_together():
    vectors = crowds().table.vectors
    places = layout(vectors, seed=0)
    assert places.shape == (24, 2)
    assert together(places)
    assert not together(places[np.random.default_rng(0).permutation(24)])
    assert np.array_equal(places, layout(vectors, seed=0))


@pytest.mark.parametrize(("count", "dim"), [(1, 1), (1, 5), (2, 1), (9, 1), (9, 3), (2, 50), (10, 1), (10, 3)])
def test_any_number_of_words_has_places(count, dim):
    places = layout(np.random.default_rng(0).normal(size=(count, dim)), seed=1)
    assert places.shape == (count, 2)
    assert np.isfinite(places).all()


def test_a_few_words_keep_their_distances():
    units = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]  # any three points lie in a plane
    places = layout(units)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(places[a] - places[b]) == pytest.approx(np.linalg.norm(units[a] - units[b]))


def test_equal_words_and_words_of_nothing_have_places():
    places = layout(np.concatenate([np.ones((12, 3)), np.zeros((12, 3))]))
    assert np.isfinite(places).all()


def test_names_never_cover_names_nor_dots_and_the_first_have_the_room():
    dots = np.random.default_rng(0).uniform(0, 200, size=(60, 2))
    room, placed = Room((0, 0, 200, 200), dots), {}
    for index in range(60):
        corner = room.take(index, 30, 10)
        if corner is not None:
            placed[index] = corner
    assert 0 in placed
    assert 5 < len(placed) < 60
    for one, (x, y) in placed.items():
        assert 0 <= x <= 170
        assert 0 <= y <= 190
        assert not any(x < a < x + 30 and y < b < y + 10 for a, b in dots)
        others = [corner for other, corner in placed.items() if other != one]
        assert not any(abs(x - a) < 30 and abs(y - b) < 10 for a, b in others)


def test_a_png_has_colour_and_hostile_words_are_letters(tmp_path):
    table = WordTable(HOSTILE, np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))
    write_map(tmp_path / "map.png", Lookup(table), HOSTILE, title="$\\frac{")
    with Image.open(tmp_path / "map.png") as image:
        assert image.size == (1600, 1280)
        assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 20
    write_map(tmp_path / "crowds.png", crowds(), crowds().table.words)
    with Image.open(tmp_path / "crowds.png") as image:
        assert {(255, 255, 255)} < {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or ()}


def test_a_page_has_every_word_and_nothing_from_elsewhere():
    table = WordTable(HOSTILE, np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))
    text = page(make_map(Lookup(table), HOSTILE, title="<i>$title & more"))
    assert text.count("<script") == text.count("</script>") == 2
    assert "alert(1)</script" not in text
    assert "<i>" not in text
    assert "&lt;i&gt;$title &amp; more" in text
    assert not re.search(r"https?:|src=|@import|url\(", text)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])  # pyright: ignore
    assert tuple(data["words"]) == HOSTILE
    assert len(data["places"]) == len(data["clusters"]) == len(data["beside"]) == 6


def test_a_map_knows_the_nearest_of_each_and_fits_its_frame():
    drawn = make_map(crowds(), crowds().table.words)
    assert drawn.beside.shape == (24, 8)
    crowd = np.arange(24) // 8
    assert (crowd[drawn.beside[:, :7]] == crowd[:, None]).all()
    assert np.abs(drawn.places).max() == pytest.approx(1.0)
    assert len(make_map(crowds(), ["w1", "w1", "w2"]).words) == 2


def test_wrong_use_is_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"no \.png and no \.html"):
        write_map(tmp_path / "map.svg", crowds(), ["w1"])
    with pytest.raises(UsageError, match="0 words"):
        write_map(tmp_path / "map.png", crowds(), [])
    with pytest.raises(NextileError, match="'x' is not among"):
        write_map(tmp_path / "map.png", crowds(), ["x"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("library", "name"), [("sklearn.manifold", "map.html"), ("matplotlib.figure", "map.png")])
def test_a_library_that_is_missing_is_one_line(tmp_path, monkeypatch, library, name):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(NextileError, match="pip install 'nextile"):
        write_map(tmp_path / name, crowds(), crowds().table.words)


def test_a_picture_is_a_picture():
    lookup = crowds()
    from nextile.inspection.wordmap import picture

    assert Image.open(io.BytesIO(picture(make_map(lookup, lookup.table.words[:3])))).format == "PNG"
