"""Results on standard output: text exactly as it is, save what could drive a terminal, and JSON one object a line."""

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

CONTROL = re.compile(r"[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")  # DEL, C1, breaks, turns


def write(text: str) -> None:
    """Text at once; a terminal gets it without control characters."""
    if sys.stdout.isatty():
        from nextile.tasks.report import printable

        text = printable(text)
    sys.stdout.write(text)
    sys.stdout.flush()


def one_a_line(text: str) -> str:
    r"""The text in one line, its line breaks as \\r and \\n."""
    return text.replace("\r", "\\r").replace("\n", "\\n")


def answered(batches: Iterable[list[str]], answer: Callable[[list[str]], Iterable[Any]]) -> Iterator[Any]:
    """The answers to all batches in order; what the user should be told of one goes to standard error."""
    from nextile.tasks.report import choose

    report = choose()
    for batch in batches:
        for found in answer(batch):
            if found.note:
                report.warn(found.note)
            yield found


def write_json(value: Any) -> None:
    """One JSON object in one line; what is no finite number becomes null, since JSON has no other word for it.

    Control characters that JSON would let through, which could drive a terminal, are escaped as well.
    """
    text = json.dumps(_finite(value), ensure_ascii=False, default=str)
    sys.stdout.write(CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
