"""Files: old or new bytes, never a mixture; and names from strangers stay inside their folder."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import xxhash

from nextile.base import files
from nextile.base.errors import NextileError
from nextile.base.files import atomic_folder, atomic_write, checksum, inside, remove_leftovers


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def full_disk(monkeypatch):
    """Every fsync finds the disk full, which is where a delayed allocation fails."""

    def fail(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", fail)


def test_a_checksum_is_of_all_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert checksum(tmp_path / "x") == xxhash.xxh3_128_hexdigest(b"abc" * 100_000)


# --- atomic_write --------------------------------------------------------------------------------------------------


def test_write_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.txt"
    atomic_write(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["b.txt"]


def test_write_follows_a_link_and_heeds_the_umask(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "link", "new")
    finally:
        os.umask(before)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_keeps_the_old_file(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(NextileError) as caught:
        atomic_write(path, "new")
    assert str(caught.value) == f"No space left on device: cannot write '{path}', free some space and run again"
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_a_real_limit_on_file_size(tmp_path):
    """A child that may write files of 1000 blocks of 1024 bytes at most tries twice as much."""
    (tmp_path / "x").write_text("old")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))\n"
        "from nextile.base.files import atomic_write\n"
        "try: atomic_write(sys.argv[1], bytes(2**21))\n"
        "except Exception as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "x"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("File too large: cannot write")
    assert "ulimit -f" in run.stdout
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_an_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NextileError, match=r"File exists: cannot write .*part of this path is a file"):
        atomic_write(tmp_path / "file" / "x", "new")
    (tmp_path / "folder").mkdir()
    with pytest.raises(NextileError, match=r"Is a directory: .*there is a folder of this name"):
        atomic_write(tmp_path / "folder", "new")
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_an_unwritable_file_system():
    with pytest.raises(NextileError, match="cannot write '/proc/nextile/x', "):
        atomic_write("/proc/nextile/x", "new")


# --- atomic_folder -------------------------------------------------------------------------------------------------


def fill(folder: Path, text: str) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "x").write_text(text)


def save(path: Path, text: str) -> None:
    with atomic_folder(path) as folder:
        fill(folder, text)


def fill_and_fail(path: Path) -> None:
    with atomic_folder(path) as folder:
        fill(folder, "new")
        raise ZeroDivisionError


def test_a_folder_appears_whole_and_is_replaced_whole(tmp_path):
    for text in ("one", "two"):
        with atomic_folder(tmp_path / "deep" / "out") as folder:
            fill(folder, text)
            assert folder.parent == tmp_path / "deep"
            assert (tmp_path / "deep" / "out").exists() == (text == "two")
        assert (tmp_path / "deep" / "out" / "inner" / "x").read_text() == text
        assert names(tmp_path / "deep") == ["out"]


def test_every_file_and_folder_reaches_the_disk(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(files.os, "fsync", lambda d: flushed.append(os.readlink(f"/proc/self/fd/{d}")))
    with atomic_folder(tmp_path / "out") as folder:
        fill(folder, "x")
    assert flushed == [f"{folder}/inner/x", f"{folder}/inner", str(folder), str(tmp_path)]


def test_an_error_in_the_body_changes_nothing(tmp_path):
    save(tmp_path / "out", "old")
    with pytest.raises(ZeroDivisionError):
        fill_and_fail(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "inner" / "x").read_text() == "old"


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_keeps_the_old_folder(tmp_path):
    fill(tmp_path, "old")
    with pytest.raises(NextileError, match=r"No space left on device.*free some space"):
        save(tmp_path / "inner", "new")
    assert names(tmp_path) == ["inner"]
    assert (tmp_path / "inner" / "x").read_text() == "old"


def test_a_failed_replacement_puts_the_old_folder_back(tmp_path, monkeypatch):
    fill(tmp_path, "old")
    rename = os.rename

    def fail_to_move_in(source, target):
        if str(source).endswith(files.PARTIAL):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(files.os, "rename", fail_to_move_in)
    with pytest.raises(NextileError, match="error"), atomic_folder(tmp_path / "inner"):
        pass
    assert names(tmp_path) == ["inner"]
    assert (tmp_path / "inner" / "x").read_text() == "old"


def test_leftovers_of_a_kill_are_cleared(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from nextile.base.files import atomic_folder\n"
        "with atomic_folder(sys.argv[1]) as folder:\n"
        "    (folder / 'x').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "out"])
    assert run.returncode == -signal.SIGKILL
    (tmp_path / ".gitignore").write_text("mine")
    assert len(names(tmp_path)) == 2
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".gitignore"]


def test_a_folder_displaced_by_a_killed_replacement_returns(tmp_path):
    fill(tmp_path, "old")
    (tmp_path / "inner").rename(tmp_path / ".inner.displaced")
    remove_leftovers(tmp_path)
    assert (tmp_path / "inner" / "x").read_text() == "old"
    fill(tmp_path / "inner", "worthless")
    (tmp_path / "inner" / "inner").rename(tmp_path / ".inner.displaced")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["inner"]
    assert (tmp_path / "inner" / "x").read_text() == "old"


# --- inside --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "..\\x", "C:\\x", "\\x", "", "a\0b"])
def test_names_that_leave_the_folder(tmp_path, name):
    with pytest.raises(NextileError, match="is not the name of a file in that folder"):
        inside(tmp_path, name)


def test_inside_takes_plain_and_nested_files_and_inner_links(tmp_path):
    fill(tmp_path, "x")
    (tmp_path / "link").symlink_to("inner/x")
    assert inside(tmp_path, "inner/x") == tmp_path / "inner" / "x"
    assert inside(tmp_path, "link") == tmp_path / "link"


def test_links_out_folders_pipes_and_missing_files_are_refused(tmp_path):
    (tmp_path / "secret").write_text("")
    folder = tmp_path / "model"
    (folder / "inner").mkdir(parents=True)
    (folder / "out").symlink_to("../secret")
    os.mkfifo(folder / "pipe")
    for name, message in {
        "out": "is a link that leaves its folder",
        "inner": "is not a regular file",
        "pipe": "is not a regular file",
        "none": "is missing",
    }.items():
        with pytest.raises(NextileError, match=message):
            inside(folder, name)


def test_the_links_of_the_hub_cache_are_taken(tmp_path):
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "0abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "1").write_text("weights")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1")
    assert inside(snapshot, "model.safetensors").read_text() == "weights"
