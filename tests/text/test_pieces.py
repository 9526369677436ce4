"""Pieces are the text and can be seen; merges one by one end where the tokenizer does; nothing drives a terminal."""

import re
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import TEXT

from nextile.base.errors import NextileError, UsageError
from nextile.text.bpe import Merges, first_merges, train, train_bpe
from nextile.text.characters import byte_tokenizer, train_characters, train_words
from nextile.text.pieces import (
    COLOURS,
    Cell,
    byte_words,
    cells,
    coloured,
    draw,
    lines,
    merges_of,
    one_by_one,
    piece,
    plain,
    visible,
)

TEXTS = ["low lower lowest", "new newer newest", "wide wider widest"]


class Terminal(StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


# --- pieces -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (" a\tb\r\n", "·a⇥b␍⏎"),
        ("naïve 🙂 漢", "naïve·🙂·漢"),
        ("\x1b[2J\x07\x7f\x9b", r"\x1b[2J\x07\x7f\x9b"),
        ("\u202e\u200b\ufeff\u2028\xa0", r"\u202e\u200b\ufeff\u2028\xa0"),
        ("\0\ud800", r"\x00\ud800"),
    ],
)
def test_everything_is_seen(text, seen):
    assert visible(text) == seen


@given(st.text(st.characters()))
def test_what_is_seen_is_printable_and_has_no_blank(text):
    assert visible(text).isprintable()
    assert " " not in visible(text)


@pytest.mark.parametrize("tokenizer", [train_characters([TEXT]), train_words([TEXT], 900), train_bpe([TEXT], 300)])
def test_the_pieces_are_the_text(tokenizer):
    text = TEXT[:240]
    assert "".join(piece(tokenizer, index) for index in tokenizer.encode(text)) == text


def test_pieces_that_are_no_text():
    tokenizer = train_words(["a b"], 9)
    assert [piece(tokenizer, index) for index in tokenizer.encode("a c")] == ["a", " ", "<unk>"]
    assert [piece(byte_tokenizer(), index) for index in byte_tokenizer().encode("é")] == [r"\xc3", r"\xa9"]


# --- above their ids ----------------------------------------------------------------------------------------------

ROW = [Cell("the", "7"), Cell("·", "123"), Cell("漢", "5"), Cell("x⏎", "66"), Cell("end", "8")]


def test_plain_pieces_stand_above_their_ids():
    assert plain(ROW[:4]) == "the|·  |漢|x⏎\n7   123 5  66\n"
    assert plain([]) == "\n\n"


def test_a_line_break_of_the_text_and_a_full_line_end_a_line():
    assert list(lines(ROW, 100)) == [ROW[:4], ROW[4:]]
    assert list(lines(ROW, 7)) == [ROW[:2], ROW[2:4], ROW[4:]]
    assert list(lines(ROW, 6)) == [ROW[:1], ROW[1:3], ROW[3:4], ROW[4:]]
    assert list(lines(ROW, 1)) == [[cell] for cell in ROW]
    assert list(lines([], 9)) == []


def test_neighbours_have_different_colours_across_lines_too(monkeypatch):
    spans = [*coloured(ROW[:3], first=0).spans, *coloured(ROW[3:], first=3).spans]
    styles = [str(span.style) for span in spans if str(span.style) in COLOURS]
    assert styles == [*COLOURS, COLOURS[0]]
    assert coloured(ROW[:4], first=0).plain.rstrip() == "the ·   漢 x⏎ \n7   123 5  66"
    monkeypatch.setenv("NO_COLOR", "")
    monkeypatch.setenv("TERM", "xterm-256color")
    tokenizer = train_characters(["a\nb"])
    draw(tokenizer, tokenizer.encode("a\nba"), said := Terminal())
    assert len(set(re.findall(r"48;5;\d+", said.getvalue()))) == 4  # two lines


@pytest.mark.parametrize(("stream", "wanted"), [(StringIO, ""), (Terminal, "1")])
def test_colours_are_for_terminals_that_want_them(monkeypatch, stream, wanted):
    tokenizer = train_characters(["ab"])
    monkeypatch.setenv("NO_COLOR", wanted)
    said = stream()
    draw(tokenizer, tokenizer.encode("ab"), said)
    assert said.getvalue() == "a|b\n2 3\n"
    monkeypatch.setenv("NO_COLOR", "")
    monkeypatch.setenv("TERM", "xterm-256color")
    draw(tokenizer, tokenizer.encode("ab"), said := Terminal())
    assert "\x1b[" in said.getvalue()
    assert "|" not in said.getvalue()


def test_hostile_text_drives_no_terminal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    tokenizer = train_characters(["\x1b[2J[bold]\x9b"])
    draw(tokenizer, tokenizer.encode("\x1b[2J\x9b[bold]"), said := Terminal())
    assert "\x1b[2J" not in said.getvalue()
    assert "\x9b" not in said.getvalue()
    shown = [cell.piece for cell in cells(tokenizer, tokenizer.encode("\x1b[bold]"))]
    assert shown == [r"\x1b", *"[bold]"]


# --- merges, one by one -------------------------------------------------------------------------------------------


def test_the_merges_of_a_textbook():
    """Sennrich et al. 2016: low, lower, newest, widest, as often as there; the end of a word is a space before one."""
    text = " low" * 5 + " lower" * 2 + " newest" * 6 + " widest" * 3
    steps = list(one_by_one(first_merges([text], 6), byte_words(" lowest")))
    assert [(b"".join(step.pair), step.count) for step in steps] == [
        (b"es", 9), (b"est", 9), (b"lo", 7), (b" lo", 7), (b" low", 7), (b"ew", 6),
    ]  # fmt: skip
    assert [b"|".join(step.text) for step in steps] == [
        b" |l|o|w|es|t", b" |l|o|w|est", b" |lo|w|est", b" lo|w|est", b" low|est", b" low|est",
    ]  # fmt: skip
    assert steps[1].as_dict() == {
        "merge": 2, "count": 9, "pair": ["es", "t"], "token": "est", "text": [" ", "l", "o", "w", "est"],
    }  # fmt: skip


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_the_first_merges_are_those_of_training(count):
    pairs = [pair for pair, _ in first_merges(TEXTS, count)]
    assert pairs == list(train(TEXTS, 5000).pairs)[:count]
    assert len(pairs) == min(count, 20)


def test_counts_are_those_at_their_time():
    """Of "aaa aaa" the pair a a is counted as it stands, overlaps twice; "aa" and "a" then meet once in each."""
    assert list(first_merges(["aaa\naaa"], 2)) == [((b"a", b"a"), 4), ((b"aa", b"a"), 2)]


@given(st.text("lowern stid 🙂", max_size=30), st.integers(1, 60))
def test_after_each_merge_the_text_is_as_a_tokenizer_of_so_many_merges_has_it(text, count):
    pairs = train(TEXTS, 5000).pairs[:count]
    steps = list(one_by_one(((pair, None) for pair in pairs), byte_words(text)))
    for step in steps[:: max(1, len(steps) // 4)]:
        merges = Merges(pairs[: step.number])
        assert [merges.ids[symbol] for symbol in step.text] == merges.encode(text)


def test_a_tokenizer_tells_its_merges():
    tokenizer = train_bpe(TEXTS, 270)
    assert merges_of(tokenizer) == [(pair, None) for pair in train(TEXTS, 270).pairs]
    assert byte_words("naïve text", tokenizer) == byte_words("naïve text")
    for other in (train_characters(TEXTS), byte_tokenizer()):
        with pytest.raises(UsageError, match="have no merges of bytes: name others, or a text"):
            merges_of(other)


def test_a_lone_surrogate_is_refused():
    for tokenizer in (None, train_bpe(TEXTS, 270)):
        with pytest.raises(NextileError, match="lone surrogate"):
            byte_words("a\ud800", tokenizer)
