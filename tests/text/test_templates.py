"""Chat templates render in another process: what they may use, and that none can hang, fill or reach us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from nextile.base.errors import NextileError
from nextile.text import templates
from nextile.text.templates import Rendering, render_all

HI = [{"role": "user", "content": "hi"}]


def rendered(template: str, messages=HI, prompt=False, **specials: str) -> Rendering:
    [result] = render_all(template, specials, [(messages, prompt)])
    if isinstance(result, NextileError):
        raise result
    return result


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, or has limits that others do not enforce")


def run(script: str) -> list[str]:
    """The lines that a script prints, in a process of its own."""
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()


# --- what templates may use ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ bos_token }}{{ messages[0].content }}{{ unset }}", "<s>hi"),
        ("{% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),  # trim_blocks, lstrip_blocks
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}", '{\n "a": 2,\n "b": 1\n}'),
        ("{{ strftime_now('%d') | length }}", "2"),
        ("{{ tools is none and documents is none and not add_generation_prompt }}", "True"),
        ("{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}", "2"),
        (r"{{ '\u2022' }}{{ '\N{BULLET}' }}", "••"),
    ],
)
def test_a_template_may_use(template, text):
    assert rendered(template, bos_token="<s>").text == text


def test_where_generation_blocks_stand():
    template = (
        "a{% generation %}bé{% endgeneration %}{% set x %}{% generation %}d{% endgeneration %}{% endset %}c{{ x }}"
    )
    assert rendered(template) == Rendering("abécd", [(1, 3), (4, 5)])


def test_each_job_has_its_own_answer():
    jobs = [([{"role": "user", "content": str(i)}], i % 2 == 0) for i in range(1000)]
    template = (
        "{{ messages[0].content }}{{ add_generation_prompt }}{% if messages[0].content == '7' %}{{ 1 / 0 }}{% endif %}"
    )
    results = list(render_all(template, {}, jobs))
    assert isinstance(results.pop(7), NextileError)
    assert [each.text for each in results] == [f"{i}{i % 2 == 0}" for i in range(1000) if i != 7]


def test_threads_do_not_disturb_each_other():
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda i: rendered("{{ messages[0].content }}" + str(i)).text, range(40)))
    assert texts == [f"hi{i}" for i in range(40)]


# --- hostile templates ---------------------------------------------------------------------------------------------

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
POWER = "{{ ((10**9) ** (10**9)) % 7 }}"
DOUBLING = "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"


@pytest.mark.parametrize("template", [ENDLESS, POWER])
def test_a_template_that_does_not_end_is_stopped(template, monkeypatch):
    assert templates.LIMIT == 2
    rendered("started")
    monkeypatch.setattr(templates, "LIMIT", 0.5)
    start = time.monotonic()
    with pytest.raises(NextileError, match=r"took longer than 0.5 seconds over a conversation; use another template"):
        rendered(template)
    assert 0.4 < time.monotonic() - start < 2
    monkeypatch.undo()
    assert rendered("{{ messages[0].content }}").text == "hi"


@linux
def test_a_process_that_cannot_work_is_waited_for_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(templates, "LIMIT", 0.3)
    rendered("started")
    worker = templates._host(os.getpid())._worker
    os.kill(worker._process.pid, signal.SIGSTOP)
    threading.Timer(1.0, os.kill, (worker._process.pid, signal.SIGCONT)).start()
    start = time.monotonic()
    assert rendered("{{ messages[0].content }}").text == "hi"
    assert time.monotonic() - start > 0.9
    monkeypatch.setattr(templates, "_PATIENCE", 0.5)
    os.kill(worker._process.pid, signal.SIGSTOP)
    with pytest.raises(NextileError, match=r"took longer than 0.3 seconds"):
        rendered("x")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ 'x' * 10**10 }}", "took more than 256 MB of memory"),
        ("{{ '%10000000000d' % 1 }}", "took more than 256 MB of memory"),
        (DOUBLING, "took more than 256 MB of memory"),
        ("{{ range(10**9) | list }}", "Range too big"),
        ("{{ 'x' * 16800000 }}", "'more than 16 MiB of text'"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError: access to attribute '__class__'"),
        ("{{ ''['__class__'].mro() }}", "SecurityError: access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ raise_exception('a\x1b[2J\nb\u202e') }}", r"refuses the conversation: 'a\x1b[2J\nb\u202e'; change it"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{" + "(" * 50_000, "RecursionError"),
        ("{% include 'x' %}", "no loader"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_hostile_template_is_one_line(template, error):
    with pytest.raises(NextileError) as caught:
        rendered(template)
    assert error in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    assert rendered("{{ messages[0].content }}").text == "hi"


def test_many_long_texts_are_refused_together(monkeypatch):
    monkeypatch.setattr(templates, "_MOST_OF_BATCH", 10**6)
    template = "{{ 'x' * 400000 }}"
    with pytest.raises(NextileError, match=r"gives more than .* bytes of text"):
        list(render_all(template, {}, [(HI, False)] * 3))
    assert len(list(render_all(template, {}, [(HI, False)] * 2))) == 2


@linux
def test_our_own_memory_does_not_grow():
    before, after = run(
        "import resource\n"
        "from nextile.base.errors import NextileError\n"
        "from nextile.text.templates import render_all\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "list(render_all('x', {}, [([], False)]))\n"
        "print(peak())\n"
        f"for template in ({DOUBLING!r}, '{{{{ \"x\" * 10**10 }}}}'):\n"
        "    try: list(render_all(template, {}, [([], False)]))\n"
        "    except NextileError: pass\n"
        "print(peak())"
    )
    assert int(after) - int(before) < 4096  # KiB


@linux
def test_the_process_can_open_nothing_and_sees_no_environment(monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    command = templates._command()
    assert command[1:3] == ["-I", "-S"]
    lines = run(
        "from nextile.text.template_worker import limit_memory_and_files\n"
        "limit_memory_and_files()()\n"
        "try: open('/etc/passwd')\n"
        "except OSError as error: print(error.errno)\n"
        "try: bytearray(300 * 2**20)\n"
        "except MemoryError: print('memory')"
    )
    assert lines == ["24", "memory"]
    rendered("started")
    pid = templates._host(os.getpid())._worker._process.pid
    with open(f"/proc/{pid}/environ") as file:
        assert "SECRET" not in file.read()
    assert len(os.listdir(f"/proc/{pid}/fd")) == 3
    assert os.getpgid(pid) != os.getpgid(0)  # an interrupt from the keyboard is not for it


# --- the process ---------------------------------------------------------------------------------------------------


def test_a_killed_process_is_an_error_and_then_another():
    rendered("started")
    templates._host(os.getpid())._worker._process.kill()
    with pytest.raises(NextileError, match=r"the chat template ended its process \(exit code -9\); use another"):
        rendered("a")
    assert rendered("a").text == "a"


@linux
def test_the_process_ends_with_ours():
    [pid] = run(
        "import os\n"
        "from nextile.text.templates import render_all, _host\n"
        "list(render_all('x', {}, [([], False)]))\n"
        "print(_host(os.getpid())._worker._process.pid)"
    )
    assert not os.path.exists(f"/proc/{pid}")


def test_a_fork_has_a_process_of_its_own():
    lines = run(
        "import os, sys\n"
        "from nextile.text.templates import render_all, _host\n"
        "def text(): return next(render_all('{{ messages[0].a }}', {}, [([{'a': 'x'}], False)])).text\n"
        "def pid(): return _host(os.getpid())._worker._process.pid\n"
        "text()\n"
        "ours = pid()\n"
        "if not os.fork():\n"
        "    print(text(), pid() != ours, flush=True)\n"
        "    sys.exit()\n"
        "os.wait()\n"
        "print(text(), pid() == ours)"
    )
    assert lines == ["x True", "x True"]


def test_an_interrupt_leaves_no_half_answer(monkeypatch):
    rendered("started")
    worker = templates._host(os.getpid())._worker

    def interrupt(most):
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "_receive", interrupt)
    with pytest.raises(KeyboardInterrupt):
        rendered("a")
    assert rendered("b").text == "b"


def test_jinja2_that_is_missing_is_one_line(monkeypatch):
    monkeypatch.setattr(templates, "find_spec", lambda name: None)
    with pytest.raises(NextileError, match=r"^chat templates need jinja2: pip install jinja2$"):
        templates._command()
