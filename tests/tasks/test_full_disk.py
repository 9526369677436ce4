"""A disk that becomes full at any write, flush, rename or new file: one line, and the run goes on exactly."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.tasks.tiny import lasting, unlike

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="needs a C compiler and Linux"
)


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Path:
    """The library by which a disk becomes full."""
    library = tmp_path_factory.mktemp("disk") / "full_disk.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "full_disk.c", "-ldl"], check=True)
    return library


def filled(disk: Path, kind: str, points: int, folder: Path) -> list[dict]:
    """The whole run, and one for each point at which the disk was full."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.tasks.faults", kind, str(points), "1", str(folder)],
        capture_output=True, text=True, timeout=1800, cwd=ROOT, env={**os.environ, "LD_PRELOAD": str(disk)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_compiler
@pytest.mark.parametrize(
    ("kind", "points"),
    [
        ("lm", 10),
        pytest.param("lm", 50, marks=pytest.mark.slow),
        pytest.param("classify", 50, marks=pytest.mark.slow),
        pytest.param("lora", 50, marks=pytest.mark.slow),
    ],
)
def test_the_last_good_state_is_gone_on_with(disk, kind, points, tmp_path):
    whole, *others = filled(disk, kind, points, tmp_path)
    assert whole["error"] == ""
    wanted = lasting(Path(whole["folder"]))
    assert len(others) == points
    for found in others:
        assert found["error"].startswith(("NextileError: No space left on device: cannot write '",)), found
        assert "free some space and" in found["error"]
        assert "\n" not in found["error"]
        assert found["note"] is None  # the newest state is whole
        assert unlike(Path(found["folder"]), wanted) == [], found
