"""Functions, and the parts of a model, as compiled graphs; what was compiled, and what a killed compilation leaves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from nextile.base.errors import NextileError

P = ParamSpec("P")
Result = TypeVar("Result")


def one_graph(function: Callable[P, Result]) -> Callable[P, Result]:
    """The function compiled whole for fixed shapes; a compiled function is returned as it is.

    Graph breaks are errors, since a step that silently falls apart is the slow step nobody notices. Every call gets
    its own store of compilations (torch >= 2.13), so that a process that builds many models does not run into the
    limit that torch sets per function.
    """
    if hasattr(function, "_torchdynamo_orig_callable"):
        return function
    options: dict[str, Any] = {"fullgraph": True, "dynamic": False}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        options["isolate_recompiles"] = True
    return torch.compile(function, **options)


def each_one_graph(parts: Iterable[nn.Module]) -> None:
    """Let each part learn as one graph, in place; those that are alike share it. Not in training they work as before.

    What hooks do around a part, such as FSDP's gathering of its parameters, stays outside.
    """
    graphs: dict[str, Callable[..., Any]] = {}
    for part in parts:
        graph = graphs.setdefault(repr(part), one_graph(type(part).forward))
        part.forward = partial(_learn_or_look, part, partial(graph, part), part.forward)


def _learn_or_look(part: nn.Module, learn: Callable[..., Any], look: Callable[..., Any], *given: Any) -> Any:
    return (learn if part.training else look)(*given)


@dataclass(frozen=True)
class Compilations:
    """What this process has compiled so far."""

    made: int  # graphs that were compiled anew
    found: int  # graphs that an earlier run had left in the cache on disk
    seconds: float  # in all

    def since(self, earlier: Compilations) -> Compilations:
        """What came after an earlier count."""
        return Compilations(self.made - earlier.made, self.found - earlier.found, self.seconds - earlier.seconds)


def compilations() -> Compilations:
    """As torch counts them."""
    from torch._dynamo.utils import compilation_time_metrics, counters

    counted = counters["inductor"]
    made = counted["fxgraph_cache_miss"] + counted["fxgraph_cache_bypass"]
    # of functions when they are first called, and of their gradients when those are first asked for
    phases = ("_compile.compile_inner", "backward._backward_impl")
    seconds = sum(sum(compilation_time_metrics.get(phase, ())) for phase in phases)
    return Compilations(made, counted["fxgraph_cache_hit"], seconds)


# --- what a killed compilation leaves ---------------------------------------------------------------------------------

BROKEN = re.compile(r"(\S+\.so): (?:file too short|invalid ELF header|cannot read file data)")
TINY = 1024  # bytes: no library is so small


@contextmanager
def sound_cache() -> Iterator[None]:
    """Says in one line that a compilation that was killed had left a broken library, and removes it.

    torch writes libraries where later processes look for them, and would fail at each start from then on.
    Errors: NextileError.
    """
    try:
        yield
    except Exception as error:
        found = BROKEN.search(str(error))
        if found is None or not (broken := Path(found[1])).is_relative_to(cache := _cache()):
            raise
        for library in {broken, *(other for other in cache.rglob("*.so") if other.stat().st_size < TINY)}:
            library.unlink(missing_ok=True)
        raise NextileError(
            f"'{broken}' was left broken by a compilation that was killed, and is removed now: do the same once more"
        ) from error


def _cache() -> Path:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir())
