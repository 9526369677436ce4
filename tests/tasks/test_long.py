"""Twenty thousand steps: memory and open files stay what they were."""

import gc
import os
import sys
from pathlib import Path

import pytest
from tests.tasks.tiny import prepare, work

from nextile.tasks import run
from nextile.tasks.report import Silent

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
SETTINGS = {"batch": 1, "validation.data": (), "checkpoint.every": 997}


def resident() -> int:
    """Bytes of memory that this process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
@pytest.mark.parametrize(("steps", "compiled"), [(20_000, False), (4_000, True)])
def test_memory_and_open_files_are_constant(tmp_path, monkeypatch, steps, compiled):
    prepare("lm", tmp_path / "given", Silent())
    seen: list[tuple[int, int, int]] = []
    validate = run.Run._validate

    def looked(self):
        validate(self)
        seen.append((resident(), open_files(), len(self.unlogged)))

    monkeypatch.setattr(run.Run, "_validate", looked)
    settings = SETTINGS | {"validation.every": steps // 20, "compile": compiled}
    work("lm", tmp_path / "given", tmp_path / "run", Silent(), steps=steps, **settings)
    assert len(seen) == 20
    early, late = max(memory for memory, *_ in seen[2:6]), max(memory for memory, *_ in seen[-4:])
    assert late - early < 2 << 20, seen
    assert len({files for _, files, _ in seen[2:]}) == 1, seen
    assert {unlogged for *_, unlogged in seen} == {0}
    print(f"{steps} steps, compiled {compiled}: {early:,} and {late:,} bytes, {seen[-1][1]} files")
