"""`nextile words`: what the vectors of words say, of a model or of a file."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextile.base.errors import UsageError
from nextile.cli import options
from nextile.cli.options import whole
from nextile.cli.result import one_a_line, write, write_json

if TYPE_CHECKING:
    from nextile.inspection.vectors import Lookup

EXAMPLES = """
\b
Examples:
  nextile words runs/english near king --n 5
  nextile words runs/english analogy man king woman      # man is to king as woman is to ...
  nextile words runs/english plot map.html               # the most frequent words; or map.png
  nextile words runs/english plot map.png red green blue
  nextile words runs/english export vectors.txt          # as word2vec and gensim read them; or vectors.bin
  nextile words vectors.txt test wordsim353.tsv questions-words.txt
"""


def side_of(text: Any) -> str:
    """A side. Errors: BadParameter with the text that is none."""
    if text not in ("input", "output"):
        raise typer.BadParameter(f"'{text}' is no side: it is input or output")
    return text


Source = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model folder, a hub name, or a .txt or .bin of word vectors.")
]
Action = Annotated[str, typer.Argument(metavar="ACTION", help="near, analogy, plot, export or test.")]
Given = Annotated[
    list[str] | None, typer.Argument(metavar="WORD|FILE...", help="What it is done to.", show_default=False)
]
Count = Annotated[
    int | None, typer.Option("--n", metavar="N", parser=whole(1), help="So many words. [default: 10; plot: 300]")
]
Which = Annotated[
    str,
    typer.Option("--side", metavar="S", parser=side_of, help="input, the vectors it reads by, or output, it says by."),
]


def words(
    model: Source,
    action: Action,
    given: Given = None,
    n: Count = None,
    side: Which = "input",
    json: options.Json = False,
) -> None:
    """Look at word vectors.

    near WORD, analogy A B C, plot FILE.png|.html [WORD...], export FILE.txt|.bin, test FILE...: word pairs with what
    people say of them, or analogies. Of words in pieces a vector is the mean of theirs.
    """
    chosen, given = _action(action), given or []
    if not chosen.least <= len(given) <= chosen.most:
        raise UsageError(f"{action} takes {chosen.takes}, not {len(given)}: nextile words {model} {chosen.usage}")
    chosen.check(given)
    from nextile.inspection.vectors import open_vectors

    chosen.do(Asked(open_vectors(model, "output" if side == "output" else "input"), model, given, n, json))


# --- what can be done -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What an action works on."""

    lookup: "Lookup"
    model: str
    given: list[str]
    n: int | None
    json: bool


def _near(asked: Asked) -> None:
    from nextile.inspection.neighbours import near

    _found(asked, {"word": asked.given[0]}, near(asked.lookup, asked.given[0], asked.n or 10))


def _analogy(asked: Asked) -> None:
    from nextile.inspection.neighbours import analogy

    a, b, c = asked.given
    _found(asked, {"a": a, "b": b, "c": c}, analogy(asked.lookup, a, b, c, asked.n or 10))


def _found(asked: Asked, question: dict[str, Any], found: list[tuple[str, float]]) -> None:
    """A line a word, with its cosine behind a tab."""
    if asked.json:
        write_json(question | {"found": [{"word": word, "cosine": cosine} for word, cosine in found]})
    else:
        write("".join(f"{one_a_line(word)}\t{cosine:.4f}\n" for word, cosine in found))


def _plot(asked: Asked) -> None:
    from nextile.inspection.wordmap import write_map

    out, *chosen = asked.given
    chosen = chosen[: asked.n] or list(asked.lookup.table.words[: asked.n or 300])
    write_map(out, asked.lookup, chosen, title=Path(asked.model).name)
    _wrote(asked, {"out": out, "words": len(set(chosen))}, f"wrote {out}: a map of {len(set(chosen)):,} words")


def _export(asked: Asked) -> None:
    from nextile.checkpoint.word2vec import write_vectors

    out, table = asked.given[0], asked.lookup.table
    left_out = write_vectors(out, table)
    count = len(table) - left_out
    spaced = f"; {left_out:,} that hold white space were left out" if left_out else ""
    wrote = {"out": out, "words": count, "numbers": table.dim, "left_out": left_out}
    _wrote(asked, wrote, f"wrote {out}: {count:,} words of {table.dim:,} numbers{spaced}")


def _wrote(asked: Asked, result: dict[str, Any], said: str) -> None:
    from nextile.tasks.report import choose

    if asked.json:
        write_json(result)
    else:
        choose().say(said)


def _test(asked: Asked) -> None:
    """A line a file: its name, the score, and how much was known, between tabs."""
    from nextile.inspection.wordtests import score

    for path in asked.given:
        found = score(asked.lookup, path)
        if asked.json:
            shown = {"file": path, found.kind: found.value, "known": found.known, "total": found.total}
            write_json(shown | ({"sections": found.sections} if found.sections else {}))
        else:
            write(f"{path}\t{found.kind}\t{found.value:.4f}\t{found.known:,} of {found.total:,} known\n")


def _any(given: list[str]) -> None:
    """Nothing to check before the vectors are read."""


def _ends_in(*suffixes: str) -> Callable[[list[str]], None]:
    def check(given: list[str]) -> None:
        if Path(given[0]).suffix.lower() not in suffixes:
            raise UsageError(f"'{given[0]}' is no file to write: name one that ends in {' or '.join(suffixes)}")

    return check


@dataclass(frozen=True)
class Choice:
    """An action, and how much it is given."""

    do: Callable[[Asked], None]
    takes: str
    usage: str
    least: int
    most: int
    check: Callable[[list[str]], None] = _any


MANY = 1 << 20
ACTIONS = {
    "near": Choice(_near, "one word", "near WORD", 1, 1),
    "analogy": Choice(_analogy, "three words", "analogy A B C", 3, 3),
    "plot": Choice(_plot, "a file, and words", "plot FILE.html [WORD...]", 1, MANY, _ends_in(".png", ".html")),
    "export": Choice(_export, "one file", "export FILE.txt", 1, 1, _ends_in(".txt", ".bin")),
    "test": Choice(_test, "files", "test FILE...", 1, MANY),
}


def _action(name: str) -> Choice:
    if name in ACTIONS:
        return ACTIONS[name]
    near = difflib.get_close_matches(name, ACTIONS, n=1)
    raise UsageError(f"'{name}' is nothing to do: " + (f"did you mean {near[0]}?" if near else ", ".join(ACTIONS)))
