"""Runs on several processes: the same losses as on one, one voice, stops and deaths that are gone on from exactly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nextile.checkpoint.resume import latest_state
from nextile.checkpoint.weights import load_tensors

HOUSE = Path(__file__).parents[2]
SCALED = "val_perplexity"  # the exponential of the loss: its differences are larger than any that is meant


class Runs:
    """What `tests.tasks.together` has run."""

    def __init__(self, folder: Path, kind: str):
        self.folder = folder
        command = [sys.executable, "-m", "tests.tasks.together", str(folder), kind]
        done = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, timeout=3600)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        self.codes: dict[str, list[int]] = {row["name"]: row["codes"] for row in rows}
        self.said: dict[str, str] = {row["name"]: row["said"] for row in rows}
        self.seconds: dict[str, float] = {row["name"]: row["seconds"] for row in rows}

    def metrics(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]

    def apart(self, name: str, other: str) -> float:
        """The largest difference of what two runs logged: losses, rates, norms, validations in nats and bits."""
        mine, theirs = self.metrics(name), self.metrics(other)
        assert [row.keys() for row in mine] == [row.keys() for row in theirs]
        return max(abs(a[key] - b[key]) for a, b in zip(mine, theirs, strict=True) for key in a if key != SCALED)

    def weights_apart(self, name: str, other: str) -> float:
        mine, theirs = (load_tensors(self.folder / each / "model.safetensors") for each in (name, other))
        assert mine.keys() == theirs.keys()
        return max((mine[key] - theirs[key]).abs().max().item() for key in mine)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("together"), "fast")


@pytest.mark.parametrize("name", ["two", "accumulate", "tensor"])
def test_two_processes_log_the_losses_of_one(runs, name):
    assert runs.codes[name] == [0, 0]
    assert runs.apart(name, "one") < 1e-6
    assert runs.weights_apart(name, "one") < 1e-5


def test_only_one_process_tells(runs):
    for name in ("two", "tensor", "stopped"):
        assert runs.said[name].count("step 6: validation") == 1
        assert "nextile:" not in runs.said[name]


def test_one_process_told_to_end_saves_all_once_and_each_exits_143(runs):
    assert runs.codes["stopped"] == [143, 143]
    assert runs.said["stopped"].count("stopped and saved after step 7") == 1


def test_a_state_in_parts_goes_on_on_two_processes_and_on_one(runs):
    for name in ("go-on", "on-one"):
        assert set(runs.codes[name]) == {0}
        assert "resuming" in runs.said[name]
    for name in ("stopped", "on-one"):  # in which both went on
        assert runs.apart(name, "one") < 1e-6
        assert runs.weights_apart(name, "one") < 1e-5


def test_the_parts_are_of_the_whole_tensors(runs):
    whole, parts = (latest_state(runs.folder / name).tensors for name in ("one", "stopped"))
    assert whole.keys() == parts.keys()
    assert all(torch.allclose(whole[name], parts[name], atol=1e-5) for name in whole)
    files = {path.name for path in (runs.folder / "stopped" / "state" / "step-00000012").iterdir()}
    assert {"tensors-00000.safetensors", "tensors-00001.safetensors"} <= files


def test_what_is_wrong_for_all_is_said_once(runs):
    for name, said in {
        "indivisible": "a batch of 7 rows does not divide over the 2 processes that read it: set batch to a multiple",
        "mesh": "a mesh of shard=3 x tensor=1 does not divide 2 processes",
    }.items():
        assert runs.codes[name] == [2, 2]
        assert [said in line for line in runs.said[name].splitlines() if "nextile:" in line] == [True]


def test_when_one_is_killed_the_other_ends_in_one_line_and_a_restart_goes_on_exactly(runs):
    assert runs.codes["killed"] == [1, -9]
    assert runs.said["killed"].count("nextile: another process of this run was lost") == 1
    assert "Traceback" not in runs.said["killed"]
    assert "resuming" in runs.said["again"]  # by the same command
    assert (runs.folder / "killed" / "metrics.jsonl").read_bytes() == (
        runs.folder / "two" / "metrics.jsonl"
    ).read_bytes()
    assert runs.weights_apart("killed", "two") == 0.0


# --- slow ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow_runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("together"), "slow")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["four", "hybrid"])
def test_four_processes_log_the_losses_of_one_for_fifty_steps(slow_runs, name):
    assert slow_runs.apart(name, "one") < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compiled-shard", "compiled-tensor"])
def test_divided_models_are_compiled_block_by_block_to_the_same_losses(slow_runs, name):
    assert slow_runs.codes[name] == [0, 0]
    assert "compiled in" in slow_runs.said[name]
    assert 0 < slow_runs.apart(name, "one") < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pairs-shard", "pairs-replicate", "labels-shard", "labels-replicate"])
def test_translators_and_classifiers_as_well(slow_runs, name):
    assert slow_runs.codes[name] == [0, 0], slow_runs.said[name]
    assert slow_runs.apart(name, name.partition("-")[0] + "-one") < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon-two", "muon-four"])
def test_muon_on_several_processes_follows_muon_on_one(slow_runs, name):
    # The directions are computed in bfloat16 where that is fast, whose rounding follows the last bit of a sum.
    assert slow_runs.apart(name, "muon") < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["saved-1", "saved-4"])
def test_what_two_processes_saved_goes_on_on_one_and_on_four(slow_runs, name):
    assert slow_runs.codes["saved"] == [143, 143]
    assert "resuming" in slow_runs.said[name]
    assert slow_runs.apart(name, "one") < 1e-5


@pytest.mark.slow
def test_twenty_kills_of_one_process_end_all_and_change_nothing(slow_runs):
    kills = [name for name in slow_runs.codes if name.startswith("kill-")]
    assert sum(-9 in slow_runs.codes[name] for name in kills) == 20
    assert all(sorted(slow_runs.codes[name]) in ([-9, 1], [0, 0]) for name in kills)
    assert max(slow_runs.seconds[name] for name in kills) < 30  # from the start on
    assert (slow_runs.folder / "kills" / "metrics.jsonl").read_bytes() == (
        slow_runs.folder / "two" / "metrics.jsonl"
    ).read_bytes()
    assert slow_runs.weights_apart("kills", "two") == 0.0


@pytest.mark.slow
def test_torchrun_itself_starts_a_lost_run_again(tmp_path):
    """The real command, without --out: what it began is found again in runs/."""
    from tests.tasks.tiny import write_text
    from tests.tasks.together import SETTINGS

    kill = tmp_path / "kill.py"
    kill.write_text(
        "import os, signal\n"
        "from tests.tasks.together import hit\n"
        "from nextile.cli.main import main\n"
        "if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "    hit(1, 7, signal.SIGKILL)\n"
        "main()\n"
    )
    text = write_text(tmp_path)
    chosen = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    command = ["--nproc-per-node", "2", "--max-restarts", "1", str(kill), "train", str(text), "--steps", "12", *chosen]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command], cwd=tmp_path, capture_output=True, text=True,
        timeout=900, env={**os.environ, "PYTHONPATH": str(HOUSE)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "resuming 'runs/text' after step 6" in done.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["text"]
