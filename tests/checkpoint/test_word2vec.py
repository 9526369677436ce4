"""Word vectors in files: what is written is read, and whatever else is there is refused by its line."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.word2vec import WordTable, read_vectors, write_vectors


def table(count: int = 5, dim: int = 3, seed: int = 0) -> WordTable:
    vectors = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return WordTable(tuple(f"w{number}" for number in range(count)), vectors)


def same(a: WordTable, b: WordTable) -> bool:
    return a.words == b.words and a.vectors.dtype == b.vectors.dtype and np.array_equal(a.vectors, b.vectors)


def binary(header: str, *rows: tuple[bytes, list[float]], end: bytes = b"\n") -> bytes:
    return header.encode() + b"".join(word + b" " + np.array(row, "<f4").tobytes() + end for word, row in rows)


def problem(path: Path, data: bytes | str) -> str:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises(NextileError) as caught:
        read_vectors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- both ways ------------------------------------------------------------------------------------------------------

WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(
    lambda w: w.encode().split() == [w.encode()]
)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("suffix", [".txt", ".bin"])
@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_whatever_it_is(tmp_path, suffix, data):
    words = data.draw(st.lists(WORDS, min_size=1, max_size=5, unique=True))
    dim = data.draw(st.integers(1, 4))
    rows = data.draw(st.lists(st.lists(FLOATS, min_size=dim, max_size=dim), min_size=len(words), max_size=len(words)))
    given_ = WordTable(tuple(words), np.array(rows, np.float32))
    assert write_vectors(tmp_path / f"x{suffix}", given_) == 0
    assert same(read_vectors(tmp_path / f"x{suffix}"), given_)


def test_the_kind_is_told_by_what_is_there_not_by_the_name(tmp_path):
    for written, named in ((".txt", ".bin"), (".bin", ".txt")):
        write_vectors(tmp_path / f"x{written}", table(50, 20))
        (tmp_path / f"x{written}").rename(tmp_path / f"y{named}")
        assert same(read_vectors(tmp_path / f"y{named}"), table(50, 20))


def test_what_is_longer_than_a_chunk_is_read(tmp_path):
    for suffix in (".txt", ".bin"):
        write_vectors(tmp_path / f"x{suffix}", table(3000, 120))
        assert (tmp_path / f"x{suffix}").stat().st_size > 2**20
        assert same(read_vectors(tmp_path / f"x{suffix}"), table(3000, 120))


@pytest.mark.parametrize("suffix", [".txt", ".bin"])
def test_packed_and_plain_are_the_same(tmp_path, suffix):
    write_vectors(tmp_path / f"x{suffix}", table())
    packed = tmp_path / f"x{suffix}.gz"
    packed.write_bytes(gzip.compress((tmp_path / f"x{suffix}").read_bytes()))
    assert same(read_vectors(packed), table())


def test_other_writers_lines_are_read(tmp_path):
    for text in ("2 2\na 1 2 \nb 3 4 \n", "2 2\r\na 1 2\r\nb 3 4", "2 2\na 1e0 +2\nb 3.0 4\n"):
        (tmp_path / "x.vec").write_text(text, newline="")
        read = read_vectors(tmp_path / "x.vec")
        assert (read.words, read.vectors.tolist(), read.dim, len(read)) == (("a", "b"), [[1, 2], [3, 4]], 2, 2)
    for end in (b"", b"\n"):  # gensim writes none, word2vec one
        (tmp_path / "x.bin").write_bytes(binary("2 2\n", (b"a", [1, 2]), ("ä\n".encode()[:2], [3, 4]), end=end))
        assert read_vectors(tmp_path / "x.bin").words == ("a", "ä")


def test_words_that_the_format_cannot_hold_are_left_out_and_counted(tmp_path):
    words = ("a b", "", "c", "\n", "tab\t", "\ud800", "non\u00a0breaking")
    for suffix in (".txt", ".bin"):
        assert write_vectors(tmp_path / f"x{suffix}", WordTable(words, table(7).vectors)) == 5
        read = read_vectors(tmp_path / f"x{suffix}")
        assert read.words == ("c", "non\u00a0breaking")
        assert np.array_equal(read.vectors, table(7).vectors[[2, 6]])
    with pytest.raises(NextileError, match="none of the 1 words"):
        write_vectors(tmp_path / "y.txt", WordTable((" ",), table(1).vectors))


def test_another_suffix_is_wrong_use_and_nothing_is_written(tmp_path):
    with pytest.raises(UsageError, match=r"x\.csv' is no \.txt and no \.bin"):
        write_vectors(tmp_path / "x.csv", table())
    assert list(tmp_path.iterdir()) == []


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header", ["", "the 0.1 0.2\n", "2\n", "-1 3\n", "2 3 4\n", "2.0 3\n", "1e3 3\n", "9" * 80 + " 3\n", "²2 3\n"]
)
def test_a_header_that_is_none_is_refused(tmp_path, header):
    assert "line 1 of" in problem(tmp_path / "x.txt", header + "a 1 2 3\n")


@pytest.mark.parametrize("header", ["0 3", "3 0", "99999999999 3", "3 99999999999"])
def test_a_header_out_of_bounds_is_refused(tmp_path, header):
    assert "line 1 of" in problem(tmp_path / "x.txt", header + "\na 1 2 3\n")


@pytest.mark.parametrize("name", ["x.txt", "x.bin", "x.txt.gz"])
def test_what_the_file_cannot_hold_gets_no_memory(tmp_path, name):
    data = b"16000000 10000\na " + b"1 " * 10000
    tracemalloc.start()
    try:
        said = problem(tmp_path / name, gzip.compress(data) if name.endswith(".gz") else data)
        assert tracemalloc.get_traced_memory()[1] < 2**27
    finally:
        tracemalloc.stop()
    assert "line 1 of" in said
    assert "more than its" in said


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("a 1 2\nb 3 4", "line 4 of"),  # too few
        ("a 1 2\nb 3 4\nc 5 6\nd 7 8", "line 5 of"),  # too many
        ("a 1 2\nb 3\nc 5 6", "line 3 of"),
        ("a 1 2\nb 3 4 5\nc 5 6", "line 3 of"),
        ("a 1 2 3\nb 3 4\nc 5 6", "line 2 of"),
        ("a b 1 2\nb 3 4\nc 5 6", "line 2 of"),
        ("a 1 two\nb 3 4\nc 5 6", "line 2 of"),
        ("a 1 2\nb 3 0x4\nc 5 6", "line 3 of"),
        ("a 1 2\nb 3 1_0\nc 5 6", "line 3 of"),
        ("a 1 2\nb nan 4\nc 5 6", "line 3 of"),
        ("a inf 2\nb 3 4\nc 5 6", "line 2 of"),
        ("a 1 2\nb 3 4\nc 5 1e39", "line 4 of"),  # no float32
        ("a 1 2\nb 3 4\na 5 6", "line 4 of"),
        ("a 1 2\n\nc 5 6", "line 3 of"),
        ("a 1 2\n 3 4\nc 5 6", "line 3 of"),  # no word
        ("a 1 2\n" + "b" * 5000 + " 3 4\nc 5 6", "line 3 of"),
        ("a 1 2\nb 3 4\nc 5 " + "0" * 9000, "line 4 of"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path, rows, said):
    assert said in problem(tmp_path / "x.txt", "3 2\n" + rows + "\n")


def test_text_that_is_not_utf8_is_refused_by_its_line(tmp_path):
    assert "line 3 of" in problem(tmp_path / "x.txt", b"2 1\na 1\n\xff 2\n")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (binary("3 2\n", (b"a", [1, 2]), (b"b", [3, 4]), (b"c", [5, 6]))[:-3], "word 3 of"),
        (binary("2 2\n", (b"a", [1, 2]), (b"b", [3, 4]), (b"c", [5, 6])), "word 3 of"),
        (binary("2 2\n", (b"a", [1, 2]), (b"a", [3, 4])), "word 2 of"),
        (binary("2 2\n", (b"a", [1, 2]), (b"b", [3, float("nan")])), "word 2 of"),
        (binary("2 2\n", (b"a", [float("inf"), 2]), (b"b", [3, 4])), "word 1 of"),
        (binary("2 2\n", (b"a", [1, 2]), (b"\xff", [3, 4])), "word 2 of"),
        (binary("2 2\n", (b"a", [1, 2]), (b"", [3, 4])), "word 2 of"),
        (binary("2 2\n", (b"a", [1, 2]), (b"b" * 9000, [3, 4])), "word 2 of"),
        (binary("2 2\n", (b"a", [1, 2])) + b"x" * 20, "word 2 of"),
    ],
)
def test_a_binary_word_that_is_wrong_is_named(tmp_path, data, said):
    assert said in problem(tmp_path / "x.bin", data)


def test_a_file_that_is_missing_or_broken_is_one_line(tmp_path):
    with pytest.raises(NextileError, match="cannot read"):
        read_vectors(tmp_path / "none.txt")
    assert "broken .gz" in problem(tmp_path / "x.txt.gz", gzip.compress(b"1 1\na 1\n")[:-9])
