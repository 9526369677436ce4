"""Training states on disk: whole or passed over, the last two kept."""

import pytest
import torch

from nextile.base.errors import NextileError
from nextile.checkpoint.resume import has_state, latest_state, save_state


def tensors(step: int):
    return {"w": torch.full((3,), float(step)), "count": torch.tensor(step)}


@pytest.fixture
def run(tmp_path):
    for step in (10, 20, 30):
        save_state(tmp_path, step, tensors(step), {"step": step})
    return tmp_path


def test_the_last_two_are_kept_and_the_newest_is_read(run):
    assert sorted(path.name for path in (run / "state").iterdir()) == ["step-00000020", "step-00000030"]
    saved = latest_state(run)
    assert (saved.step, saved.progress, saved.note) == (30, {"step": 30}, None)
    assert torch.equal(saved.tensors["w"], tensors(30)["w"])


@pytest.mark.parametrize("name", ["tensors.safetensors", "progress.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_broken_latest_falls_back(run, name, damage):
    path = run / "state" / "step-00000030" / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.unlink()
    saved = latest_state(run)
    assert saved.step == 20
    assert saved.note
    assert "going on from step 20" in saved.note


def test_none_whole_or_none_at_all(run, tmp_path):
    for folder in (run / "state").iterdir():
        (folder / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(NextileError, match=r"no saved state in .* is whole"):
        latest_state(run)
    assert not has_state(tmp_path / "other")
    with pytest.raises(NextileError, match="holds no training state to resume from"):
        latest_state(tmp_path / "other")
