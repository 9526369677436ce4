"""What the laboratory measures is what can be counted by hand, and what it trains is a run of `nextile train`."""

import json
import math
import time
from dataclasses import replace

import pytest
from tests.conftest import TINY

import nextile
from nextile.base.errors import NextileError, UsageError
from nextile.data.corpora import open_corpus, split
from nextile.tasks import laboratory
from nextile.tasks.curve import best_validation
from nextile.tasks.laboratory import (
    Clocked,
    Measured,
    candidates,
    columns,
    compare,
    experiment,
    first_merges,
    merge_table,
    read_sizes,
    table,
    usual_sizes,
    winner,
)
from nextile.tasks.report import Silent
from nextile.tasks.settings import TokenizerChoice

ROW = Measured("bpe", 512, 500, 1000, 2.0, 0.0, 0.0, 0.1, 50.0)


@pytest.fixture
def parts(tmp_path):
    """A text whose last tenth has a word and a letter that the rest lacks."""
    path = tmp_path / "ab.txt"
    path.write_text("ab cd " * 15 + "ab é cd xy")
    return split(open_corpus(path))


# --- measuring ----------------------------------------------------------------------------------------------------


def test_characters_and_words_that_are_not_known_are_counted(parts):
    train, held_out = parts
    assert "".join(held_out) == "ab é cd xy"
    char = compare(train, held_out, TokenizerChoice(kind="char"), Silent())
    assert (char.name, char.tokens, char.vocab_size) == ("char", 10, 2 + 5)
    assert char.bytes_per_token == 1.1
    assert char.unknown_tokens == pytest.approx(3 / 10)  # é, x and y
    assert char.unknown_bytes == pytest.approx(4 / 11)  # é has two
    word = compare(train, held_out, TokenizerChoice(kind="word", size=100), Silent())
    assert (word.name, word.tokens, word.vocab_size) == ("word 100", 7, 2 + 3)
    assert word.unknown_tokens == pytest.approx(2 / 7)
    assert word.unknown_bytes == pytest.approx(4 / 11)
    assert not char.comparable
    assert not word.comparable


def test_bytes_and_pairs_of_them_know_everything(parts):
    byte, bpe = (compare(*parts, choice, Silent()) for choice in (TokenizerChoice(kind="byte"), candidates([258])[-1]))
    assert (byte.name, byte.tokens, byte.vocab_size) == ("byte", 11, 259)
    assert (bpe.name, bpe.tokens, bpe.vocab_size) == ("bpe 258", 10, 258)  # ab is one
    assert byte.unknown_tokens == byte.unknown_bytes == bpe.unknown_tokens == bpe.unknown_bytes == 0
    assert byte.comparable
    assert bpe.comparable
    assert bpe.learn_seconds_per_mb > 0 < bpe.encode_mb_per_second


def test_a_clock_counts_what_it_waits_for_and_not_what_others_do():
    def slow():
        for number in range(3):
            time.sleep(0.01)
            yield number

    clocked = Clocked(slow(), 7)
    for _ in clocked:
        time.sleep(0.05)
    assert 0.03 <= clocked.seconds < 0.13
    assert clocked.bytes == 7
    assert list(Clocked([None, 0, ""], 0)) == [None, 0, ""]


def test_few_unknown_bytes_are_not_held_against_a_row():
    assert replace(ROW, unknown_bytes=0.0001).comparable
    assert not replace(ROW, unknown_bytes=0.0002).comparable


# --- what is compared ---------------------------------------------------------------------------------------------


def test_sizes_are_read_sorted_and_each_once():
    assert read_sizes("4096, 512,512") == [512, 4096]
    assert usual_sizes(600_000) == [512, 1024, 4096]
    assert [choice.kind for choice in candidates([257])] == ["char", "byte", "word", "bpe"]
    assert [choice.size for choice in candidates([300, 400, 500])] == [None, None, 400, 500, 300, 400, 500]


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ("", "is no list of whole numbers: write for example --sizes 512,1024,4096"),
        ("512,", "is no list"),
        ("-1", "is no list"),
        ("²", "is no list"),
        ("1e3", "is no list"),
        ("9" * 5000, "is no list"),
        ("512,256", "--sizes has 256: a BPE vocabulary has 257"),
        (str(2**24 + 1), "16777216 tokens"),
    ],
)
def test_sizes_that_are_none(sizes, said):
    with pytest.raises(UsageError, match=said):
        read_sizes(sizes)


@pytest.mark.parametrize("minutes", [0.0, -1.0, math.nan, math.inf, 1e9])
def test_minutes_that_are_none(text, minutes):
    with pytest.raises(UsageError, match="is no time to train for: give a positive number"):
        next(experiment(str(text), None, minutes, Silent()))


def test_training_needs_a_text_that_can_be_read_again_and_is_not_tiny(tmp_path):
    with pytest.raises(UsageError, match="put standard input into a file"):
        next(experiment("-", None, 1.0, Silent()))
    (tmp_path / "tiny.txt").write_text("some words " * 20)
    with pytest.raises(NextileError, match="has 220 bytes, too few to train on: give some thousands"):
        next(experiment(str(tmp_path / "tiny.txt"), None, 1.0, Silent()))
    assert len(list(experiment(str(tmp_path / "tiny.txt"), "257", None, Silent()))) == 4


# --- training -----------------------------------------------------------------------------------------------------


def test_a_row_is_what_a_run_of_its_own_comes_to(text, tmp_path, monkeypatch):
    """Steps in place of minutes, so that both do the same."""
    tiny = {name: value for name, value in TINY.items() if not name.startswith("tokenizer")}
    monkeypatch.setattr(laboratory, "MODEL", tiny)
    run = laboratory.new_run
    monkeypatch.setattr(laboratory, "new_run", lambda *_, minutes, **given: run(*_, steps=int(minutes), **given))
    choice = candidates([300])[-1]
    row = laboratory.train_on(str(text), choice, ROW, 5)
    settings = {**TINY, "tokenizer.kind": "bpe", "tokenizer.size": 300}
    model = nextile.train(text, out=tmp_path / "run", steps=5, settings=settings, report=Silent())
    own = best_validation(tmp_path / "run")
    assert row.bits_per_byte == own["bits_per_byte"] < 8
    assert row.parameters == sum(each.numel() for each in model.model.parameters())
    assert row.step == own["step"] == 5


def test_the_environment_has_no_say_in_what_is_held_out(text, monkeypatch):
    asked = {}

    def remember(sources, settings, **_):
        asked["settings"] = settings
        raise NextileError("enough")

    for name, value in (("SEED", "7"), ("VALIDATION__FRACTION", "0.5"), ("TOKENIZER__SIZE", "9"), ("THREADS", "1")):
        monkeypatch.setenv(f"NEXTILE_{name}", value)
    monkeypatch.setattr(laboratory, "new_run", remember)
    with pytest.raises(NextileError, match="enough"):
        list(experiment(str(text), "300", 1.0, Silent()))
    found = asked["settings"]
    assert (found.seed, found.validation.fraction, found.tokenizer.size, found.threads) == (0, 0.1, None, 1)


# --- what is told -------------------------------------------------------------------------------------------------


def trained(*bits: float | None) -> list[Measured]:
    return [replace(ROW, size=300 + i, parameters=1000, bits_per_byte=each) for i, each in enumerate(bits)]


def test_the_lowest_that_compares_wins():
    rows = trained(2.5, 2.0, 2.2, None)
    assert winner(rows) == "bpe 301 won: 2.0000 bits per byte, 0.2000 (9.1%) below bpe 302"
    unknown = replace(rows[0], kind="word", bits_per_byte=0.5, unknown_bytes=0.1)
    assert winner([unknown, *rows]) == winner(rows)
    assert winner([unknown, rows[1]]) == "bpe 301: 2.0000 bits per byte, and nothing to compare it with"
    assert winner([unknown]) == "nothing won: no model came to a loss that is a number"


def test_a_table_ends_in_who_won_and_says_why_some_cannot():
    rows = trained(2.5, 2.0)
    unknown = replace(rows[0], kind="word", bits_per_byte=0.5, unknown_tokens=0.05, unknown_bytes=0.1)
    lines = table([unknown, *rows]).splitlines()
    assert lines[0].split() == [
        "kind", "vocabulary", "tokens", "bytes/token", "unknown", "of", "bytes", "learn", "s/MB", "encode", "MB/s",
        "parameters", "bits/byte",
    ]  # fmt: skip
    assert lines[1].split() == ["word", "300", "500", "1,000", "2.00", "5.00%", "10.00%", "0.100", "50.0", "1,000",
                                "0.5000*"]  # fmt: skip
    assert lines[2].endswith("2.5000")
    assert lines[4].startswith("* what it does not know is text that its model need not write")
    assert lines[5:] == [winner(rows)]
    assert "*" not in table(rows)


def test_without_training_a_table_is_what_was_measured():
    lines = table([ROW]).splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("encode MB/s")


def test_columns_are_as_wide_as_what_they_show():
    shown = columns(("n", "token", "none"), [("1", "漢字", ""), ("10", "a", "")], left=("token",))
    assert shown == " n  token\n 1  漢字\n10  a\n"


def test_a_row_is_json():
    assert json.loads(json.dumps(ROW.as_dict()))["comparable"] is True


# --- merges -------------------------------------------------------------------------------------------------------


def test_merges_of_a_corpus_and_of_the_tokenizer_that_learned_them(text, tmp_path):
    tokenizer, facts = laboratory.learned(str(text), "bpe", 262, Silent())
    assert facts["bytes"] == text.stat().st_size == pytest.approx(facts["tokens"] * facts["bytes_per_token"])
    tokenizer.save(tmp_path / "tokens")
    learned = first_merges(str(text), "green bottles", 5, Silent())
    known = first_merges(str(tmp_path / "tokens"), "green bottles", 5, Silent())
    assert known == [merge._replace(count=None) for merge in learned]
    assert learned[0].count == text.read_text().count("al")
    assert merge_table(learned).splitlines()[1].split()[:2] == ["1", f"{learned[0].count:,}"]
    assert merge_table(known).splitlines()[0].split() == ["merge", "pair", "token", "text"]


def test_a_text_that_is_too_long_to_show_after_every_merge(text):
    with pytest.raises(
        UsageError, match="a text of 1,001 characters is too long to show after every merge: give 1,000"
    ):
        first_merges(str(text), "a" * 1001, 5, Silent())
