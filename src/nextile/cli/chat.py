"""`nextile chat`: a conversation in the terminal, or line by line through a pipe."""

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from nextile.cli import options
from nextile.cli.generate import MinP, Penalty, Seed, TopK, TopP
from nextile.cli.options import number, whole
from nextile.cli.result import write, write_json

EXAMPLES = '''
\b
Examples:
  nextile chat runs/sums-chat
  nextile chat runs/sums-chat --system "Answer in one word." --temperature 0
  echo "What is 3 plus 4?" | nextile chat runs/sums-chat     # a question a line

\b
In the terminal: /new begins anew, /back forgets the last question, /quit or Ctrl-D ends; Ctrl-C stops an answer.
A line that ends in \\ goes on in the next; """ begins and ends a text of several lines.
'''

QUOTES = '"""'
HELP = "/new begins anew, /back forgets the last question, /quit ends"

System = Annotated[str | None, typer.Option(metavar="TEXT", help="What the model is told before all else.")]
MaxTokens = Annotated[int, typer.Option(metavar="N", parser=whole(1), help="Tokens of an answer, at most.")]
Temperature = Annotated[float, typer.Option(metavar="T", parser=number, help="0 is greedy; above 1 is wilder.")]


def chat(
    model: options.Name,
    system: System = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.8,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    json: options.Json = False,
) -> None:
    """Talk with a language model, which remembers what was said."""
    from nextile import api

    loaded = api.load(model, device=device, dtype=dtype)

    def begin() -> Any:
        return loaded.talk(
            system=system, max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty, seed=seed,
        )  # fmt: skip

    talk = begin()
    terminal = sys.stdin.isatty() and sys.stdout.isatty() and not json  # what is not an answer is for a terminal alone
    for text in spoken(terminal):
        if terminal and text in ("/new", "/back"):
            talk = _command(text, talk, begin)
        elif text.strip():
            _answer(talk, text, json=json, terminal=terminal)


def _said(error: Any) -> None:
    """One question that cannot be answered ends no conversation."""
    from nextile.tasks.report import choose

    choose().warn(str(error))


def _command(text: str, talk: Any, begin: Any) -> Any:
    """The conversation after a command."""
    if text == "/new":
        return begin()
    write("forgotten\n" if talk.back() else "nothing was said yet\n")
    return talk


def _answer(talk: Any, text: str, *, json: bool, terminal: bool) -> None:
    """Write the answer as it comes; Ctrl-C in a terminal ends the answer alone."""
    from nextile.base.errors import NextileError

    pieces = talk.ask(text)
    if json:
        write_json({"role": "assistant", "content": "".join(pieces).strip()})
        return
    try:
        for piece in _without_edges(pieces):
            write(piece)
    except KeyboardInterrupt:
        pieces.close()
        if not terminal:
            raise
    except NextileError as error:
        if not terminal:
            raise
        _said(error)
    write("\n")


def _without_edges(pieces: Iterator[str]) -> Iterator[str]:
    """The pieces of a text without white space before its first word and after its last."""
    held = ""
    begun = False
    for piece in pieces:
        piece = held + piece if begun else piece.lstrip()
        begun = begun or bool(piece)
        kept = piece.rstrip()
        held = piece[len(kept) :]
        if kept:
            yield kept


def spoken(terminal: bool) -> Iterator[str]:
    """What is said: line by line, several joined where the first asks for it; ends at /quit or the end of input."""
    while (text := _line("> " if terminal else "")) is not None:
        if not terminal:
            yield text
            continue
        if text.strip() == "/quit":
            return
        if text.strip() == "/help":
            write(HELP + "\n")
            continue
        yield _joined(text)


def _joined(first: str) -> str:
    """A text of one line, or of several by a backslash at the end of each, or between two lines of three quotes."""
    if first.strip().startswith(QUOTES):
        lines = [first.strip().removeprefix(QUOTES)]
        while not lines[-1].rstrip().endswith(QUOTES) and (more := _line("... ")) is not None:
            lines.append(more)
        return "\n".join(lines).rstrip().removesuffix(QUOTES).strip("\n")
    lines = [first]
    while lines[-1].endswith("\\") and (more := _line("... ")) is not None:
        lines[-1] = lines[-1][:-1]
        lines.append(more)
    return "\n".join(lines)


def _line(prompt: str) -> str | None:
    """The next line; None at the end of input. In a terminal it can be edited, and earlier ones come back."""
    try:
        if prompt:
            import contextlib

            with contextlib.suppress(ImportError):
                import readline  # noqa: F401
            return input(prompt)
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    except EOFError:
        write("\n")
        return None
    except UnicodeDecodeError as error:
        from nextile.base.errors import NextileError

        raise NextileError(f"standard input is no UTF-8 ({error.reason}): convert it first") from error
