"""What people say of words: what a line may be, what counts as known, and a score that can be worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.word2vec import WordTable
from nextile.inspection import wordtests
from nextile.inspection.vectors import Lookup, PieceLookup
from nextile.inspection.wordtests import analogies, score, similarity, spearman

# Angles of 0, 10, 30 and 90 degrees, and a country's as far from its capital's, each in its own plane.
ANGLES = {"a": 0, "b": 10, "c": 30, "d": 90}
ALIKE = Lookup(
    WordTable(
        tuple(ANGLES), np.array([(np.cos(np.radians(x)), np.sin(np.radians(x))) for x in ANGLES.values()], np.float32)
    )
)
CAPITALS = Lookup(
    WordTable(
        ("Paris", "france", "rome", "italy", "paris", "oslo", "norway"),
        np.array(
            [(1, 0, 0, 1), (1, 0, 0, 0), (0, 1, 0, 1), (0, 1, 0, 0), (0, 0, 9, 1), (0, 0, 1, 1), (0, 0, 1, 0)],
            np.float32,
        ),
    )
)


def put(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_pairs_in_the_order_that_people_give_them_score_one(tmp_path):
    text = "\ufeff# what people say\na\tb\t9\nA\tC\t5.5\r\n\na\td\t-1\na\tunknown\t3\n"
    found = similarity(ALIKE, put(tmp_path / "p.tsv", text))
    assert (found.kind, found.value, found.known, found.total) == ("similarity", pytest.approx(1.0), 3, 4)
    turned = similarity(ALIKE, put(tmp_path / "p.txt", "a b -9\na c 5\na d 8"))
    assert turned.value == pytest.approx(-1.0)


def test_a_word_in_pieces_is_known(tmp_path):
    path = put(tmp_path / "p.tsv", "a\tab\t9\na\tc\t5\na\tunknown\t1\n")
    lookup = PieceLookup(ALIKE.table, lambda word: ALIKE.table.vectors[:2].mean(axis=0) if word == "ab" else None)
    assert similarity(lookup, path).known == 2
    assert similarity(ALIKE, path).known == 1


def test_ties_share_their_place():
    assert spearman(np.array([1, 2, 2, 3]), np.array([1, 2, 2, 3])) == pytest.approx(1.0)
    assert spearman(np.array([1, 2, 2, 3]), np.array([1, 2, 3, 4])) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert math.isnan(spearman(np.array([1, 1]), np.array([1, 2])))
    assert math.isnan(spearman(np.array([]), np.array([])))


def test_capitals_are_found_and_the_three_never_answer(tmp_path, monkeypatch):
    text = (
        ": right\nParis France Rome Italy\nFRANCE PARIS italy ROME\n"
        ": wrong\noslo norway rome france\n: unknown\nParis France Bonn Germany\n"
    )
    for batch in (256, 1):
        monkeypatch.setattr(wordtests, "BATCH", batch)
        found = analogies(CAPITALS, put(tmp_path / "q.txt", text))
        assert (found.kind, found.known, found.total) == ("analogies", 3, 4)
        assert found.value == pytest.approx(2 / 3)
        assert found.sections == {"right": 1.0, "wrong": 0.0}


def test_words_beyond_the_first_are_not_looked_at(tmp_path, monkeypatch):
    path = put(tmp_path / "q.txt", ": x\nParis France Rome Italy\nParis France Oslo Norway\n")
    assert analogies(CAPITALS, path).known == 2
    monkeypatch.setattr(wordtests, "MOST", 5)
    assert analogies(CAPITALS, path).known == 1


def test_nothing_known_is_no_number(tmp_path):
    for text in ("x\ty\t1\n", ": x\nw x y z\n"):
        found = score(ALIKE, put(tmp_path / "x.txt", text))
        assert math.isnan(found.value)
        assert (found.known, found.total) == (0, 1)


def test_the_kind_is_told_by_what_is_there(tmp_path):
    for text, kind in (
        (": x\na b c d\n", "analogies"),
        ("a b c d\n", "analogies"),
        ("#\na\tb\t1\n", "similarity"),
        ("a b 1\n", "similarity"),
    ):
        assert score(ALIKE, put(tmp_path / "x.txt", text)).kind == kind


@pytest.mark.parametrize(
    "text",
    [
        "a\tb\t1\na\tb\n",
        "a\tb\t1\na\tb\tc\td\n",
        "a\tb\t1\na\tb\tmuch\n",
        "a\tb\t1\na\tb\tnan\n",
        ": x\na b c\n",
        ": x\na b c d e\n",
        b"a\tb\t1\n\xff\tb\t1\n",
        "a\tb\t1\n" + "a" * 70000,
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path, text):
    with pytest.raises(NextileError, match=r"line 2 of '.*x\.txt'") as caught:
        score(ALIKE, put(tmp_path / "x.txt", text))
    assert "\n" not in str(caught.value)


def test_a_file_that_asks_nothing_or_is_missing_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="asks nothing"):
        score(ALIKE, put(tmp_path / "x.txt", "# nothing\n\n"))
    with pytest.raises(NextileError, match="cannot read"):
        score(ALIKE, tmp_path / "none.txt")
