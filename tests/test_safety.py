"""What the code must never do, and what its files must never name."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]
SOURCE = HOUSE / "src" / "nextile"


# --- calls that run what they read ---------------------------------------------------------------------------------

FORBIDDEN = {
    **dict.fromkeys(["eval", "exec", "builtins.eval", "builtins.exec"], "runs text as code"),
    **dict.fromkeys(["os.system", "os.popen", "subprocess.getoutput"], "runs text in a shell"),
    **dict.fromkeys(["yaml.load", "yaml.unsafe_load", "yaml.full_load"], "runs what a file says: use yaml.safe_load"),
}
UNPICKLERS = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
DANGEROUS = {"shell": "runs text in a shell", "allow_pickle": "unpickles", "trust_remote_code": "runs a model's code"}


def dangers(path: Path) -> list[str]:
    """Every place of a file that could run what it reads, with the reason."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return sorted(f"{path.name}:{line} {reason}" for line, reason in _dangers(tree, _aliases(tree)))


def _aliases(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for: `from torch import load as f` gives f -> torch.load."""
    aliases = {}
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                aliases |= {each.asname: each.name for each in node.names if each.asname}
            case ast.ImportFrom():
                aliases |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    return aliases


def _dangers(tree: ast.AST, aliases: dict[str, str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Import() | ast.ImportFrom():
                yield from ((node.lineno, f"imports {name}") for name in _imported(node) if name in UNPICKLERS)
            case ast.Name() | ast.Attribute() if (name := _dotted(node, aliases)) in FORBIDDEN:
                yield node.lineno, f"{name} {FORBIDDEN[name]}"
            case ast.Call():
                name, keywords = _dotted(node.func, aliases), {each.arg: each.value for each in node.keywords}
                if name == "torch.load" and not _is(keywords.get("weights_only"), True):
                    yield node.lineno, "torch.load without weights_only=True unpickles"
                asked = [each for each in DANGEROUS if each in keywords and not _is(keywords[each], False)]
                yield from ((node.lineno, f"{each} {DANGEROUS[each]}") for each in asked)


def _imported(node: ast.Import | ast.ImportFrom) -> set[str]:
    names = [each.name for each in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    return {name.partition(".")[0] for name in names}


def _dotted(node: ast.AST, aliases: dict[str, str]) -> str:
    """The full name of a name or an attribute; nothing for an attribute of anything else."""
    match node:
        case ast.Name():
            return aliases.get(node.id, node.id)
        case ast.Attribute():
            inner = _dotted(node.value, aliases)
            return f"{inner}.{node.attr}" if inner else ""
    return ""


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_no_file_runs_what_it_reads():
    assert [danger for path in sorted(SOURCE.rglob("*.py")) for danger in dangers(path)] == []


@pytest.mark.parametrize(
    ("source", "danger"),
    [
        ("import torch\ntorch.load(x)", "torch.load without"),
        ("import torch\ntorch.load(x, weights_only=False)", "torch.load without"),
        ("import torch as t\nt.load(x, weights_only=flag)", "torch.load without"),
        ("from torch import load as read\nread(x)", "torch.load without"),
        ("eval(x)", "eval runs"),
        ("f = exec", "exec runs"),
        ("import builtins\nbuiltins.eval(x)", "builtins.eval runs"),
        ("import pickle", "imports pickle"),
        ("def f():\n    from joblib import load", "imports joblib"),
        ("import yaml\nyaml.load(x)", "yaml.load runs"),
        ("import os\nos.system(x)", "os.system runs"),
        ("from os import popen\npopen(x)", "os.popen runs"),
        ("import subprocess\nsubprocess.run(x, shell=True)", "shell runs"),
        ("import numpy as np\nnp.load(x, allow_pickle=True)", "allow_pickle unpickles"),
        ("AutoModel.from_pretrained(x, trust_remote_code=True)", "trust_remote_code runs"),
    ],
)
def test_a_file_that_does_is_found(tmp_path, source, danger):
    path = tmp_path / "a.py"
    path.write_text(source)
    assert len(dangers(path)) == 1
    assert danger in dangers(path)[0]


def test_harmless_lines_are_not(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("model.eval()\ntorch.load(x, weights_only=True)\nnp.load(x, allow_pickle=False)\nre.compile(x)\n")
    assert dangers(path) == []


# --- names that belong to one machine ------------------------------------------------------------------------------

# Written in two halves, so that this file does not hold what it looks for.
HOSTS = ["py" + "pi.org", "python" + "hosted.org", "download.py" + "torch.org", "registry.npm" + "js.org"]
PLACES = ["/wo" + "rk", "/ro" + "ot", "/ho" + "me", "/Us" + "ers", "/op" + "t", ".py" + "env"]
WORKPLACE = [".." + "/shared", ".lib" + "rary", ".mir" + "ror", "before-" + "stop", "issues " + "show"]
ALONE = [rf"(?<![\w.}}]){re.escape(word)}\b" for word in PLACES + WORKPLACE]  # not within another name
NAMED = re.compile("|".join([*map(re.escape, HOSTS), *ALONE]))


def names(text: str) -> list[str]:
    """The machine's own names in a text, with their line numbers."""
    lines = enumerate(text.splitlines(), start=1)
    return [f"{number} {match[0]}" for number, line in lines for match in NAMED.finditer(line)]


def files(folder: Path) -> list[Path]:
    """What git keeps of a folder, or would if it were added."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    return [folder / name for name in listed.split("\0") if name and (folder / name).is_file()]


def test_no_file_names_a_machine_a_registry_or_a_workplace():
    found = {path: names(path.read_text(encoding="utf-8", errors="replace")) for path in files(HOUSE)}
    assert {str(path.relative_to(HOUSE)): lines for path, lines in found.items() if lines} == {}
    assert HOUSE / "pyproject.toml" in found


@pytest.mark.parametrize("word", [*HOSTS, *PLACES, *WORKPLACE])
def test_a_name_of_a_machine_is_found(word):
    assert names(f"one\nsee {word}/x\n") == [f"2 {word}"]


def test_every_file_but_the_ignored_is_looked_at(tmp_path):
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    for name in ("a.txt", "b.txt", "b.md"):
        (tmp_path / name).touch()
    (tmp_path / ".gitignore").write_text("b.txt\n")
    assert sorted(path.name for path in files(tmp_path)) == [".gitignore", "a.txt", "b.md"]


def test_other_words_are_fine():
    assert names("a network/route, model/root, at work, {folder}/work, python.org, self.library, issues of today") == []
