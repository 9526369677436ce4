"""A payload as one HTML file that needs no other and asks nothing of any network; what a text says is never markup.

The modules in `page/` are plain ES modules, so that a server can hand them out as they are. For one file they are put
one after the other, each a function of its own, in the order of their imports.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import string
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from nextile.base.files import open_regular
from nextile.inspection.look import Inspection
from nextile.inspection.payload import Payload, payload

ENTRY = "single.js"
STYLES = ("base.css", "inspect.css")
MADE_BY = b'<meta name="generator" content="nextile inspect">'  # near the beginning of each page
IMPORT = re.compile(r'^import (?:\{([^}]*)\}|\* as (\w+)) from "\./([\w-]+\.js)";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const|let) (\w+))", re.MULTILINE)


def html(inspection: Inspection, **chosen: Any) -> str:
    """The page of an inspection; chosen: see `payload`."""
    return page(payload(inspection, **chosen))


def page(content: Payload) -> str:
    """The page that shows a payload."""
    script, style = _script(), "".join(_read(name) for name in STYLES)
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    inert = json.dumps(finite(content), separators=(",", ":")).replace("<", "\\u003c")  # no tag ends its script
    template = string.Template(_read("single.html"))
    return template.substitute(policy=policy, style=style, payload=inert, script=script)


def is_page(path: Path) -> bool:
    """Whether a file is a page of ours, and not somebody's own."""
    try:
        with open_regular(path) as file:
            return MADE_BY in file.read(1000)
    except OSError:
        return False


def finite(value: Any) -> Any:
    """The value with null for what is no finite number, since JSON has no word for it."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _hash(text: str) -> str:
    """How a policy names a script or a style that may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _read(name: str) -> str:
    return (files("nextile.inspection") / "page" / name).read_text("utf-8")


# --- modules as one script ------------------------------------------------------------------------------------------


@cache
def _script() -> str:
    """The entry's module after all that it needs."""
    return "\n" + "\n".join(_module(name) for name in _order(ENTRY, [])) + "\n"


def _order(name: str, before: list[str]) -> list[str]:
    """Those before, and what the module needs and they lack, each after what it needs itself, and the module."""
    for needed in _needs(name):
        if needed not in before:
            _order(needed, before)
    before.append(name)
    return before


def _needs(name: str) -> Iterator[str]:
    for found in IMPORT.finditer(_read(name)):
        yield found[3]


def _module(name: str) -> str:
    """A module as a function that is called at once and returns what it exports."""
    source = _read(name)
    exported = ", ".join(EXPORT.findall(source))
    body = EXPORT.sub("", IMPORT.sub(_imported, source))
    return f"const {_variable(name)} = (() => {{\n{body}return {{ {exported} }};\n}})();"


def _imported(found: re.Match[str]) -> str:
    names, whole, name = found.groups()
    wanted = whole if whole else f"{{ {' '.join(names.split()).replace(' as ', ': ')} }}"
    return f"const {wanted} = {_variable(name)};\n"


def _variable(name: str) -> str:
    return "$" + name.removesuffix(".js").replace("-", "_")
