"""Rewrites the lines in the pages' links to code: [`symbol`](../src/nextile/x.py#L12) leads to the symbol."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from symbols import line_of

HOUSE = Path(__file__).parents[1]
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<file>[^)\s#]+)#L(?P<line>\d+)\)")


def pages() -> list[Path]:
    """The README and every page of docs/."""
    return [HOUSE / "README.md", *sorted((HOUSE / "docs").rglob("*.md"))]


def with_lines(page: Path) -> str:
    """The text of a page with the lines as they are now.

    Errors: LookupError names the page and the link whose symbol is not in its file, or that names no symbol.
    """

    def renewed(link: re.Match[str]) -> str:
        symbol = re.fullmatch(r"`([\w.$]+)(?:\(\))?`", link["text"])
        if not symbol:
            raise LookupError(f"{page.name}: {link[0]}: a link to a line has the symbol as its text, [`symbol`](...)")
        try:
            return f"[{link['text']}]({link['file']}#L{line_of(page.parent / link['file'], symbol[1])})"
        except (LookupError, OSError) as error:
            raise LookupError(f"{page.name}: {link[0]}: {error}") from error

    return LINK.sub(renewed, page.read_text(encoding="utf-8"))


def stale() -> Iterator[tuple[Path, str]]:
    """The pages whose lines have moved, each with its text as it should be. Errors: LookupError."""
    for page in pages():
        text = with_lines(page)
        if text != page.read_text(encoding="utf-8"):
            yield page, text


if __name__ == "__main__":
    try:
        for page, text in stale():
            page.write_text(text, encoding="utf-8")
            print(page.relative_to(HOUSE))
    except LookupError as error:
        sys.exit(str(error))
