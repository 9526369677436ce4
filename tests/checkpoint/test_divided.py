"""States in parts: put together by any number of processes, and refused in one line where they make no whole."""

import json

import pytest
import torch

from nextile.base.errors import NextileError
from nextile.base.files import checksum
from nextile.checkpoint.divided import SUMS, Joined, load_divided, parts_in, save_divided
from nextile.checkpoint.resume import latest_state
from nextile.checkpoint.weights import save_tensors
from nextile.training.parallel import ALONE
from nextile.training.pieces import Box, box_of, holders, local, mine, whole

WHOLE = torch.arange(24.0).view(6, 4)
BOXES = {"tensors-00000.safetensors": [0, 0], "tensors-00001.safetensors": [2, 0], "tensors-00002.safetensors": [2, 1]}
SIZES = {"tensors-00000.safetensors": (2, 4), "tensors-00001.safetensors": (4, 1), "tensors-00002.safetensors": (4, 3)}


def write(folder, places=None, tensors=None):
    """A matrix in three boxes, as three processes write it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, start in BOXES.items():
        values = Box(tuple(start), SIZES[name]).of(WHOLE)
        save_tensors(folder / name, {"a": values} if tensors is None else tensors)
        said = {"a": {"shape": [6, 4], "start": start}} if places is None else places
        (folder / name).with_suffix(".json").write_text(json.dumps({"tensors": said}))
    return sorted(BOXES)


def test_boxes_make_the_whole_again(tmp_path):
    joined = load_divided(tmp_path, write(tmp_path))
    assert list(joined) == ["a"]
    assert len(joined) == 1
    assert torch.equal(joined["a"], WHOLE)


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ({}, "has no place for 'a'"),
        ([], "has no place for 'a'"),
        ({"a": {"shape": [6, 4]}}, "has no place for 'a'"),
        ({"a": {"shape": [6, 4], "start": [0]}}, "has no place for 'a'"),
        ({"a": {"shape": [6, 4], "start": [0, -1]}}, "has no place for 'a'"),
        ({"a": {"shape": [6, 4], "start": [0, True]}}, "has no place for 'a'"),
        ({"a": {"shape": [1 << 50, 4], "start": [0, 0]}}, "has no place for 'a'"),
        ({"a": {"shape": [6, 4], "start": [5, 0]}}, "has 'a' outside of its whole"),
        ({"a": {"shape": [1 << 39, 1 << 39], "start": [0, 0]}}, "make no whole"),
    ],
)
def test_impossible_places_are_refused_in_one_line_before_memory_is_asked_for(tmp_path, places, said):
    names = write(tmp_path, places)
    with pytest.raises(NextileError, match=said) as caught:
        load_divided(tmp_path, names)
    assert "\n" not in str(caught.value)


def test_a_missing_part_is_refused(tmp_path):
    with pytest.raises(NextileError, match="parts of 'a' that make no whole"):
        load_divided(tmp_path, write(tmp_path)[:2])


def test_parts_of_another_type_are_refused(tmp_path):
    names = write(tmp_path)
    save_tensors(tmp_path / names[0], {"a": WHOLE[:2].double()})
    with pytest.raises(NextileError, match="make no whole"):
        load_divided(tmp_path, names)


def test_only_files_named_as_parts_are_read():
    assert parts_in({"tensors-00000.safetensors": "", "../tensors-00000.safetensors": "", "progress.json": ""}) == [
        "tensors-00000.safetensors"
    ]


def test_a_state_in_parts_is_saved_and_found(tmp_path):
    folder = tmp_path / "state" / "step-00000007"
    save_divided(folder, {"a": WHOLE}, {"step": 7}, ALONE)
    saved = latest_state(tmp_path)
    assert isinstance(saved.tensors, Joined)
    assert torch.equal(saved.tensors["a"], WHOLE)
    assert saved.progress == {"step": 7}
    hashes = json.loads((folder / "manifest.json").read_text())[SUMS]
    assert hashes == {path.name: checksum(path) for path in folder.iterdir() if path.name != "manifest.json"}


@pytest.mark.parametrize("name", ["tensors-00000.safetensors", "tensors-00000.json", "progress.json"])
def test_a_flipped_bit_is_passed_over(tmp_path, name):
    for step in (1, 2):
        save_divided(tmp_path / "state" / f"step-0000000{step}", {"a": WHOLE + step}, {"step": step}, ALONE)
    path = tmp_path / "state" / "step-00000002" / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    saved = latest_state(tmp_path)
    assert saved.step == 1
    assert name in (saved.note or "")
    assert torch.equal(saved.tensors["a"], WHOLE + 1)


def test_a_tensor_that_is_not_divided_is_its_own_part():
    assert box_of(WHOLE) == Box((0, 0), (6, 4))
    assert local(WHOLE).data_ptr() == WHOLE.data_ptr()
    assert torch.equal(mine(WHOLE, WHOLE), WHOLE)
    assert whole(WHOLE).data_ptr() == WHOLE.data_ptr()
    assert holders(WHOLE, ALONE) == (1, True)
