"""Where the names of a source file are defined: each symbol with its line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SCRIPT = re.compile(r"^(?:export )?(?:default )?(?:async )?(?:function\*?|class|const|let) ([\w$]+)")
SETTING = re.compile(r"^\[*([A-Za-z_][\w.-]*)\]*(?: *=|$)")
PATTERNS = {".js": SCRIPT, ".toml": SETTING}


@cache
def parsed(path: Path) -> ast.Module:
    """A file of Python as its tree. Errors: SyntaxError for one that is none."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def symbols(path: Path) -> dict[str, int]:
    """The names that a file defines, `Class.method` and `outer.inner` among them, with the lines they stand in.

    Errors: SyntaxError for Python that is none.
    """
    if path.suffix == ".py":
        found = _of_python(parsed(path), prefix="")
    else:
        pattern, lines = PATTERNS.get(path.suffix), path.read_text(encoding="utf-8").splitlines()
        matches = ((pattern.match(line), number) for number, line in enumerate(lines, 1) if pattern)
        found = ((match[1], number) for match, number in matches if match)
    first: dict[str, int] = {}
    for name, number in found:
        first.setdefault(name, number)
    return first


def _of_python(body: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
    for node in ast.iter_child_nodes(body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + node.name, node.lineno
            yield from _of_python(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign | ast.AnnAssign) and not isinstance(body, ast.FunctionDef):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in (name for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)):
                yield prefix + name.id, name.lineno


def line_of(path: Path, symbol: str) -> int:
    """The line of a symbol; a method may be named without its class where no other has the name.

    Errors: LookupError where it is not there, or more than once.
    """
    found = symbols(path)
    if symbol in found:
        return found[symbol]
    lines = [number for name, number in found.items() if name.endswith(f".{symbol}")]
    if len(lines) != 1:
        raise LookupError(f"'{symbol}' is {'in no' if not lines else 'in more than one'} place of {path.name}")
    return lines[0]


def listed(path: Path) -> dict[str, int]:
    """The symbols that a reader looks for: functions, classes and their methods, none that begins with `_`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {
        name: number
        for name, number in symbols(path).items()
        if not any(part.startswith("_") for part in name.split("."))
        and (path.suffix != ".py" or re.match(r"\s*(async def|def|class) ", lines[number - 1]))
    }
