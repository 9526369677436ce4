"""Arrays whose axes have names, in xarray's vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from nextile.base.errors import UsageError


class NamedArray:
    """Numbers with a name for each axis: `.dims`, `.sizes`, `.isel(layer=2, head=3)`, `numpy.asarray(x)`.

    values: the numbers, which are not to be written to.
    """

    __slots__ = ("dims", "values")

    def __init__(self, values: Any, dims: Sequence[str]):
        """Errors: UsageError where there is not one name for each axis, and each once."""
        self.values: np.ndarray = np.asarray(values).view()
        self.values.flags.writeable = False
        self.dims = tuple(dims)
        if self.values.ndim != len(self.dims) or len(set(self.dims)) != len(self.dims):
            raise UsageError(f"{self.values.ndim} axes need as many different names, and got {self.dims}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each axis, in order."""
        return self.values.shape

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each axis, by its name."""
        return dict(zip(self.dims, self.shape, strict=True))

    def isel(self, **places: int | slice) -> NamedArray:
        """What stands at these places; axes of which one place is taken are gone.

        Errors: UsageError for an axis that there is not, and for a place outside it.
        """
        for name, place in places.items():
            size = self.shape[self._axis(name)]
            if not isinstance(place, slice) and not -size <= place < size:
                raise UsageError(f"{name} is {place}, and there are {size}: from 0 to {size - 1}")
        found = self.values[tuple(places.get(name, slice(None)) for name in self.dims)]
        return NamedArray(found, [name for name in self.dims if isinstance(places.get(name, slice(None)), slice)])

    def mean(self, *names: str) -> NamedArray:
        """The mean over these axes. Errors: UsageError for an axis that there is not."""
        axes = tuple(self._axis(name) for name in names)
        return NamedArray(self.values.mean(axes), [name for name in self.dims if name not in names])

    def _axis(self, name: str) -> int:
        if name not in self.dims:
            raise UsageError(f"there is no axis '{name}' here: the axes are {', '.join(self.dims) or 'none'}")
        return self.dims.index(name)

    def item(self) -> Any:
        """The one number that this is."""
        return self.values.item()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {size}" for name, size in self.sizes.items())
        return f"NamedArray({sizes}) {self.values.dtype}"


def named(values: Tensor, *dims: str) -> NamedArray:
    """A tensor as it is, in float32 if its numbers are narrower."""
    values = values.detach().cpu()
    if values.is_floating_point() and values.itemsize < 4:
        values = values.float()
    return NamedArray(values.numpy(), dims)
