"""What a machine cannot do, and what does not fit together: one line, with what to do, before anything is spent."""

import json
from pathlib import Path

import pytest
from tests.tasks.tiny import prepare, work

from nextile.base import device
from nextile.base.errors import NextileError, UsageError
from nextile.tasks import plan
from nextile.tasks.report import Silent


@pytest.fixture
def given(tmp_path) -> Path:
    prepare("lm", tmp_path / "given", Silent())
    return tmp_path / "given"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"compile": True},
            r"compile=true needs a C\+\+ compiler .* is missing: install them .*, or leave compile out",
        ),
        ({"precision": "bf16"}, r"precision 'bf16': this cpu has no bf16 in hardware; use fp32 or auto"),
        ({"precision": "fp8"}, "precision 'fp8': this cpu has no fp8 in hardware; use fp32 or auto"),
        (
            {"precision": "fp8", "parallel.tensor": 2},
            r"precision 'fp8' wants whole matrices: use parallel.shard instead of \.tensor, or bf16",
        ),
        ({"attention": "flex"}, "attention=flex is for steps on cuda, and this one is on cpu: set .*, or leave .* out"),
        ({"batch": 4, "accumulate": 3}, "batch 4 does not divide into 3 equal parts: change one"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_there(given, tmp_path, monkeypatch, settings, message):
    monkeypatch.setattr(plan, "has_compiler", lambda: False)
    monkeypatch.setattr(device, "has_fast_bf16", lambda where: False)
    with pytest.raises(UsageError, match=f"^{message}$"):
        work("lm", given, tmp_path / "run", Silent(), **settings)
    assert not (tmp_path / "run" / "run.json").exists()
    work("lm", given, tmp_path / "run", Silent(), steps=1)  # the place is free


def test_the_rows_of_a_task_must_divide_too(tmp_path):
    prepare("chat", tmp_path / "given", Silent())
    with pytest.raises(UsageError, match="batch 8 does not divide into 3 equal parts: change one"):
        work("chat", tmp_path / "given", tmp_path / "run", Silent(), batch=None, accumulate=3)


def test_a_state_of_another_shape_is_refused(given, tmp_path):
    work("lm", given, tmp_path / "run", Silent(), steps=4)
    path = tmp_path / "run" / "run.json"
    file = json.loads(path.read_text())
    file["plan"]["model"]["stack"]["feed_forward"]["hidden"] *= 2
    file["plan"]["steps"] = 9
    path.write_text(json.dumps(file))
    with pytest.raises(
        NextileError, match=r"the training state has 'model.*' as float32 .*: resume with what wrote it"
    ):
        work("lm", given, tmp_path / "run", Silent())


def test_the_mean_of_states_of_which_one_is_damaged_is_not_made(tmp_path):
    prepare("translate", tmp_path / "given", Silent())
    work("translate", tmp_path / "given", tmp_path / "run", Silent())
    oldest = min((tmp_path / "run" / "state").iterdir()) / "tensors.safetensors"
    oldest.write_bytes(oldest.read_bytes()[:-1])
    warned = []

    class Heard(Silent):
        def warn(self, text):
            warned.append(text)

    best = (tmp_path / "run" / "model.safetensors").read_bytes()
    work("translate", tmp_path / "given", tmp_path / "run", Heard())
    assert len(warned) == 1
    assert warned[0].startswith("no mean of the last states is made: '")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == best
