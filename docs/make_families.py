"""Writes the table of docs/families.md from the tests in tests/parity: runs them, and counts what passed for whom."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

HOUSE = Path(__file__).parents[1]
PAGE = HOUSE / "docs" / "families.md"
BEGIN, END = "<!-- families -->", "<!-- /families -->"
FILES = ("families", "other_families", "bert", "marian", "vit", "imagegpt", "classifiers")
OWN = ("bert", "marian", "vit", "imagegpt")  # families with a file of tests to themselves
# What the page calls a check, and which tests are one.
CHECKS = {
    "logits, fp32": r"logits_are_those_of_transformers|padded_batch",
    "float64": r"double_precision",
    "the same texts": r"greedy|best_texts",
    "there and back": r"there_and_back|written_is_what_was_read|rules_use_every",
    "loads there": r"they_read_it|transformers_loads",
    "parameters": r"parameter",
    "classes of texts": r"text_classes",
    "controls": r"control",
}


def outcomes() -> dict[str, Counter[str]]:
    """For each family how many tests of each check passed. Errors: SystemExit where one failed."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    with TemporaryDirectory() as folder:
        paths = [f"tests/parity/test_{name}.py" for name in FILES]
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", f"--junitxml={report}", *paths]
        subprocess.run(command, cwd=HOUSE, check=True)
        for case in ET.parse(report).iter("testcase"):
            for check in checks(case.attrib["name"]):
                found[family(case.attrib)][check] += 1
    return found


def checks(test: str) -> list[str]:
    """The checks that a test belongs to."""
    return [check for check, pattern in CHECKS.items() if re.search(pattern, test.partition("[")[0])]


def family(case: dict[str, str]) -> str:
    """Whom a test is about: the file's name, or the first words of its parameter."""
    own = next((name for name in OWN if case["classname"].endswith(f"test_{name}")), None)
    parameter = case["name"].partition("[")[2].rstrip("]")
    known = re.match(r"[a-z-]+\d?", parameter)
    return own or (known[0] if known else "")


def table(found: dict[str, Counter[str]]) -> str:
    """The counts as Markdown."""
    rows = [f"| family | {' | '.join(CHECKS)} |", "|---" * (len(CHECKS) + 1) + "|"]
    for name in sorted(name for name in found if name):
        rows.append(f"| {name} | {' | '.join(str(found[name][check] or '–') for check in CHECKS)} |")
    return "\n".join(rows)


def main() -> None:
    """Replace what stands between the marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(outcomes())}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
