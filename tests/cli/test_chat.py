"""`nextile chat` through a pipe and as in a terminal."""

import io
import json

import pytest

from nextile.checkpoint.store import save_model
from nextile.cli import chat
from nextile.models.build import build
from nextile.models.families import marian, qwen3
from nextile.text.characters import train_characters


@pytest.fixture
def folder(tmp_path):
    tokens = train_characters(["System: User: Assistant: abcdefghij?\n\n"])
    model = build(qwen3.spec(vocab=tokens.vocab_size, context=96, width=16, depth=1, heads=2), seed=1)
    save_model(tmp_path / "model", model, tokens)
    return str(tmp_path / "model")


@pytest.fixture
def piped(nextile_, monkeypatch):
    """Runs a command line with a text on standard input."""

    def call(*arguments, text):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        return nextile_(*arguments)

    return call


OPTIONS = ("--max-tokens", "5", "--temperature", "0", "--device", "cpu")


def test_a_question_a_line_gives_an_answer_a_line(piped, folder):
    answer = piped("chat", folder, *OPTIONS, "--json", text="ab?\n\ncd?\n")
    assert answer.code == 0
    found = [json.loads(line) for line in answer.out.splitlines()]
    assert [each["role"] for each in found] == ["assistant", "assistant"]
    plain = piped("chat", folder, *OPTIONS, text="ab?\n").out
    assert plain.strip() == found[0]["content"]


def test_a_translator_does_not_talk(piped, tmp_path):
    tokens = train_characters(["abc"])
    spec = marian.spec(vocab=tokens.vocab_size, context=16, width=16, depth=1, heads=2, hidden=16)
    save_model(tmp_path / "m", build(spec), tokens)
    answer = piped("chat", str(tmp_path / "m"), text="a\n")
    assert answer.code == 2
    assert answer.err.count("\n") == 1


def typed(monkeypatch, *lines):
    """What is said when these lines are typed."""
    given = iter(lines)

    def read(prompt):
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    return list(chat.spoken(terminal=True))


def test_a_question_too_long_is_said_and_the_conversation_goes_on(nextile_, folder, monkeypatch):
    given = iter(["ab?", "a" * 200, "cd?"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda prompt: next(given, "/quit"))
    answer = nextile_("chat", folder, *OPTIONS)
    assert answer.code == 0
    assert "the model reads 96: shorten it" in answer.err
    assert len(answer.out.splitlines()) >= 3


def test_lines_are_joined_where_they_ask_for_it(monkeypatch):
    assert typed(monkeypatch, "one\\", "two", '"""three', "four", '"""', "five") == ["one\ntwo", "three\nfour", "five"]


def test_the_end_of_input_ends_a_text_of_several_lines(monkeypatch):
    assert typed(monkeypatch, '"""three', "four") == ["three\nfour"]
    assert typed(monkeypatch, "one\\") == ["one\\"]


def test_quit_ends_and_help_helps(monkeypatch, capsys):
    assert typed(monkeypatch, "/help", "a", "/quit", "b") == ["a"]
    assert "/back" in capsys.readouterr().out


def test_white_space_around_an_answer_is_not_shown():
    assert "".join(chat._without_edges(iter(["  ", " a", " ", "b", " ", "\n"]))) == "a b"
