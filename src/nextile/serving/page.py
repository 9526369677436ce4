"""The page's files, as a browser gets them: from the package, each with its type and a tag of its content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
INDEX = "index.html"


@dataclass(frozen=True)
class File:
    """A file of the page."""

    content: bytes
    type: str
    tag: str  # ETag: another content has another


def page_files() -> dict[str, File]:
    """All files of the page by the path they are asked for by: "/" and "/page.js" and so on."""
    folder = files("nextile.serving") / "page"
    if not folder.is_dir():
        return {}
    named = {each.name: each for each in folder.iterdir() if each.is_file()}
    known = {name: each for name, each in named.items() if _suffix(name) in TYPES}
    return {
        "/" if name == INDEX else f"/{name}": _file(each.read_bytes(), TYPES[_suffix(name)])
        for name, each in sorted(known.items())
    }


def _suffix(name: str) -> str:
    return "." + name.rpartition(".")[2]


def _file(content: bytes, kind: str) -> File:
    return File(content, kind, f'"{hashlib.sha256(content).hexdigest()[:16]}"')
