"""A process that has imported everything and computed nothing: it forks runs and kills them at random moments.

    python -m tests.tasks.zygote KIND KILLS SEED FOLDER

Runs a tiny run of that kind in FOLDER/whole and FOLDER/again, and in FOLDER/0, FOLDER/1, ... each killed again and
again and resumed until it ends, until KILLS kills have been made. Prints the folders that ended, one a line. Forking
spares each run seconds of imports.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.tasks import tiny

from nextile.tasks.report import Silent

PATIENCE = 600  # seconds; enough for a compilation on a busy machine


def forked(job: Callable[[], object]) -> int:
    """The process that does it."""
    child = os.fork()
    if child:
        return child
    try:
        job()
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def ended(child: int, seconds: float = PATIENCE) -> float | None:
    """The seconds of computing that it took, if it ended by itself in that time; else it is killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status, used = os.wait4(child, os.WNOHANG)
        if pid:
            if status:
                sys.exit(f"a run failed with status {status}")
            return used.ru_utime + used.ru_stime
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def main(kind: str, kills: int, seed: int, folder: Path) -> None:
    """Kill until there were enough, and let every begun run end."""
    chance = random.Random(seed)
    place = folder / "given"

    def begun(name: str) -> int:
        return forked(lambda: tiny.work(kind, place, folder / name, Silent()))

    ended(forked(lambda: tiny.prepare(kind, place, Silent())))
    whole = 0.0
    for name in ("whole", "again"):  # the first may compile, which the others find done
        whole = ended(begun(name)) or PATIENCE
        print(folder / name)
    made = number = 0
    while made < kills:
        while ended(begun(str(number)), chance.uniform(0, whole) if made < kills else PATIENCE) is None:
            made += 1
        print(folder / str(number))
        number += 1


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
