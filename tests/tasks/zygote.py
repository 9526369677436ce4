"""A process that has imported everything and computed nothing: it forks runs and kills them at random moments.

    python zygote.py KILLS SEED TEXT FOLDER

Runs the tiny model of the tests in FOLDER/0, FOLDER/1, ... each killed again and again and resumed until it ends, until
KILLS kills have been made. Prints the folders that ended, one a line. Forking spares each run seconds of imports.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import nextile.api as api
from nextile.tasks.report import Silent

TINY = {
    "compile": False, "precision": "fp32", "batch": 4, "context": 16, "threads": 1, "tokenizer.kind": "char",
    "dropout": 0.1, "validation.every": 9, "checkpoint.every": 4,
}  # fmt: skip
SIZES = {
    ".txt": {"model.stack.width": 16, "model.stack.depth": 1},
    ".tsv": {"model.encoder.width": 16, "model.encoder.depth": 1, "model.decoder.depth": 1, "checkpoint.average": 3},
}
STEPS = 40


def work(text: Path, folder: Path) -> None:
    """Begin the run, or go on with it."""
    if (folder / "run.json").exists():
        api.train(resume=folder, report=Silent())
    else:
        api.train(text, out=folder, steps=STEPS, settings=TINY | SIZES[text.suffix], report=Silent())


def forked(text: Path, folder: Path) -> int:
    """The process that does it."""
    child = os.fork()
    if child:
        return child
    try:
        work(text, folder)
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def ended(child: int, seconds: float) -> bool:
    """Whether it ended by itself in that time; else it is killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            if status:
                sys.exit(f"a run failed with status {status}")
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main(kills: int, seed: int, text: Path, folder: Path) -> None:
    """Kill until there were enough, and let every begun run end."""
    chance = random.Random(seed)
    began = time.monotonic()
    ended(forked(text, folder / "whole"), 600)
    whole = time.monotonic() - began
    print(folder / "whole")
    made = number = 0
    while made < kills:
        place = folder / str(number)
        while not ended(forked(text, place), chance.uniform(0, whole) if made < kills else 600):
            made += 1
        print(place)
        number += 1


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
