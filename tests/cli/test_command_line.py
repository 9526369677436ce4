"""What the command does with any verb: exit codes, errors in one line, help at once."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from nextile.base.errors import NextileError, UsageError
from nextile.cli.result import write_json

VERBS = ["train", "generate", "inspect", "evaluate", "serve", "tokenize", "info", "plan"]
COMMAND = [sys.executable, "-m", "nextile"]


def failing(error: BaseException):
    def fail(*_, **__):
        raise error

    return fail


# --- help ---------------------------------------------------------------------------------------------------------


def seconds(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([*COMMAND, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_comes_at_once(arguments):
    assert any(seconds(*arguments) < 0.3 for _ in range(10))  # others may use the machine as well


def test_help_loads_no_library():
    code = "import sys; from nextile.cli.main import run; run(['train', '--help']); print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'typer'" in loaded
    assert not any(f"'{name}'" in loaded for name in ("torch", "numpy", "nextile.api", "nextile.base.config"))


def test_help_names_every_verb(nextile_):
    answer = nextile_("--help")
    assert answer.code == 0
    assert all(f"\n  {verb} " in answer.out for verb in VERBS)
    assert "..." not in answer.out.partition("Commands:")[2].partition("Examples:")[0]  # no sentence is cut


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_examples(nextile_, verb):
    answer = nextile_(verb, "-h")
    assert answer.code == 0
    assert f"\n    nextile {verb}" in answer.out.partition("Examples:")[2]
    assert "\b" not in answer.out
    assert answer.err == ""


def test_without_anything_the_help_is_an_error(nextile_):
    answer = nextile_()
    assert (answer.code, answer.out) == (2, "")
    assert "nextile train" in answer.err


def test_version(nextile_):
    code, out, _ = nextile_("--version")
    assert code == 0
    assert out.startswith("nextile 0.")


# --- wrong use ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("trian book.txt", "no such command 'trian'. Did you mean 'train'? (see nextile --help)"),
        ("fly", "no such command 'fly' (see nextile --help)"),
        ("train --minuts 3", "no such option '--minuts': did you mean '--minutes'? (see nextile train --help)"),
        ("generate m --tempratur 3", "no such option '--tempratur': did you mean '--temperature'?"),
        ("train b --lr 3", "no such option '--lr': a setting is made by --set lr=... (see nextile train --help)"),
        ("plan b --seed 3", "no such option '--seed': a setting is made by --set seed=..."),
        ("info m --lr 3", "no such option '--lr' (see nextile info --help)"),
        ("train b --steps many", "invalid value for '--steps': 'many' is not a whole number"),
        ("train b --minutes many", "invalid value for '--minutes': 'many' is not a number"),
        ("generate m --n 0", "invalid value for '--n': 0 is too small: it is at least 1"),
        ("train b --steps", "ption '--steps' requires an argument"),
        ("generate", "missing argument 'MODEL' (see nextile generate --help)"),
        ("train b --steps 3 --minutes 2", "--minutes and --steps exclude each other: give one of them"),
        ("plan b --steps 3 --minutes 2", "--minutes and --steps exclude each other"),
        ("train b --set lr", "'lr' is not a setting: write name=value"),
        ("generate m p --prompts f", "PROMPT and --prompts exclude each other"),
        ("generate m p --logprobs 2", "--logprobs are shown in JSON only: add --json"),
    ],
)
def test_wrong_use_is_one_line_with_the_remedy(nextile_, library, arguments, said):
    code, out, err = nextile_(*arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith("nextile: ")
    assert said in err
    assert err.count("\n") == 1


# --- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (NextileError("no space:\nfree some"), 1, "nextile: no space: free some\n"),
        (UsageError("unknown setting"), 2, "nextile: unknown setting\n"),
        (NextileError("a name \x1b[2J that drives"), 1, "nextile: a name [2J that drives\n"),
        (FileNotFoundError(2, "No such file", "x"), 1, "nextile: [Errno 2] No such file: 'x'\n"),
        (ValueError("a\nb"), 1, "nextile: internal error (ValueError: a b); set NEXTILE_DEBUG=1 for the traceback\n"),
        (AssertionError(), 1, "nextile: internal error (AssertionError); set NEXTILE_DEBUG=1 for the traceback\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_a_failure_is_one_line_and_a_code(nextile_, library, error, code, said):
    library.load = failing(error)
    answer = nextile_("info", "m")
    assert answer == (code, "", said)


def test_a_signal_keeps_its_code(nextile_, library):
    library.train = failing(SystemExit(143))
    with pytest.raises(SystemExit) as end:
        nextile_("train", "b")
    assert end.value.code == 143


def test_debugging_shows_the_traceback(nextile_, library, monkeypatch):
    library.load = failing(ValueError("deep"))
    assert "Traceback" not in nextile_("info", "m").err
    monkeypatch.setenv("NEXTILE_DEBUG", "1")
    assert "Traceback" in nextile_("info", "m").err


# --- a real process -----------------------------------------------------------------------------------------------


def test_a_missing_file_leaves_no_traceback():
    done = subprocess.run([*COMMAND, "tokenize", "nowhere.txt"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("nextile: ")
    assert "nowhere.txt" in done.stderr
    assert done.stderr.count("\n") == 1


def started(body: str) -> subprocess.Popen[bytes]:
    """The command in a process, with one more verb."""
    code = f"import sys, time; from nextile.cli import main, result\n@main.app.command('x')\ndef x():\n    {body}\n"
    return subprocess.Popen(
        [sys.executable, "-c", f"{code}sys.argv = ['nextile', 'x']; main.main()"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_reader_that_leaves_is_no_error_message():
    process = started("while True: result.write('x' * 10**5)")
    assert process.stdout.read(1) == b"x"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_under_the_result_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "--version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert done.stderr.count("\n") == 1


def test_ctrl_c_leaves_no_traceback():
    process = started("print('on', flush=True); time.sleep(60)")
    assert process.stdout.readline() == b"on\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")


def test_json_never_holds_what_could_drive_a_terminal(capsys):
    write_json({"a": "x\x9b2J\x7f\u202e\u2028\x1b é"})
    out = capsys.readouterr().out
    assert out == '{"a": "x\\u009b2J\\u007f\\u202e\\u2028\\u001b é"}\n'
    assert json.loads(out) == {"a": "x\x9b2J\x7f\u202e\u2028\x1b é"}
