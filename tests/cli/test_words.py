"""`nextile words`: what it writes for each action, and what it says to wrong use."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import typer

from nextile.base.errors import NextileError
from nextile.checkpoint.word2vec import WordTable, read_vectors, write_vectors
from nextile.cli import words as verb

VECTORS = {"man": (1, 0, 0), "woman": (1, 1, 0), "king": (1, 0, 1), "queen": (1, 1, 1), "a\x1b[2J\tb": (1, 0.9, -0.9)}


class Answer(NamedTuple):
    """What a command line left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def words(capsys):
    """Runs `words` with a command line; an error's text is in `err`."""
    app = typer.Typer(rich_markup_mode=None)
    app.command("words", epilog=verb.EXAMPLES)(verb.words)
    command = typer.main.get_command(app)

    def call(*arguments: str) -> Answer:
        try:
            code = command.main(list(map(str, arguments)), standalone_mode=False) or 0
        except NextileError as error:
            return Answer(error.exit_code, capsys.readouterr().out, str(error))
        except typer.BadParameter.__mro__[1] as error:
            return Answer(2, capsys.readouterr().out, error.format_message())  # pyright: ignore
        return Answer(code, *capsys.readouterr())

    return call


@pytest.fixture
def vectors(tmp_path) -> Path:
    """A .bin of five words, one of them hostile."""
    table = WordTable(tuple(VECTORS), np.array(list(VECTORS.values()), np.float32))
    rows = b"".join(w.encode() + b" " + table.vectors[i].tobytes() for i, w in enumerate(table.words))
    (tmp_path / "v.bin").write_bytes(b"5 3\n" + rows)
    return tmp_path / "v.bin"


def test_near_writes_a_line_a_word(words, vectors):
    answer = words(vectors, "near", "queen", "--n", "2")
    assert (answer.code, answer.out.splitlines()) == (0, ["woman\t0.8165", "king\t0.8165"])
    assert len(words(vectors, "near", "queen").out.splitlines()) == 4


def test_analogy_leaves_the_three_out(words, vectors):
    assert words(vectors, "analogy", "man", "king", "woman", "--n", "1").out.startswith("queen\t0.9")


def test_json_is_one_object(words, vectors):
    answer = words(vectors, "near", "king", "--n", "1", "--json")
    assert json.loads(answer.out) == {"word": "king", "found": [{"word": "queen", "cosine": pytest.approx(2 / 6**0.5)}]}
    answer = words(vectors, "analogy", "man", "king", "woman", "--n", "1", "--json")
    assert json.loads(answer.out)["c"] == "woman"


def test_a_terminal_gets_no_control_characters(words, vectors, monkeypatch):
    assert "\x1b" in words(vectors, "near", "queen").out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "\x1b" not in words(vectors, "near", "queen").out


def test_export_leaves_out_what_cannot_be_written(words, vectors, tmp_path):
    answer = words(vectors, "export", tmp_path / "w.txt")
    assert "4 words of 3 numbers; 1 that hold white space were left out" in answer.err
    assert read_vectors(tmp_path / "w.txt").words == ("man", "woman", "king", "queen")
    answer = words(tmp_path / "w.txt", "export", tmp_path / "w.bin", "--json")
    assert json.loads(answer.out) == {"out": str(tmp_path / "w.bin"), "words": 4, "numbers": 3, "left_out": 0}


def test_plot_draws_the_first_words_or_those_given(words, vectors, tmp_path):
    assert "a map of 5 words" in words(vectors, "plot", tmp_path / "map.html").err
    assert "a map of 2 words" in words(vectors, "plot", tmp_path / "map.html", "--n", "2").err
    answer = words(vectors, "plot", tmp_path / "map.png", "king", "queen", "--json")
    assert json.loads(answer.out) == {"out": str(tmp_path / "map.png"), "words": 2}
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_test_tells_both_kinds_apart(words, vectors, tmp_path):
    (tmp_path / "pairs.tsv").write_text("man\twoman\t9\nman\tqueen\t1\nman\tx\t1\n")
    (tmp_path / "q.txt").write_text(": x\nman king woman queen\n")
    answer = words(vectors, "test", tmp_path / "pairs.tsv", tmp_path / "q.txt")
    assert answer.out.splitlines() == [
        f"{tmp_path}/pairs.tsv\tsimilarity\t1.0000\t2 of 3 known",
        f"{tmp_path}/q.txt\tanalogies\t1.0000\t1 of 1 known",
    ]
    found = json.loads(words(vectors, "test", tmp_path / "q.txt", "--json").out)
    assert found == {
        "file": f"{tmp_path}/q.txt", "analogies": 1.0, "known": 1, "total": 1, "sections": {"x": 1.0},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nera", "king"], "did you mean near?"),
        (["zzz"], "near, analogy, plot, export, test"),
        (["near"], "near takes one word, not 0"),
        (["near", "a", "b"], "near takes one word, not 2"),
        (["analogy", "a", "b"], "analogy takes three words, not 2"),
        (["test"], "test takes files, not 0"),
        (["plot", "map.svg"], "ends in .png or .html"),
        (["export", "x.csv"], "ends in .txt or .bin"),
        (["near", "king", "--side", "left"], "'left' is no side"),
        (["near", "king", "--n", "0"], "at least 1"),
        (["near", "king", "--side", "output"], "leave out --side"),
    ],
)
def test_wrong_use_is_one_line(words, vectors, arguments, said):
    answer = words(vectors, *arguments)
    assert answer.code == 2
    assert said in answer.err
    assert "\n" not in answer.err


def test_wrong_use_is_said_before_anything_is_read(words):
    assert "takes one word" in words("no-such-model", "near").err


def test_an_unknown_word_fails(words, vectors):
    answer = words(vectors, "near", "kingg")
    assert (answer.code, answer.out) == (1, "")
    assert "did you mean 'king'" in answer.err


def test_what_was_exported_is_near_the_same(words, vectors, tmp_path):
    words(vectors, "export", tmp_path / "w.txt")
    write_vectors(tmp_path / "w.bin", read_vectors(tmp_path / "w.txt"))
    assert words(tmp_path / "w.txt", "near", "king").out == words(tmp_path / "w.bin", "near", "king").out
