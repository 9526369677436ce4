"""The site's reference: public names, commands, settings and every floor's names, as their code says them."""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterator
from functools import cache
from html import escape

import site_source
from symbols import parsed, symbols

PACKAGE = "src/nextile"
FLOORS = (
    "base", "text", "images", "data", "nn", "models", "training", "checkpoint", "generation", "tasks", "inspection",
    "serving",
)  # fmt: skip
SETTINGS = {  # whatever `--set` reaches, in the order of `RunSettings`
    "tasks/settings.py": "A run",
    "training/optim.py": "The optimizer",
    "training/schedule.py": "The schedule",
    "training/parallel.py": "Many processes",
    "images/augment.py": "Changing pictures",
    "nn/lora.py": "Adapters",
}
BASES = {"Settings", "Augment", "Lora"}  # of the classes whose fields are settings
PAGES = [f"reference/{name}.md" for name in ("index", "commands", "settings", "specs", *FLOORS)]


def pages() -> Iterator[tuple[str, str]]:
    """Every page of the reference as the site's path of it, and its Markdown."""
    texts = [_public(), _commands(), _settings(), _specs(), *map(_floor, FLOORS)]
    yield from zip(PAGES, texts, strict=True)


# --- names, as mkdocstrings reads them ------------------------------------------------------------------------------


def _public() -> str:
    return "\n".join(
        [
            "# Python",
            "",
            "What `import nextile` gives. A model is trained by `train` or opened by `load`; `plan` says what would be",
            "trained, before anything is spent.",
            "",
            *(_names(f"nextile.api.{name}", level=2, root=True) for name in ("train", "load", "plan", "Model")),
            *(_names(f"nextile.base.errors.{name}", level=2, root=True) for name in ("NextileError", "UsageError")),
        ]
    )


def _floor(floor: str) -> str:
    lines = [f"# {floor}", "", site_source.sentence(f"{PACKAGE}/{floor}/__init__.py")]
    for name in (name for name in site_source.files() if name.startswith(f"{PACKAGE}/{floor}/")):
        module = name.removeprefix("src/").removesuffix(".py").replace("/", ".")
        if name.endswith(".py") and not name.endswith("__init__.py"):
            lines += ["", f"## {module.removeprefix(f'nextile.{floor}.')} {{: #{module} }}", ""]
            lines += [_names(module, level=3, root=False), "", f"[{site_source.shown(name)}](../source/{name}.md)"]
    return "\n".join(lines)


def _names(path: str, level: int, root: bool) -> str:
    """What has mkdocstrings write the docstrings of a name and of those in it."""
    shown = str(root).lower()
    return (
        f"::: {path}\n    options:\n      heading_level: {level}\n      show_root_heading: {shown}\n"
        f"      show_root_toc_entry: {shown}\n"
    )


# --- commands -------------------------------------------------------------------------------------------------------


def _commands() -> str:
    """The help of the command and of each of its verbs."""
    import typer.main

    from nextile.cli.main import app

    command = typer.main.get_command(app)
    lines = ["# Commands", "", "What `--help` says.", "", *_help(command, ["nextile"])]
    for verb in command.list_commands(command.make_context("nextile", [], resilient_parsing=True)):
        lines += ["", f"## {verb}", "", *_help(command.commands[verb], ["nextile", verb])]
    return "\n".join(lines)


def _help(command, words: list[str]) -> list[str]:
    width = {"terminal_width": 100, "max_content_width": 100}
    context = command.make_context(" ".join(words), [], resilient_parsing=True, **width)
    return ["```text", *command.get_help(context).splitlines(), "```"]


# --- settings and specs, whose comments say what their docstrings do not --------------------------------------------


def _settings() -> str:
    lines = ["# Settings", "", "Whatever `--set name=value` reaches, or `settings={...}` in Python, or a recipe."]
    lines += ["A setting within another has a dot: `--set checkpoint.every=100`. None: it follows from the rest.", ""]
    for name, title in SETTINGS.items():
        lines += [f"## {title}", "", *_classes(f"{PACKAGE}/{name}")]
    return "\n".join(lines)


def _specs() -> str:
    lines = ["# Specs", "", site_source.cell(site_source.sentence(f"{PACKAGE}/nn/specs.py")), ""]
    lines += ["Every field is set by its path: `--set model.stack.depth=6`.", ""]
    return "\n".join([*lines, *_classes(f"{PACKAGE}/nn/specs.py")])


def _classes(name: str) -> Iterator[str]:
    """The classes of a file that are settings, each with a table of its fields, and what the names of types mean."""
    text = site_source.files()[name].read_text(encoding="utf-8")
    body = parsed(site_source.files()[name]).body
    known = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    for node in sorted(known.values(), key=lambda node: node.name != "RunSettings"):
        fields = _fields(node, known)
        if fields and not node.name.startswith("_"):
            link = f"[source](../{site_source.page_of(name)}#L{node.lineno})"
            yield f"### {node.name}\n\n{ast.get_docstring(node) or ''} {link}\n"
            yield "| name | type | default | what it is |\n|---|---|---|---|"
            yield from (_row(field, text) for field in fields)
            yield ""
    yield from (f"- {_code(ast.unparse(node))}" for node in body if _is_type(node))
    yield ""


def _fields(node: ast.ClassDef, known: dict[str, ast.ClassDef]) -> list[ast.AnnAssign]:
    """The fields of a class that is settings, those of its parents in the same file first."""
    bases = {ast.unparse(base) for base in node.bases}
    above = [field for base in bases & known.keys() for field in _fields(known[base], known)]
    own = [each for each in node.body if isinstance(each, ast.AnnAssign)]
    return above + own if bases & BASES or above else []


def _is_type(node: ast.stmt) -> bool:
    """Whether a line gives a type its name."""
    return isinstance(node, ast.Assign) and ast.unparse(node.value).startswith(("Annotated[", "Literal["))


def _code(text: str) -> str:
    return f"<code>{escape(text).replace('|', '&#124;')}</code>"


def _row(field: ast.AnnAssign, text: str) -> str:
    default = ast.unparse(field.value) if field.value else "–"
    comment = text.splitlines()[(field.end_lineno or field.lineno) - 1].encode()[field.end_col_offset or 0 :].decode()
    cells = (ast.unparse(field.target), ast.unparse(field.annotation), default)
    return f"| {' | '.join(map(_code, cells))} | {site_source.cell(comment.strip().removeprefix('#').strip())} |"


# --- from a name to its line ----------------------------------------------------------------------------------------

HEADING = re.compile(r'(<h\d id="(nextile\.[\w.]+)" class="doc doc-heading">.*?)(</h\d>)', re.DOTALL)


def with_lines(html: str, folder: str) -> str:
    """A page with a link to the line of each name that it documents. folder: that of the page on the site."""
    return HEADING.sub(lambda heading: f"{heading[1]}{_link(heading[2], folder)}{heading[3]}", html)


def _link(path: str, folder: str) -> str:
    file, line = _place(path)
    if not file:
        return ""
    target = posixpath.relpath(f"source/{file}.html#L{line}", folder)
    return f'<a class="to-line" href="{target}">{posixpath.basename(file)}:{line}</a>'


@cache
def _place(path: str) -> tuple[str, int]:
    """The file and line of a dotted name; an empty file where it is a module or unknown."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        file = f"src/{'/'.join(parts[:length])}.py"
        if file in site_source.files():
            line = symbols(site_source.files()[file]).get(".".join(parts[length:]), 0)
            return (file, line) if line else ("", 0)
    return "", 0
