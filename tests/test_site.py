"""The site of the documentation: it builds without a warning, its links hold, and it asks nothing of another host."""

from __future__ import annotations

import importlib
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html import unescape
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("material", reason="mkdocs-material builds the site: pip install 'nextile[docs]'")

HOUSE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site as `make docs` builds it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=HOUSE, env=env, capture_output=True, text=True, timeout=600)
    warnings = [line for line in result.stderr.splitlines() if not line.startswith("INFO")]
    assert (result.returncode, warnings) == (0, []), result.stderr
    return folder


@pytest.fixture(scope="module")
def scripts() -> Iterator[ModuleType]:
    """What lies in docs/ and runs, to be imported by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HOUSE / "docs")
        yield importlib.import_module("importlib")


# --- reading what was built -----------------------------------------------------------------------------------------

ANCHOR = re.compile(r'\bid="?([^"\s>]+)')
LINK = re.compile(r'<a\b[^>]*?\bhref="?([^"\s>]*)')
LOADED = re.compile(r'<(?:script|img|iframe|source)\b[^>]*?\bsrc="([^"]*)"|<link\b[^>]*?\bhref="([^"]*)"')
FROM_CSS = re.compile(r"@import|url\(\s*['\"]?(?!data:|#)([^)'\"]+)")
TO_LINE = re.compile(r'<a href="([^"#]+)#L(\d+)"><code>([^<]+)</code></a>')


@cache
def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def anchors(page: Path) -> frozenset[str]:
    return frozenset(ANCHOR.findall(text(page)))


def pages(site: Path) -> list[Path]:
    return [page for page in sorted(site.rglob("*.html")) if page.name != "404.html"]  # its links begin at the root


def broken(site: Path) -> list[str]:
    """The links of all pages to files or places that are not there."""
    return [
        f"{page.relative_to(site)}: {link}"
        for page in pages(site)
        for link in _links(page)
        if _leads_nowhere(page, link)
    ]


def _links(page: Path) -> list[str]:
    return sorted({unescape(link) for link in LINK.findall(text(page))})


def _leads_nowhere(page: Path, link: str) -> bool:
    parts = urlsplit(link)
    if parts.scheme:
        return parts.scheme not in ("https", "http", "mailto")
    target = Path(os.path.normpath(page.parent / unquote(parts.path))) if parts.path else page
    target = target / "index.html" if target.is_dir() else target
    return not target.is_file() or (bool(parts.fragment) and unquote(parts.fragment) not in anchors(target))


def foreign(site: Path) -> list[str]:
    """What the pages and their styles would load from elsewhere."""
    found = [(page, "".join(pair)) for page in site.rglob("*.html") for pair in LOADED.findall(text(page))]
    found += [(style, address) for style in site.rglob("*.css") for address in FROM_CSS.findall(text(style))]
    return [f"{file.relative_to(site)}: {address}" for file, address in found if urlsplit(address).netloc]


# --- what was built -------------------------------------------------------------------------------------------------


def test_every_link_of_the_site_leads_somewhere(site):
    assert broken(site) == []


def test_nothing_is_loaded_from_another_host(site):
    assert foreign(site) == []


def test_every_file_of_the_library_has_a_page_with_all_its_lines(site):
    for path in (HOUSE / "src" / "nextile").rglob("*.py"):
        page = site / "source" / f"{path.relative_to(HOUSE)}.html"
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert (f"L{lines}" in anchors(page), f"L{lines + 1}" in anchors(page)) == (lines > 0, False), path


def test_a_link_to_a_line_leads_to_the_name_that_it_shows(site):
    found = [(page, link) for page in pages(site) for link in TO_LINE.findall(text(page))]
    for page, (file, number, name) in found:
        line = re.search(rf'id="L{number}" class="line">(.*)', text(Path(os.path.normpath(page.parent / file))))
        assert line, f"{page.relative_to(site)}: {file}#L{number}"
        assert name.removesuffix("()").rpartition(".")[2] in re.sub("<[^>]*>", "", line[1]), (page.name, name, line[0])
    assert found


def test_every_page_says_its_language_and_its_title_and_every_picture_what_it_shows(site):
    for page in site.rglob("*.html"):
        assert '<html lang="en"' in text(page), page
        assert re.search(r"<title>[^<]*nextile</title>", text(page)), page
        assert all(re.search(r'\balt="[^"]', picture) for picture in re.findall("<img[^>]*>", text(page))), page


def test_code_is_on_no_page_twice_and_in_no_index(site):
    page = text(site / "source" / "src" / "nextile" / "nn" / "attention.py.html")
    assert page.count('class="source highlight"') == 1
    assert "the lines of" not in page
    assert "masked_fill" not in text(site / "search" / "search_index.js")


def test_the_reference_leads_from_a_name_to_its_line(site, scripts):
    line = importlib.import_module("symbols").line_of(HOUSE / "src" / "nextile" / "api.py", "Model.generate")
    assert f'href="../source/src/nextile/api.py.html#L{line}"' in text(site / "reference" / "index.html")


def test_the_settings_have_the_words_of_their_comments(site):
    page = text(site / "reference" / "settings.html")
    assert "of the gradient&#x27;s global norm" in page or "of the gradient's global norm" in page


# --- opened from the disk -------------------------------------------------------------------------------------------


def test_the_site_opens_from_the_disk_and_is_searched_there_and_asks_nobody(site):
    if shutil.which("chromium") is None:
        pytest.skip("there is no chromium: apt install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        window = browser.new_page()
        asked, errors = [], []
        window.on("request", lambda request: asked.append(request.url))
        window.on("pageerror", lambda error: errors.append(str(error)))
        window.goto((site / "index.html").as_uri())
        window.get_by_role("textbox", name="Search").press_sequentially("explicit_attention")
        window.locator(".md-search-result__link").first.click()
        window.wait_for_url("**/*h=*")
        assert "explicit_attention" in window.inner_text("main")
        browser.close()
    assert errors == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))] == []


# --- what is wrong is found -----------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path) -> Path:
    """A site of two pages, one of them with a place."""
    (tmp_path / "index.html").write_text('<a href="other.html#place">a</a> <a href="https://example.org">b</a>')
    (tmp_path / "other.html").write_text('<h1 id="place">c</h1> <a href=".">d</a>')
    return tmp_path


def test_a_site_whose_links_hold_is_right(small):
    assert broken(small) == []
    assert foreign(small) == []


@pytest.mark.parametrize("link", ["gone.html", "other.html#gone", "#gone", "javascript:alert(1)", "folder/"])
def test_a_broken_link_is_found(small, link):
    (small / "third.html").write_text(f'<a class="x" href="{link}">e</a>')
    assert broken(small) == [f"third.html: {link}"]


@pytest.mark.parametrize(
    "markup",
    [
        '<script src="https://example.org/x"></script>',
        '<link rel="stylesheet" href="https://example.org/x">',
        '<img alt="" src="//example.org/x">',
    ],
)
def test_what_comes_from_another_host_is_found(small, markup):
    (small / "third.html").write_text(markup)
    assert len(foreign(small)) == 1


def test_a_style_that_loads_from_another_host_is_found(small):
    (small / "style.css").write_text("a { background: url(data:x) } b { background: url('https://example.org/x') }")
    assert foreign(small) == ["style.css: https://example.org/x"]


# --- links of a page, on a forge and on the site --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("home", "page", "link", "on_site"),
    [
        ("docs/words.md", "words.md", "../src/nextile/api.py", "source/src/nextile/api.py.md"),
        ("docs/lecture/a.md", "lecture/a.md", "../../recipes/cifar10.toml", "../source/recipes/cifar10.toml.md"),
        ("docs/lecture/a.md", "lecture/a.md", "../words.md", "../words.md"),
        ("docs/families.md", "families.md", "../src/nextile/models", "source/src/nextile/models/index.md"),
        ("docs/design.md", "design.md", "make_tree.py", "source/docs/make_tree.py.md"),
        ("docs/index.md", "index.md", "../CHANGELOG.md", "changes.md"),
        ("CONTRIBUTING.md", "contributing.md", "docs/design.md", "design.md"),
    ],
)  # fmt: skip
def test_a_link_to_a_file_becomes_one_to_its_page(scripts, home, page, link, on_site):
    assert importlib.import_module("site_hooks")._on_site(link, home, page) == on_site


def test_a_link_to_what_the_site_does_not_have_is_a_warning(scripts, caplog):
    with caplog.at_level(logging.WARNING, "mkdocs"):
        importlib.import_module("site_hooks")._on_site("../tests/conftest.py", "docs/words.md", "words.md")
    assert "docs/words.md links to 'tests/conftest.py', of which the site has no page" in caplog.text


# --- the lines in links ---------------------------------------------------------------------------------------------


@pytest.fixture
def made_up(tmp_path) -> Path:
    """A page beside a file of code."""
    (tmp_path / "code.py").write_text(
        "class A:\n    def go(self):\n        x = 1\n\n\ndef go_on():\n    pass\n\n\nLIMIT = 3\n"
    )
    return tmp_path / "page.md"


def test_the_lines_in_the_links_to_code_are_those_of_the_code(scripts):
    maker = importlib.import_module("make_lines")
    moved = [page.relative_to(HOUSE).as_posix() for page, _ in maker.stale()]
    assert moved == [], "run: make lines"


@pytest.mark.parametrize(
    ("name", "line"), [("A", 1), ("A.go", 2), ("go", 2), ("go_on", 6), ("go_on()", 6), ("LIMIT", 10)]
)
def test_a_line_follows_its_symbol(scripts, made_up, name, line):
    made_up.write_text(f"See [`{name}`](code.py#L99) and [code.py](code.py).\n")
    said = importlib.import_module("make_lines").with_lines(made_up)
    assert said == f"See [`{name}`](code.py#L{line}) and [code.py](code.py).\n"


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("[`gone`](code.py#L1)", "'gone' is in no place of code.py"),
        ("[`x`](code.py#L3)", "'x' is in no place of code.py"),
        ("[`A`](gone.py#L1)", "No such file"),
        ("[code.py](code.py#L1)", "a link to a line has the symbol as its text"),
    ],
)
def test_a_link_to_a_line_without_its_symbol_is_an_error_that_names_it(scripts, made_up, link, said):
    made_up.write_text(f"See {link}.\n")
    with pytest.raises(LookupError, match=re.escape(said)) as error:
        importlib.import_module("make_lines").with_lines(made_up)
    assert f"page.md: {link}" in str(error.value)
