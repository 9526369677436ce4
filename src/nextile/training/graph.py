"""A function as one compiled graph that shares its compilations with nobody."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch

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
