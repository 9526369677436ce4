"""nextile: train, fine-tune, run and look inside transformers of every kind, from one set of blocks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextile.api import Model, load, plan, train
    from nextile.base.errors import NextileError, UsageError

    __version__: str

__all__ = ["Model", "NextileError", "UsageError", "__version__", "load", "plan", "train"]

_PLACES = {
    "Model": "nextile.api",
    "NextileError": "nextile.base.errors",
    "UsageError": "nextile.base.errors",
    "load": "nextile.api",
    "plan": "nextile.api",
    "train": "nextile.api",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: `import nextile` stays instant."""
    if name == "__version__":
        return import_module("importlib.metadata").version("nextile")
    if name not in _PLACES:
        raise AttributeError(f"module 'nextile' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
