"""The page's files, as a browser gets them: from the package, each with its type and a tag of its content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
INDEX = "index.html"
SINGLE = ("single.html", "single.js")  # of the page that is one file, which a server has no use for
PACKAGES = ("nextile.inspection", "nextile.serving")  # the first has what pages share, and the views of `inspect`


@dataclass(frozen=True)
class File:
    """A file of the page."""

    content: bytes
    type: str
    tag: str  # ETag: another content has another


def page_files() -> dict[str, File]:
    """All files of the page by the path they are asked for by: "/" and "/page.js" and so on."""
    named = {each.name: each for package in PACKAGES for each in _files(package) if each.name not in SINGLE}
    known = {name: each for name, each in named.items() if _suffix(name) in TYPES}
    return {
        "/" if name == INDEX else f"/{name}": _file(each.read_bytes(), TYPES[_suffix(name)])
        for name, each in sorted(known.items())
    }


def _files(package: str) -> list[Traversable]:
    folder = files(package) / "page"
    return [each for each in folder.iterdir() if each.is_file()] if folder.is_dir() else []


def _suffix(name: str) -> str:
    return "." + name.rpartition(".")[2]


def _file(content: bytes, kind: str) -> File:
    return File(content, kind, f'"{hashlib.sha256(content).hexdigest()[:16]}"')
