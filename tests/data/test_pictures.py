"""Pictures: every kind of source, every kind of broken one, and a split that has its share of every class."""

from __future__ import annotations

import io
import json
import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nextile.base.errors import NextileError, UsageError
from nextile.data import pictures, tables
from nextile.data.pictures import PictureCorpus, are_pictures, open_pictures, split_pictures
from nextile.images.pixels import read_image


def encoded(shade: int = 0, size: tuple[int, int] = (6, 4), mode: str = "RGB", kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, shade if mode == "L" else (shade, 0, 0)).save(file, kind)
    return file.getvalue()


def put(path: Path, data: bytes | str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = encoded() if data is None else data
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def folder(top: Path, **counts: int) -> Path:
    """A folder of each class with that many pictures."""
    for name, count in counts.items():
        (top / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            put(top / name / f"{number}.png", encoded(number))
    return top


def column(pictures: list, labels: list | None, kind: pa.DataType | None = None) -> pa.Table:
    """A table of pictures, bytes or {"bytes": ..., "path": ...}, and their labels."""
    images = [{"bytes": each, "path": None} if isinstance(each, bytes) else each for each in pictures]
    columns = {"image": pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()}))}
    return pa.table(columns if labels is None else columns | {"label": pa.array(labels, kind)})


def parquet(path: Path, labels: list | None, *, rows: int = 3, kind: pa.DataType | None = None, **about) -> Path:
    """A file of red pictures, the i-th with i in it."""
    table = column([encoded(i) for i in range(len(labels or range(10)))], labels, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(about or None), path, row_group_size=rows)
    return path


def named(*names: str) -> dict[str, str]:
    """What the `datasets` library leaves in a schema."""
    return {"huggingface": json.dumps({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}})}


def opened(path: Path | str, labelled: bool = True) -> PictureCorpus:
    corpus = open_pictures([str(path)], labelled)
    assert len(corpus) == len(corpus.labels)
    assert corpus.labels.dtype == np.int64
    assert corpus.labels.max() < max(1, len(corpus.classes))
    return corpus


def names(corpus: PictureCorpus) -> list[str]:
    return [corpus.source(i)[1] for i in range(len(corpus))]


def shade(corpus: PictureCorpus, index: int) -> int:
    return read_image(*corpus.source(index)).getpixel((0, 0))[0]


def problem(path: Path | str, labelled: bool = True) -> str:
    with pytest.raises(NextileError) as caught:
        opened(path, labelled)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- a folder ------------------------------------------------------------------------------------------------------


def test_a_folder_of_class_folders(tmp_path):
    top = folder(tmp_path / "pets", dog=3, cat=2)
    corpus = opened(top)
    assert corpus.classes == ("cat", "dog")
    assert corpus.labels.tolist() == [0, 0, 1, 1, 1]
    assert names(corpus) == [
        str(top / name) for name in ("cat/0.png", "cat/1.png", *(f"dog/{i}.png" for i in range(3)))
    ]
    assert [shade(corpus, i) for i in range(5)] == [0, 1, 0, 1, 2]
    assert (corpus.name, corpus.side, corpus.grey, corpus.note) == (str(top), 4, False, None)


def test_suffixes_in_capitals_and_pictures_at_any_depth_are_taken_and_hidden_ones_are_not(tmp_path):
    top = folder(tmp_path / "t", a=1)
    put(top / "b" / "deep" / "deeper" / "X.JPeG", encoded(kind="JPEG"))
    for hidden in (".git/x.png", "b/.x.png", "a/.thumbs/x.png"):
        put(top / hidden)
    assert names(opened(top)) == [str(top / "a" / "0.png"), str(top / "b/deep/deeper/X.JPeG")]


def test_what_is_left_out_is_said(tmp_path):
    top = folder(tmp_path / "t", a=2, b=1, empty=0, other=0)
    for name in ("notes.txt", "a/table.csv", "other/x.pdf", "README.md", "labels.txt"):
        put(top / name, "text")
    corpus = opened(top)
    assert corpus.classes == ("a", "b")
    assert (
        corpus.note == "2 folders without pictures left out: empty, other; 3 files without a picture's suffix ignored"
    )


def test_unlabelled_pictures_lie_anywhere(tmp_path):
    top = folder(tmp_path / "t", a=1, b=1, empty=0)
    put(top / "x.png")
    corpus = opened(top, labelled=False)
    assert names(corpus) == [str(top / name) for name in ("a/0.png", "b/0.png", "x.png")]
    assert (corpus.classes, corpus.labels.tolist(), corpus.note) == ((), [-1, -1, -1], None)


def test_pictures_in_no_class_folder_are_an_error_that_shows_the_layout(tmp_path):
    top = folder(tmp_path / "t", a=1, b=1)
    put(top / "stray.png")
    assert problem(top) == (
        f"'{top}' has pictures that are in no class folder (stray.png): put each into the folder of its class, "
        f"like {top}/cat/1.png and {top}/dog/1.png"
    )


def test_parts_of_a_data_set_are_not_taken_for_classes(tmp_path):
    for part in ("test", "Train"):
        folder(tmp_path / "t" / part, a=1, b=1)
    assert problem(tmp_path / "t").endswith(
        f"parts of a data set (Train, test), to be trained on apart: give '{tmp_path}/t/Train'"
    )
    assert opened(tmp_path / "t" / "Train").classes == ("a", "b")
    folder(tmp_path / "vehicles", train=1, car=1)
    assert opened(tmp_path / "vehicles").classes == ("car", "train")


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    outside = folder(tmp_path / "outside", a=2)
    top = folder(tmp_path / "t", a=1, b=1)
    (top / "a" / "out.png").symlink_to(outside / "a" / "0.png")
    (top / "a" / "within.png").symlink_to(top / "b" / "0.png")
    (top / "a" / "loop.png").symlink_to(top / "a" / "loop.png")
    (top / "c").symlink_to(outside / "a")
    (top / "up").symlink_to(top)
    corpus = opened(top)
    assert [Path(name).name for name in names(corpus)] == ["0.png", "within.png", "0.png"]
    assert corpus.note == "4 links out of the folder, or to folders, not followed"


def test_a_pipe_that_is_named_like_a_picture_is_not_waited_for(tmp_path):
    top = folder(tmp_path / "t", a=1, b=1)
    os.mkfifo(top / "a" / "x.png")
    os.mkfifo(top / "x.parquet")
    assert len(opened(top)) == 2
    assert are_pictures([str(top)])


def test_names_that_break_a_line_or_are_no_text(tmp_path):
    top = folder(tmp_path / "t", a=1, b=1)
    put(top / "a" / "x\n\x1b[1m.png")
    assert names(opened(top))[1] == str(top / "a" / "x\\n\\x1b[1m.png")
    put(Path(os.fsdecode(os.fsencode(top) + b"/\xff/0.png")))
    assert "has a class named '\\udcff': give it a name to be read in one line" in problem(top)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "has no pictures in it: put files of these kinds there: .png .jpg"),
        ({"a": 0}, "has no pictures in it"),
        ({"a": 1, "b": 0}, "has 1 picture: at least 2 are needed"),
        ({"a": 3, "b": 0}, "all 3 pictures of"),
    ],
)
def test_too_little_to_learn_from(tmp_path, counts, message):
    (tmp_path / "t").mkdir()
    assert message in problem(folder(tmp_path / "t", **counts))


def test_one_class_is_enough_without_labels(tmp_path):
    assert "are of the class 'a': give some of another class" in problem(folder(tmp_path / "t", a=3))
    assert len(opened(tmp_path / "t", labelled=False)) == 3


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(pictures.os, "scandir", refused)
    assert problem(tmp_path) == f"cannot read '{tmp_path}': Permission denied"


# --- sizes and colours ---------------------------------------------------------------------------------------------


def test_the_side_is_the_median_of_the_shorter_sides(tmp_path):
    for number, size in enumerate([(8, 30), (30, 8), (50, 9), (1, 1), (100, 200)]):
        put(tmp_path / "t" / "ab"[number % 2] / f"{number}.png", encoded(size=size))
    assert opened(tmp_path / "t").side == 8


def test_pictures_are_grey_when_all_of_them_are(tmp_path):
    for name in "ab":
        put(tmp_path / "t" / name / "0.png", encoded(mode="L"))
    assert opened(tmp_path / "t").grey
    put(tmp_path / "t" / "a" / "1.png")
    assert not opened(tmp_path / "t").grey


def test_only_headers_of_a_few_pictures_are_read(tmp_path, monkeypatch):
    top = folder(tmp_path / "t", a=150, b=50)
    looked: list[Path | bytes] = []
    header = pictures._header
    monkeypatch.setattr(pictures, "_header", lambda source: looked.append(source) or header(source))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("a picture was decoded"))
    assert opened(top).side == 4
    assert len(set(looked)) == 64
    assert looked[0] == top / "a" / "0.png"
    assert {path.parent.name for path in looked if isinstance(path, Path)} == {"a", "b"}


def test_what_is_no_picture_does_not_count_for_the_side(tmp_path):
    put(tmp_path / "t" / "a" / "text.png", "this is text")
    put(tmp_path / "t" / "a" / "cut.jpg", encoded(kind="JPEG")[:20])
    put(tmp_path / "t" / "b" / "good.png", encoded(size=(20, 30)))
    assert opened(tmp_path / "t").side == 20
    (tmp_path / "t" / "b" / "good.png").write_bytes(b"")
    assert "none of 3 pictures looked at in" in problem(tmp_path / "t")


# --- Parquet -------------------------------------------------------------------------------------------------------


def test_a_parquet_file_across_its_row_groups_in_any_order(tmp_path):
    path = parquet(tmp_path / "x.parquet", [0, 1, 2, 1, 0, 2, 2, 1, 0, 0])
    corpus = opened(path)
    assert (corpus.classes, corpus.labels.tolist()) == (("0", "1", "2"), [0, 1, 2, 1, 0, 2, 2, 1, 0, 0])
    assert names(corpus)[7] == f"{path} row 7"
    for index in (*range(10), *range(9, -1, -1), 4, 4, 3, 9, 0):
        assert shade(corpus, index) == index
    assert (corpus.side, corpus.grey, corpus.note) == (4, False, None)


def test_a_block_may_be_smaller_than_a_row_group(tmp_path, monkeypatch):
    path = parquet(tmp_path / "x.parquet", [0, 1, 2, 1, 0, 2, 2, 1, 0, 0], rows=7)
    monkeypatch.setattr(tables, "BLOCK", 200)
    corpus = opened(path)
    assert corpus.labels.tolist() == [0, 1, 2, 1, 0, 2, 2, 1, 0, 0]
    for index in (0, 5, 6, 7, 9, 2, 1, 8):
        assert shade(corpus, index) == index


def test_a_large_row_group_is_not_held(tmp_path):
    noise = np.random.default_rng(0).bytes(2**20)
    table = column([encoded() + noise[i:] for i in range(64)], [0, 1] * 32)  # 64 MB
    pq.write_table(table, tmp_path / "x.parquet", use_dictionary=False, data_page_size=2**20)
    corpus = opened(tmp_path / "x.parquet")
    del table
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    try:
        most = 0
        for index in range(64):
            assert len(corpus.source(index)[0]) > 2**19
            most = max(most, pa.total_allocated_bytes() - before)
        assert most < 2.5 * tables.BLOCK
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.dictionary(pa.int8(), pa.int32())])
def test_numbers_of_any_type_are_labels(tmp_path, kind):
    corpus = opened(parquet(tmp_path / "x.parquet", [7, 30, 7, 4], kind=kind))
    assert (corpus.classes, corpus.labels.tolist()) == (("4", "7", "30"), [1, 2, 1, 0])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_names_are_labels(tmp_path, kind):
    put(tmp_path / "labels.txt", "unused\n")
    corpus = opened(parquet(tmp_path / "x.parquet", ["dog", "cat", "dog", "ant"], kind=kind))
    assert (corpus.classes, corpus.labels.tolist()) == (("ant", "cat", "dog"), [2, 1, 2, 0])


def test_names_of_classes_from_the_file_or_else_beside_it(tmp_path):
    put(tmp_path / "labels.txt", "\ufeffred fox\r\ngrün\n\n")
    corpus = opened(parquet(tmp_path / "x.parquet", [1, 0, 1]))
    assert (corpus.classes, corpus.labels.tolist()) == (("red fox", "grün"), [1, 0, 1])
    corpus = opened(parquet(tmp_path / "y.parquet", [1, 0, 1], **named("ape", "bee", "cow")))
    assert (corpus.classes, corpus.labels.tolist()) == (("ape", "bee", "cow"), [1, 0, 1])


@pytest.mark.parametrize("about", ["{", "[" * 100_000, "3", '{"info": {"features": {"label": {"names": [1, 2]}}}}'])
def test_what_the_schema_says_of_something_else_is_ignored(tmp_path, about):
    assert opened(parquet(tmp_path / "x.parquet", [1, 0, 1], huggingface=about)).classes == ("0", "1")


@pytest.mark.parametrize("text", ["a\n\nb", "a\nb\na", "", "a\nb\x1b[2J", f"a\n{'b' * 2000}"])
def test_labels_that_are_no_names(tmp_path, text):
    put(tmp_path / "labels.txt", text)
    assert f"'{tmp_path}/labels.txt' has " in problem(parquet(tmp_path / "x.parquet", [1, 0]))


def test_names_beside_that_are_no_text_or_lead_away(tmp_path):
    path = parquet(tmp_path / "t" / "x.parquet", [1, 0])
    put(tmp_path / "t" / "labels.txt", b"a\n\xff\n")
    assert "give the name of a class a line, in UTF-8" in problem(path)
    (tmp_path / "t" / "labels.txt").unlink()
    (tmp_path / "t" / "labels.txt").symlink_to(put(tmp_path / "names.txt", "a\nb"))
    assert "is a link that leaves its folder" in problem(path)


@pytest.mark.parametrize(
    ("labels", "about", "message"),
    [
        ([0, 1, 0, 1, 2], named("a", "b"), "row 4 has the label 2, but only the classes 0 to 1 have names"),
        ([0, 1, 0, 1, 2**62], named("a", "b"), "row 4 has the label 4611686018427387904, but only"),
        ([0, 1, 1, -1, 0], {}, "row 3 has the label -1: classes are numbered from 0 up"),
        ([0, 1, 1, -1, 0], named("a", "b"), "row 3 has the label -1: classes are numbered from 0 up"),
        ([0, 1, 1, 0, None], {}, "row 4 has no label: give it one, or remove the row"),
        (["a", None, "b"], {}, "row 1 has no label"),
    ],
)
def test_a_label_that_is_none(tmp_path, labels, about, message):
    path = parquet(tmp_path / "x.parquet", labels, **about)
    assert problem(path).startswith(f"'{path}' {message}")
    assert len(opened(path, labelled=False)) == len(labels)


def test_labels_of_names_that_cannot_be_shown(tmp_path):
    assert "has a class named 'a\\nb'" in problem(parquet(tmp_path / "x.parquet", ["a\nb", "c"]))


def test_columns_that_are_missing_or_of_another_type(tmp_path):
    for columns in (
        {"img": [b"x"], "label": [1]},
        {"image": [b"x"], "fine_label": [1]},
        {"image": [b"x"], "label": [0.5]},
    ):
        pq.write_table(pa.table(columns), tmp_path / f"{'-'.join(columns)}.parquet")
    assert "has no column 'image' (it has img, label): name one so" in problem(tmp_path / "img-label.parquet")
    assert "has no column 'label' (it has image, fine_label)" in problem(tmp_path / "image-fine_label.parquet")
    assert "column 'label' of" in problem(tmp_path / "image-label.parquet")
    pq.write_table(pa.table({"image": ["text"], "label": [1]}), tmp_path / "x.parquet")
    assert "is string: give the bytes of pictures, or a struct of bytes and path" in problem(tmp_path / "x.parquet")


def test_pictures_as_plain_bytes(tmp_path):
    table = pa.table({"image": pa.array([encoded(5), encoded(6), None], pa.large_binary()), "label": [0, 1, 0]})
    pq.write_table(table, tmp_path / "x.parquet")
    corpus = opened(tmp_path / "x.parquet")
    assert [shade(corpus, i) for i in range(2)] == [5, 6]
    assert corpus.source(2) == (b"", f"{tmp_path}/x.parquet row 2")


def test_a_row_that_names_a_file_and_one_that_leads_out_of_the_folder(tmp_path):
    put(tmp_path / "t" / "in" / "a.png", encoded(9))
    put(tmp_path / "out.png")
    (tmp_path / "t" / "link.png").symlink_to(tmp_path / "out.png")
    hostile = ["../out.png", str(tmp_path / "out.png"), "link.png", "none.png", "in", "", "a\0b", "x" * 5000, None]
    table = column([{"bytes": encoded(8), "path": "../out.png"}], None)
    paths = [{"bytes": None, "path": path} for path in ["in/a.png", *hostile]]
    table = pa.concat_tables([table, column([*paths, None], None)])
    pq.write_table(table, tmp_path / "t" / "x.parquet")
    corpus = opened(tmp_path / "t" / "x.parquet", labelled=False)
    assert corpus.source(0) == (encoded(8), f"{tmp_path}/t/x.parquet row 0")
    assert corpus.source(1) == (tmp_path / "t" / "in" / "a.png", f"{tmp_path}/t/x.parquet row 1 (in/a.png)")
    assert {corpus.source(i)[0] for i in range(2, len(corpus))} == {b""}


def test_several_files_are_read_as_one(tmp_path):
    for number in range(2):
        parquet(tmp_path / f"train-{number}.parquet", [0, 1, 2, 3][: 2 + 2 * number])
    put(tmp_path / "labels.txt", "a\nb\nc\nd")
    corpus = opened(tmp_path)
    assert corpus.labels.tolist() == [0, 1, 0, 1, 2, 3]
    assert corpus.classes == ("a", "b", "c", "d")
    assert [shade(corpus, index) for index in (5, 1, 4, 0, 3)] == [3, 1, 2, 0, 1]
    assert names(corpus)[4] == f"{tmp_path}/train-1.parquet row 2"
    assert corpus.note == "2 Parquet files read as one: train-0.parquet, train-1.parquet"


def test_files_that_do_not_belong_together(tmp_path):
    parquet(tmp_path / "train.parquet", [0, 1])
    parquet(tmp_path / "test.parquet", [0, 1])
    assert f"to be trained on apart: give '{tmp_path}/train.parquet'" in problem(tmp_path)
    parquet(tmp_path / "a" / "0.parquet", [0, 1], **named("x", "y"))
    parquet(tmp_path / "a" / "1.parquet", [0, 1], **named("y", "x"))
    assert "name their classes differently" in problem(tmp_path / "a")
    parquet(tmp_path / "b" / "0.parquet", [0, 1])
    parquet(tmp_path / "b" / "1.parquet", ["0", "1"])
    assert "has labels of several types" in problem(tmp_path / "b")


def test_a_file_that_is_no_parquet_or_is_cut_or_damaged(tmp_path):
    path = parquet(tmp_path / "x.parquet", [0, 1, 0, 1, 0, 1, 0, 1, 0, 1])
    data = path.read_bytes()
    for broken in (b"", b"PAR1", b"text" * 100, data[:-1], data[: len(data) // 2]):
        path.write_bytes(broken)
        assert problem(path).startswith(f"cannot read '{path}' (")
    path.write_bytes(data[:100] + bytes(60) + data[160:])
    assert problem(path).startswith(f"cannot read '{path}' (")


@given(st.integers(0, 2**32), st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_any_damage_is_pictures_or_one_line_of_error(tmp_path_factory, place, value):
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    parquet(path, [0, 1, 0, 1, 0, 1])
    data = bytearray(path.read_bytes())
    data[place % len(data)] = value
    path.write_bytes(data)
    try:
        corpus = opened(path)
        assert len(names(corpus)) == len(corpus)
    except NextileError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_rows_that_a_file_merely_claims(tmp_path, monkeypatch):
    path = parquet(tmp_path / "x.parquet", [0, 1, 0])
    with pytest.raises(NextileError, match="is too small for the 1,125,899,906,842,624 rows that it claims"):
        tables.refuse_false_counts(path, [2**50])
    with pytest.raises(NextileError, match="is too small for"):
        tables.refuse_false_counts(path, [-1, 4])
    tables.refuse_false_counts(path, [3])


def test_without_pyarrow_a_parquet_file_says_what_to_install(tmp_path, monkeypatch):
    path = parquet(tmp_path / "x.parquet", [0, 1])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert are_pictures([str(path)])
    assert problem(path) == "Parquet files need pyarrow: pip install 'nextile[images]'"


# --- built in ------------------------------------------------------------------------------------------------------


def test_the_digits_of_scikit_learn(tmp_path, monkeypatch):
    from sklearn.datasets import load_digits

    monkeypatch.chdir(tmp_path)
    corpus, digits = opened("digits"), load_digits()
    assert (len(corpus), corpus.classes, corpus.side, corpus.grey) == (1797, tuple("0123456789"), 8, True)
    assert np.array_equal(corpus.labels, digits.target)
    data, name = corpus.source(1796)
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.mode, picture.format, name) == ("L", "PNG", "digits 1796")
        assert np.abs(np.asarray(picture) / 255 * 16 - digits.images[1796]).max() < 0.04
        assert np.asarray(picture).max() == 255
    assert opened("digits", labelled=False).classes == ()


def test_a_folder_wins_over_the_built_in_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert are_pictures(["digits"])
    assert len(opened(folder(Path("digits"), a=1, b=1))) == 2


@pytest.mark.parametrize(
    ("module", "message"), [("sklearn", "digits needs scikit-learn"), ("PIL", "pictures need Pillow")]
)
def test_without_a_library_the_digits_say_what_to_install(tmp_path, monkeypatch, module, message):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert problem("digits") == f"{message}: pip install 'nextile[images]'"


# --- what can be opened --------------------------------------------------------------------------------------------


def test_what_does_not_exist(tmp_path):
    folder(tmp_path / "pets", a=1, b=1)
    assert problem(tmp_path / "petz") == f"'{tmp_path}/petz' does not exist: did you mean '{tmp_path}/pets'?"
    assert problem("digit") == "'digit' does not exist: did you mean 'digits'?"
    assert problem("x" * 5000).endswith("give a folder of pictures, a .parquet file or 'digits'")


def test_a_file_that_is_no_collection(tmp_path):
    assert "is no collection of pictures: give a folder" in problem(put(tmp_path / "x.png"))
    os.mkfifo(tmp_path / "x.parquet")
    assert "is not a regular file" in problem(tmp_path / "x.parquet")


def test_more_sources_than_one():
    for sources in ([], ["a", "b"]):
        with pytest.raises(UsageError, match=f"pictures come from one source, not {len(sources)}: give a folder"):
            open_pictures(sources, labelled=True)


def test_what_is_taken_for_pictures(tmp_path):
    folder(tmp_path / "classes", a=0, b=1)
    put(tmp_path / "classes" / "README.md", "about")
    put(tmp_path / "flat" / "x.WEBP", "")
    parquet(tmp_path / "tables" / "0.parquet", [0, 1])
    put(tmp_path / "tables" / "labels.txt", "a\nb")
    put(tmp_path / "broken.parquet", "not Parquet")
    for name in ("classes", "flat", "tables", "tables/0.parquet", "broken.parquet", "missing.parquet"):
        assert are_pictures([str(tmp_path / name)]), name
    assert are_pictures(["digits"])


def test_what_is_not_taken_for_pictures(tmp_path):
    put(tmp_path / "texts" / "x.txt", "text")
    put(tmp_path / "mixed" / "x.png")
    put(tmp_path / "mixed" / "x.txt", "text")
    put(tmp_path / "below" / "a" / "x.md", "text")
    put(tmp_path / "deep" / "a" / "b" / "x.png")
    (tmp_path / "empty").mkdir()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "x.parquet")
    put(tmp_path / "x.png")
    for name in ("texts", "mixed", "below", "deep", "empty", "x.parquet", "x.png", "none"):
        assert not are_pictures([str(tmp_path / name)]), name
    for sources in ([], ["digits", "digits"], ["-"], ["python-docs"], ["x" * 5000]):
        assert not are_pictures(sources)


def test_a_look_stops_at_the_first_folder_that_shows_what_it_is(tmp_path, monkeypatch):
    folder(tmp_path / "t", **{f"c{i}": 1 for i in range(30)})
    scanned: list[Path] = []
    scan = pictures._scan
    monkeypatch.setattr(pictures, "_scan", lambda path: scanned.append(path) or scan(path))
    assert are_pictures([str(tmp_path / "t")])
    assert scanned == [tmp_path / "t", tmp_path / "t" / "c0"]


# --- the split -----------------------------------------------------------------------------------------------------


def labelled(sizes: list[int]) -> PictureCorpus:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.random.default_rng(0).permutation(labels)
    return PictureCorpus("x", tuple(map(str, range(len(sizes)))), labels, lambda i: (b"", ""), 8, True)


def held(corpus: PictureCorpus, fraction: float, seed: int = 0) -> list[int]:
    """How many of each class are held out, after a look at both sides."""
    train, validation = split_pictures(corpus, fraction, seed)
    assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(len(corpus)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()
    return np.bincount(corpus.labels[validation], minlength=len(corpus.classes)).tolist()


@pytest.mark.parametrize(
    ("sizes", "fraction", "expected"),
    [
        ([50, 50], 0.1, [5, 5]),
        ([100, 10, 50], 0.1, [10, 1, 5]),
        ([30, 4, 6], 0.1, [3, 1, 1]),  # 4 in all, and everyone gets one
        ([95, 5], 0.1, [9, 1]),  # 9.5 and 0.5
        ([2, 2, 2, 2], 0.1, [1, 0, 0, 0]),  # 1 in all: the fraction does not allow more
        ([1, 9], 0.5, [0, 5]),
        ([1, 1, 8], 0.9, [0, 0, 7]),
        ([3, 3], 0.99, [2, 2]),
        ([2], 0.001, [1]),
    ],
)
def test_each_class_has_its_share(sizes, fraction, expected):
    assert held(labelled(sizes), fraction) == expected


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.floats(0.01, 0.99), st.integers(-5, 2**70))
@settings(max_examples=200, deadline=None)
def test_shares_of_uneven_classes(sizes, fraction, seed):
    corpus, most = labelled(sizes), np.array(sizes) - 1
    if not most.any():
        with pytest.raises(NextileError, match="has one picture of each class, so none can be held out"):
            split_pictures(corpus, fraction, seed)
        return
    counts, total = np.array(held(corpus, fraction, seed)), round(fraction * len(corpus))
    assert (counts <= most).all()
    assert (np.abs(counts - fraction * np.array(sizes)) <= 1.0 + 1e-9).all()
    if (most > 0).sum() <= total:
        assert (counts[most > 0] > 0).all()


def test_a_split_depends_on_the_seed_alone():
    corpus = labelled([40, 60])
    first = split_pictures(corpus, 0.2, 7)
    assert all(np.array_equal(*sides) for sides in zip(first, split_pictures(labelled([40, 60]), 0.2, 7), strict=True))
    assert not np.array_equal(first[1], split_pictures(corpus, 0.2, 8)[1])


def test_a_split_never_changes_between_versions():
    """A run resumed by a later version must hold out the same pictures."""
    assert split_pictures(labelled([10, 20]), 0.2, 0)[1].tolist() == [0, 6, 8, 11, 15, 18]


def test_pictures_without_a_class_are_split_too():
    corpus = PictureCorpus("x", (), np.full(50, -1), lambda i: (b"", ""), 8, True)
    train, validation = split_pictures(corpus, 0.1, 0)
    assert (len(train), len(validation)) == (45, 5)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 2])
def test_a_fraction_that_is_none(fraction):
    with pytest.raises(UsageError, match="is not between 0 and 1"):
        split_pictures(labelled([5, 5]), fraction, 0)
