"""What is compiled is counted, and found again on disk."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from nextile.base.errors import NextileError
from nextile.training.graph import compilations, each_one_graph, one_graph, sound_cache


def work(x):
    return (x * 3).sin().sum()


def test_graphs_are_counted_and_found_again_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x = torch.ones(5)
    start = compilations()
    wanted = one_graph(work)(x)
    first = compilations().since(start)
    assert (first.made, first.found) == (1, 0)
    assert first.seconds > 0
    torch.compiler.reset()  # what this process remembers, not what lies on disk
    assert torch.equal(one_graph(work)(x), wanted)
    both = compilations().since(start)
    assert (both.made, both.found) == (1, 1)
    assert compilations().since(compilations()).made == 0


class Half(nn.Module):
    """A part with a name for what it is like."""

    def __init__(self, share: float):
        super().__init__()
        self.share, self.weight = share, nn.Parameter(torch.full((3,), 2.0))

    def extra_repr(self) -> str:
        return f"share={self.share:g}"

    def forward(self, x):
        return (x * self.weight).sin() * self.share


def test_parts_that_are_alike_learn_by_one_graph_and_look_as_before():
    parts = [Half(0.5), Half(0.5), Half(0.25)]
    x = torch.arange(3.0, requires_grad=True)
    wanted = [torch.autograd.grad(part(x).sum(), [x, part.weight]) for part in parts]
    around: list[str] = []
    for part in parts:
        part.register_forward_pre_hook(lambda *_: around.append("hook"))
    start = compilations()
    each_one_graph(parts)
    for part, gradients in zip(parts, wanted, strict=True):
        found = torch.autograd.grad(part(x).sum(), [x, part.weight])
        assert all(torch.allclose(a, b) for a, b in zip(found, gradients, strict=True))
    assert around == ["hook"] * 3
    made = compilations().since(start)
    assert made.made + made.found == 4  # forward and backward of two graphs, of which the first two parts share one
    for part in parts:
        part.eval()
        part(torch.ones(5, 3))
    assert compilations().since(start) == made
    assert list(dict(parts[0].named_parameters())) == ["weight"]


# --- what a killed compilation leaves ---------------------------------------------------------------------------------


def test_a_broken_library_is_removed_and_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    broken, beside, whole = (tmp_path / "ab" / name for name in ("one.main.so", "other.so", "whole.so"))
    broken.parent.mkdir()
    for path, size in ((broken, 0), (beside, 100), (whole, 5000)):
        path.write_bytes(bytes(size))
    with (
        pytest.raises(NextileError, match=r"'\S+one\.main\.so' was left broken .* do the same once more"),
        sound_cache(),
    ):
        raise RuntimeError(f"InductorError: ImportError: {broken}: file too short\n\nSet TORCHDYNAMO_VERBOSE=1")
    assert [path.exists() for path in (broken, beside, whole)] == [False, False, True]


def test_other_errors_and_other_peoples_files_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    elsewhere = tmp_path / "libc.so"
    elsewhere.write_bytes(b"")
    for message in (f"ImportError: {elsewhere}: file too short", "ImportError: no module named x"):
        with pytest.raises(ImportError, match="ImportError"), sound_cache():
            raise ImportError(message)
    assert elsewhere.exists()


COMPILING = """
import torch
from nextile.training.graph import one_graph, sound_cache
with sound_cache():
    one_graph(lambda x: x.sin() + 1)(torch.ones(64))
"""


@pytest.mark.slow
def test_what_a_kill_leaves_in_the_cache_costs_one_try(tmp_path):
    run = partial(
        subprocess.run, [sys.executable, "-c", COMPILING], env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert run().returncode == 0
    libraries = list(tmp_path.rglob("*.main.so"))  # the others are probes of what the processor can
    assert libraries
    for library in libraries:
        library.write_bytes(b"")
    failed = run()
    assert failed.returncode == 1
    assert "NextileError: '" in failed.stderr, failed.stderr
    assert run().returncode == 0
