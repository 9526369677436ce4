"""Training states on disk: whole or passed over, the last two kept."""

import random
import shutil

import pytest
import torch

from nextile.base.errors import NextileError
from nextile.checkpoint.resume import average_weights, has_state, latest_state, save_state


def tensors(step: int):
    return {"w": torch.full((3,), float(step)), "count": torch.tensor(step)}


@pytest.fixture
def run(tmp_path):
    for step in (10, 20, 30):
        save_state(tmp_path, step, tensors(step), {"step": step})
    return tmp_path


def test_the_last_two_are_kept_and_the_newest_is_read(run):
    assert states_in(run) == ["step-00000020", "step-00000030"]
    saved = latest_state(run)
    assert (saved.step, saved.progress, saved.note) == (30, {"step": 30}, None)
    assert torch.equal(saved.tensors["w"], tensors(30)["w"])


def states_in(run):
    return sorted(path.name for path in (run / "state").iterdir())


def test_what_a_save_could_not_drop_is_dropped_when_the_run_goes_on(run):
    shutil.copytree(run / "state" / "step-00000020", run / "state" / "step-00000010")  # it was ended before
    latest_state(run, kept=3)
    assert states_in(run) == ["step-00000010", "step-00000020", "step-00000030"]
    assert latest_state(run).step == 30
    assert states_in(run) == ["step-00000020", "step-00000030"]


def test_nothing_is_dropped_while_a_newer_state_is_broken(run):
    shutil.copytree(run / "state" / "step-00000020", run / "state" / "step-00000010")
    for step in (20, 30):
        (run / "state" / f"step-000000{step}" / "manifest.json").write_text("{}")
    assert latest_state(run).step == 10
    assert len(states_in(run)) == 3


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


@pytest.mark.parametrize("seed", range(100))
def test_whatever_is_damaged_the_last_good_one_is_found_and_said_in_a_line(run, seed):
    """A bit flipped in a random byte of any file of the newest state, or the file cut at a random length."""
    chance = random.Random(seed)
    path = chance.choice(sorted((run / "state" / "step-00000030").iterdir()))
    data = bytearray(path.read_bytes())
    if chance.random() < 0.5:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    else:
        del data[chance.randrange(len(data)) :]
    path.write_bytes(data)
    saved = latest_state(run)
    assert saved.note is not None or path.name == "manifest.json"  # whose white space and end nobody needs
    assert torch.equal(saved.tensors["w"], tensors(saved.step)["w"])
    assert saved.progress == {"step": saved.step}
    if saved.note is not None:
        assert saved.step == 20
        assert saved.note.startswith("the latest saved state is broken ('")
        assert saved.note.isprintable()


def test_none_whole_or_none_at_all(run, tmp_path):
    for folder in (run / "state").iterdir():
        (folder / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(NextileError, match=r"no saved state in .* is whole: .*: train anew"):
        latest_state(run)
    assert not has_state(tmp_path / "other")
    with pytest.raises(NextileError, match="holds no training state to resume from"):
        latest_state(tmp_path / "other")


def test_as_many_are_kept_as_are_asked_for_and_their_weights_averaged(tmp_path):
    for step in (10, 20, 40, 70):
        weights = {"model.w": torch.full((3,), float(step)), "optimizer.count": torch.tensor(step)}
        save_state(tmp_path, step, weights, {}, kept=3)
    assert len(list((tmp_path / "state").iterdir())) == 3
    mean = average_weights(tmp_path, 3)
    assert mean.keys() == {"w"}
    assert mean["w"].tolist() == pytest.approx([(20 + 40 + 70) / 3] * 3)
    assert average_weights(tmp_path, 2)["w"][0].item() == 55.0
    assert torch.equal(average_weights(tmp_path, 9)["w"], mean["w"])  # as many as there are
    (tmp_path / "state" / "step-00000020" / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(NextileError, match="is not what was saved"):
        average_weights(tmp_path, 3)
