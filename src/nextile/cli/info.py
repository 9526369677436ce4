"""`nextile info`: what a model is."""

from collections.abc import Iterator
from typing import Any

from nextile.cli import options
from nextile.cli.result import write_json

EXAMPLES = """
\b
Examples:
  nextile info runs/book
  nextile info runs/book --json
"""


def info(model: options.Name, json: options.Json = False) -> None:
    """Show what a model is: its family, parameters, tokens and shape."""
    from nextile import api
    from nextile.tasks.report import choose

    description = api.load(model).describe()
    if json:
        write_json(description)
    else:
        choose().table(model, list(_rows(description)))


def _rows(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf of a tree under its dotted name."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _rows(value, f"{above}{name}.")
        else:
            yield above + name, f"{value:,}" if type(value) is int else str(value)
