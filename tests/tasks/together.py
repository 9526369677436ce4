"""A process that has imported everything and computed nothing: it forks the processes of runs, as torchrun starts them.

    python -m tests.tasks.together FOLDER [slow]

Runs tiny runs in FOLDER on one process and on several, some stopped or killed on the way, and prints for each a line of
JSON: its name, how each process ended, and what all of them said. Forking spares each process seconds of imports.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.conftest import TINY, TINY_PAIRS
from tests.tasks.tiny import without, write_labelled, write_pairs, write_text

from nextile.cli import main as cli
from nextile.training import parallel

PATIENCE = 900  # seconds: a busy machine may stop everybody for minutes
STEPS = 12
LOCAL = {"MASTER_ADDR": "127.0.0.1"}
SETTINGS = {**TINY, "batch": 8, "model.stack.attention.heads": 2, "model.stack.depth": 2, "dropout": 0.0,
            "validation.every": 6, "checkpoint.every": 3, "optimizer.type": "adamw"}  # fmt: skip


def port() -> int:
    """A free one."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def forked(job: Callable[[], object], environment: Mapping[str, str], said: Path) -> int:
    """A process that does it and says what it says into a file."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ |= environment
        job()
        code = 0
    except SystemExit as exit:
        code = int(exit.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)


def exits(children: list[int]) -> list[int]:
    """How each process ended: its code, or minus the signal."""
    deadline, codes = time.monotonic() + PATIENCE, dict.fromkeys(children)
    while None in codes.values() and time.monotonic() < deadline:
        for child in [child for child, code in codes.items() if code is None]:
            pid, status = os.waitpid(child, os.WNOHANG)
            codes[child] = os.waitstatus_to_exitcode(status) if pid else None
        time.sleep(0.01)
    for child in [child for child, code in codes.items() if code is None]:
        os.kill(child, signal.SIGKILL)
    return [-999 if code is None else code for code in codes.values()]


# --- what a process does ----------------------------------------------------------------------------------------------


def train(arguments: list[str]) -> None:
    """The command."""
    code = cli.run(["train", *arguments])
    if code:
        sys.exit(code)


def hit(rank: int, step: int, number: int) -> None:
    """Let that process send itself a signal when so many steps are done."""
    if parallel.rank_of() != rank:
        return
    before, seen = parallel.World.most, []

    def most(world: parallel.World, *numbers: int) -> tuple[int, ...]:
        seen.append(numbers)
        if sum(len(each) == 2 for each in seen) == step + 1:  # what is agreed on after each step
            os.kill(os.getpid(), number)
        return before(world, *numbers)

    parallel.World.most = most  # type: ignore[method-assign]


# --- runs -------------------------------------------------------------------------------------------------------------


class Place:
    """Where they are."""

    def __init__(self, folder: Path):
        self.folder, self.text = folder, write_text(folder)

    def told(self, name: str, codes: list[int], seconds: float = 0.0) -> None:
        said = (self.folder / f"{name}.txt").read_text(errors="replace")
        print(json.dumps({"name": name, "codes": codes, "said": said, "seconds": seconds}), flush=True)

    def begin(self, name: str, settings: Mapping[str, Any] = {}, steps: int = STEPS) -> list[str]:
        """The arguments of a new run."""
        chosen = [part for key, value in {**SETTINGS, **settings}.items() for part in ("--set", f"{key}={value}")]
        return [str(self.text), "--out", str(self.folder / name), "--steps", str(steps), *chosen]

    def begin_with(self, source: Path, name: str, settings: Mapping[str, Any]) -> list[str]:
        """The arguments of a new run on other data, and of other settings alone."""
        every = {"batch": 8, "dropout": 0.0, "optimizer.type": "adamw", "validation.every": 6}
        chosen = [part for key, value in {**settings, **every}.items() for part in ("--set", f"{key}={value}")]
        return [str(source), "--out", str(self.folder / name), "--steps", str(STEPS), *chosen]

    def resume(self, name: str) -> list[str]:
        """The arguments that go on with a run."""
        return ["--resume", str(self.folder / name)]

    def run(
        self, name: str, processes: int, arguments: list[str], before: Callable[[], None] = lambda: None, **env: str
    ) -> None:
        """So many processes do it."""
        shared = {**LOCAL, "MASTER_PORT": str(port()), "WORLD_SIZE": str(processes), **env}

        def job() -> None:
            before()
            train(arguments)

        began = time.monotonic()
        children = [
            forked(job, {**shared, "RANK": str(rank)} if processes > 1 else {}, self.folder / f"{name}.txt")
            for rank in range(processes)
        ]
        self.told(name, exits(children), time.monotonic() - began)

    def copy(self, name: str, new: str) -> str:
        """The folder of a run once more."""
        shutil.copytree(self.folder / name, self.folder / new)
        return new


def fast(place: Place) -> None:
    """One process, two, and two that part the model; stopped ones that go on; wrong ones."""
    shard, tensor = {"parallel.shard": 2}, {"parallel.tensor": 2}
    place.run("one", 1, place.begin("one"))
    place.run("two", 2, place.begin("two"))
    place.run("accumulate", 2, place.begin("accumulate", {"accumulate": 2}))
    place.run("tensor", 2, place.begin("tensor", tensor))
    place.run("stopped", 2, place.begin("stopped", shard), lambda: hit(1, 5, signal.SIGTERM))
    place.copy("stopped", "on-one")
    place.run("go-on", 2, place.resume("stopped"))
    place.run("on-one", 1, place.resume("on-one"))
    place.run("indivisible", 2, place.begin("indivisible", {"batch": 7}))
    place.run("mesh", 2, place.begin("mesh", {"parallel.shard": 3}))
    place.run("killed", 2, place.begin("killed"), lambda: hit(1, 7, signal.SIGKILL))
    place.run("again", 2, place.begin("killed"), TORCHELASTIC_RESTART_COUNT="1")


def slow(place: Place) -> None:
    """Four processes, Muon, and twenty kills."""
    muon = {"optimizer.type": "muon"}
    both = {"parallel.shard": 2, "parallel.tensor": 2}
    place.run("one", 1, place.begin("one", steps=50))
    place.run("four", 4, place.begin("four", both, 50))
    place.run("hybrid", 4, place.begin("hybrid", {"parallel.shard": 2}, 50))
    place.run("muon", 1, place.begin("muon", muon))
    place.run("muon-two", 2, place.begin("muon-two", muon))
    place.run("muon-four", 4, place.begin("muon-four", {**muon, **both}))
    place.run("saved", 2, place.begin("saved", {"parallel.shard": 2}, 50), lambda: hit(0, 20, signal.SIGTERM))
    for number in (1, 4):
        place.run(f"saved-{number}", number, place.resume(place.copy("saved", f"saved-{number}")))
    pairs, labelled = write_pairs(place.folder), write_labelled(place.folder)
    for kind, source, own in (("pairs", pairs, TINY_PAIRS), ("labels", labelled, without(TINY, "context"))):
        place.run(f"{kind}-one", 1, place.begin_with(source, f"{kind}-one", own))
        for name, mesh in (("shard", {"parallel.shard": 2}), ("replicate", {})):
            place.run(f"{kind}-{name}", 2, place.begin_with(source, f"{kind}-{name}", {**own, **mesh}))
    for name, mesh in (("compiled-shard", {"parallel.shard": 2}), ("compiled-tensor", {"parallel.tensor": 2})):
        place.run(name, 2, place.begin(name, {"compile": "true", **mesh}, 50))
    place.run("two", 2, place.begin("two", steps=50))
    chance = random.Random(0)
    place.run("kill-0", 2, place.begin("kills", steps=50), lambda: hit(1, 2, signal.SIGKILL))
    for number in range(1, 21):
        rank, step = chance.randrange(2), chance.randrange(1, 4)
        before = (lambda r=rank, s=step: hit(r, s, signal.SIGKILL)) if number < 20 else (lambda: None)
        place.run(f"kill-{number}", 2, place.begin("kills", steps=50), before, TORCHELASTIC_RESTART_COUNT=str(number))


if __name__ == "__main__":
    (slow if "slow" in sys.argv[2:] else fast)(Place(Path(sys.argv[1])))
