"""`precision=fp8`: what a run does with it where the hardware has it, and who refuses it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.conftest import TINY
from tests.tasks.tiny import prepare, work

import nextile
from nextile.base import device
from nextile.base.errors import UsageError
from nextile.nn import float8
from nextile.tasks.report import Silent

FP8 = {"precision": "fp8"}


@pytest.fixture
def hardware(monkeypatch) -> None:
    """The CPU, which computes with float8 slowly, passes for one that has it."""
    monkeypatch.setattr(device, "has_fp8", lambda _: True)


@pytest.fixture
def given(tmp_path) -> Path:
    prepare("lm", tmp_path / "given", Silent())
    return tmp_path / "given"


def test_a_plan_says_so_and_counts_as_in_bf16(text, hardware):
    plan, narrow, wide = (
        nextile.plan(text, steps=4, settings=TINY | {"precision": name}, report=Silent())
        for name in ("fp8", "bf16", "fp32")
    )
    assert ("computing", "fp8 on cpu, not compiled") in plan.rows()
    assert plan.dtype == narrow.dtype
    assert plan.memory() == narrow.memory() < wide.memory()
    assert nextile.plan(text, steps=4, settings=TINY | {"precision": "auto"}, report=Silent()).precision != "fp8"


def test_a_run_learns_in_fp8_is_measured_without_and_goes_on_where_it_stopped(given, tmp_path, hardware, monkeypatch):
    calls = {True: 0, False: 0}  # with gradients and without

    def counted(*tensors):
        calls[tensors[1].requires_grad and float8.torch.is_grad_enabled()] += 1
        return right(*tensors)

    right = float8.float8_linear
    monkeypatch.setattr(float8, "float8_linear", counted)
    work("lm", given, tmp_path / "run", Silent(), steps=8, **FP8)
    assert calls == {True: 8 * 7, False: 0}
    file = json.loads((tmp_path / "run" / "run.json").read_text())
    assert file["plan"]["precision"] == file["settings"]["precision"] == "fp8"
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run" / "state" / "step-00000008")
    work("lm", given, tmp_path / "run", Silent())
    assert calls == {True: 9 * 7, False: 0}
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights


def test_a_run_goes_on_only_where_there_is_fp8(given, tmp_path, monkeypatch):
    with monkeypatch.context() as here:
        here.setattr(device, "has_fp8", lambda _: True)
        work("lm", given, tmp_path / "run", Silent(), steps=2, **FP8)
    with pytest.raises(UsageError, match=r"^precision 'fp8': this cpu has no fp8 in hardware; use .*$"):
        work("lm", given, tmp_path / "run", Silent())


def test_the_other_losses_are_those_of_bf16_nearly(given, tmp_path, hardware):
    losses = {}
    for name in ("fp8", "bf16"):
        work("lm", given, tmp_path / name, Silent(), steps=8, precision=name)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses[name] = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
    assert losses["fp8"] != losses["bf16"]
    assert losses["fp8"] == pytest.approx(losses["bf16"], rel=0.02)


def test_a_model_whose_sizes_do_not_fit_is_refused_by_the_plan(text, hardware):
    with pytest.raises(UsageError, match=r"^precision 'fp8': no layer of this model's blocks has sizes that are .*$"):
        nextile.plan(text, steps=4, settings=TINY | FP8 | {"model.stack.width": 20}, report=Silent())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("lora", "precision 'fp8' is for training in full: leave lora out, or use bf16"),
        ("prefer", "precision 'fp8': the task 'prefer' compares with what a model gives in bf16; use bf16"),
        ("words", "setting 'precision' does nothing in the task 'words': leave it out"),
    ],
)
def test_who_refuses_it(kind, message, tmp_path, hardware):
    prepare(kind, tmp_path / "given", Silent())
    with pytest.raises(UsageError, match=f"^{message}$"):
        work(kind, tmp_path / "given", tmp_path / "run", Silent(), **FP8)
    assert not (tmp_path / "run" / "run.json").exists()
