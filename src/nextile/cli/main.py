"""The `nextile` command: its verbs, and what its errors look like."""

import difflib
import os
import sys
from io import TextIOWrapper
from typing import Annotated, Any

import typer

from nextile.base.errors import NextileError
from nextile.cli import (
    chat,
    classify,
    convert,
    evaluate,
    generate,
    info,
    inspect,
    paint,
    plan,
    serve,
    tokenize,
    train,
    translate,
    words,
)

EXAMPLES = """
\b
Examples:
  nextile train book.txt --minutes 2
  nextile generate runs/book "It was"
  nextile COMMAND --help
"""

# How often torch's threads (GNU OpenMP) look for new work before they sleep. By default they burn a core for
# milliseconds at every meeting: beside one other busy process training fell from 50,000 to 600 tokens/s, and with this
# to 15,000, while on a quiet machine it costs less than 5 %. Read when torch is imported; the user's own value wins.
SPINS = "3000"

SETTINGS = ("--lr", "--batch", "--seed", "--dropout")  # what other programs have as options

# Click's own error for a wrong command line; which click that is, typer knows.
CommandLineError: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="nextile",
    epilog=EXAMPLES,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: it reads the same everywhere and comes in half the time
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    train, generate, chat, translate, classify, paint, words, inspect, evaluate, serve, tokenize, convert, info, plan,
):  # fmt: skip
    name = verb.__name__.rpartition(".")[2]
    app.command(name, epilog=verb.EXAMPLES)(getattr(verb, name))


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"nextile {version('nextile')}")
        raise typer.Exit


@app.callback()
def nextile(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train, run and measure transformers of your own, from one text file on."""


def main() -> None:
    """Run the command line and exit: 0, 1 for work that failed, 2 for wrong use, 130 for Ctrl-C, 143 for SIGTERM."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of a command line; every error is one line on standard error."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # half a character from a model is no reason to stop
    try:
        command = typer.main.get_command(app)
        code = command.main(arguments, prog_name="nextile", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return 130
    except CommandLineError as error:
        return _misused(error)
    except NextileError as error:
        return _failed(str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads what is still to be flushed
        return 1
    except OSError as error:
        return _failed(str(error), 1)
    except Exception as error:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return _failed(f"internal error ({said}); set NEXTILE_DEBUG=1 for the traceback", 1)


def _failed(message: str, code: int) -> int:
    from nextile.tasks.report import one_line

    if "RANK" in os.environ and not _may_speak():
        return code
    if os.environ.get("NEXTILE_DEBUG"):
        import traceback

        traceback.print_exc()
    print(f"nextile: {one_line(message)}", file=sys.stderr)
    return code


def _may_speak() -> bool:
    """Of the processes of torchrun one tells what went wrong."""
    from nextile.training.parallel import may_speak

    return may_speak()


# --- a wrong command line -------------------------------------------------------------------------------------------


def _misused(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return 2
    message = error.format_message().rstrip(".")
    if type(error).__name__ == "NoSuchOption":
        message = _no_such_option(error)
    path = error.ctx.command_path if error.ctx else "nextile"
    return _failed(f"{message[:1].lower()}{message[1:]} (see {path} --help)", 2)


def _no_such_option(error: Any) -> str:
    """The nearest option's name; where settings can be made, how, since they have no options of their own."""
    name = error.option_name
    known = [option for parameter in error.ctx.command.params for option in parameter.opts]
    near = difflib.get_close_matches(name, set(known) - {"--set"}, n=1, cutoff=0.75)
    if name in SETTINGS and "--set" in known:  # --lr is no misspelt --lora
        near = []
    if near:
        return f"no such option '{name}': did you mean '{near[0]}'?"
    hint = f": a setting is made by --set {name.lstrip('-')}=..." if "--set" in known else ""
    return f"no such option '{name}'{hint}"
