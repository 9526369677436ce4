"""The site's pages of source: every file highlighted, its lines numbered and linked to, its symbols listed."""

from __future__ import annotations

import ast
import json
import posixpath
from collections.abc import Iterator
from functools import cache
from html import escape
from pathlib import Path

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from symbols import listed, parsed, symbols

HOUSE = Path(__file__).parents[1]
ROOTS = {  # folder: what its pages are listed under, and what it holds
    "src/nextile": ("nextile", "The library, floor by floor: a folder imports only those above it in this list."),
    "recipes": ("recipes", "Settings of runs, each with its cost and its result."),
    "bench": ("bench", "The scripts that measure."),
    "exercises": ("exercises", "An exercise for each idea of the lecture, which checks itself."),
    "docs": ("docs", "What makes these pages."),
}
KINDS = {".py", ".toml", ".js", ".css", ".html"}
COMMENTS = {".toml": "#", ".js": "//", ".css": "/*", ".html": "<!--"}


# --- which files there are ------------------------------------------------------------------------------------------


@cache
def files() -> dict[str, Path]:
    """Every file that has a page, by its path in the repository, in the order of the pages."""
    found = [path for root in ROOTS if root != "docs" for path in (HOUSE / root).rglob("*") if path.suffix in KINDS]
    found += (HOUSE / "docs").glob("*.py")
    return {path.relative_to(HOUSE).as_posix(): path for path in sorted(found)}


@cache
def folders() -> list[str]:
    """The folders of those files, floor by floor, each before those in it."""
    found = {posixpath.dirname(name) for name in files()}
    return sorted(found, key=lambda name: (list(ROOTS).index(root_of(name)), _floor(name), name))


def root_of(name: str) -> str:
    """The root that a file or folder lies in."""
    return next(root for root in ROOTS if f"{name}/".startswith(f"{root}/"))


def _floor(folder: str) -> int:
    """The floor of a folder of the library; a folder within one lies on the same."""
    parts = folder.split("/")[:3]
    word, _, rest = sentence("/".join([*parts, "__init__.py"])).partition(" ")
    return int(rest.partition(":")[0]) if word == "Floor" else -1


@cache
def sentence(name: str) -> str:
    """What a file is: the first line of its docstring, or of the comment that it begins with; empty without one."""
    path = files().get(name)
    if path is None:
        return ""
    if path.suffix == ".py":
        return (ast.get_docstring(parsed(path)) or "").partition("\n")[0]
    mark = COMMENTS[path.suffix]
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix(mark).removesuffix("*/").removesuffix("-->").strip() if first.startswith(mark) else ""


def page_of(name: str) -> str | None:
    """The page of a file or folder of the repository, as the site counts its pages; None where it has none."""
    if name in files():
        return f"source/{name}.md"
    return f"source/{name}/index.md" if name in folders() else None


def shown(name: str) -> str:
    """A path as it is shown: without `src/`."""
    return name.removeprefix("src/")


def forget() -> None:
    """Read all files anew from here on: a page that is being written is built again and again."""
    for remembered in (files, folders, sentence, code, symbols, parsed):
        remembered.cache_clear()


# --- what the pages say ---------------------------------------------------------------------------------------------


def pages() -> Iterator[tuple[str, str]]:
    """Every page of source as the site's path of it, and its Markdown."""
    yield "source/index.md", _overview()
    for folder in folders():
        yield f"source/{folder}/index.md", _folder_page(folder)
    for name in files():
        yield f"source/{name}.md", _file_page(name)


def _overview() -> str:
    lines = ["# Source", "", "Every file of the library, the recipes, the benchmarks and the exercises."]
    for root, (title, what) in ROOTS.items():
        inside = [folder for folder in folders() if root_of(folder) == root]
        lines += ["", f"## {title}", "", what, "", "| folder | what it holds |", "|---|---|"] if inside else []
        lines += [f"| [{shown(folder)}]({folder}/index.md) | {_said(folder)} |" for folder in inside]
    return "\n".join(lines)


def _said(folder: str) -> str:
    return cell(sentence(f"{folder}/__init__.py")) or ROOTS[root_of(folder)][1] * (folder in ROOTS)


def cell(text: str) -> str:
    """Text that a cell of a table shows as it is."""
    return "".join(f"\\{sign}" if sign in "\\`*_[]#" else escape(sign) for sign in text).replace("|", "&#124;")


def _folder_page(folder: str) -> str:
    inside = [name for name in files() if posixpath.dirname(name) == folder]
    below = [each for each in folders() if posixpath.dirname(each) == folder]
    rows = [f"| [{Path(each).name}/]({Path(each).name}/index.md) | {_said(each)} |" for each in below]
    rows += [f"| [{Path(name).name}]({Path(name).name}.md) | {cell(sentence(name))} |" for name in inside]
    return "\n".join([f"# {cell(shown(folder))}", "", _said(folder), "", "| file | what it is |", "|---|---|", *rows])


def _file_page(name: str) -> str:
    links = " · ".join(f'<a href="#L{line}">{symbol}</a>' for symbol, line in listed(files()[name]).items())
    listing = f'<p class="symbols">{links}</p>' if links else ""
    head = f"---\ndescription: {json.dumps(sentence(name))}\n---"
    return "\n\n".join([head, f"# {cell(shown(name))}", cell(sentence(name)), listing, place_of(name), ""])


def place_of(name: str) -> str:
    """What stands on a page where its code comes when all else is done: neither Markdown nor the search reads code."""
    return f"<!-- the lines of {name} -->"


# --- the code itself ------------------------------------------------------------------------------------------------


@cache
def code(name: str) -> str:
    """A file as HTML: a line an element, `#L12` its address, its number beside it."""
    path = files()[name]
    lexer = get_lexer_for_filename(path.name, stripnl=False)
    marked = highlight(path.read_text(encoding="utf-8"), lexer, HtmlFormatter(nowrap=True)).splitlines()
    lines = [_line(number, line) for number, line in enumerate(marked, 1)]
    return f'<div class="source highlight"><pre aria-label="{escape(name)}" tabindex="0">{"".join(lines)}</pre></div>'


def _line(number: int, marked: str) -> str:
    return f'<span id="L{number}" class="line"><a href="#L{number}" tabindex="-1">{number}</a>{marked}\n</span>'


def length(name: str) -> int:
    """How many lines a file has."""
    return len(files()[name].read_text(encoding="utf-8").splitlines())
