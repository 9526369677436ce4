"""Corpora: every kind of source, every kind of broken one, and a split that loses nothing."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nextile.base.errors import NextileError, UsageError
from nextile.data import corpora
from nextile.data.corpora import Corpus, open_corpus, split


def texts(corpus: Corpus) -> list[str]:
    assert list(corpus.documents) == list(corpus.documents)
    return list(corpus.documents)


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def jsonl(*documents: object) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in documents)


def problem(source: str | Path, **options) -> str:
    with pytest.raises(NextileError) as caught:
        open_corpus(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what can be opened --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.txt", "x.md", "x.rst", "x.py", "X.TXT"])
def test_a_text_file_is_one_document_as_it_is(tmp_path, name):
    text = "Größe\r\nzwei\n\n"
    corpus = open_corpus(write(tmp_path / name, text))
    assert texts(corpus) == [text]
    assert (len(corpus.documents), corpus.bytes, corpus.documents.characters) == (1, len(text.encode()), len(text))
    assert not corpus.builtin


def test_a_byte_order_mark_is_dropped_at_the_start_only(tmp_path):
    assert texts(open_corpus(write(tmp_path / "x.txt", "\ufeffab\ufeffc"))) == ["ab\ufeffc"]
    assert texts(open_corpus(write(tmp_path / "x.jsonl", "\ufeff" + jsonl("ab")))) == ["ab"]


def test_packed_and_plain_are_the_same_corpus(tmp_path):
    for suffix, data in {".txt": "some text ä", ".jsonl": jsonl("one", "two")}.items():
        plain = open_corpus(write(tmp_path / f"x{suffix}", data))
        packed = open_corpus(write(tmp_path / f"x{suffix}.gz", gzip.compress(data.encode())))
        assert texts(plain) == texts(packed)
        assert plain.fingerprint == packed.fingerprint


@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_characters_across_chunks(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(corpora, "CHUNK", chunk)
    text = "aä€😀" * 5
    assert texts(open_corpus(write(tmp_path / "x.txt", "\ufeff" + text))) == [text]


def test_json_lines_are_documents_and_blank_ones_are_left_out(tmp_path):
    data = '{"text": "one\\ntwo", "id": 1}\r\n\n{"text": " \\n"}\n{"text": ""}\n{"text": "\\u00e4\\ud83d\\ude00"}'
    corpus = open_corpus(write(tmp_path / "x.jsonl", data))
    assert texts(corpus) == ["one\ntwo", "ä😀"]
    assert (len(corpus.documents), corpus.bytes) == (2, 7 + 6)


def test_a_folder_is_read_whole_in_the_order_of_its_paths(tmp_path):
    write(tmp_path / "b.txt", "B")
    write(tmp_path / "a" / "z.jsonl", jsonl("Z1", "Z2"))
    write(tmp_path / "a" / "empty.py", "")
    write(tmp_path / "a-.txt", "A-")
    write(tmp_path / "c.txt.gz", gzip.compress(b"C"))
    write(tmp_path / ".hidden.txt", "no")
    write(tmp_path / ".git" / "x.txt", "no")
    write(tmp_path / "picture.png", b"\0")
    assert texts(open_corpus(tmp_path)) == ["Z1", "Z2", "A-", "B", "C"]


def test_links_in_a_folder_are_followed_once(tmp_path):
    inner = tmp_path / "inner"
    write(inner / "x.txt", "one")
    for name in ("loop", "twice", "thrice"):  # 3^40 paths before the system gives up
        (inner / name).symlink_to(tmp_path)
    (inner / "self").symlink_to("self")
    (tmp_path / "dangling.txt").symlink_to("none")
    (tmp_path / "link.txt").symlink_to(write(tmp_path.parent / "outside.txt", "two"))
    assert texts(open_corpus(tmp_path)) == ["one", "two"]


def test_standard_input_can_be_read_again():
    corpus = open_corpus("-", stdin=io.BytesIO("läse\n".encode()))
    assert texts(corpus) == ["läse\n"]
    assert corpus.name == "standard input"


def test_standard_input_is_the_default_of_minus():
    code = "from nextile.data.corpora import open_corpus; print(list(open_corpus('-').documents))"
    run = subprocess.run([sys.executable, "-c", code], input=b"abc", capture_output=True, check=True)
    assert run.stdout.decode().strip() == "['abc']"


def test_the_python_documentation():
    corpus = open_corpus("python-docs")
    documents = texts(corpus)
    assert corpus.builtin
    assert corpus.bytes == sum(len(text.encode()) for text in documents) > 300_000
    assert any("dictionary" in text for text in documents)


def test_the_standard_library():
    corpus = open_corpus("python-stdlib")
    documents = texts(corpus)
    assert corpus.bytes > 5_000_000
    assert any("class JSONDecoder" in text for text in documents)
    assert not any("class JSONTestObject" in text for text in documents)  # test/test_json


def test_a_file_wins_over_a_built_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "python-docs" / "x.txt", "mine")
    corpus = open_corpus("python-docs")
    assert (texts(corpus), corpus.builtin) == (["mine"], False)


def test_fingerprints_tell_apart_what_is_read(tmp_path):
    contents = [("ab", "c"), ("a", "bc"), ("abc",), ("c", "ab")]
    paths = [write(tmp_path / f"{i}.jsonl", jsonl(*documents)) for i, documents in enumerate(contents)]
    assert len({open_corpus(path).fingerprint for path in paths}) == len(paths)
    again = write(tmp_path / "again.jsonl", jsonl("ab", " ", "c"))
    assert open_corpus(again).fingerprint == open_corpus(paths[0]).fingerprint


def test_reading_needs_no_torch(tmp_path):
    path = write(tmp_path / "x.txt", "text")
    code = (
        "import sys; from nextile.data import corpora, shards\n"
        "corpora.open_corpus(sys.argv[1]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, path], check=True)


# --- what cannot ---------------------------------------------------------------------------------------------------


def test_missing_sources_offer_the_nearest_name(tmp_path):
    write(tmp_path / "book.txt", "text")
    assert problem(tmp_path / "bok.txt") == f"'{tmp_path}/bok.txt' does not exist: did you mean '{tmp_path}/book.txt'?"
    assert problem("python-doc").endswith("did you mean 'python-docs'?")
    assert problem(tmp_path / "qqq").endswith("give a file, a folder, '-' or one of python-docs, python-stdlib")
    assert "does not exist" in problem(tmp_path / "none" / "x.txt")
    assert "does not exist" in problem("x" * 5000)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.txt", "", "is empty"),
        ("x.txt", "\ufeff", "is empty"),
        ("x.txt.gz", "", "is empty"),
        ("x.jsonl", "\n\n", "is empty"),
        ("x.txt", " \n\t", "holds nothing but white space"),
        ("x.jsonl", jsonl(" ", "\n"), "holds nothing but white space"),
        ("x.txt", "ä", "has 1 character: at least 2 are needed"),
        ("x.txt", b"abc\0def", "is binary, not text (a zero byte at offset 3)"),
        ("x.txt", "text".encode("utf-16"), "is UTF-16: convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"),
        ("x.txt", b"abc\xffdef", "is not valid UTF-8 (byte 3)"),
        ("x.txt", b"abc\xe4\xb8", "is not valid UTF-8 (byte 3)"),
        ("x.txt.gz", b"not packed", "is a broken .gz file (Not a gzipped file"),
        ("x.txt.gz", gzip.compress(b"text" * 100)[:-10], "is a broken .gz file (Compressed file ended"),
        ("x.txt.gz", gzip.compress(b"text")[:-8] + b"\0" * 8, "is a broken .gz file (CRC check failed"),
        ("x.jsonl", jsonl("a") + '{"text": \n', "line 2 is not valid JSON"),
        ("x.jsonl", jsonl("a") + "\n" + '{"txt": "b"}', 'line 3 has no "text" field'),
        ("x.jsonl", "[1]", 'line 1 has no "text" field'),
        ("x.jsonl", jsonl("a", 3), 'line 2: "text" is a number, not a string'),
        ("x.jsonl", jsonl(None), 'line 1: "text" is null, not a string'),
        ("x.jsonl", '{"text": "\\ud800"}', 'line 1: "text" holds half of a surrogate pair'),
        ("x.jsonl", b'{"text": "\xff"}', "line 1 is not valid UTF-8 (byte 10 of the line)"),
        ("x.jsonl", "[" * 100_000, "line 1 is not valid JSON"),
        ("x.pdf", "text", "has an unsupported suffix: rename it to one of .txt .md .rst .py .txt.gz .jsonl .jsonl.gz"),
        ("x", "text", "has an unsupported suffix"),
        ("x.gz", "text", "has an unsupported suffix"),
    ],
)
def test_bad_files(tmp_path, name, data, message):
    path = write(tmp_path / name, data)
    assert problem(path).startswith(f"'{path}' {message}")


def test_offsets_count_from_the_start_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "CHUNK", 4)
    assert "(byte 7)" in problem(write(tmp_path / "x.txt", b"abcdefg\xe4\xb8x"))
    assert "offset 9" in problem(write(tmp_path / "x.txt", b"abcdefghi\0"))


def test_one_bad_file_of_a_folder_is_named(tmp_path):
    write(tmp_path / "a.txt", "fine")
    bad = write(tmp_path / "b.txt", b"\xff")
    assert problem(tmp_path).startswith(f"'{bad}' is not valid UTF-8 (byte 0)")


def test_a_folder_without_text(tmp_path):
    write(tmp_path / "x.png", b"")
    assert problem(tmp_path).startswith(f"'{tmp_path}' has no text in it: put files of these kinds there: .txt")


def test_empty_standard_input():
    assert problem("-", stdin=io.BytesIO(b"")) == "'standard input' is empty: give some text to learn from"


def test_a_pipe_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "x.txt")
    assert "is not a regular file: pipe it into standard input and give '-'" in problem(tmp_path / "x.txt")


def test_unreadable_files_and_folders(tmp_path, monkeypatch):
    path = write(tmp_path / "x.txt", "text")

    def refuse(name, *_):
        raise PermissionError(13, "Permission denied", str(name))

    monkeypatch.setattr("builtins.open", refuse)
    assert problem(path) == f"cannot read '{path}': Permission denied"
    monkeypatch.setattr(corpora.os, "scandir", refuse)
    assert problem(tmp_path) == f"cannot read '{tmp_path}': Permission denied"


def test_a_small_packed_file_that_unpacks_to_more_than_the_memory(tmp_path, monkeypatch):
    path = write(tmp_path / "x.txt.gz", gzip.compress(b"a" * 10**6))
    assert path.stat().st_size < 2000
    monkeypatch.setattr(corpora, "memory_available", lambda: 10**6)
    assert "has a document of 1,000,000 bytes, too much for 1,000,000 bytes of free memory" in problem(path)


def test_a_text_that_changes_while_it_is_read(tmp_path):
    path = write(tmp_path / "x.txt", "some text")
    corpus = open_corpus(path)
    write(path, "another text")
    with pytest.raises(NextileError, match="the text changed while it was being read"):
        list(corpus.documents)


# --- the split -----------------------------------------------------------------------------------------------------


def sides(corpus: Corpus, *args) -> tuple[list[str], list[str]]:
    train, held = split(corpus, *args)
    for side in (train, held):
        read = list(side)
        assert list(side) == read
        assert len(side) == len(read)
        assert side.bytes == len("".join(read).encode())
        assert side.characters == len("".join(read))
    return list(train), list(held)


@pytest.fixture
def many(tmp_path):
    """A thousand documents of 1 to 40 words."""
    return open_corpus(write(tmp_path / "many.jsonl", jsonl(*(f"döc {i} " * (1 + i % 40) for i in range(1000)))))


def test_whole_documents_are_held_out(many):
    train, held = sides(many)
    assert sorted(train + held) == sorted(many.documents)
    assert 0.095 < len("".join(held).encode()) / many.bytes <= 0.1
    assert train == [text for text in many.documents if text in set(train)]  # the order stays
    numbers = sorted(int(text.split()[1]) for text in held)
    assert numbers[0] < 100
    assert numbers[-1] > 900  # from everywhere


def test_the_choice_is_a_function_of_the_seed(many):
    assert sides(many) == sides(many)
    assert sides(many, 0.1, 1) != sides(many)
    assert len(sides(many, 0.3)[1]) > 2 * len(sides(many)[1])


def test_the_choice_does_not_depend_on_the_order_of_the_documents(many, tmp_path):
    turned = open_corpus(write(tmp_path / "turned.jsonl", jsonl(*reversed(list(many.documents)))))
    assert sorted(sides(turned)[1]) == sorted(sides(many)[1])


def test_one_document_is_cut_at_a_character(tmp_path):
    text = "äb€" * 333 + "x"
    corpus = open_corpus(write(tmp_path / "x.txt", text))
    assert sides(corpus) == ([text[:900]], [text[900:]])
    assert sides(corpus, 0.25) == ([text[:750]], [text[750:]])


@pytest.mark.parametrize(
    ("fraction", "train", "held"),
    [
        (0.1, ["aaaa", "bbbb", "cccccc", "dddd"], ["dd"]),
        (0.3, ["aaaa", "bbbb", "cccccc"], ["dddddd"]),
        (0.25, ["aaaa", "bbbb", "cccccc", "d"], ["ddddd"]),
        (0.4, ["aaaa", "bbbb", "cccc"], ["cc", "dddddd"]),
    ],
)
def test_few_documents_are_cut_as_one_text(tmp_path, monkeypatch, fraction, train, held):
    monkeypatch.setattr(corpora, "_choose", lambda index, *_: index["bytes"] < 0)  # whatever could be chosen
    corpus = open_corpus(write(tmp_path / "x.jsonl", jsonl("aaaa", "bbbb", "cccccc", "dddddd")))
    assert sides(corpus, fraction) == (train, held)


def test_documents_too_large_to_hold_out_are_cut(tmp_path):
    corpus = open_corpus(write(tmp_path / "x.jsonl", jsonl("a" * 500, "b" * 500)))
    assert sides(corpus) == (["a" * 500, "b" * 400], ["b" * 100])


def test_a_few_small_documents_are_not_enough_to_validate_on(tmp_path):
    corpus = open_corpus(write(tmp_path / "x.jsonl", jsonl("a" * 500, "s" * 10, "b" * 490)))
    assert sides(corpus) == (["a" * 500, "s" * 10, "b" * 390], ["b" * 100])


def test_a_large_document_among_small_ones_is_trained_on(tmp_path):
    small = [f"{i:010}" for i in range(100)]
    corpus = open_corpus(write(tmp_path / "x.jsonl", jsonl(*small, "a" * 1000)))
    for seed in range(20):
        train, held = sides(corpus, 0.1, seed)
        assert (len(train), len(held)) == (81, 20)
        assert set(held) <= set(small)


def test_a_split_that_leaves_nothing(tmp_path):
    corpus = open_corpus(write(tmp_path / "x.txt", "ab"))
    assert sides(corpus) == (["a"], ["b"])
    with pytest.raises(
        NextileError, match=r"' has 2 characters, too few to hold out 0\.9 of them .* give a longer text"
    ):
        split(corpus, 0.9)
    for fraction in (0, 1, -1, float("nan")):
        with pytest.raises(UsageError, match="is not between 0 and 1"):
            split(corpus, fraction)
