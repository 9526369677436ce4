"""The process that renders chat templates: it imports jinja2 alone and may use little memory and time.

`templates.py` starts it as a script and talks to it through its pipes. A frame is a length, 4 bytes, and as much JSON.
A request is {"template", "specials", "jobs": [[messages, add_generation_prompt], ...]}; for every job, in order, comes
{"text", "blocks"}, where the blocks are what stood within {% generation %}, or {"refused"} or {"failed"} with a line.
"""

from __future__ import annotations

import encodings.unicode_escape  # noqa: F401 (with the next three: what is imported late, when no file can be opened)
import json
import os
import pprint  # noqa: F401
import re
import sys
import time
import unicodedata  # noqa: F401
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any, BinaryIO

import jinja2.debug  # noqa: F401
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 256 * 2**20  # bytes above what the interpreter has when it has started
SECONDS = 3  # of processor time for a job: ends a loop even when nobody is left to end the process
MOST = 16 * 2**20  # bytes of an answer
OUT_OF_MEMORY = 77  # the exit code

Job = tuple[list[dict[str, Any]], bool]


# --- limits --------------------------------------------------------------------------------------------------------


def limit_memory_and_files() -> Callable[[], object]:
    """Give up what a template has no need of; the result, called before a job, limits the job's processor time.

    Without the module `resource` (Windows) nothing is limited here, and the parent's clock is the only limit.
    """
    try:
        import resource
    except ImportError:
        return lambda: None
    time.localtime()  # reads the time zone's file
    for kind, limit in (
        (resource.RLIMIT_AS, _memory() + MEMORY),
        (resource.RLIMIT_NOFILE, 0),  # the pipes stay open, nothing else opens
        (resource.RLIMIT_CORE, 0),
    ):
        try:
            resource.setrlimit(kind, (limit, limit))
        except (OSError, ValueError):  # macOS does not limit memory
            continue
    _, most = resource.getrlimit(resource.RLIMIT_CPU)

    def limit_time() -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime) + 1 + SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (soft if most == resource.RLIM_INFINITY else min(soft, most), most))

    return limit_time


def _memory() -> int:
    """The bytes of address space in use; a guess where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return MEMORY


# --- what templates may use ----------------------------------------------------------------------------------------


def generation(begin: str, end: str) -> type[Extension]:
    """The tag {% generation %}...{% endgeneration %}, which leaves `begin` and `end` around what it encloses."""

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (jinja2's own form)

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("marked"), [], [], body).set_lineno(line)

        def marked(self, caller: Callable[[], str]) -> str:
            return f"{begin}{caller()}{end}"

    return Generation


def sandbox(begin: str, end: str) -> ImmutableSandboxedEnvironment:
    """The names, filters and tags that chat templates of the Hugging Face Hub use."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, generation(begin, end)]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = now
    return environment


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is; jinja2's own filter is for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class Refused(TemplateError):
    """The template itself will not have this conversation."""


def refuse(message: Any) -> None:
    """`raise_exception` of a template."""
    raise Refused(str(message)[:200])


def now(form: str) -> str:
    """`strftime_now` of a template."""
    return datetime.now().strftime(form)


# --- the work ------------------------------------------------------------------------------------------------------


class Renderer:
    """Renders jobs; the last few templates are kept compiled."""

    def __init__(self) -> None:
        self._marks = os.urandom(16).hex(), os.urandom(16).hex()  # no text has them by chance
        self._compile = lru_cache(maxsize=8)(sandbox(*self._marks).from_string)

    def answer(self, template: str, specials: dict[str, str], job: Job) -> bytes:
        """What is sent back for a job. Errors: MemoryError."""
        try:
            data = _json(self._render(template, specials, job))
        except MemoryError:
            raise
        except Refused as error:
            return _json({"refused": str(error)})
        except Exception as error:  # a template may fail in any way
            return _json({"failed": f"{type(error).__name__}: {str(error)[:200]}"})
        return data if len(data) <= MOST else _json({"failed": f"more than {MOST // 2**20} MiB of text"})

    def _render(self, template: str, specials: dict[str, str], job: Job) -> dict[str, Any]:
        messages, prompt = job
        names = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": prompt}
        return self._unmarked(self._compile(template).render({**specials, **names}))

    def _unmarked(self, text: str) -> dict[str, Any]:
        """The text without the marks of {% generation %}, and the places [start, stop] that they marked."""
        begin, end = self._marks
        starts, kept, blocks, place = [], [], [], 0
        for piece in re.split(f"({begin}|{end})", text):
            if piece == begin:
                starts.append(place)
            elif piece == end:
                blocks.append([starts.pop() if starts else place, place])
            else:
                kept.append(piece)
                place += len(piece)
        return {"text": "".join(kept), "blocks": blocks}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")


def send(file: BinaryIO, data: bytes) -> None:
    """Write one frame."""
    file.write(len(data).to_bytes(4, "big") + data)
    file.flush()


def main() -> None:
    """Say that we are ready, then answer requests until the pipe closes."""
    renderer = Renderer()
    limit_time = limit_memory_and_files()
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    send(answers, b"{}")
    try:
        while header := asked.read(4):
            request = json.loads(asked.read(int.from_bytes(header, "big")))
            for job in request["jobs"]:
                limit_time()
                send(answers, renderer.answer(request["template"], request["specials"], job))
            del request, job
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # what is left of the memory may not do for more


if __name__ == "__main__":
    main()
