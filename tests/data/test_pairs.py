"""Pairs: every kind of source, every kind of broken one, and a split in which no source stands on both sides."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from nextile.base.errors import NextileError, UsageError
from nextile.data import pairs
from nextile.data.pairs import PairCorpus, Pairs, are_pairs, open_pairs, split_pairs

DATA = Path(os.environ.get("NEXTILE_DATA", "data")) / "multi30k"
TWO = [("a", "A"), ("b", "B")]


def write(path: Path, data: bytes | str) -> str:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def table(rows: list[tuple[str, str]], end: str = "\n") -> str:
    return "".join(f"{source}\t{target}{end}" for source, target in rows)


def column(rows: list[tuple[str, str]], side: int, end: str = "\n") -> str:
    return "".join(row[side] + end for row in rows)


def aligned(folder: Path, left: bytes | str, right: bytes | str) -> list[str]:
    return [write(folder / "x.en", left), write(folder / "x.de", right)]


def read(corpus: PairCorpus) -> list[tuple[str, str]]:
    """The pairs, after a look at what is said of them."""
    assert check(corpus.pairs) == list(corpus.pairs)
    return list(corpus.pairs)


def check(side: Pairs) -> list[tuple[str, str]]:
    found = list(side)
    assert len(side) == len(found)
    assert side.source_bytes == sum(len(source.encode()) for source, _ in found)
    assert side.target_bytes == sum(len(target.encode()) for _, target in found)
    assert side.bytes == side.source_bytes + side.target_bytes
    return found


def problem(*sources: str | Path) -> str:
    with pytest.raises(NextileError) as caught:
        open_pairs([str(source) for source in sources])
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what can be opened --------------------------------------------------------------------------------------------


def test_a_table_and_two_files_are_the_same_pairs(tmp_path):
    rows = [("ein Haus", "a house"), (" größer ", "\u2028bigger\x0b\x85"), ("a", "a\rb")]
    for number, end in enumerate(("\n", "\r\n")):
        one = open_pairs([write(tmp_path / f"{number}.tsv", table(rows, end))])
        two = open_pairs(aligned(tmp_path, column(rows, 0, end), column(rows, 1, end)))
        assert read(one) == read(two) == rows
        assert one.fingerprint == two.fingerprint
        assert two.name == f"{tmp_path}/x.en + {tmp_path}/x.de"
        assert (one.skipped, one.builtin) == (0, False)


def test_the_last_line_needs_no_end(tmp_path):
    assert read(open_pairs([write(tmp_path / "x.TSV", "a\tA\nb\tB")])) == TWO
    assert read(open_pairs(aligned(tmp_path, "a\nb", "A\nB\n"))) == TWO


def test_a_byte_order_mark_is_dropped_at_the_start_only(tmp_path):
    assert read(open_pairs([write(tmp_path / "x.tsv", "\ufeffa\t\ufeffA\n\ufeffb\tB")])) == [
        ("a", "\ufeffA"),
        ("\ufeffb", "B"),
    ]
    assert read(open_pairs(aligned(tmp_path, "\ufeffa\nb", "\ufeffA\r\nB"))) == TWO


def test_packed_and_plain_are_the_same_pairs(tmp_path):
    plain = open_pairs([write(tmp_path / "x.tsv", table(TWO))])
    packed = open_pairs([write(tmp_path / "x.tsv.gz", gzip.compress(table(TWO).encode()))])
    mixed = open_pairs([write(tmp_path / "x.txt.gz", gzip.compress(b"a\nb")), write(tmp_path / "x", "A\nB")])
    assert read(plain) == read(packed) == read(mixed) == TWO
    assert plain.fingerprint == packed.fingerprint == mixed.fingerprint


def test_tabs_are_text_in_two_files(tmp_path):
    corpus = open_pairs(aligned(tmp_path, "a\tb\nc", "d\ne\tf\t"))
    assert read(corpus) == [("a\tb", "d"), ("c", "e\tf\t")]


def test_lines_that_are_empty_on_both_sides_are_skipped_and_counted(tmp_path):
    one = open_pairs([write(tmp_path / "x.tsv", "\n\na\tA\n \t \n\t\t\t\r\nb\tB\n\n")])
    two = open_pairs(aligned(tmp_path, "\n\na\n \n\t\r\nb\n\n", "\n\nA\n\n\r\nB\n\n"))
    assert (one.skipped, two.skipped) == (5, 5)
    assert read(one) == read(two) == TWO
    assert one.fingerprint == two.fingerprint


def test_fingerprints_tell_apart_what_is_read(tmp_path):
    contents = [("a\tb\nx", "c\nx"), ("a\nx", "b\tc\nx"), ("x\na", "x\nb"), ("a\nx", "b\nx"), ("b\nx", "a\nx")]
    assert len({open_pairs(aligned(tmp_path, *sides)).fingerprint for sides in contents}) == len(contents)


# No line end within a text, and nothing that drops out at the end of a line.
TEXT = st.text(st.characters(exclude_characters="\t\n\0", codec="utf-8"), min_size=1, max_size=20)
SIDE = TEXT.filter(lambda text: text.strip() and not text.endswith("\r"))


@given(st.lists(st.tuples(SIDE, SIDE), min_size=2, max_size=8), st.sampled_from(["\n", "\r\n"]), st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_whatever_it_is(tmp_path, rows, end, packed):
    def packing(text: str) -> bytes:
        return gzip.compress(("\ufeff" + text).encode()) if packed else ("\ufeff" + text).encode()

    suffix = ".gz" * packed
    one = open_pairs([write(tmp_path / f"x.tsv{suffix}", packing(table(rows, end)))])
    names = [write(tmp_path / f"x.{side}{suffix}", packing(column(rows, side, end))) for side in (0, 1)]
    two = open_pairs(names)
    assert read(one) == read(two) == rows
    assert one.fingerprint == two.fingerprint


@given(st.binary(max_size=60), st.binary(max_size=60))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_pairs_or_one_line_of_error(tmp_path, left, right):
    for sources in ([write(tmp_path / "x.tsv", left)], aligned(tmp_path, left, right)):
        try:
            corpus = open_pairs(sources)
        except NextileError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert len(read(corpus)) >= 2


def test_a_long_file_is_not_held(tmp_path):
    path = write(tmp_path / "x.tsv", f"{'some words ' * 50}\t{'and others ' * 50}\n" * 5000)  # 5.5 MB
    tracemalloc.start()
    try:
        corpus = open_pairs([path])
        assert sum(1 for _ in corpus.pairs) == 5000
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_reading_needs_no_torch(tmp_path):
    path = write(tmp_path / "x.tsv", table(TWO))
    code = (
        "import sys; from nextile.data import pairs\n"
        "pairs.open_pairs(sys.argv[1:]); assert not {'torch', 'num2words'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, path], check=True)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs Multi30k below NEXTILE_DATA")
def test_multi30k():
    corpus = open_pairs([str(DATA / "train.en"), str(DATA / "train.de")])
    assert (len(corpus.pairs), corpus.skipped) == (29_000, 0)
    assert next(iter(corpus.pairs))[0] == "Two young, White males are outside near many bushes."


# --- which arguments mean pairs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sources", [["a", "b"], ["x.en", "x.de"], ["x.tsv"], ["X.TSV"], ["x.tsv.gz"], ["numbers-en-de"], ["a", "b", "c"]]
)
def test_these_mean_pairs(sources):
    assert are_pairs(sources)


@pytest.mark.parametrize("sources", [[], ["x.txt"], ["python-docs"], ["-"], ["folder"], ["tsv"], ["x.tsv.txt"]])
def test_these_do_not(sources):
    assert not are_pairs(sources)


def test_a_file_wins_over_built_in_pairs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "numbers-en-de", "mine")
    assert not are_pairs(["numbers-en-de"])
    assert problem("numbers-en-de").startswith("'numbers-en-de' is one side of pairs, or none: give a .tsv")


# --- what is built in ----------------------------------------------------------------------------------------------


def test_numbers_without_their_library(monkeypatch):
    pairs._numbers_en_de.cache_clear()
    monkeypatch.setitem(sys.modules, "num2words", None)
    assert problem("numbers-en-de") == "numbers-en-de needs num2words: pip install 'nextile[mt]'"


def test_numbers():
    corpus = open_pairs(["numbers-en-de"])
    spelled = dict(read(corpus))
    assert (len(corpus.pairs), len(spelled), len(set(spelled.values()))) == (10_000, 10_000, 10_000)
    assert (corpus.name, corpus.builtin, corpus.skipped) == ("numbers-en-de", True, 0)
    assert spelled["forty-two"] == "zweiundvierzig"
    assert spelled["zero"] == "null"
    assert spelled["nine hundred and ninety-nine"] == "neunhundertneunundneunzig"
    assert sum("thousand" in source for source in spelled) == 9000
    first = [source for source, _ in corpus.pairs][:100]
    assert 1 <= sum("thousand" not in source for source in first) < 50  # mixed


def test_numbers_are_the_same_in_every_process():
    code = "from nextile.data.pairs import open_pairs; print(open_pairs(['numbers-en-de']).fingerprint)"
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == open_pairs(["numbers-en-de"]).fingerprint


# --- what cannot ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "'{}' is empty: give some pairs"),
        ("\ufeff", "'{}' holds nothing but white space"),
        ("\n\t\n", "'{}' holds nothing but white space"),
        ("a\tb\n\n", "'{}' has 1 pair: at least 2 are needed"),
        ("a\tb\rc\td\r", "line 1 of '{}' has 3 columns instead of 2"),  # the line ends of old Macs
        (
            table(TWO) + "c\n",
            "line 3 of '{}' has 1 column instead of 2: write the source, one tab, and its translation",
        ),
        (table(TWO) + "c\tC\td\n", "line 3 of '{}' has 3 columns instead of 2"),
        (table(TWO) + "\nc\t\n", "line 4 of '{}' has no target for its source: write it there, or remove the other"),
        (table(TWO) + " \tC", "line 3 of '{}' has no source for its target"),
        (b"a\tA\nb\t\xe4\n", "line 2 of '{}' is not valid UTF-8 (byte 2 of the line): convert the file to UTF-8"),
        (b"a\tA\nb\t\xe4\xb8", "line 2 of '{}' is not valid UTF-8 (byte 2 of the line)"),
        (b"a\tA\nb\t\0", "'{}' is binary, not text (a zero byte at offset 6): give UTF-8 text"),
        (table(TWO).encode("utf-16"), "'{}' is UTF-16: convert it to UTF-8"),
        (table(TWO).encode("utf-16-le"), "'{}' is binary, not text (a zero byte at offset 1)"),
        (table(TWO) + "c" * 2**20 + "\tC", "line 3 of '{}' is longer than 1,048,576 bytes: give one sentence a line"),
    ],
)
def test_bad_tables(tmp_path, data, message):
    path = write(tmp_path / "x.tsv", data)
    assert problem(path).startswith(message.format(path))


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        ("a\nb\nc", "A\nB", "'{0}' has 3 lines and '{1}' 2: it lacks line 3; give files in which the same lines say"),
        ("a\nb\n", "A\nB\n\nC\nD", "'{1}' has 5 lines and '{0}' 2: it lacks line 3;"),
        ("a\n" * 1234, "A\n", "'{0}' has 1,234 lines and '{1}' 1: it lacks line 2;"),
        ("a\nb\n", "", "'{0}' has 2 lines and '{1}' 0: it lacks line 1;"),
        ("", "", "'{0} + {1}' is empty"),
        ("\n \n", "\n\n", "'{0} + {1}' holds nothing but white space"),
        ("a\n\n", "A\n\n", "'{0} + {1}' has 1 pair: at least 2 are needed"),
        ("a\n\nc", "A\nB\nC", "line 2 of '{0}' has no source for its target"),
        ("a\nb\nc", "A\nB\n \n", "line 3 of '{1}' has no target for its source"),
        ("a\nb", b"A\n\xff\n", "line 2 of '{1}' is not valid UTF-8 (byte 0 of the line)"),
        ("a\nb", b"A\nB\0\n", "'{1}' is binary, not text (a zero byte at offset 3)"),
        ("a\nb", "A\nB".encode("utf-16"), "'{1}' is UTF-16"),
        ("a\nb", "A\n" + "B" * 2**21, "line 2 of '{1}' is longer than 1,048,576 bytes"),
    ],
)
def test_bad_files(tmp_path, left, right, message):
    names = aligned(tmp_path, left, right)
    assert problem(*names).startswith(message.format(*names))


def test_a_line_without_end_is_refused_unread(tmp_path):
    bomb = write(tmp_path / "x.tsv.gz", gzip.compress(b"a" * 2**26))
    tracemalloc.start()
    try:
        assert problem(bomb).startswith(f"line 1 of '{bomb}' is longer than")
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_broken_packing(tmp_path):
    path = write(tmp_path / "x.tsv.gz", gzip.compress(table(TWO * 100).encode())[:-10])
    assert problem(path).startswith(f"'{path}' is a broken .gz file (Compressed file ended")


def test_missing_sources_offer_the_nearest_name(tmp_path):
    here = write(tmp_path / "train.en", "a\nb")
    assert problem(here, tmp_path / "trin.en") == f"'{tmp_path}/trin.en' does not exist: did you mean '{here}'?"
    assert problem("number-en-de.tsv").endswith("did you mean 'numbers-en-de'?")
    assert problem(tmp_path / "qqq", here).endswith(
        "give a .tsv, two files whose lines belong together, or one of numbers-en-de"
    )
    assert "does not exist" in problem("x" * 5000 + ".tsv")
    assert "'numbers-en-de' does not exist: give" in problem("numbers-en-de", here)


def test_what_is_no_file(tmp_path):
    (tmp_path / "folder.tsv").mkdir()
    assert problem(tmp_path / "folder.tsv").startswith(f"'{tmp_path}/folder.tsv' is a folder: give a .tsv, two files")
    os.mkfifo(tmp_path / "pipe.en")
    assert "is not a regular file: pairs are read again and again" in problem(
        tmp_path / "pipe.en", tmp_path / "pipe.en"
    )


def test_unreadable_files(tmp_path, monkeypatch):
    path = write(tmp_path / "x.tsv", table(TWO))

    def refuse(name, *_):
        raise PermissionError(13, "Permission denied", str(name))

    monkeypatch.setattr("builtins.open", refuse)
    assert problem(path) == f"cannot read '{path}': Permission denied"


def test_sources_that_are_not_two_sides(tmp_path):
    one = write(tmp_path / "x.tsv", table(TWO))
    for sources in ([], [one] * 3, [one, one]):
        with pytest.raises(UsageError, match=r"give (a|one) \.tsv"):
            open_pairs(sources)
    assert "not 3: give" in problem("a", "b", "c")
    assert "is one side of pairs, or none" in problem(write(tmp_path / "x.txt", "text"))


@pytest.mark.parametrize("later", ["a\tA\nb\tBB\n", "a\tA\nb\tB\nc\tC\n", "a\tA\n", "a\tA\nb\t\n", ""])
def test_pairs_that_change_while_they_are_read(tmp_path, later):
    path = write(tmp_path / "x.tsv", table(TWO))
    corpus = open_pairs([path])
    assert read(corpus) == TWO
    write(Path(path), later)
    with pytest.raises(NextileError):
        list(corpus.pairs)


# --- the split -----------------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path):
    """Two thousand pairs of a thousand sources, most of which come more than once."""
    rows = [(f"söurce {i * i % 1499}", f"target {i}") for i in range(2000)]
    return open_pairs([write(tmp_path / "many.tsv", table(rows))])


def test_no_source_stands_on_both_sides(many):
    train, held = map(check, split_pairs(many))
    assert sorted(train + held) == sorted(many.pairs)
    assert not {source for source, _ in train} & {source for source, _ in held}
    sources = {source for source, _ in many.pairs}
    assert len({source for source, _ in held}) == round(0.1 * len(sources)) == 75
    assert len(held) > 75
    places = [int(target.split()[1]) for _, target in held]
    assert places == sorted(places)  # the order stays
    assert places[0] < 200
    assert places[-1] > 1800  # from everywhere


def test_the_choice_is_a_function_of_the_seed(many, tmp_path):
    def held(corpus: PairCorpus, *args) -> list[tuple[str, str]]:
        return sorted(check(split_pairs(corpus, *args)[1]))

    assert held(many) == held(many, 0.1, 0)
    assert held(many, 0.1, 1) != held(many)
    assert len(held(many, 0.5)) > 4 * len(held(many))
    turned = open_pairs([write(tmp_path / "turned.tsv", table(list(many.pairs)[::-1]))])
    assert held(turned) == held(many)


@given(st.lists(st.tuples(SIDE, SIDE), min_size=2, max_size=8), st.floats(0.001, 0.999), st.integers(0, 5))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_side_is_empty_however_few_there_are(tmp_path, rows, fraction, seed):
    assume(len({source for source, _ in rows}) > 1)
    path = write(tmp_path / "few.tsv", ("\ufeff" + table(rows)).encode())
    train, held = map(check, split_pairs(open_pairs([path]), fraction, seed))
    assert train
    assert held
    assert sorted(train + held) == sorted(rows)
    assert not {source for source, _ in train} & {source for source, _ in held}


def test_a_split_that_leaves_nothing(tmp_path):
    corpus = open_pairs([write(tmp_path / "x.tsv", "a\tA\na\tB\na\tC\n")])
    with pytest.raises(
        NextileError, match=r"all 3 pairs of .* have the same source, so none .*: give pairs with other"
    ):
        split_pairs(corpus)
    for fraction in (0, 1, -1, float("nan")):
        with pytest.raises(UsageError, match="is not between 0 and 1"):
            split_pairs(corpus, fraction)
