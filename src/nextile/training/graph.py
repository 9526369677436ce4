"""A function as one compiled graph that shares its compilations with nobody."""

from __future__ import annotations

import inspect
from collections.abc import Callable
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
