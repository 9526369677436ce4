"""The recipes of docs/cluster.md, which no test can run: their shells and their YAML are well formed."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

PAGE = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|yaml|python)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def shells(tree: object) -> list[str]:
    """The scripts in the `args` of containers."""
    if isinstance(tree, list):
        return [found for each in tree for found in shells(each)]
    if isinstance(tree, dict):
        own = tree.get("args", []) if isinstance(tree.get("args"), list) else []
        return own + [found for value in tree.values() for found in shells(value)]
    return []


def is_shell(text: str) -> bool:
    return subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).returncode == 0


@pytest.mark.parametrize("text", blocks("bash"), ids=range(len(blocks("bash"))))
def test_a_shell_script_is_well_formed(text):
    assert is_shell(text)


@pytest.mark.parametrize("text", blocks("yaml"), ids=range(len(blocks("yaml"))))
def test_a_manifest_is_yaml_with_shells_that_are_well_formed(text):
    manifest = yaml.safe_load(text)
    assert {"apiVersion", "kind", "metadata", "spec"} == manifest.keys()
    scripts = shells(manifest)
    assert len(scripts) == 1
    assert is_shell(scripts[0])
    assert "-m nextile train" in scripts[0]


def test_the_scripts_in_python_compile():
    for text in blocks("python"):
        compile(text, "cluster.md", "exec")


def test_what_is_broken_is_found():
    assert not is_shell("if [ -e x ]; then")
    assert len(blocks("bash")) >= 4
    assert len(blocks("yaml")) == 2
