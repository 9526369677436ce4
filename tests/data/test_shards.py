"""Token shards: what is written is read, across every border, or the error says which file is wrong."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest

from nextile.base import files
from nextile.base.errors import NextileError
from nextile.data import shards
from nextile.data.shards import halves, open_store, write_store, write_stretch

DOCUMENTS = [np.arange(7), np.array([], dtype=np.uint32), np.arange(300, 311, dtype=np.uint32), np.array([5])]
TOKENS = [*range(7), 9, 9, *range(300, 311), 9, 5, 9]


def write(folder, documents=DOCUMENTS, **changes):
    options = {"vocab_size": 1000, "end_id": 9, "meta": {"text_bytes": 77, "tokenizer": "abc"}, "shard_tokens": 6}
    return write_store(folder, documents, **{**options, **changes})


@pytest.mark.parametrize("shard_tokens", [1, 2, 5, 6, len(TOKENS) - 1, len(TOKENS), 100])
@pytest.mark.parametrize("block", [1, 4, 1000])
def test_every_slice_across_every_border(tmp_path, monkeypatch, shard_tokens, block):
    monkeypatch.setattr(shards, "BLOCK", block)
    store = write(tmp_path / "s", shard_tokens=shard_tokens)
    assert len(store.index.shards) == -(-len(TOKENS) // shard_tokens)
    for a in range(len(TOKENS) + 2):
        for b in range(a - 1, len(TOKENS) + 2):
            assert store[a:b].tolist() == TOKENS[a:b]
    assert store[:].tolist() == TOKENS
    assert store[-3:-1].tolist() == TOKENS[-3:-1]
    assert store[2:4].dtype == np.int64


@pytest.mark.parametrize("shard_tokens", [1, 2, 5, 100])
def test_tokens_by_place_and_where_documents_end(tmp_path, shard_tokens):
    store = write(tmp_path / "s", shard_tokens=shard_tokens)
    places = np.array([[0, len(TOKENS) - 1, 3], [9, 9, 1]])
    assert store.take(places).tolist() == [[TOKENS[place] for place in row] for row in places.tolist()]
    assert store.take(np.empty(0, np.int64)).tolist() == []
    with pytest.raises(IndexError):
        store.take(np.array([len(TOKENS)]))
    assert store.ends().tolist() == [place for place, token in enumerate(TOKENS) if token == 9]


def test_what_is_known_of_a_store(tmp_path):
    write(tmp_path / "s")
    store = open_store(tmp_path / "s", verify=True)
    assert (len(store), store.documents, store.text_bytes) == (len(TOKENS), 4, 77)
    assert (store.vocab_size, store.end_id, store.meta["tokenizer"]) == (1000, 9, "abc")
    assert sorted(os.listdir(tmp_path / "s"))[:2] == ["index.json", "tokens-00000.bin"]


@pytest.mark.parametrize(("vocab_size", "itemsize"), [(2**16, 2), (2**16 + 1, 4)])
def test_the_largest_id_fits(tmp_path, vocab_size, itemsize):
    store = write(tmp_path / "s", [np.array([vocab_size - 1])], vocab_size=vocab_size)
    assert store[:].tolist() == [vocab_size - 1, 9]
    assert (tmp_path / "s" / "tokens-00000.bin").stat().st_size == 2 * itemsize


@pytest.mark.parametrize("wrong", [-1, 1000])
def test_an_id_outside_the_vocabulary(tmp_path, wrong):
    with pytest.raises(NextileError, match=f"token id {wrong} is not in the vocabulary of 1000"):
        write(tmp_path / "s", [np.array([3, wrong])])
    assert not list(tmp_path.iterdir())


def test_no_documents(tmp_path):
    with pytest.raises(NextileError, match="there are no documents to write"):
        write(tmp_path / "s", [])
    assert not list(tmp_path.iterdir())


def test_writing_streams_and_reads_meta_last(tmp_path):
    meta = {"text_bytes": 0}

    def documents():
        for number in range(20):
            meta["text_bytes"] += 1
            written = sum(path.stat().st_size for path in tmp_path.glob(".s.*.partial/*.bin"))
            assert written >= 2 * shards.BLOCK * (number - 1)  # all but the block in hand is on disk
            yield np.zeros(shards.BLOCK, dtype=np.uint16)

    store = write(tmp_path / "s", documents(), meta=meta, shard_tokens=2**20)
    assert (store.text_bytes, store.documents, len(store)) == (20, 20, 20 * (shards.BLOCK + 1))


def test_a_store_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    write(tmp_path / "s")

    def broken():
        yield np.arange(100)
        raise NextileError("the text changed")

    with pytest.raises(NextileError, match="the text changed"):
        write(tmp_path / "s", broken())
    assert open_store(tmp_path / "s", verify=True)[:].tolist() == TOKENS
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert write(tmp_path / "s", [np.arange(3)])[:].tolist() == [0, 1, 2, 9]


def test_a_full_disk_keeps_the_old_store(tmp_path, monkeypatch):
    write(tmp_path / "s")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(NextileError, match=r"No space left on device.*free some space"):
        write(tmp_path / "s", [np.arange(3)])
    assert open_store(tmp_path / "s", verify=True)[:].tolist() == TOKENS
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


# --- broken stores -------------------------------------------------------------------------------------------------


def problem(folder, **options) -> str:
    with pytest.raises(NextileError) as caught:
        open_store(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_that_is_none(tmp_path):
    assert "is not a folder of tokens (it has no readable index.json)" in problem(tmp_path)
    assert "is not a folder of tokens" in problem(tmp_path / "none")


def test_a_truncated_or_missing_shard(tmp_path):
    write(tmp_path / "s")
    path = tmp_path / "s" / "tokens-00001.bin"
    path.write_bytes(path.read_bytes()[:-1])
    assert problem(tmp_path / "s") == f"'{path}' has 11 bytes instead of 12: tokenize the text again"
    path.unlink()
    assert f"'{path}' is missing" in problem(tmp_path / "s")


def test_a_flipped_bit_is_found_when_asked(tmp_path):
    write(tmp_path / "s")
    path = tmp_path / "s" / "tokens-00002.bin"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    open_store(tmp_path / "s")
    assert problem(tmp_path / "s", verify=True).startswith(f"'{path}' is not what was written (its checksum differs)")


def change(folder, **values) -> None:
    path = folder / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "other 2"}, "is of another format (other 2, uint16): tokenize the text again"),
        ({"dtype": "int8"}, "is of another format (nextile tokens 1, int8)"),
        ({"tokens": 5}, "is broken (its shards do not sum to its tokens)"),
        ({"tokens": "many"}, "is broken (tokens: Input should be a valid integer"),
        ({"shards": [{"name": "../x", "tokens": 23, "checksum": ""}]}, "is not the name of a file in that folder"),
        ({"shards": [{"name": "x", "tokens": 0, "checksum": ""}]}, "is broken (shards.0.tokens"),
    ],
)
def test_a_foreign_index(tmp_path, values, message):
    write(tmp_path / "s")
    change(tmp_path / "s", **values)
    assert message in problem(tmp_path / "s")


def test_an_index_that_is_no_json(tmp_path):
    write(tmp_path / "s")
    (tmp_path / "s" / "index.json").write_text("{")
    assert "is broken (JSON: Invalid JSON" in problem(tmp_path / "s")


# --- a part of a store ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("shard_tokens", [3, 1000])
def test_a_store_falls_apart_where_a_document_begins(tmp_path, fraction, shard_tokens):
    store = write(tmp_path / "whole", shard_tokens=shard_tokens)
    every = store[:]
    head, end = halves(store, fraction, most=10**6)
    assert (head.start, head.stop, end.stop) == (0, end.start, len(store))
    asked = len(store) - int(len(store) * fraction)
    half = asked + (len(store) - asked) // 2
    begins = [place for place in range(asked, half + 1) if every[place - 1] == store.end_id]
    assert end.start == (begins[0] if begins else asked)
    cut = every[end.start - 1] != store.end_id  # a document that is cut counts on both sides
    assert (head.documents + end.documents, head.text_bytes + end.text_bytes) == (store.documents + cut, 77)
    for name, stretch in (("head", head), ("end", end)):
        write_stretch(tmp_path / name, store, stretch)
        part, wanted = open_store(tmp_path / name), every[stretch.start : stretch.stop]
        assert len(part) == len(wanted)
        assert np.array_equal(part[:], wanted)
        assert np.array_equal(part[1:3], wanted[1:3])
        assert np.array_equal(part[-2:], wanted[-2:])
        assert np.array_equal(part.take(np.arange(len(wanted))), wanted)
        assert np.array_equal(part.ends(), np.flatnonzero(wanted == store.end_id))
        assert part.documents == len(part.ends()) + (wanted[-1] != store.end_id)
        assert not list((tmp_path / name).glob("*.bin"))  # nothing was copied


def test_no_more_is_held_out_than_allowed_and_one_document_is_cut(tmp_path):
    store = write(tmp_path / "whole", [np.arange(1, 100) % 7 + 1])
    head, end = halves(store, 0.5, most=10)
    assert end.stop - end.start == 10
    assert (head.documents, end.documents) == (1, 1)


def test_a_document_that_begins_near_the_end_does_not_leave_next_to_nothing(tmp_path):
    store = write(tmp_path / "whole", [np.arange(1, 97) % 7 + 1, np.array([1, 2])])
    head, end = halves(store, 0.5, most=10**6)
    assert end.stop - end.start == len(store) // 2
    assert (head.documents, end.documents) == (1, 2)


def test_a_part_of_a_part_is_refused_and_goes_round_nowhere(tmp_path):
    store = write(tmp_path / "whole")
    write_stretch(tmp_path / "part", store, store.stretch.model_copy(update={"store": str(tmp_path / "part")}))
    assert "are not where they were" in problem(tmp_path / "part")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stop": 10**9}, "is of other tokens than lie in"),
        ({"start": 5, "stop": 5}, "is of other tokens than lie in"),
        ({"start": -1}, "stretch.json' is broken"),
        ({"store": "/nowhere"}, "are not where they were: '/nowhere' is not a folder of tokens"),
    ],
)
def test_a_part_of_what_is_not_there(tmp_path, change, message):
    store = write(tmp_path / "whole")
    write_stretch(tmp_path / "part", store, store.stretch)
    path = tmp_path / "part" / "stretch.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert message in problem(tmp_path / "part")
