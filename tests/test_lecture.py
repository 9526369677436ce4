"""The lecture's pages: each has its code, whose output is what the page shows, a line of the library, a picture, an
exercise, and its neighbours; the index has all of them in order."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

HOUSE = Path(__file__).parents[1]
INDEX = HOUSE / "docs" / "lecture.md"
FOLDER = HOUSE / "docs" / "lecture"
ORDER = list(dict.fromkeys(re.findall(r"\]\(lecture/(\w+)\.md\)", INDEX.read_text(encoding="utf-8"))))
PAGES = sorted(path.stem for path in FOLDER.glob("*.md"))
BLOCK = re.compile(r"(<!-- .*? -->\n)?```python\n(.*?)```\n(?:```text\n(.*?)```\n)?", re.DOTALL)


def text_of(name: str) -> str:
    """A page."""
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def printed(text: str) -> list[tuple[str, str]]:
    """What a page shows below each block of Python, and what the block prints."""
    names: dict[str, object] = {"__name__": "__main__"}
    found = []
    for comment, code, shown in BLOCK.findall(text):
        if not comment:
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(code, "page", "exec"), names)
            found.append((shown, output.getvalue()))
    return found


@pytest.fixture(autouse=True)
def one_thread_in_an_empty_folder(tmp_path, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_what_its_code_prints(name):
    for shown, output in printed(text_of(name)):
        assert shown == output


def test_an_output_that_is_not_so_is_found():
    assert printed("```python\nprint(2 + 2)\n```\n```text\n5\n```\n") == [("5\n", "4\n")]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_all_that_a_page_has(name):
    text = text_of(name)
    assert re.search(r"^```python$", text, re.MULTILINE), "code"
    assert not re.search(r"^<!-- (slow|not run)|^```(bash|console)", text, re.MULTILINE), "blocks that nobody runs"
    assert re.search(r"\]\(\.\./\.\./src/nextile/\S+#L\d+\)", text), "a line of the library"
    assert re.search(r"^!\[.+\]\(\S+\.png\)$", text, re.MULTILINE), "a picture"
    assert re.search(rf"\]\(\.\./\.\./exercises/{name}\.py\)", text), "its exercise"
    assert f"`python exercises/{name}.py`" in text


def neighbours(name: str) -> tuple[str | None, str | None]:
    """What stands before and after a page in the index."""
    place = ORDER.index(name)
    return (ORDER[place - 1] if place else None), (ORDER[place + 1] if place + 1 < len(ORDER) else None)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_leads_to_its_neighbours(name):
    before, after = neighbours(name)
    last = text_of(name).rstrip().splitlines()[-1]
    links = ([f"{before}.md"] if before else []) + ["../lecture.md"] + ([f"{after}.md"] if after else [])
    assert re.findall(r"\]\((\S+?)\)", last) == links


def test_the_index_has_every_page_once():
    assert sorted(ORDER) == PAGES


def test_pictures_are_small_and_each_is_on_a_page():
    pictures = {path.name: path.stat().st_size for path in FOLDER.glob("*.*") if path.suffix in (".png", ".svg")}
    assert max(pictures.values()) <= 80_000
    text = "".join(map(text_of, PAGES))
    assert [name for name in pictures if f"({name})" not in text] == []
