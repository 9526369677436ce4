"""The README's tree shows every file of src/nextile once, with the first sentence of its docstring."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

HOUSE = Path(__file__).parents[1]
SOURCE = HOUSE / "src" / "nextile"
README = HOUSE / "README.md"


@pytest.fixture(scope="module")
def maker() -> SimpleNamespace:
    """docs/make_tree.py."""
    return SimpleNamespace(**runpy.run_path(str(HOUSE / "docs" / "make_tree.py")))


def test_the_tree_is_that_of_the_code(maker):
    page = README.read_text(encoding="utf-8")
    assert page == maker.with_tree(page, maker.tree(SOURCE)), "run: make tree"


def test_every_file_has_one_line(maker):
    shown = [left.strip() for left, _ in maker.rows(SOURCE)]
    files = [path.name for path in SOURCE.rglob("*.py") if path.name != "__init__.py"]
    assert sorted(name for name in shown if name.endswith(".py")) == sorted(files)
    assert all(right for _, right in maker.rows(SOURCE))


@pytest.fixture
def package(tmp_path) -> Path:
    """A small made-up package."""
    files = {
        "__init__": '"""A package."""',
        "api": '"""What all can call.\n\nMore of it.\n"""',
        "second/__init__": '"""Floor 10: above."""',
        "first/__init__": '"""Floor 2: below."""',
        "first/one": '"""One."""',
        "first/inner/__init__": '"""Within."""',
        "first/inner/two": '"""Two."""',
    }
    for name, text in files.items():
        path = tmp_path / "package" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "package"


TREE = """\
```text
package/      A package.
  api.py      What all can call.
  first/      Floor 2: below.
    one.py    One.
    inner/    Within.
      two.py  Two.
  second/     Floor 10: above.
```"""


def test_the_tree_of_a_small_package(maker, package):
    assert maker.tree(package) == TREE


def test_a_changed_sentence_and_a_new_file_are_found(maker, package):
    page = maker.with_tree("Title\n<!-- tree -->\nold\n<!-- /tree -->\nEnd\n", TREE)
    assert page == f"Title\n<!-- tree -->\n{TREE}\n<!-- /tree -->\nEnd\n"
    (package / "first" / "one.py").write_text('"""Uno."""')
    (package / "new.py").write_text('"""New."""')
    changed = maker.with_tree(page, maker.tree(package)).splitlines()
    assert [line.split() for line in changed if line not in page] == [["new.py", "New."], ["one.py", "Uno."]]


def test_a_page_without_marks_is_refused(maker):
    with pytest.raises(ValueError, match="once each"):
        maker.with_tree("<!-- tree -->", TREE)
