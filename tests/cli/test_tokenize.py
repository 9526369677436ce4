"""`nextile tokenize`: what the laboratory writes where, and what it refuses in one line."""

import io
import json
import sys
from types import SimpleNamespace

import pytest

from nextile.tasks import laboratory

HOSTILE = "\x1b[2J"


@pytest.fixture
def tokens(nextile_, text, tmp_path):
    """Makes a folder with tokens of a kind."""

    def make(kind: str) -> str:
        folder = str(tmp_path / kind)
        assert nextile_("tokenize", str(text), "--kind", kind, "--size", "300", "--out", folder).code == 0
        return folder

    return make


# --- compare ------------------------------------------------------------------------------------------------------


def test_compare_writes_a_table(nextile_, text):
    answer = nextile_("tokenize", str(text), "--compare", "--sizes", "300,400")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "kind", "char", "byte", "word 300", "word 400", "bpe 300", "bpe 400",
    ]  # fmt: skip
    assert "bytes held out and measured" in answer.err


def test_compare_writes_json_a_line_each(nextile_, text):
    answer = nextile_("tokenize", str(text), "--compare", "--sizes", "300", "--json")
    rows = [json.loads(line) for line in answer.out.splitlines()]
    assert [(row["kind"], row["size"]) for row in rows] == [("char", None), ("byte", None), ("word", 300), ("bpe", 300)]
    assert rows[1]["bytes_per_token"] == 1
    assert rows[0]["bits_per_byte"] is None


@pytest.mark.parametrize(("options", "minutes"), [((), 0.5), (("--minutes", "2"), 2.0)])
def test_train_trains_each_for_so_long_and_says_who_won(nextile_, text, monkeypatch, options, minutes):
    asked = []

    def train_on(source, choice, row, time):
        asked.append(time)
        return laboratory.replace(row, parameters=9, bits_per_byte=2.0 - len(asked) / 10)

    monkeypatch.setattr(laboratory, "train_on", train_on)
    answer = nextile_("tokenize", str(text), "--compare", "--sizes", "300", "--train", *options)
    assert asked == [minutes] * 4
    assert answer.out.splitlines()[-1] == "bpe 300 won: 1.6000 bits per byte, 0.2000 (11.1%) below byte"
    assert f"training on bpe 300 for {minutes:g} min, 4 of 4" in answer.err


# --- folders without a tokenizer.json -----------------------------------------------------------------------------

FOLDERS = {
    "words": ({"vocab.txt": "[UNK]\n[SEP]\nab\n##b\n"}, "abb ab", "2 3 2"),
    "merges": (
        {
            "vocab.json": json.dumps({"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ġab": 4, "<|endoftext|>": 5}),
            "merges.txt": "a b\nĠ ab\n",
        },
        "ab ab",
        "2 4",
    ),
    "bytes": ({"tokenizer_config.json": json.dumps({"tokenizer_class": "ByT5Tokenizer"})}, "ab", "100 101"),
}


@pytest.fixture(params=FOLDERS)
def older(request, tmp_path):
    """(a folder, a text, its tokens)."""
    files, text, ids = FOLDERS[request.param]
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    return str(tmp_path), text, ids


def test_an_older_folder_has_tokens_as_well(nextile_, older):
    folder, text, ids = older
    assert nextile_("tokenize", folder, text).out == f"{ids}\n"
    answer = nextile_("tokenize", folder, "--kind", "bpe")
    assert answer.code == 2
    assert "has tokens already" in answer.err


@pytest.mark.parametrize("older", ["merges"], indirect=True)
def test_an_older_folder_shows_its_merges(nextile_, older):
    lines = nextile_("tokenize", older[0], "ab", "--merges", "2").out.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["1", "a", "+", "b", "ab", "ab"],
        ["2", "·", "+", "ab", "·ab", "ab"],
    ]


# --- show ---------------------------------------------------------------------------------------------------------


def test_show_writes_pieces_above_ids(nextile_, tokens, monkeypatch):
    folder = tokens("char")
    answer = nextile_("tokenize", folder, "--show", "a n\n")
    pieces, ids = answer.out.splitlines()
    assert [piece.strip() for piece in pieces.split("|")] == ["a", "·", "n", "⏎"]
    found = json.loads(nextile_("tokenize", folder, "--show", "a n\n", "--json").out)
    assert [each["piece"] for each in found] == ["a", " ", "n", "\n"]
    assert [str(each["id"]) for each in found] == ids.split()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"a n\n")))
    assert nextile_("tokenize", folder, "--show", "-").out == answer.out


def test_show_of_a_corpus_learns_first(nextile_, text):
    answer = nextile_("tokenize", str(text), "--kind", "byte", "--show", "é")
    assert answer.out == "\\xc3|\\xa9\n198  172\n"


def test_hostile_text_is_shown_harmless(nextile_, tokens, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    answer = nextile_("tokenize", tokens("bpe"), "--show", HOSTILE)
    assert answer.out.startswith("\\x1b|[")
    assert "\x1b" not in answer.out + answer.err


# --- merges -------------------------------------------------------------------------------------------------------


def test_merges_of_a_text(nextile_, text):
    answer = nextile_("tokenize", str(text), "green", "--merges", "3")
    head, *rows = answer.out.splitlines()
    assert head.split() == ["merge", "count", "pair", "token", "text"]
    assert [row.split()[0] for row in rows] == ["1", "2", "3"]
    assert rows[0].split()[2:5] == ["a", "+", "l"]
    found = [
        json.loads(line)
        for line in nextile_("tokenize", str(text), "green", "--merges", "3", "--json").out.splitlines()
    ]
    assert found[0]["pair"] == ["a", "l"]
    assert "".join(found[2]["text"]) == "green"


def test_merges_of_a_model_have_no_counts_and_an_end(nextile_, tokens):
    answer = nextile_("tokenize", tokens("bpe"), "--merges", "1000")
    assert answer.out.splitlines()[0].split() == ["merge", "pair", "token"]
    assert len(answer.out.splitlines()) == 1 + 300 - 257
    assert answer.err == "there are 43 merges and no more\n"


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--train", "--sizes and --train belong to --compare, --minutes to --train: add that"),
        ("--sizes 512", "--sizes and --train belong to --compare, --minutes to --train: add that"),
        ("--compare --minutes 1", "--sizes and --train belong to --compare, --minutes to --train: add that"),
        ("--compare --train --minutes 0", "--minutes 0 is no time to train for: give a positive number"),
        ("--compare --sizes 99", "--sizes has 99: a BPE vocabulary has 257 (the end and 256 bytes) to 16777216 tokens"),
        ("word --compare --out x", "--compare goes without TEXT and --out: leave out one or the other"),
        ("--merges 3 --kind char", "--merges goes without --kind: leave out one or the other"),
        ("--merges 3 --size 300", "--merges goes without --size: leave out one or the other"),
        ("word --show other", "--show goes without TEXT: leave out one or the other"),
        ("--show=", "--show has nothing to show: give a text, or - and one on standard input"),
    ],
)
def test_wrong_use_is_one_line(nextile_, text, arguments, said):
    answer = nextile_("tokenize", str(text), *arguments.split())
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == f"nextile: {said}\n"


def test_a_folder_that_cannot(nextile_, tokens):
    folder = tokens("char")
    answer = nextile_("tokenize", folder, "--merges", "3")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "these tokens are of kind 'char' and have no merges of bytes" in answer.err
    answer = nextile_("tokenize", folder, "--compare")
    assert answer.code == 2
    assert "has tokens already: leave out --kind, --size and --compare, or name a text" in answer.err
