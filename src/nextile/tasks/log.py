"""What a run writes down: metrics.jsonl, the same in every repetition, and speed.jsonl, which is not."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nextile.base.errors import NextileError
from nextile.base.files import atomic_write
from nextile.training.loop import Step


class Log:
    """Lines appended to the two files of a run's folder; after a kill, `rewind` takes back what was not saved for."""

    def __init__(self, folder: Path):
        self.metrics, self.speed = folder / "metrics.jsonl", folder / "speed.jsonl"

    def steps(self, steps: Iterable[Step], seconds: float, rate: float) -> None:
        """Training steps, and how fast they went."""
        steps = list(steps)
        self._append(self.metrics, [_row(step) for step in steps])
        if steps:
            speed = {"step": steps[-1].index + 1, "seconds": round(seconds, 3), "tokens_per_second": round(rate, 1)}
            self._append(self.speed, [speed])

    def validation(self, step: int, measures: dict[str, float]) -> None:
        """What the validation set said after so many steps."""
        self._append(
            self.metrics, [{"step": step} | {f"val_{name}": _number(value) for name, value in measures.items()}]
        )

    def size(self) -> int:
        """Bytes of metrics so far, on disk."""
        if not self.metrics.exists():
            return 0
        with _explained(self.metrics), open(self.metrics, "rb") as file:
            os.fsync(file.fileno())
        return self.metrics.stat().st_size

    def rewind(self, size: int, step: int) -> None:
        """Forget what was written after the saved state."""
        if self.metrics.exists():
            os.truncate(self.metrics, min(size, self.metrics.stat().st_size))
        if self.speed.exists():
            kept = [line for line in self.speed.read_text().splitlines() if _step(line) <= step]
            atomic_write(self.speed, "".join(f"{line}\n" for line in kept))

    @staticmethod
    def _append(path: Path, rows: list[dict[str, Any]]) -> None:
        with _explained(path), open(path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


class NoLog(Log):
    """Writes nothing: of the processes of a run one keeps the log."""

    def size(self) -> int:
        """None of its own."""
        return 0

    def rewind(self, size: int, step: int) -> None:
        """Nothing to forget."""

    @staticmethod
    def _append(path: Path, rows: list[dict[str, Any]]) -> None:
        pass


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NextileError(f"{error.strerror}: cannot write '{path}': free some space and resume the run") from error


def _row(step: Step) -> dict[str, Any]:
    row = {"step": step.index + 1, "loss": _number(step.loss), "lr": step.lr, "grad_norm": _number(step.grad_norm)}
    return row | {"skipped": True} if step.skipped else row


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut short by a kill
