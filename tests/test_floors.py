"""The floors of the house: a folder imports only floors below it, nothing imports itself in a circle, light floors stay
light, and every file says in one sentence what it is.

Every import counts: at the top, inside a function, under TYPE_CHECKING, and by a name given to `import_module`.
"""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HOUSE = Path(__file__).parents[1]
SOURCE = HOUSE / "src" / "nextile"
FLOORS = {
    "base": 0,
    "text": 1,
    "images": 1,
    "data": 2,
    "nn": 3,
    "models": 4,
    "training": 5,
    "checkpoint": 6,
    "generation": 7,
    "tasks": 8,
    "inspection": 8,
    "api": 9,
    "serving": 9,
    "cli": 10,
    "__main__": 11,
}
FACE = 9  # `nextile` itself: it may name anything, and only the floors above may ask it


# --- who imports whom ----------------------------------------------------------------------------------------------


def modules(package: Path) -> dict[str, Path]:
    """Every module of a package by its dotted name; a folder's `__init__.py` by the folder's name."""
    return {_dotted(package, path): path for path in sorted(package.rglob("*.py"))}


def _dotted(package: Path, path: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def named(path: Path, package: str) -> Iterator[str]:
    """Every dotted name that a module imports, absolute; `from a import b` gives `a.b`. `package` is the file's own."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                start = ".".join([*above, *filter(None, [node.module])])
                yield from (f"{start}.{alias.name}" for alias in node.names)
            case ast.Call(func=ast.Name(id=call) | ast.Attribute(attr=call), args=[ast.Constant(value=str(name)), *_]):
                yield from [name] if call in ("import_module", "__import__") else []


def imports(package: Path) -> dict[str, set[str]]:
    """The graph: of every module the modules of the same package that it imports."""
    known = modules(package)
    graph = {}
    for name, path in known.items():
        own = name if path.name == "__init__.py" else name.rpartition(".")[0]
        graph[name] = {module for each in named(path, own) if (module := _module(each, known))} - {name}
    return graph


def _module(name: str, known: dict[str, Path]) -> str | None:
    """The module that a dotted name is, or lies in; None for another package's."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


# --- the law -------------------------------------------------------------------------------------------------------


def violations(package: Path) -> list[str]:
    """Every import that goes up or sideways, and every folder that has no floor."""
    found = []
    for importer, imported in sorted(imports(package).items()):
        if importer == package.name:
            continue
        if _folder(importer) not in FLOORS:
            found.append(f"{importer}: '{_folder(importer)}' has no floor")
        found += [f"{importer} imports {each}" for each in sorted(imported) if not _allowed(importer, each)]
    return found


def _folder(module: str) -> str:
    return [*module.split("."), ""][1]


def _allowed(importer: str, imported: str) -> bool:
    return _folder(importer) == _folder(imported) or _floor(importer) > _floor(imported)


def _floor(module: str) -> int:
    return FLOORS.get(_folder(module), FACE)


def circle(package: Path) -> list[str]:
    """One circle of imports, or nothing."""
    try:
        graphlib.TopologicalSorter(imports(package)).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_a_folder_imports_only_floors_below_it():
    assert violations(SOURCE) == []


def test_no_module_imports_itself_in_a_circle():
    assert circle(SOURCE) == []


def test_the_graph_sees_the_house():
    graph = imports(SOURCE)
    assert "nextile.base.errors" in graph["nextile.base.config"]  # at the top
    assert len(graph) > 40
    assert sum(map(len, graph.values())) > len(graph)


@pytest.fixture
def house(tmp_path):
    """Build a tree of made-up modules."""

    def build(files: dict[str, str]) -> Path:
        for name, content in files.items():
            path = tmp_path / "nextile" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        return tmp_path / "nextile"

    return build


UPWARD = {
    "at the top": "from nextile.data.b import x",
    "of a module": "from nextile.data import b",
    "whole": "import nextile.data.b as b",
    "in a function": "def f():\n    from nextile.data import b",
    "in a method": "class C:\n    def f(self):\n        import nextile.data.b",
    "for types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from nextile.data.b import x",
    "relative": "from ..data import b",
    "relative to the top": "from .. import data",
    "by name": "from importlib import import_module\nb = import_module('nextile.data.b')",
    "of the face": "from nextile import train",
}


@pytest.mark.parametrize("source", UPWARD.values(), ids=UPWARD)
def test_an_import_that_goes_up_is_found(house, source):
    package = house({"text/a": source, "data/__init__": "", "data/b": "x = 1", "__init__": "def train(): ..."})
    assert len(violations(package)) == 1
    assert violations(package)[0].startswith("nextile.text.a imports nextile")


@pytest.mark.parametrize(("a", "b"), [("text", "images"), ("tasks", "inspection"), ("api", "serving")])
def test_an_import_that_goes_sideways_is_found(house, a, b):
    package = house({f"{a}/x": f"import nextile.{b}.y", f"{b}/y": ""})
    assert violations(package) == [f"nextile.{a}.x imports nextile.{b}.y"]


def test_imports_downward_and_within_a_folder_are_fine(house):
    files = {
        "base/errors": "",
        "data/a": "from nextile.data.b import x\nfrom nextile.base import errors\nimport torch, json",
        "data/b": "x = 1",
        "__init__": "def train():\n    from nextile.api import train",
        "api": "from nextile.data import a",
        "cli/main": "import nextile\nfrom nextile import __version__",
    }
    package = house(files)
    assert violations(package) == []
    assert circle(package) == []


def test_a_folder_without_a_floor_is_found(house):
    assert violations(house({"utils/a": ""})) == ["nextile.utils.a: 'utils' has no floor"]


def test_a_circle_is_found_even_when_lazy(house):
    lazy = "def f():\n    from nextile.data import b"
    package = house({"data/a": lazy, "data/b": "from . import c", "data/c": "from .a import f"})
    assert sorted(set(circle(package))) == ["nextile.data.a", "nextile.data.b", "nextile.data.c"]


# --- light floors stay light ---------------------------------------------------------------------------------------

LIGHT = r"nextile(\.text.*|\.base(\.(config|errors|files))?|\.data(\.(corpora|shards))?|\.cli.*)?"


def imports_torch(*names: str, folder: Path = HOUSE / "src") -> str:
    """The first of these modules that brings torch in, imported one after the other by a fresh Python."""
    code = (
        "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules:\n        print(name)\n        break"
    )
    command = [sys.executable, "-c", code, *names]
    result = subprocess.run(command, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_text_settings_corpora_and_the_command_line_import_without_torch():
    light = [name for name in modules(SOURCE) if re.fullmatch(LIGHT, name)]
    assert {"nextile", "nextile.text.bpe", "nextile.base.config", "nextile.data.corpora"} < set(light)
    assert imports_torch(*light) == ""


def test_a_module_that_brings_torch_in_is_found(tmp_path):
    (tmp_path / "torch.py").touch()
    (tmp_path / "lazy.py").write_text("def f():\n    import torch\n")
    (tmp_path / "eager.py").write_text("import torch\n")
    assert imports_torch("lazy", "eager", folder=tmp_path) == "eager"


def idle(statement: ast.stmt) -> bool:
    """Whether a statement at the top of a module only names things: no loops, no calls made for their effect."""
    match statement:
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Compare(left=ast.Name(id="__name__"))):
            return True
        case ast.Expr(value=ast.Constant(value=str())):
            return True
    return not isinstance(statement, (ast.Expr, ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Delete))


def work(path: Path) -> list[str]:
    """The statements at the top of a module that work rather than name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [f"{path.name}:{statement.lineno}" for statement in tree.body if not idle(statement)]


def test_no_module_below_the_command_line_works_when_imported():
    quiet = [path for name, path in modules(SOURCE).items() if _floor(name) < FLOORS["cli"]]
    assert [place for path in quiet for place in work(path)] == []


@pytest.mark.parametrize("line", ["print(1)", "for x in y:\n    pass", "with x:\n    pass", "if x:\n    import y"])
def test_work_at_import_is_found(tmp_path, line):
    path = tmp_path / "a.py"
    path.write_text(f'"""A file."""\nimport x\ny = x.f()\n{line}\n')
    assert work(path) == ["a.py:4"]


# --- every file says what it is ------------------------------------------------------------------------------------


def sentence(path: Path) -> str:
    """The first line of a file's docstring, or what is wrong with it."""
    line = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    if not line:
        return "has no docstring"
    if not line.endswith(".") or re.search(r"[.!?] +[A-Z]", line):
        return "its first line is not one sentence"
    return ""


def test_every_file_says_in_one_sentence_what_it_is():
    assert {name: wrong for name, path in modules(SOURCE).items() if (wrong := sentence(path))} == {}


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("x = 1", "has no docstring"),
        ('"""\n"""', "has no docstring"),
        ('"""A sentence that goes on\nhere."""', "its first line is not one sentence"),
        ('"""One. Two."""', "its first line is not one sentence"),
        ('"""GPT-2 (Radford et al. 2019): one sentence."""', ""),
        ('"""One.\n\nMore. And more."""', ""),
    ],
)
def test_a_file_that_does_not_is_found(tmp_path, source, wrong):
    path = tmp_path / "a.py"
    path.write_text(source)
    assert sentence(path) == wrong


def test_every_folder_names_its_floor():
    for folder in sorted(path.parent for path in SOURCE.glob("*/__init__.py")):
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
        assert docstring.startswith(f"Floor {FLOORS[folder.name]}: ")


# --- libraries -----------------------------------------------------------------------------------------------------


def libraries(package: Path) -> set[str]:
    """The distributions that a package imports, those of Python and its own left out."""
    tops = {name.partition(".")[0] for path in modules(package).values() for name in named(path, package.name)}
    foreign, providers = tops - sys.stdlib_module_names - {package.name, "pydoc_data"}, packages_distributions()
    return {canonicalize_name(each) for top in foreign for each in providers.get(top, [top])}


BESIDE = ("dev", "docs")  # extras that the package itself does not use


def declared(beside: Collection[str] = BESIDE) -> list[Requirement]:
    """What pyproject.toml asks for to run, extras included, some left out."""
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name not in beside for line in lines]
    return [Requirement(line) for line in [*project["dependencies"], *extras]]


def test_every_library_imported_is_declared_and_every_one_declared_is_imported():
    assert libraries(SOURCE) == {requirement.name for requirement in declared()}


def test_a_library_that_nobody_declared_is_found(house):
    package = house({"base/a": "import json, torch\ndef f():\n    import yaml\n    from . import b", "base/b": ""})
    assert libraries(package) == {"torch", "pyyaml"}


def unpinned(constraints: str) -> list[str]:
    """What is declared, and not pinned to a version that its declaration allows and every index has."""
    pins = dict(line.split("==") for line in constraints.splitlines() if "==" in line)
    known = {name: pin for name, pin in pins.items() if "+" not in pin}  # 2.13.0+cpu is of one index alone
    return [str(each) for each in declared(beside=["dev"]) if not each.specifier.contains(known.get(each.name, "0"))]


def test_every_library_is_pinned_to_a_version_that_is_allowed():
    assert unpinned((HOUSE / "constraints.txt").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("pin", ["torch==2.10.0", "torch==2.13.0+cpu", "numpy==2.0"])
def test_a_library_that_is_not_is_found(pin):
    assert any(line.startswith("torch>=") for line in unpinned(pin))
