"""A process whose disk becomes full at chosen points of a run, once for each point.

    LD_PRELOAD=full_disk.so python -m tests.tasks.faults KIND POINTS SEED FOLDER

Runs a tiny run of that kind in FOLDER/whole and counts its calls that need room. Then FOLDER/0, FOLDER/1, ...: at each
of POINTS points, spread over those calls, the disk is full from there on; with room again the run goes on, or begins
anew where nothing was there to go on with. Prints a line of JSON for each: its folder, the call, what was said, and
what was passed over of what it had saved.
"""

import ctypes
import json
import os
import random
import sys
from pathlib import Path

from tests.tasks import tiny
from tests.tasks.zygote import ended, forked

from nextile.checkpoint.resume import has_state, latest_state
from nextile.tasks.report import Silent

DISK = ctypes.CDLL(None)


def failing(kind: str, place: Path, folder: Path, limit: int) -> dict[str, object]:
    """What a run says whose disk is full from call `limit` on, and how many calls it made."""
    DISK.disk_full_from(limit)
    error = ""
    try:
        tiny.work(kind, place, folder, Silent())
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
    calls = DISK.disk_calls()
    DISK.disk_full_from(-1)
    state = latest_state(folder) if has_state(folder) else None
    note = state.note if state else None
    return {"folder": str(folder), "call": limit, "calls": calls, "error": error, "note": note}


def told(job, path: Path) -> dict[str, object]:
    """What a job in a process of its own says."""
    ended(forked(lambda: path.write_text(json.dumps(job()))))
    return json.loads(path.read_text())


def main(kind: str, points: int, seed: int, folder: Path) -> None:
    """Fill the disk at each point, and go on."""
    place, note = folder / "given", folder / "note.json"
    ended(forked(lambda: tiny.prepare(kind, place, Silent())))
    whole = told(lambda: failing(kind, place, folder / "whole", -1), note)
    print(json.dumps(whole))
    chance = random.Random(seed)
    each = whole["calls"] / points
    for number in range(points):
        run = folder / str(number)
        found = told(lambda run=run, n=number: failing(kind, place, run, int((n + chance.random()) * each)), note)
        ended(forked(lambda run=run: tiny.work(kind, place, run, Silent())))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    os.environ.pop("LD_PRELOAD")
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
