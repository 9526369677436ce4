"""The words around a word: directions count and lengths do not, what was asked is left out."""

from __future__ import annotations

import numpy as np
import pytest

from nextile.base.errors import NextileError
from nextile.checkpoint.word2vec import WordTable
from nextile.inspection.neighbours import analogy, near
from nextile.inspection.vectors import Lookup, PieceLookup

VECTORS = {
    "man": (1.0, 0.0, 0.0),
    "woman": (1.0, 1.0, 0.0),
    "king": (9.0, 0.0, 9.0),
    "queen": (1.0, 1.0, 1.0),
    "apple": (-1.0, 0.0, 0.2),
    "nothing": (0.0, 0.0, 0.0),
}
TABLE = WordTable(tuple(VECTORS), np.array(list(VECTORS.values()), np.float32))
LOOKUP = Lookup(TABLE)


def cosine(a: str, b: str) -> float:
    of_a, of_b = np.array(VECTORS[a]), np.array(VECTORS[b])
    return float(of_a @ of_b / np.linalg.norm(of_a) / np.linalg.norm(of_b))


def test_the_nearest_come_first_with_their_cosines():
    found = near(LOOKUP, "queen", 3)
    assert found == [(word, pytest.approx(cosine("queen", word))) for word, _ in found]
    assert {word for word, _ in found[:2]} == {"king", "woman"}
    assert found[2][0] == "man"


def test_the_word_itself_is_left_out_and_no_more_than_there_are_come():
    found = near(LOOKUP, "king", 100)
    assert {word for word, _ in found} == set(VECTORS) - {"king"}
    assert len(near(LOOKUP, "king", 2)) == 2
    assert dict(found)["nothing"] == 0.0


def test_man_is_to_king_as_woman_is_to_queen():
    found = analogy(LOOKUP, "man", "king", "woman", 10)
    assert found[0][0] == "queen"
    assert {word for word, _ in found} == {"queen", "apple", "nothing"}
    target = sum(
        sign * np.array(VECTORS[word]) / np.linalg.norm(VECTORS[word])
        for sign, word in ((1, "king"), (-1, "man"), (1, "woman"))
    )
    queen = np.array(VECTORS["queen"])
    assert found[0][1] == pytest.approx(target @ queen / np.linalg.norm(target) / np.linalg.norm(queen))


def test_equal_ones_stay_in_the_tables_order():
    table = WordTable(tuple("abcd"), np.ones((4, 2), np.float32))
    assert [word for word, _ in near(Lookup(table), "b", 3)] == ["a", "c", "d"]


def test_a_word_in_pieces_has_neighbours_all_the_same():
    lookup = PieceLookup(TABLE, lambda word: np.array([1.0, 0.1, 0.0], np.float32) if word == "manly" else None)
    assert near(lookup, "manly", 1)[0][0] == "man"
    with pytest.raises(NextileError, match="'kingg' is not among the 6 words: did you mean 'king'"):
        near(lookup, "kingg")
    with pytest.raises(NextileError, match="'pear'"):
        analogy(lookup, "man", "king", "pear")
