"""Labelled texts: every kind of source, every kind of broken one, a fair split, and batches that repeat exactly."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from nextile.base.errors import NextileError, UsageError
from nextile.data import labelled
from nextile.data.labelled import (
    POOL,
    LabelledBatches,
    LabelledStore,
    all_texts,
    are_labelled,
    chosen_texts,
    load_labels,
    named_as_labelled,
    open_labelled,
    refuse_one_class,
    renumbered,
    save_labels,
    split_labelled,
    widths,
)
from nextile.data.shards import write_store
from nextile.text.frame import Frame

ROWS = [("good, and long", "pos"), ('a "bad"\nthing', "neg"), ("größer \x0b", "pos")]


def write(path: Path, data: bytes | str) -> str:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def lines(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(path: Path, rows, header=("text", "label")) -> str:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def problem(path: str) -> str:
    with pytest.raises(NextileError) as caught:
        open_labelled([path])
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what can be opened --------------------------------------------------------------------------------------------


def test_a_table_and_lines_are_the_same_texts(tmp_path):
    one = open_labelled([write(tmp_path / "x.jsonl", lines(*({"text": text, "label": name} for text, name in ROWS)))])
    two = open_labelled([table(tmp_path / "x.csv", [(name, "9", text) for text, name in ROWS], ("label", "n", "text"))])
    for corpus in (one, two):
        assert list(corpus) == [text for text, _ in ROWS]
        assert list(corpus) == [text for text, _ in ROWS]  # again
        assert (corpus.classes, corpus.labels.tolist(), corpus.skipped) == (("neg", "pos"), [1, 0, 1], 0)
    assert one.hashes.tolist() == two.hashes.tolist()


def test_packed_files_marks_of_order_and_windows_lines_are_read(tmp_path):
    data = b"\xef\xbb\xbf" + b"text,label\r\n\r\na,x\r\n\r\nb,y\r\n"
    (tmp_path / "x.CSV.gz").write_bytes(gzip.compress(data))
    corpus = open_labelled([str(tmp_path / "x.CSV.gz")])
    assert (list(corpus), corpus.classes) == (["a", "b"], ("x", "y"))


def test_labels_are_strings_numbers_and_booleans(tmp_path):
    values = [10, 2, 2.0, 0.5, True, " b ", "false", False]
    path = write(tmp_path / "x.jsonl", lines(*({"text": f"t{i}", "label": v} for i, v in enumerate(values))))
    corpus = open_labelled([path])
    assert corpus.classes == ("2", "10", "0.5", "b", "false", "true")
    assert [corpus.classes[number] for number in corpus.labels] == [
        "10",
        "2",
        "2",
        "0.5",
        "true",
        "b",
        "false",
        "false",
    ]


def test_rows_without_a_text_are_left_out_and_counted(tmp_path):
    corpus = open_labelled([table(tmp_path / "x.csv", [("a", "x"), (" \n", "y"), ("b", "x")])])
    assert (list(corpus), corpus.classes, corpus.skipped) == (["a", "b"], ("x",), 1)


def test_the_built_in_texts_are_three_classes_and_the_same_each_time(monkeypatch):
    monkeypatch.setattr(labelled, "EACH", 30)
    labelled._python_lines.cache_clear()
    corpus = open_labelled(["python-labels"])
    first = list(corpus)
    assert Counter(corpus.labels.tolist()) == {0: 30, 1: 30, 2: 30}
    assert corpus.classes == ("code", "comment", "documentation")
    labelled._python_lines.cache_clear()
    assert list(open_labelled(["python-labels"])) == first
    labelled._python_lines.cache_clear()


def test_what_is_in_a_line_of_source_is_told_apart():
    source = b'"""About it."""\n\n# a comment\nx = 1 + 2  # beside\ny = x + 3\nz = "text"\n'
    assert list(labelled._lines_of_source(source)) == [
        ("documentation", "About it."), ("comment", "a comment"), ("code", "y = x + 3")
    ]  # fmt: skip
    assert list(labelled._lines_of_source(b"x = (")) == []


def test_labelled_texts_are_known_by_what_is_there(tmp_path):
    both = write(tmp_path / "both.jsonl", "\n" + lines({"text": "a", "label": "x"}))
    text = write(tmp_path / "text.jsonl", lines({"text": "a"}, {"text": "a", "label": "x"}))
    rows = write(tmp_path / "any.csv", "a,b\n")
    for path, found in ((both, True), (text, False), (rows, True), ("python-labels", True)):
        assert are_labelled([path]) is found
        assert named_as_labelled([path])
    for path in (str(tmp_path), "x.txt", str(tmp_path / "none.csv"), write(tmp_path / "broken.jsonl", "{")):
        assert not are_labelled([path])
    assert not are_labelled([both, both])
    with pytest.raises(UsageError, match="one source, not 2"):
        open_labelled([both, both])


# --- hostile input --------------------------------------------------------------------------------------------------

GOOD = '{"text": "a", "label": "x"}\n'
BROKEN = {
    "no label": (GOOD + '{"text": "b"}', 'line 2 of .* has no "label"'),
    "no text": (GOOD + '{"label": "b"}', 'line 2 of .* has no "text"'),
    "no object": (GOOD + '"text label"', "line 2 of .* is a string: each line"),
    "no json": (GOOD + "{", "line 2 of .* is not valid JSON"),
    "deep": (GOOD + "[" * 100_000, "line 2 of .* is not valid JSON"),
    "a number as text": ('{"text": 3, "label": "b"}', '"text" is a number, not a string'),
    "no name": (GOOD + '{"text": "a", "label": " "}', "line 2 of .*: the label is empty"),
    "null": (GOOD + '{"text": "a", "label": null}', "line 2 of .*: the label is null"),
    "a list": (GOOD + '{"text": "a", "label": ["x"]}', "line 2 of .*: the label is a list"),
    "nan": ('{"text": "a", "label": NaN}', "line 1 of .*: the label is nan"),
    "a long name": (json.dumps({"text": "a", "label": "x" * 1001}), "line 1 of .* has a class named"),
    "a name of two lines": (json.dumps({"text": "a", "label": "x\ny"}), "line 1 of .* has a class named"),
    "half a pair": ('{"text": "\\ud800", "label": "x"}', "line 1 of .* holds half of a surrogate pair"),
    "ids": (
        lines(*({"id": i % 2, "text": "a", "label": "x"} for i in range(3))),
        "line 3 of .* has the id 0 of line 1",
    ),
    "latin 1": (GOOD.encode() + b'{"text": "\xe9", "label": "x"}', "line 2 of .* is not valid UTF-8 .byte 10"),
    "utf 16": (GOOD.encode("utf-16"), "line 1 of .* is UTF-16"),
    "nul": (GOOD.encode() + b"\0", "line 2 of .* is binary"),
    "nothing": ("\n\n", "holds no texts"),
}


@pytest.mark.parametrize(("data", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_lines_are_an_error_in_one_line(tmp_path, data, message):
    path = write(tmp_path / "x.jsonl", data)
    with pytest.raises(NextileError, match=message):
        open_labelled([path])
    assert "x.jsonl" in problem(path)


TABLES = {
    "no column": ("text,labels\na,x\n", r"line 1 of .* names no column 'label' \(its columns: text, labels\)"),
    "semicolons": ("text;label\na;x\n", "names no column 'text'"),
    "nothing at all": ("", "names no column 'text'"),
    "a column twice": ("text,label,text\na,x,b\n", "line 1 of .* names the column 'text' twice"),
    "a comma too many": ("text,label\na,x\na,b,x\n", "line 3 of .* has 3 fields and the header 2"),
    "no name": ("text,label\n\na,\n", "line 3 of .*: the label is empty"),
    "ids": ('id,text,label\n7,"a\nb",x\n7,a,x\n', "line 4 of .* has the id 7 of line 2"),
    "nul": ("text,label\na\0,x\n", "line 2 of .* is binary, not text"),
    "latin 1": (b"text,label\n\xe9,x\n", "line 2 of .* is not valid UTF-8"),
    "an open quote": ('text,label\na,x\n"b,x\n' + "c,x\n" * 9, "line 3 of .* is no row of a .csv"),
    "an open quote in a long table": ('text,label\n"b,x\n' + "c,x\n" * 90_000, "line 2 of .* is no row of a .csv"),
    "a quote inside": ('text,label\n"a"b,x\n', "line 2 of .* is no row of a .csv"),
    "a long field": ("text,label\na,x\n" + "a" * 140_000 + ",x\n", "line 3 of .* is no row of a .csv .field larger"),
}


@pytest.mark.parametrize(("data", "message"), TABLES.values(), ids=TABLES)
def test_a_broken_table_is_an_error_in_one_line(tmp_path, data, message):
    path = write(tmp_path / "x.csv", data)
    with pytest.raises(NextileError, match=message):
        open_labelled([path])
    assert "x.csv" in problem(path)


def test_a_field_of_a_hundred_megabytes_is_never_held(tmp_path):
    path = tmp_path / "x.csv"
    with open(path, "wb") as file:
        file.write(b"text,label\n")
        file.truncate(100 * 2**20)  # zeros that take no room
    assert "line 2" in problem(str(path))
    packed = tmp_path / "y.csv.gz"
    packed.write_bytes(gzip.compress(b"text,label\n" + b"a" * (16 * 2**20), 1))
    assert "line 2 of" in problem(str(packed))
    assert "longer than 4,194,304 bytes" in problem(str(packed))


def test_a_row_of_many_lines_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(labelled, "LONGEST", 1000)
    path = write(tmp_path / "x.csv", "text,label\na,x\n" + '"a\n",' * 300)
    assert "line 3 of" in problem(path)
    assert "is longer than 1,000 bytes" in problem(path)
    assert "line 31 of" in problem(write(tmp_path / "y.csv", "text,label\n" + "b,x\n" * 29 + '"a\n",' * 300))


def test_what_is_no_file_of_texts_is_said(tmp_path):
    assert "did you mean" in problem(write(tmp_path / "x.csv", "") and str(tmp_path / "y.csv"))
    assert "not a regular file" in problem(str(tmp_path))
    assert "another suffix" in problem(write(tmp_path / "x.txt", "a"))


def test_one_class_and_unknown_classes_are_refused(tmp_path):
    corpus = open_labelled([table(tmp_path / "x.csv", [("a", "x"), ("b", "x")])])
    with pytest.raises(NextileError, match=r"all 2 texts of .* have the label 'x': give a second one"):
        refuse_one_class(corpus)
    moved = renumbered(corpus, ("w", "x"))
    assert (moved.classes, moved.labels.tolist()) == (("w", "x"), [1, 1])
    with pytest.raises(NextileError, match="has the label 'x', which is none of w"):
        renumbered(corpus, ("w",))


def test_a_file_that_changes_is_noticed(tmp_path):
    path = table(tmp_path / "x.csv", [("a", "x"), ("b", "y")])
    corpus = open_labelled([path])
    table(tmp_path / "x.csv", [("a", "x"), ("c", "y")])
    with pytest.raises(NextileError, match="changed while it was being read"):
        list(corpus)


# --- the split ------------------------------------------------------------------------------------------------------


def test_each_class_gives_its_share_and_no_text_stands_on_both_sides(tmp_path):
    rows = [(f"text {i % 150}", "many") for i in range(200)] + [(f"rare {i}", "few") for i in range(10)]
    corpus = open_labelled([table(tmp_path / "x.csv", [*rows, ("text 3", "few"), ("one", "single")])])
    for seed in range(5):
        train, held = split_labelled(corpus, 0.2, seed)
        assert (train ^ held).all()
        assert not set(chosen_texts(corpus, train)) & set(chosen_texts(corpus, held))
        counts = {name: sum(corpus.labels[held] == number) for number, name in enumerate(corpus.classes)}
        assert counts["few"] in (2, 3)  # with a text that stands among the many as well
        assert 30 <= counts["many"] <= 60
        assert counts["single"] == 0
    held = split_labelled(corpus, 0.2, seed=1)[1]
    assert (split_labelled(corpus, 0.2, seed=1)[1] == held).all()
    assert (split_labelled(corpus, 0.2, seed=2)[1] != held).any()


def test_a_split_that_leaves_nothing_is_refused(tmp_path):
    corpus = open_labelled([table(tmp_path / "x.csv", [("a", "x"), ("b", "y"), ("a", "x")])])
    with pytest.raises(NextileError, match="one text of each label"):
        split_labelled(corpus)
    with pytest.raises(UsageError, match="not between 0 and 1"):
        split_labelled(corpus, 1.0)


# --- labels on disk -------------------------------------------------------------------------------------------------


def test_labels_come_back_and_broken_ones_are_an_error(tmp_path):
    path = tmp_path / "labels.json"
    save_labels(path, np.array([1, 0, 1]), ("a", "b"))
    labels, classes = load_labels(path, 3)
    assert (labels.tolist(), classes) == ([1, 0, 1], ("a", "b"))
    with pytest.raises(NextileError, match="classes of 4 texts"):
        load_labels(path, 4)
    for broken in ("{", '{"classes": ["a"], "labels": [0, "x"]}', '{"classes": ["a"], "labels": [0, 1, 0]}'):
        path.write_text(broken)
        with pytest.raises(NextileError, match="train anew from the texts"):
            load_labels(path, 3)


# --- batches --------------------------------------------------------------------------------------------------------


def store(folder: Path, begin: int | None = None, count: int = 100) -> LabelledStore:
    """Texts of 1 to 40 tokens, the i-th of tokens that say i, of three classes."""
    random = np.random.default_rng(0)
    texts = [np.full(random.integers(1, 41), 10 + i) for i in range(count)]
    tokens = write_store(folder / "s", texts, vocab_size=200, end_id=0, meta={"text_bytes": 1})
    return LabelledStore(tokens, np.arange(count) % 3, 3, Frame(() if begin is None else (begin,), (0,)))


def test_a_text_without_a_frame_is_itself_and_nothing_is_the_end(tmp_path):
    tokens = write_store(tmp_path / "s", [np.array([5, 6]), np.array([], int)], vocab_size=9, end_id=0, meta={})
    texts = LabelledStore(tokens, np.array([0, 1]), 2, Frame())
    assert [texts.row(index, 9) for index in (0, 1)] == [[5, 6], [0]]
    assert texts.lengths.tolist() == [2, 1]
    framed = LabelledStore(tokens, np.array([0, 1]), 2, Frame((7,), (8, 0)))
    assert [framed.row(index, 4) for index in (0, 1)] == [[7, 5, 8, 0], [7, 8, 0]]
    assert framed.lengths.tolist() == [5, 3]


def test_a_batch_holds_its_texts_their_mask_and_their_classes(tmp_path):
    batch = store(tmp_path, begin=1).batch(np.array([4, 7]), 30, 32)
    [segments] = batch.beside
    assert batch.inputs.shape == segments.shape == (2, 32)
    for row, mask, number in zip(batch.inputs, segments, (4, 7), strict=True):
        text = row[mask.bool()].tolist()
        assert (text[0], text[-1]) == (1, 0)
        assert set(text[1:-1]) == {10 + number}
        assert mask.tolist() == [1] * len(text) + [0] * (32 - len(text))
    assert batch.targets.tolist() == [[0, 1, 0], [0, 1, 0]]
    assert batch.weight == 2


def test_every_text_comes_once_an_epoch_among_texts_of_like_lengths(tmp_path):
    texts = store(tmp_path, count=4 * POOL)
    batches = LabelledBatches(texts, context=40, batch=4, seed=3)
    epochs = [np.concatenate([batches.chosen(step) for step in range(POOL * e, POOL * e + POOL)]) for e in range(2)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(4 * POOL))
    assert epochs[0].tolist() != epochs[1].tolist()
    spread = [np.ptp(texts.lengths[batches.chosen(step)]) for step in range(POOL)]
    assert np.mean(spread) < 4  # of 40; at random about 24
    longest = [texts.lengths[batches.chosen(step)].max() for step in range(POOL)]
    assert sorted(longest) != longest


def test_a_batch_is_a_function_of_seed_and_step(tmp_path):
    texts = store(tmp_path)
    late = LabelledBatches(texts, context=24, batch=6, seed=3).rows(77)
    batches = LabelledBatches(texts, context=24, batch=6, seed=3)
    for step in (0, 78, 76):
        batches.rows(step)
    again = batches.micro(77, 3)
    assert torch.equal(torch.cat([part.inputs for part in again]), late.inputs)
    assert torch.equal(torch.cat([part.beside[0] for part in again]), late.beside[0])
    other = LabelledBatches(texts, context=24, batch=6, seed=4).chosen(77)
    assert other.tolist() != batches.chosen(77).tolist()


def test_batches_have_few_shapes(tmp_path):
    texts = store(tmp_path)
    batches = LabelledBatches(texts, context=36, batch=6, seed=0)
    seen = {batches.rows(step).inputs.shape[1] for step in range(2 * POOL)}
    assert seen <= set(widths(texts.lengths, 36))
    assert 2 <= len(seen) <= 4
    assert max(seen) == 36
    assert widths(np.array([3, 3, 3]), 40) == [8]


def test_all_texts_come_once_in_batches_of_few_tokens(tmp_path):
    texts = store(tmp_path)
    order, batches = all_texts(texts, 24, 100)
    batches = list(batches)
    assert sorted(order.tolist()) == list(range(100))
    assert [int(batch.inputs[row, 0]) - 10 for batch in batches for row in range(len(batch.inputs))] == order.tolist()
    assert all(batch.inputs.numel() <= 100 for batch in batches)
    assert max(batch.inputs.shape[1] for batch in batches) == 24
    assert sum(batch.weight for batch in batches) == 100
