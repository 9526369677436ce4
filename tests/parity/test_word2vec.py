"""Word vectors against gensim: files both ways, neighbours, analogies, and the scores on what people say."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from nextile.checkpoint.word2vec import WordTable, read_vectors, write_vectors
from nextile.inspection import wordtests
from nextile.inspection.neighbours import analogy, near
from nextile.inspection.vectors import Lookup

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    keyedvectors = pytest.importorskip("gensim.models.keyedvectors")

KeyedVectors = keyedvectors.KeyedVectors
WORDS = tuple(f"{letter}{number}é" for number in range(10) for letter in "abcdefg")


@pytest.fixture
def table() -> WordTable:
    scale = 10.0 ** np.random.default_rng(1).integers(-6, 6, size=(len(WORDS), 1))
    vectors = np.random.default_rng(0).normal(size=(len(WORDS), 7)) * scale
    return WordTable(WORDS, vectors.astype(np.float32))


def theirs(table: WordTable) -> KeyedVectors:
    vectors = KeyedVectors(table.dim)
    vectors.add_vectors(list(table.words), table.vectors)
    return vectors


def same(table: WordTable, vectors: KeyedVectors) -> bool:
    return list(table.words) == vectors.index_to_key and np.array_equal(table.vectors, vectors.vectors)


@pytest.mark.parametrize("suffix", [".txt", ".bin"])
def test_gensim_reads_what_we_write(tmp_path, table, suffix):
    path = str(tmp_path / f"x{suffix}")
    write_vectors(path, table)
    assert same(table, KeyedVectors.load_word2vec_format(path, binary=suffix == ".bin"))
    moved = WordTable(table.words, table.vectors * np.float32(1.000001))
    assert not same(moved, KeyedVectors.load_word2vec_format(path, binary=suffix == ".bin"))


@pytest.mark.parametrize("binary", [False, True])
def test_we_read_what_gensim_writes(tmp_path, table, binary):
    theirs(table).save_word2vec_format(str(tmp_path / "x"), binary=binary)
    assert same(read_vectors(tmp_path / "x"), theirs(table))


def close(found: list[tuple[str, float]], wanted: list[tuple[str, float]]) -> bool:
    return [word for word, _ in found] == [word for word, _ in wanted] and np.allclose(
        [cosine for _, cosine in found], [cosine for _, cosine in wanted], atol=1e-6
    )


def test_neighbours_and_analogies_are_gensims(table):
    lookup, vectors = Lookup(table), theirs(table)
    for a, b, c in zip(WORDS, WORDS[3:], WORDS[11:], strict=False):
        assert close(near(lookup, a, 12), vectors.most_similar(a, topn=12))
        wanted = vectors.most_similar(positive=[b, c], negative=[a], topn=12)
        assert close(analogy(lookup, a, b, c, 12), wanted)
        assert not close(analogy(lookup, b, a, c, 12), wanted)


def cased(table: WordTable) -> WordTable:
    """With words that differ in case alone, the later ones beside the earlier."""
    words = (*table.words, *(word.upper() for word in table.words[:30]))
    near_by = table.vectors[:30] * 1.01 + np.float32(1e-3)
    return WordTable(words, np.concatenate([table.vectors, near_by]).astype(np.float32))


def write_questions(path: Path, table: WordTable) -> Path:
    """Questions of which many have the answer that the vectors give."""
    random, lookup = np.random.default_rng(2), Lookup(table)
    lines = []
    for number in range(300):
        if number % 60 == 0:
            lines.append(f": section {number}")
        a, b, c = (str(word) for word in random.choice(table.words, 3, replace=False))
        answer = analogy(lookup, a, b, c, 1)[0][0] if number % 3 else str(random.choice(table.words))
        lines.append(f"{a.title()} {b} {c} {answer}" if number % 10 else f"{a} {b} {c} unknown")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("change", [lambda table: table, cased])
def test_the_score_on_analogies_is_gensims(tmp_path, table, change):
    path, changed = write_questions(tmp_path / "q.txt", table), change(table)
    value, sections = theirs(changed).evaluate_word_analogies(str(path))
    found = wordtests.analogies(Lookup(changed), path)
    assert found.value == value
    assert 0.2 < value < 0.9
    assert (found.known, found.total) == (270, 300)
    for section in sections[:-1]:
        right = len(section["correct"])
        assert found.sections[section["section"]] == right / (right + len(section["incorrect"]))


@pytest.mark.parametrize("change", [lambda table: table, cased])
def test_the_score_on_pairs_is_gensims(tmp_path, table, change):
    random, changed = np.random.default_rng(3), change(table)
    pairs = [(*random.choice(table.words, 2, replace=False), random.integers(0, 10) / 2) for _ in range(100)]
    lines = [f"{a.title()}\t{b}\t{number}" for a, b, number in pairs] + ["unknown\ta0é\t3"] * 5
    (tmp_path / "p.tsv").write_text("# a comment\n" + "\n".join(lines) + "\n", encoding="utf-8")
    _, spearman, unknown = theirs(changed).evaluate_word_pairs(str(tmp_path / "p.tsv"))
    found = wordtests.similarity(Lookup(changed), tmp_path / "p.tsv")
    assert found.value == pytest.approx(spearman.statistic, abs=1e-9)
    assert (found.known, found.total) == (100, 105)
    assert unknown == pytest.approx(100 * 5 / 105)


def test_spearman_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(4)
    for most in (2, 5, 1000):
        a, b = random.integers(0, most, size=(2, 50))
        assert wordtests.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
        assert wordtests.spearman(a, b) != pytest.approx(wordtests.spearman(a, -b), abs=1e-3)
