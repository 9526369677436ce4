"""SIGTERM in any phase of a run: it saves, exits with 143, and goes on exactly."""

import os
import signal
from pathlib import Path

import pytest
from tests.tasks.tiny import lasting, prepare, unlike, work

from nextile.tasks import run
from nextile.tasks.report import Silent


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def before(monkeypatch, place, name: str, call: int, times: int = 1) -> None:
    """SIGTERM so many times before the n-th call of a function."""
    function, calls = getattr(place, name), []

    def signalled(*given, **more):
        calls.append(name)
        if len(calls) == call:
            for _ in range(times):
                terminate()
        return function(*given, **more)

    monkeypatch.setattr(place, name, signalled)


@pytest.fixture
def given(tmp_path) -> Path:
    prepare("lm", tmp_path / "given", Silent())
    return tmp_path / "given"


PHASES = {
    "before the first step": (run.Run, "_train", 1),
    "a step": (run.Log, "steps", 1),
    "validating": (run.Run, "_validate", 1),
    "the preview": (run.Run, "_pretrained", 2),
    "keeping the best model": (run, "save_weights", 1),
    "saving": (run.states, "save_state", 3),
}


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("phase", PHASES)
def test_it_saves_and_goes_on_exactly(given, tmp_path, monkeypatch, phase, times):
    work("lm", given, tmp_path / "whole", Silent())
    with monkeypatch.context() as patch:
        before(patch, *PHASES[phase], times)
        with pytest.raises(SystemExit) as stopped:
            work("lm", given, tmp_path / "run", Silent())
    assert stopped.value.code == 143
    assert run.states.latest_state(tmp_path / "run").step < 20
    work("lm", given, tmp_path / "run", Silent())
    assert unlike(tmp_path / "run", lasting(tmp_path / "whole")) == []


def test_a_run_that_is_done_meanwhile_is_done(given, tmp_path, monkeypatch):
    before(monkeypatch, run.Run, "_validate", 3)
    work("lm", given, tmp_path / "run", Silent())
    assert (tmp_path / "run" / "curve.html").exists()


@pytest.mark.slow
def test_while_the_step_is_compiled(given, tmp_path):
    settings = {"compile": True}
    work("lm", given, tmp_path / "whole", Silent(), **settings)

    class Signalling(Silent):
        def say(self, text):
            if text.startswith("compiling"):
                terminate()

    with pytest.raises(SystemExit) as stopped:
        work("lm", given, tmp_path / "run", Signalling(), **settings)
    assert stopped.value.code == 143
    work("lm", given, tmp_path / "run", Silent())
    assert unlike(tmp_path / "run", lasting(tmp_path / "whole")) == []
