"""Files of tensors: the library reads ours and we its, in one file or in shards, and a failed save harms nothing."""

import json
import os
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers

from nextile.base.errors import NextileError
from nextile.base.files import remove_leftovers
from nextile.checkpoint import weights
from nextile.checkpoint.store import load_model, save_model
from nextile.checkpoint.weights import DTYPES, load_folder, load_tensors, save_folder, save_tensors
from nextile.models.build import build
from nextile.models.families import gpt2


def some(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Numbers of any dtype, each bit drawn."""
    drawn = torch.randint(0, 2, (*shape, dtype.itemsize), generator=torch.Generator().manual_seed(len(shape)))
    return drawn.to(torch.uint8).view(dtype).reshape(shape)


def each() -> dict[str, torch.Tensor]:
    """A tensor of every dtype, and those of odd shapes."""
    shapes = {"nothing": (0, 3), "number": (), "ö 好": (2, 1, 3)}
    return {name: some(dtype, 3, 5) for name, dtype in DTYPES.items()} | {
        name: some(torch.float32, *shape) for name, shape in shapes.items()
    }


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    """Whether the bits are."""
    return found.keys() == wanted.keys() and all(
        found[name].dtype == value.dtype
        and found[name].shape == value.shape
        and found[name].contiguous().view(-1).view(torch.uint8).equal(value.contiguous().view(-1).view(torch.uint8))
        for name, value in wanted.items()
    )


def test_the_library_reads_what_we_write(tmp_path):
    save_tensors(tmp_path / "ours", each())
    assert same(safetensors.torch.load_file(tmp_path / "ours"), each())
    assert not same(safetensors.torch.load_file(tmp_path / "ours"), each() | {"number": torch.ones(())})


def test_we_read_what_the_library_writes(tmp_path):
    safetensors.torch.save_file(each(), tmp_path / "theirs", metadata={"a": 'x "y" \\ ü\n'})
    assert same(load_tensors(tmp_path / "theirs"), each())
    assert weights.header(tmp_path / "theirs") == {"a": 'x "y" \\ ü\n'}


def test_we_write_the_bytes_that_the_library_does_but_for_the_metadata(tmp_path):
    save_tensors(tmp_path / "ours", each())
    safetensors.torch.save_file(each(), tmp_path / "theirs")
    ours, theirs = ((tmp_path / name).read_bytes() for name in ("ours", "theirs"))
    (a,), (b,) = struct.unpack("<Q", ours[:8]), struct.unpack("<Q", theirs[:8])
    assert ours[8 + a :] == theirs[8 + b :]
    assert {**json.loads(ours[8 : 8 + a]), "__metadata__": None} == {
        **json.loads(theirs[8 : 8 + b]), "__metadata__": None
    }  # fmt: skip


def test_numbers_that_a_writer_did_not_align(tmp_path):
    text = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}).encode()
    for spaces in range(4):
        data = struct.pack("<Q", len(text) + spaces) + text + b" " * spaces + struct.pack("<3f", 1.0, 2.5, -3.0)
        (tmp_path / "file").write_bytes(data)
        assert load_tensors(tmp_path / "file")["a"].tolist() == [1.0, 2.5, -3.0]


def test_what_is_loaded_may_be_written_to_and_the_file_stays(tmp_path):
    save_tensors(tmp_path / "file", {"a": torch.zeros(5000)})
    before = (tmp_path / "file").read_bytes()
    found = load_tensors(tmp_path / "file")
    found["a"] += 1
    assert found["a"].sum() == 5000
    assert (tmp_path / "file").read_bytes() == before


def test_what_is_forgotten_is_read_again(tmp_path):
    wanted = {name: torch.full((5001,), float(i)) for i, name in enumerate("abc")}
    save_tensors(tmp_path / "file", wanted)
    found = load_tensors(tmp_path / "file")
    assert same(found, wanted)
    found.forget([*found.values(), torch.ones(3)])  # the last is none of its own, and must not be touched
    assert same(found, wanted)


# --- in several files -----------------------------------------------------------------------------------------------

SPEC = gpt2.spec(vocab=30, context=32, width=16, depth=2, heads=2)


@pytest.fixture
def sharded(tmp_path, monkeypatch):
    """A folder whose weights are in files of at most 10 kB."""
    monkeypatch.setattr(save_folder, "__kwdefaults__", {"largest": 10_000})
    save_model(tmp_path / "model", build(SPEC, seed=1))
    return tmp_path / "model"


def shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("model-*.safetensors"))


def is_of(folder: Path, seed: int) -> bool:
    wanted = build(SPEC, seed=seed).state_dict()
    return all(torch.equal(value, wanted[name]) for name, value in load_model(folder)[0].state_dict().items())


def test_shards_are_small_and_indexed_and_read(sharded):
    assert len(shards(sharded)) > 2
    assert not (sharded / "model.safetensors").exists()
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == shards(sharded)
    for shard in shards(sharded):
        tensors = load_tensors(sharded / shard)
        assert sum(value.nbytes for value in tensors.values()) <= 10_000
        assert all(index["weight_map"][name] == shard for name in tensors)
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in load_folder(sharded).values())
    assert is_of(sharded, 1)
    assert not is_of(sharded, 2)


def test_transformers_reads_the_shards(sharded):
    theirs = transformers.GPT2LMHeadModel.from_pretrained(sharded).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(load_model(sharded)[0](ids), theirs(ids).logits, rtol=0, atol=1e-5)


def test_shards_saved_again_are_the_same_bytes(sharded, tmp_path):
    save_model(tmp_path / "again", load_model(sharded)[0])
    names = sorted(path.name for path in sharded.iterdir())
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == names
    assert all((tmp_path / "again" / name).read_bytes() == (sharded / name).read_bytes() for name in names)


def test_a_save_that_fails_midway_leaves_the_old_weights(sharded, monkeypatch):
    calls = []

    def failing(path, tensors):
        calls.append(path)
        if len(calls) == 3:
            raise NextileError("No space left on device")
        return save_tensors(path, tensors)

    monkeypatch.setattr(weights, "save_tensors", failing)
    with pytest.raises(NextileError, match="No space"):
        save_model(sharded, build(SPEC, seed=2))
    assert is_of(sharded, 1)
    monkeypatch.undo()
    remove_leftovers(sharded)
    assert not [path for path in sharded.iterdir() if path.name.startswith(".")]


def test_new_shards_take_the_place_of_old_ones(sharded):
    old = shards(sharded)
    save_model(sharded, build(SPEC, seed=2))
    assert is_of(sharded, 2)
    assert not set(old) & set(shards(sharded))


def test_one_file_takes_the_place_of_shards_and_shards_that_of_one_file(sharded, monkeypatch):
    (sharded / "model-mine.safetensors").write_text("of somebody else")
    monkeypatch.setattr(save_folder, "__kwdefaults__", {"largest": 10**9})
    save_model(sharded, build(SPEC, seed=2))
    assert shards(sharded) == ["model-mine.safetensors"]
    assert not (sharded / "model.safetensors.index.json").exists()
    assert is_of(sharded, 2)
    monkeypatch.setattr(save_folder, "__kwdefaults__", {"largest": 10_000})
    save_model(sharded, build(SPEC, seed=3))
    assert not (sharded / "model.safetensors").exists()
    assert is_of(sharded, 3)


def test_an_index_that_names_other_files_has_none_of_them_removed(sharded):
    index = {"weight_map": {"a": "config.json", "b": "../x", "c": "model-00001-of-00002.safetensors"}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    (sharded.parent / "x").write_text("x")
    save_model(sharded, build(SPEC, seed=2))
    assert is_of(sharded, 2)
    assert (sharded.parent / "x").exists()


def test_a_tensor_that_is_not_where_the_index_says(sharded):
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = next(shard for shard in shards(sharded) if shard != index["weight_map"][name])
    path.write_text(json.dumps(index))
    with pytest.raises(NextileError, match="lacks 'transformer"):
        load_folder(sharded)


def test_a_tensor_is_not_held_twice_to_be_saved(tmp_path):
    import tracemalloc

    tensors = {str(i): torch.zeros(250_000) for i in range(20)}  # 20 MB
    tracemalloc.start()  # of bytes and arrays of NumPy; that torch allocates nothing is what `_bytes_of` shows
    save_tensors(tmp_path / "file", tensors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000
    assert weights._bytes_of(tensors["3"]).obj.__array_interface__["data"][0] == tensors["3"].data_ptr()
    assert os.path.getsize(tmp_path / "file") > 20_000_000
