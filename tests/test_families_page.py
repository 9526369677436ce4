"""The page of families: its table, which the tests write, has a row for every family, and each was checked."""

import re
from pathlib import Path

import pytest

from nextile.models.families.table import FAMILIES

PAGE = (Path(__file__).parents[1] / "docs" / "families.md").read_text(encoding="utf-8")
ROWS = re.findall(
    r"^\| ([a-z0-9-]+) \|(.*)\|$", PAGE.partition("<!-- families -->")[2].partition("<!-- /families")[0], re.M
)
CALLED = {"gpt_neox": "gpt-neox", "gemma3_text": "gemma3"}


def test_every_family_has_a_row_and_no_row_is_of_another():
    rows = {name for name, _ in ROWS} - {"family"}
    assert rows == {CALLED.get(name, name) for name in FAMILIES}


@pytest.mark.parametrize(
    "check", ["logits, fp32", "float64", "there and back", "loads there", "parameters", "controls"]
)
def test_each_was_checked(check):
    heads = next(cells for name, cells in ROWS if name == "family").split("|")
    column = [head.strip() for head in heads].index(check)
    assert {name for name, cells in ROWS if cells.split("|")[column].strip() in ("0", "–")} == set()
