"""Writes the README's tree of src/nextile: every file with the first sentence of its docstring."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

HOUSE = Path(__file__).parents[1]
BEGIN, END = "<!-- tree -->", "<!-- /tree -->"


def sentence(path: Path) -> str:
    """The first line of a file's docstring, which is one sentence."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def rows(folder: Path, indent: str = "") -> Iterator[tuple[str, str]]:
    """A line for the folder and for everything in it, as what stands left and what stands right."""
    yield f"{indent}{folder.name}/", sentence(folder / "__init__.py")
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield f"{indent}  {path.name}", sentence(path)
    for inner in sorted((path.parent for path in folder.glob("*/__init__.py")), key=_floor):
        yield from rows(inner, indent + "  ")


def _floor(folder: Path) -> tuple[int, str]:
    """Folders stand in the order of their floors."""
    match = re.match(r"Floor (\d+)", sentence(folder / "__init__.py"))
    return int(match[1]) if match else 0, folder.name


def tree(package: Path) -> str:
    """The whole block, with the fence around it."""
    lines = list(rows(package))
    width = max(len(left) for left, _ in lines) + 2
    return "\n".join(["```text", *(f"{left:{width}}{right}".rstrip() for left, right in lines), "```"])


def with_tree(page: str, block: str) -> str:
    """The page with what stands between the marks replaced. ValueError when they are not there once each."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"the page must hold {BEGIN} and {END} once each")
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{block}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    readme = HOUSE / "README.md"
    page = readme.read_text(encoding="utf-8")
    readme.write_text(with_tree(page, tree(HOUSE / "src" / "nextile")), encoding="utf-8")
