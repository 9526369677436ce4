"""SIGKILL at random moments, saves included: a resumed run of any kind ends as the uninterrupted one does, to the byte.

The slow ones are 200 kills together, and some more.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.tasks.tiny import KINDS, STEPS, lasting, unlike

ROOT = Path(__file__).parents[2]
SLOW = {kind: 6 if "compiled" in kind else 17 for kind in KINDS}


def killed_runs(kind: str, kills: int, folder: Path) -> list[Path]:
    """The uninterrupted run, the same again, and those that were killed."""
    command = [sys.executable, "-m", "tests.tasks.zygote", kind, str(kills), "1", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return [Path(line) for line in done.stdout.split("\n") if line]


def check(kind: str, kills: int, folder: Path) -> None:
    whole, *others = killed_runs(kind, kills, folder)
    wanted = lasting(whole)
    assert wanted["metrics.jsonl"].count(b"\n") == STEPS + 3  # steps and validations
    assert any("tensors.safetensors" in name for name in wanted)
    assert len(others) > 1
    for run in others:
        assert unlike(run, wanted) == [], run
        assert not list(run.rglob("*.partial"))


@pytest.mark.parametrize("kind", ["lm", "translate", "words", "lora"])
def test_killed_and_resumed_is_uninterrupted(kind, tmp_path):
    check(kind, 4, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_again_and_again_is_uninterrupted(kind, tmp_path):
    check(kind, SLOW[kind], tmp_path)


def test_control_another_number_is_another_run(tmp_path):
    whole = killed_runs("lm", 0, tmp_path)[0]
    wanted = lasting(whole)
    path = whole / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    assert unlike(whole, wanted) == ["metrics.jsonl"]
