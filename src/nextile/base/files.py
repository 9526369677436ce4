"""Atomic writes, checksums and safe paths: a killed or failed save never damages what was there."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path, PurePosixPath, PureWindowsPath

import xxhash

from nextile.base.errors import NextileError

PARTIAL = ".partial"  # being written; worthless once its writer is gone
DISPLACED = ".displaced"  # the folder that stood where a new one is being moved in


# Tells what a disk or a copy did to bytes, as fast as they are read; not what somebody did who means harm, who could
# as well write another sum beside them.
Checksum = xxhash.xxh3_128


def checksum(path: str | Path) -> str:
    """The checksum of a file's bytes (XXH3, 128 bits), in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, Checksum).hexdigest()


# --- writing ------------------------------------------------------------------------------------------------------


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Write a file so that whatever happens, `path` holds either its old bytes or all of the new ones.

    Missing parent folders are made; text is written as UTF-8; a symlink is written through.
    Errors: NextileError when the disk is full or the place cannot be written; no temporary stays behind.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield the path of a sibling to be written, which becomes `path` when the body ends without an error.

    For what is too large to be held whole, or is written by a library; errors as in `atomic_folder`.
    """
    path = Path(os.path.realpath(path))
    temporary = _temporary(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _fsync(temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _fsync(path.parent)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty sibling folder that becomes `path`, whole and on disk, when the body ends without an error.

    A folder already at `path` is replaced. On an error the sibling is removed and `path` stays as it was.
    Errors: NextileError in place of an OSError, the body's own included.
    """
    path = Path(os.path.realpath(path))
    temporary = _temporary(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.mkdir()
            yield temporary
            _fsync_tree(temporary)
            _move_in(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def remove_leftovers(folder: str | Path) -> None:
    """Clear what killed saves left in a folder that nobody is saving to: halves go, a displaced folder returns."""
    for path in sorted(Path(folder).glob(".*")):
        if path.name.endswith(PARTIAL):
            _remove(path)
        elif path.name.endswith(DISPLACED):
            _restore(path)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")


def _fsync(path: Path) -> None:
    if os.name != "posix" and path.is_dir():
        return  # only POSIX can open a folder to flush its names
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            _fsync(Path(parent, name))
        _fsync(Path(parent))


def _move_in(new: Path, path: Path) -> None:
    """Rename `new` to `path`; a kill between the two renames of a replacement is undone by `remove_leftovers`."""
    displaced = path.with_name(f".{path.name}{DISPLACED}")
    if path.exists():
        _remove(displaced)
        os.rename(path, displaced)
    try:
        os.rename(new, path)
    except OSError:
        _restore(displaced)
        raise
    _fsync(path.parent)
    _remove(displaced)


def _restore(displaced: Path) -> None:
    path = displaced.with_name(displaced.name.removesuffix(DISPLACED)[1:])
    if path.exists():
        _remove(displaced)
    elif displaced.exists():
        os.rename(displaced, path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


REMEDIES = {
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "free some of your disk quota and run again",
    errno.EFBIG: "raise the file size limit (ulimit -f) and run again",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.EEXIST: "part of this path is a file; choose another place",
    errno.ENOTDIR: "part of this path is a file; choose another place",
    errno.EISDIR: "there is a folder of this name; choose another",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an OSError into one line with the remedy."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "choose another place")
        raise NextileError(f"{error.strerror or error}: cannot write '{path}', {remedy}") from error


# --- reading names that others wrote ------------------------------------------------------------------------------


def inside(folder: str | Path, name: str) -> Path:
    """The regular file `name` of a folder, where the name comes from a file that somebody else wrote.

    A link is followed where it leads to a place in the folder; in the Hugging Face cache, whose folders are links, to a
    place in the model's own entry. A link out would make a program read, and perhaps save and publish, what whoever
    packed the folder could not read: the keys and the texts of whoever unpacked it.
    Errors: NextileError for an absolute name, a name with ".." or control characters, a link out of the folder, a
    missing or special file.
    """
    folder = Path(folder)
    if not name or not name.isprintable() or _is_absolute(name) or ".." in re.split(r"[/\\]", name):
        raise NextileError(f"{name!r} in '{folder}' is not the name of a file in that folder: get a sound copy of it")
    path = folder / name
    if not path.resolve().is_relative_to(_boundary(folder)):
        raise NextileError(f"'{path}' is a link that leaves its folder: put the file itself there")
    if not path.is_file():
        state = "is not a regular file" if path.exists() else "is missing"
        raise NextileError(f"'{path}' {state}: get a complete copy of '{folder}'")
    return path


def open_regular(path: str | Path) -> BufferedReader:
    """The file open for reading. Errors: OSError for a folder, a pipe or a device, on none of which it waits."""
    # O_NONBLOCK: a pipe may have come to the path after somebody looked. O_BINARY is Windows'.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return open(descriptor, "rb")


def _is_absolute(name: str) -> bool:
    return PurePosixPath(name).is_absolute() or bool(PureWindowsPath(name).anchor)


def _boundary(folder: Path) -> Path:
    """Where a folder's links may lead: itself, or its whole entry in the Hugging Face cache, where files are links."""
    folder = folder.resolve()
    cached = folder.parent.name == "snapshots" and (folder.parent.parent / "blobs").is_dir()
    return folder.parent.parent if cached else folder
