"""Text that the user gives: prompts from a file or as they come on standard input, one a line."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from nextile.base.errors import NextileError

TOGETHER = 64  # prompts of a batch


def decoded(text: bytes) -> str:
    """UTF-8 as text. Errors: NextileError with the place of the first byte that is none."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        near = ascii(text[max(0, error.start - 20) : error.start + 20])[1:]
        raise NextileError(f"the text is not valid UTF-8 (byte {error.start}, near {near}): use iconv") from error


def read_prompts(path: Path) -> list[str]:
    """The lines of a file. Errors: NextileError when it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NextileError(f"cannot read the prompts in '{path}': {error.strerror or error}") from error
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [_line(line) for line in (lines if lines[-1] else lines[:-1])]


def in_batches(prompts: list[str]) -> Iterator[list[str]]:
    """TOGETHER prompts at a time."""
    for start in range(0, len(prompts), TOGETHER):
        yield prompts[start : start + TOGETHER]


def arriving(stream: BinaryIO) -> Iterator[list[str]]:
    """The whole lines that have come so far, in batches, until the end: a slow writer is not kept waiting."""
    rest = b""
    while piece := stream.read1(1 << 16):  # type: ignore[attr-defined]
        *lines, rest = (rest + piece).split(b"\n")
        yield from in_batches([_line(line) for line in lines])
    if rest:
        yield [_line(rest)]


def _line(line: bytes) -> str:
    return decoded(line.removesuffix(b"\r"))
