"""SIGKILL at random moments, saves included: a resumed run ends as the uninterrupted one does, byte for byte."""

import subprocess
import sys
from pathlib import Path

import pytest

ZYGOTE = Path(__file__).parent / "zygote.py"


def compared(folder: Path) -> dict[str, bytes]:
    """What must not depend on interruptions: the best weights, the final state, the metrics."""
    state = max((folder / "state").iterdir())
    paths = [folder / "model.safetensors", folder / "config.json", folder / "tokenizer.json", folder / "metrics.jsonl"]
    return {path.name: path.read_bytes() for path in [*paths, state / "tensors.safetensors"]}


def killed_runs(kills: int, text: Path, folder: Path) -> list[Path]:
    command = [sys.executable, str(ZYGOTE), str(kills), "1", str(text), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return [Path(line) for line in done.stdout.split()]


@pytest.mark.parametrize("kills", [12, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("source", ["text", "pairs"])
def test_killed_and_resumed_is_uninterrupted(kills, source, request, tmp_path):
    whole, *others = killed_runs(kills, request.getfixturevalue(source), tmp_path / "runs")
    wanted = compared(whole)
    assert others
    assert wanted["metrics.jsonl"].count(b"\n") == 40 + 5  # steps and validations
    for folder in others:
        found = compared(folder)
        assert [name for name in wanted if found[name] != wanted[name]] == [], folder
        assert not list(folder.rglob("*.partial"))


def test_control_another_seed_is_another_run(text, tmp_path):
    whole, other = killed_runs(1, text, tmp_path / "runs")[:2]
    path = other / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    assert compared(whole) != compared(other)
