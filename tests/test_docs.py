"""Every code block of the README and of docs/ runs, page by page, in an empty folder.

The ```python blocks of a page share one process, the ```bash blocks and the `$` lines of the ```console blocks run with
this Python's programs first on PATH. In the line before a block, `<!-- slow -->` leaves it to `make test-all` and
`<!-- not run: reason -->` leaves it out. A page is played by `python tests/test_docs.py PAGE [slow]` as well.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HOUSE = Path(__file__).parents[1]
PAGES = [HOUSE / "README.md", *sorted((HOUSE / "docs").rglob("*.md"))]
RUN = ("python", "bash", "console")
SHOWN = ("text", "json", "toml", "yaml")  # languages that are only looked at
FENCE = re.compile(r"^( *)(`{3,}|~{3,})(.*)$")
COMMENT = re.compile(r"^ *<!-- *(slow|not run)(?:: *(.*?))? *-->$")
SECONDS = 900


@dataclass(frozen=True)
class Code:
    """A block that runs: its language, the number of its first line, its text, and whether it takes long."""

    language: str
    line: int
    text: str
    slow: bool


# --- reading a page ------------------------------------------------------------------------------------------------


def codes(page: Path) -> list[Code]:
    """The blocks of a page that run, in order. ValueError for a block of which it is not clear whether it does."""
    return list(_codes(page, page.read_text(encoding="utf-8").splitlines()))


def _codes(page: Path, lines: list[str]) -> Iterator[Code]:
    number = 0
    while number < len(lines):
        fence, start, number = FENCE.match(lines[number]), number, number + 1
        if not fence:
            continue
        end = next((i for i in range(number, len(lines)) if lines[i].strip() == fence[2]), None)
        if end is None:
            raise ValueError(f"{page.name}:{start + 1}: the block has no end")
        kind, reason = _comment(lines[start - 1] if start else "")
        language, text = fence[3].strip(), textwrap.dedent("\n".join(lines[number:end]))
        if (language not in RUN + SHOWN) or (kind == "not run" and not reason):
            raise ValueError(f"{page.name}:{start + 1}: say what runs ({', '.join(RUN)}), or why it does not")
        if language in RUN and kind != "not run":
            yield Code(language, number + 1, text, slow=kind == "slow")
        number = end + 1


def _comment(line: str) -> tuple[str, str]:
    match = COMMENT.match(line)
    return (match[1], match[2] or "") if match else ("", "")


# --- playing it ----------------------------------------------------------------------------------------------------


def play(page: Path, *, slow: bool) -> None:
    """Run a page's blocks in order; the first that fails raises, its own lines in the traceback."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for code in codes(page):
        if code.slow and not slow:
            continue
        if code.language == "python":
            exec(compile("\n" * (code.line - 1) + code.text, str(page), "exec"), names)
        else:
            _shell(page, code)


def _shell(page: Path, code: Code) -> None:
    text = code.text
    if code.language == "console":
        text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
    result = subprocess.run(["bash", "-e", "-o", "pipefail", "-c", text])
    if result.returncode:
        raise SystemExit(f"{page.name}:{code.line}: exit code {result.returncode} from\n{text}")


def failure(page: Path, folder: Path, *, slow: bool = False) -> str:
    """What a page says when played by a fresh Python in a folder, if it fails."""
    command = [sys.executable, __file__, str(page), *(["slow"] if slow else [])]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    env = {**os.environ, "PATH": path, "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=SECONDS)
    return f"{result.stdout}{result.stderr}" if result.returncode else ""


LONG = [page for page in PAGES if "<!-- slow" in page.read_text(encoding="utf-8")]


def _marked(page: Path) -> Any:
    """The lecture's pages are slow here: tests/test_lecture.py runs all of their blocks, in one process."""
    return pytest.param(page, marks=pytest.mark.slow if page.parent.name == "lecture" else ())


@pytest.mark.parametrize("page", [_marked(page) for page in PAGES], ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page, tmp_path):
    said = failure(page, tmp_path)
    assert said == ""


@pytest.mark.slow
@pytest.mark.parametrize("page", LONG, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_the_long_ones_too(page, tmp_path):
    said = failure(page, tmp_path, slow=True)
    assert said == ""


# --- its links -----------------------------------------------------------------------------------------------------

LINK = re.compile(r"\]\(([^)\s#]+)")
LINKED = [*PAGES, HOUSE / "CONTRIBUTING.md", HOUSE / "CHANGELOG.md"]


def broken(page: Path) -> list[str]:
    """The links of a page to files that are not there."""
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    return [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.stem)
def test_the_links_of_a_page_lead_somewhere(page):
    assert broken(page) == []


# --- a page that is wrong is found -----------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path):
    """Write a made-up page; `'''` stands for a fence."""

    def write(text: str) -> Path:
        path = tmp_path / "page.md"
        path.write_text(textwrap.dedent(text).replace("'''", "```"), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("'''python\nx = 1\nraise KeyError(x)\n'''", 'page.md", line 5, in <module>'),
        ("'''python\nx = =\n'''", 'page.md", line 4'),
        ("'''bash\nfalse\ntrue\n'''", "page.md:4: exit code 1"),
        ("'''bash\nfalse | true\n'''", "page.md:4: exit code 1"),
        ("'''console\n$ true\nan answer\n$ exit 3\n'''", "page.md:4: exit code 3"),
        ("- a list\n\n  '''bash\n  exit 4\n  '''", "page.md:6: exit code 4"),
        ("'''sh\ntrue\n'''", "page.md:3: say what runs"),
        ("'''\ntrue\n'''", "page.md:3: say what runs"),
        ("<!-- not run: -->\n'''bash\ntrue\n'''", "page.md:4: say what runs"),
        ("<!-- not run: far away -->\n\n'''bash\nfalse\n'''", "page.md:6: exit code 1"),
        ("'''python\nx = 1\n", "page.md:3: the block has no end"),
    ],
)
def test_a_block_that_fails_is_found(page, tmp_path, block, said):
    assert said in failure(page(f"# Title\n\n{block}"), tmp_path)


def test_a_link_that_leads_nowhere_is_found(page):
    assert broken(page("[a](page.md#title) [b](gone.md) [c](https://example.org/gone.md)")) == ["gone.md"]


def test_the_python_blocks_of_a_page_share_a_process_and_all_blocks_a_folder(page, tmp_path):
    text = """
        '''python
        x = 1
        '''
        '''bash
        echo 2 > two.txt
        python -c "import pytest"
        '''
        '''python
        assert x + int(open("two.txt").read()) == 3
        '''
        '''console
        $ grep 2 two.txt
        2
        '''
        '''text
        looked at only
        '''
        <!-- not run: it would fail -->
        '''bash
        exit 1
        '''
    """
    assert failure(page(text), tmp_path) == ""


def test_a_slow_block_waits_until_it_is_asked_for(page, tmp_path):
    path = page("<!-- slow -->\n'''bash\nexit 5\n'''")
    assert failure(path, tmp_path) == ""
    assert "exit code 5" in failure(path, tmp_path, slow=True)


if __name__ == "__main__":
    play(Path(sys.argv[1]), slow="slow" in sys.argv[2:])
