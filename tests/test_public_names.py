"""The public face: every name in `nextile.__all__` exists and says what it is, and nothing else is public."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import nextile

API = Path(nextile.__file__).parent / "api.py"


def visible(module: Any) -> list[str]:
    """What `dir` shows of a module, its submodules and private names left out, its version kept."""
    names = [name for name in dir(module) if not name.startswith("_") or name == "__version__"]
    return [name for name in names if not isinstance(getattr(module, name), ModuleType)]


def undocumented(name: str, thing: Any) -> list[str]:
    """Of a public name and its public members, those that nobody wrote a docstring for."""
    if isinstance(thing, str):
        return []
    members = vars(thing).items() if inspect.isclass(thing) else ()
    own = [(f"{name}.{member}", value) for member, value in members if not member.startswith("_") and _is_code(value)]
    return [each for each, value in [(name, thing), *own] if not (value.__doc__ or "").strip()]


def _is_code(value: Any) -> bool:
    return inspect.isroutine(value) or isinstance(value, property)


def test_the_public_names_are_sorted_and_complete():
    assert nextile.__all__ == sorted(visible(nextile))


def test_everything_public_of_the_api_is_named():
    tree = ast.parse(API.read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert {name for name in defined if not name.startswith("_")} <= set(nextile.__all__)


@pytest.mark.parametrize("name", nextile.__all__)
def test_a_public_name_resolves_and_is_documented(name):
    assert undocumented(name, getattr(nextile, name)) == []


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = nextile.nonsense
    with pytest.raises(ImportError):
        importlib.import_module("nextile.nonsense")


def test_the_version_is_the_installed_one():
    assert nextile.__version__ == importlib.metadata.version("nextile")


def test_names_without_docstring_and_names_left_out_are_found():
    class Thing:
        """Documented."""

        def method(self): ...

        @property
        def value(self): ...

        def _private(self): ...

    assert undocumented("Thing", Thing) == ["Thing.method", "Thing.value"]
    assert undocumented("f", lambda: 0) == ["f"]
    module = SimpleNamespace(shown=1, __version__="1", _hidden=2, submodule=ast)
    assert visible(module) == ["__version__", "shown"]
