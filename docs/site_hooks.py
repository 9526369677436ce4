"""What mkdocs calls while it builds the site: pages of source and reference are added, links to files lead to them."""

from __future__ import annotations

import logging
import posixpath
import re
from typing import Any

import site_reference
import site_source
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.structure.toc import AnchorLink, TableOfContents
from symbols import listed

HOUSE = site_source.HOUSE
ROOT_PAGES = {  # pages beside docs/
    "exercises/README.md": "exercises.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
}
FENCED = re.compile(r"(^ *(`{3,}|~{3,}).*?^ *\2 *$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s#]+)")
log = logging.getLogger("mkdocs.hooks.site")


# --- which pages there are ------------------------------------------------------------------------------------------


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the sections of the navigation that follow from files: the lecture, the reference, the source."""
    site_source.forget()
    sections: dict[str, list[Any]] = {
        "The lecture": _lecture(),
        "Reference": [*site_reference.PAGES],
        "Source": _source(),
    }
    config.nav = [{name: sections.get(name, inside)} for each in config.nav or [] for name, inside in each.items()]
    return config


def _lecture() -> list[Any]:
    """The map of the lecture, its pages in the map's order, and what the exercises are."""
    spine = (HOUSE / "docs" / "lecture.md").read_text(encoding="utf-8")
    return [{"The map": "lecture.md"}, *dict.fromkeys(re.findall(r"\]\((lecture/[\w-]+\.md)\)", spine)), "exercises.md"]


def _source() -> list[Any]:
    """A section a folder: its page, then its files."""
    inside: dict[str, list[Any]] = {folder: [f"source/{folder}/index.md"] for folder in site_source.folders()}
    for name in site_source.files():
        folder, _, file = name.rpartition("/")
        inside[folder].append({file: f"source/{name}.md"})
    return ["source/index.md", *({site_source.shown(folder): pages} for folder, pages in inside.items())]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are written anew at each build, and those that lie beside docs/."""
    made = [*site_source.pages(), *site_reference.pages()]
    made += [(page, (HOUSE / name).read_text(encoding="utf-8")) for name, page in ROOT_PAGES.items()]
    for page, text in made:
        files.append(File.generated(config, page, content=text))
    return files


# --- links ----------------------------------------------------------------------------------------------------------


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links of a page that lead to files of the repository lead to the pages of these files."""
    home = {site: name for name, site in ROOT_PAGES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    if page.file.src_uri.startswith(("source/", "reference/")):  # written for the site: their links are right
        return markdown
    parts = FENCED.split(markdown)  # the text, a block, its fence, the text ...
    parts[::3] = [LINK.sub(lambda link: _on_site(link[1], home, page.file.src_uri), text) for text in parts[::3]]
    return "".join(part for number, part in enumerate(parts) if number % 3 != 2)


def _on_site(link: str, home: str, page: str) -> str:
    """A relative link from a file of the repository, as one from a page of the site."""
    name = posixpath.normpath(posixpath.join(posixpath.dirname(home), link))
    target = site_source.page_of(name) or ROOT_PAGES.get(name)
    if target is None and not name.startswith("docs/"):
        log.warning("%s links to '%s', of which the site has no page", home, name)
    return posixpath.relpath(target or name.removeprefix("docs/"), posixpath.dirname(page) or ".")


# --- lines ----------------------------------------------------------------------------------------------------------


def _name(page: Page) -> str | None:
    """The file that a page of source shows."""
    name = page.file.src_uri.removeprefix("source/").removesuffix(".md")
    return name if page.file.src_uri.startswith("source/") and name in site_source.files() else None


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Give a page of source its lines to link to and its symbols as table of contents, one of reference its links."""
    if name := _name(page):
        lines = range(1, site_source.length(name) + 1)
        page.present_anchor_ids = (page.present_anchor_ids or set()) | {f"L{line}" for line in lines}
        page.toc = _contents(page.toc, name)
    elif page.file.src_uri.startswith("reference/"):
        return site_reference.with_lines(html, posixpath.dirname(page.file.url))
    return html


def _contents(toc: TableOfContents, name: str) -> TableOfContents:
    [title] = toc
    for symbol, line in listed(site_source.files()[name]).items():
        owner, _, last = symbol.rpartition(".")
        above = title.children[-1].children if owner and title.children else title.children
        above.append(AnchorLink(last, f"L{line}", 2))
    return toc


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Put the code in, and say to those who do not see it what the theme's dialog is for."""
    output = output.replace('role="dialog"', 'role="dialog" aria-label="Search"', 1)
    name = _name(page)
    return output.replace(site_source.place_of(name), site_source.code(name)) if name else output
