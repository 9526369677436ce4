"""Chat templates, programs that strangers wrote, rendered in a process that is ended when they ask too much.

A sandbox of jinja2 keeps a template from Python's insides, but not from looping for ever or filling the memory. So
another process does it (`template_worker.py`): it has two pipes, can open nothing, may take 256 MB, and is killed when
a rendering takes 2 seconds: of its processor's time, where the system tells that, so that a busy machine ends nobody.
Elsewhere than on Linux the clock counts; on Windows, and for memory on macOS, it is the only limit.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nextile.base.errors import NextileError

LIMIT = 2.0  # seconds of one rendering
_PATIENCE = 60.0  # seconds of the clock, where a busy machine keeps a process from its work
_MOST = 16 * 2**20  # bytes of one rendering
_MOST_OF_BATCH = 2 * _MOST
_BATCH = 2**20  # bytes of conversations sent at a time, unless one is longer
_JOBS = 256  # of them at a time
_OUT_OF_MEMORY = 77  # the exit code by which the process says so

# A script: nothing of the environment, of the current folder or of site-packages reaches it, but the folders named.
_RUN = "import sys, runpy; sys.path += sys.argv[2:]; runpy.run_path(sys.argv[1], run_name='__main__')"
_VARIABLES = ("SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")  # what an interpreter needs to start

Job = tuple[list[dict[str, Any]], bool]  # the messages, and whether the answer's beginning follows them


@dataclass(frozen=True)
class Rendering:
    """What a template made of a conversation.

    blocks: where {% generation %} blocks stand in it, (start, stop) in characters.
    """

    text: str
    blocks: list[tuple[int, int]]


def render_all(template: str, specials: Mapping[str, str], jobs: Iterable[Job]) -> Iterator[Rendering | NextileError]:
    """Render conversations, in order and many at a time; where a template fails or refuses, its error comes instead.

    specials: the names of special tokens that a template may use ("eos_token") and their text.
    Errors: NextileError where a rendering takes more than 2 seconds, 256 MB of memory or 16 MiB of text.
    """
    rest = f'"template": {json.dumps(template)}, "specials": {json.dumps(dict(specials))}'
    for batch in _batches(jobs):
        request = f'{{{rest}, "jobs": [{", ".join(batch)}]}}'.encode()
        yield from map(_rendering, _host(os.getpid()).ask(request, len(batch)))


def _batches(jobs: Iterable[Job]) -> Iterator[list[str]]:
    batch, size = [], 0
    for job in jobs:
        text = json.dumps(job)
        if batch and (size + len(text) > _BATCH or len(batch) == _JOBS):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def _rendering(answer: dict[str, Any]) -> Rendering | NextileError:
    if "refused" in answer:
        return NextileError(
            f"the chat template refuses the conversation: {answer['refused']!r}; change it, or use another template"
        )
    if "failed" in answer:
        return NextileError(
            f"the chat template cannot render the conversation: {answer['failed']!r}; use another template"
        )
    return Rendering(answer["text"], [(start, stop) for start, stop in answer["blocks"]])


# --- the process ---------------------------------------------------------------------------------------------------


class _Watch:
    """Kills a process that works for some seconds and says nothing, or is not heard of for longer than `_PATIENCE`.

    A thread, since pipes have no time limit on every system.
    """

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self._process, self._seconds = process, seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.expired = False

    def __enter__(self) -> _Watch:
        self.renew()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def renew(self) -> None:
        """It said something."""
        self._began, self._worked = time.monotonic(), _processor_time(self._process.pid)

    def _run(self) -> None:
        while (left := self._left()) > 0:
            if self._done.wait(left):
                return
        self.expired = True
        self._process.kill()

    def _left(self) -> float:
        """The seconds in which nobody need look again; 0 when it had its time."""
        took = time.monotonic() - self._began
        if took < self._seconds or self._worked is None:
            return self._seconds - took
        worked = _processor_time(self._process.pid)
        worked = took if worked is None else worked - self._worked
        return min(self._seconds - worked, _PATIENCE - took)


def _processor_time(process: int) -> float | None:
    """The seconds that a process has computed; None where the system does not tell, or the process is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None


class _Worker:
    """The process and its pipes."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            _command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _VARIABLES if name in os.environ},
            start_new_session=True,  # an interrupt from the keyboard is for us
        )
        try:
            with _Watch(self._process, _PATIENCE):
                self._receive(_MOST)
        except BaseException as error:
            self.end()
            raise NextileError("the process for chat templates does not start: is jinja2 whole?") from error

    def ask(self, request: bytes, count: int) -> list[dict[str, Any]]:
        """The answers to a request of `count` jobs. Errors: NextileError, after which the process is not usable."""
        answers, left = [], _MOST_OF_BATCH
        with _Watch(self._process, LIMIT) as watch:
            try:
                self._send(request)
                for _ in range(count):
                    data = self._receive(left)
                    watch.renew()
                    left -= len(data)
                    answers.append(json.loads(data))
            except (EOFError, OSError):
                raise NextileError(f"{self._reason(watch)}; use another template") from None
        return answers

    def _send(self, data: bytes) -> None:
        assert self._process.stdin
        self._process.stdin.write(len(data).to_bytes(4, "big") + data)
        self._process.stdin.flush()

    def _receive(self, most: int) -> bytes:
        size = int.from_bytes(self._read(4), "big")
        if size > most:
            raise NextileError(f"the chat template gives more than {most:,} bytes of text; use another template")
        return self._read(size)

    def _read(self, size: int) -> bytes:
        assert self._process.stdout
        data = self._process.stdout.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def _reason(self, watch: _Watch) -> str:
        """Why the process ended by itself or was ended."""
        code = self._process.wait(LIMIT)
        if watch.expired:
            return f"the chat template took longer than {LIMIT:g} seconds over a conversation"
        if code == _OUT_OF_MEMORY:
            return "the chat template took more than 256 MB of memory over a conversation"
        return f"the chat template ended its process (exit code {code})"

    def end(self) -> None:
        """Kill it and wait for its end."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                pipe.close()  # type: ignore[union-attr]
            except OSError:  # what was written never reached it
                continue


def _command() -> list[str]:
    specs = [find_spec(name) for name in ("jinja2", "markupsafe")]
    if any(spec is None or spec.origin is None for spec in specs):
        raise NextileError("chat templates need jinja2: pip install jinja2")
    folders = dict.fromkeys(str(Path(spec.origin).parents[1]) for spec in specs if spec and spec.origin)
    return [sys.executable, "-I", "-S", "-c", _RUN, str(Path(__file__).with_name("template_worker.py")), *folders]


class _Host:
    """The one worker of this process: started when it is first needed, and again when it was ended; ended at exit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        atexit.register(self._end)

    def ask(self, request: bytes, count: int) -> list[dict[str, Any]]:
        """The answers to a request, one thread at a time."""
        with self._lock:
            try:
                self._worker = self._worker or _Worker()
                return self._worker.ask(request, count)
            except BaseException:  # an interrupt as well: half an answer may be in the pipe
                self._end()
                raise

    def _end(self) -> None:
        if self._worker:  # in a fork, which inherits this for its own exit, it is no child and is not killed
            self._worker.end()
        self._worker = None


@cache
def _host(pid: int) -> _Host:
    """That of a process: a fork has its parent's memory, but not its worker."""
    return _Host()
