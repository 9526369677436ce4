"""`nextile inspect`: the page that it writes, what it says, and what it says to wrong use."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from tests.inspection import looks

from nextile import api
from nextile.cli.main import run


class Answer(NamedTuple):
    """What a command line left behind."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def one_thread():
    """Small models are quickest on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def inspect(capsys, monkeypatch, tmp_path):
    """Runs `nextile inspect` on a tiny model by the name of its maker, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(maker: str, *arguments: str) -> Answer:
        model = replace(getattr(looks, maker)(), folder=tmp_path / "a model\x1b[2J")
        monkeypatch.setattr(api, "load", lambda name, **asked: model)
        code = run(["inspect", "m", *arguments])
        return Answer(code, *capsys.readouterr())

    return call


@pytest.fixture
def stdin(monkeypatch):
    """Puts bytes on standard input."""
    return lambda content: monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def test_it_writes_a_page_and_says_so_in_one_line(inspect, tmp_path):
    answer = inspect("speaker", looks.TEXT)
    (page,) = tmp_path.glob("*.html")
    assert page.name == "inspect-a-model--2J.html"
    assert (answer.code, answer.out) == (0, "")
    assert answer.err == f"wrote {page.name}: {page.stat().st_size / 1000:,.0f} kB; open it in a browser\n"
    assert page.read_text("utf-8").startswith("<!doctype html>")


def test_layer_head_and_file_can_be_named(inspect):
    answer = inspect("speaker", looks.TEXT, "--layer", "1", "--head", "2", "--out", "x/y.html", "--json")
    found = json.loads(answer.out)
    assert (found["chosen"]["layer"], found["chosen"]["head"]) == (1, 2)
    assert found["bytes"] == Path("x/y.html").stat().st_size
    assert "".join(found["pieces"]) == looks.TEXT
    assert found["stacks"] == {"self": {"layers": looks.DEPTH, "heads": looks.HEADS}}
    assert len(found["steps"]) <= 12


def test_a_translator_takes_a_target(inspect):
    found = json.loads(inspect("translator", looks.TEXT, "the old wall", "--which", "encoder", "--json").out)
    assert "".join(found["target"][1:]).strip() == "the old wall"
    assert found["chosen"]["which"] == "encoder"


def test_a_picture_is_read_from_a_file_or_from_standard_input(inspect, stdin, tmp_path):
    (tmp_path / "a.png").write_bytes(looks.picture(8))
    from_file = json.loads(inspect("classifier", "a.png", "--json").out)
    stdin(looks.picture(8))
    from_stdin = json.loads(inspect("classifier", "-", "--json").out)
    assert from_file["classes"] == from_stdin["classes"]


def test_a_text_is_read_from_standard_input(inspect, stdin):
    stdin(looks.TEXT.encode() + b"\r\n")
    assert "".join(json.loads(inspect("speaker", "-", "--json").out)["pieces"]) == looks.TEXT


def test_a_long_text_is_cut_and_that_is_said(inspect):
    answer = inspect("speaker", looks.TEXT * 30, "--json")
    assert "warning: the text has " in answer.err
    assert ": the first 48 are looked at" in answer.err
    assert len(json.loads(answer.out)["pieces"]) == 48


def test_its_own_page_is_written_anew_and_what_is_no_page_of_it_stays(inspect, tmp_path):
    assert inspect("speaker", looks.TEXT, "--json").code == 0
    (page,) = tmp_path.glob("*.html")
    before = page.read_bytes()
    assert inspect("speaker", "the new wall", "--json").code == 0
    assert page.read_bytes() != before
    page.write_text("<!doctype html><p>my thesis</p>")
    (tmp_path / "folder.html").mkdir()
    for asked in ((), ("--out", page.name), ("--out", "folder.html")):
        answer = inspect("speaker", looks.TEXT, *asked)
        assert (answer.code, answer.out) == (2, "")
        assert "is there and is no page of nextile inspect: name another file by --out" in answer.err
        assert answer.err.count("\n") == 1
    assert page.read_text() == "<!doctype html><p>my thesis</p>"


@pytest.mark.parametrize(
    ("maker", "arguments", "code", "said"),
    [
        ("speaker", ("",), 2, "the text is empty"),
        ("speaker", ("a", "b"), 2, "reads no pairs: leave out the target"),
        ("speaker", ("a", "--out", "x.png"), 2, "'x.png' is no page: name a file that ends in .html"),
        ("speaker", ("a", "--layer", "7"), 2, "layer 7 is not there: there are 3, from 0 to 2"),
        ("speaker", ("a", "--head", "-1"), 2, "-1 is too small"),
        ("speaker", ("a", "--which", "cross"), 2, "there is no attention 'cross'"),
        ("classifier", ("hello\x1b[2J",), 1, "cannot read 'hello"),
        ("masked", (looks.TEXT * 30,), 1, "48"),
    ],
)
def test_wrong_use_is_one_line(inspect, tmp_path, maker, arguments, code, said):
    answer = inspect(maker, *arguments)
    assert (answer.code, answer.out) == (code, "")
    assert said in answer.err
    assert answer.err.count("\n") == 1
    assert "\x1b" not in answer.err
    assert not list(tmp_path.glob("*.html"))


def test_its_help_has_examples(inspect):
    out = inspect("speaker", "--help").out
    assert "nextile inspect runs/book" in out
    assert "--max-tokens" in out
