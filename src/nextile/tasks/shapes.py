"""A model's shape from the name of a preset and what size is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from nextile.base.errors import UsageError

# Where in the spec of a model with one stack its sizes are.
STACK_SIZES = {
    "width": ("stack.width",),
    "depth": ("stack.depth",),
    "heads": ("stack.attention.heads",),
    "hidden": ("stack.feed_forward.hidden",),
}


def default_heads(width: int) -> int:
    """As many heads of about 64 (32 in a narrow model) as divide the width into even parts."""
    most = max(1, round(width / (64 if width > 128 else 32)))
    return next(heads for heads in range(most, 0, -1) if width % (2 * heads) == 0 or heads == 1)


def with_heads(size: Mapping[str, int]) -> dict[str, int]:
    """The size with as many heads as suit its width. Errors: UsageError when those asked for do not."""
    heads = size.get("heads") or default_heads(size["width"])
    if size["width"] % heads and "head_dim" not in size:
        raise UsageError(f"width {size['width']} is not a multiple of {heads} heads: change one of them")
    return {**size, "heads": heads}


def preset_of(name: str, presets: Mapping[str, ModuleType]) -> tuple[ModuleType, dict[str, int]]:
    """The family and the size of a preset; without a size where the name is the family's. Errors: UsageError."""
    sizes = {size: (family, dict(values)) for family in presets.values() for size, values in family.SIZES.items()}
    known = {name: (family, {}) for name, family in presets.items()} | {
        size: found for size, found in sizes.items() if size not in presets
    }
    if name not in known:
        raise UsageError(f"unknown preset '{name}': it is one of {', '.join(known)}")
    return known[name]
