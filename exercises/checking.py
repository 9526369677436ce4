"""What the exercises share: run a check, and say "right", or in one line what is wrong and for which input."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parent


class Wrong(Exception):
    """What is not as it should be, in one line."""


@contextmanager
def case(name: str) -> Iterator[None]:
    """Name the input that is looked at: all that goes wrong inside is said of it."""
    try:
        yield
    except NotImplementedError:
        raise
    except Wrong as wrong:
        raise Wrong(f"{name}: {wrong}") from wrong
    except Exception as error:
        raise Wrong(f"{name}: {_where(error)}{type(error).__name__}: {error}") from error


def require(holds: object, what: str) -> None:
    """Errors: Wrong with `what` where it does not hold."""
    if not holds:
        raise Wrong(what)


def same(got: Any, want: Any, within: float = 1e-5) -> None:
    """Errors: Wrong that says how `got` differs from `want`: tensors, arrays and numbers closely, else exactly."""
    if isinstance(want, Tensor):
        require(isinstance(got, Tensor), f"a tensor was expected, and this is {_kind(got)}")
        _same_tensor(got, want, within)
    elif isinstance(want, np.ndarray):
        require(isinstance(got, np.ndarray), f"an array was expected, and this is {_kind(got)}")
        _same_tensor(torch.from_numpy(got.copy()), torch.from_numpy(want.copy()), within)
    elif isinstance(want, float):
        require(isinstance(got, (int, float, Tensor)), f"a number was expected, and this is {_kind(got)}")
        require(abs(float(got) - want) <= within * max(1.0, abs(want)), f"it is {float(got):.6g}, not {want:.6g}")
    else:
        require(got == want, f"it is {got!r}, not {want!r}")


def _same_tensor(got: Tensor, want: Tensor, within: float) -> None:
    require(got.shape == want.shape, f"its shape is {tuple(got.shape)}, not {tuple(want.shape)}")
    require(got.dtype == want.dtype, f"its dtype is {got.dtype}, not {want.dtype}")
    if not want.is_floating_point():
        equal = got == want
    else:
        if got.isnan().any() and not want.isnan().any():
            raise Wrong(f"there is NaN at {_first(got.isnan())}")
        equal = torch.isclose(got, want, rtol=within, atol=within, equal_nan=True)
    if not equal.all():
        place = _first(~equal)
        at = f"at {place} it" if place else "it"
        raise Wrong(f"{at} is {_number(got, place)}, not {_number(want, place)}")


def _first(found: Tensor) -> list[int]:
    """The place of the first True."""
    return found.nonzero()[0].tolist()


def _number(x: Tensor, place: list[int]) -> str:
    value = x[tuple(place)].item()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _kind(value: Any) -> str:
    return "None: is a return missing?" if value is None else f"a {type(value).__name__}"


def _where(error: Exception) -> str:
    """The last line of an exercise in which it happened."""
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent == HERE]
    return f"line {lines[-1].lineno} of {Path(lines[-1].filename).name}: " if lines else ""


def verdict(check: Callable[[], None]) -> tuple[int, str]:
    """Run a check: the exit status and one line."""
    torch.manual_seed(0)
    try:
        check()
    except NotImplementedError as todo:
        return 1, f"to do: {todo}"
    except Wrong as wrong:
        return 1, f"not yet: {' '.join(str(wrong).split())}"
    return 0, "right"


def main(check: Callable[[], None]) -> None:
    """What `python exercises/NAME.py` does."""
    status, line = verdict(check)
    print(line)
    sys.exit(status)
