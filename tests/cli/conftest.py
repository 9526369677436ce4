"""The command line with a stand-in for the library: what is asked of it, and what becomes of its answers."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

import nextile
from nextile.base.errors import NextileError
from nextile.cli.main import run


class Answer(NamedTuple):
    """What a command line left behind."""

    code: int
    out: str
    err: str


class Library(ModuleType):
    """Stands in for nextile.api: remembers what it was asked, answers by shouting the prompt."""

    def __init__(self):
        super().__init__("nextile.api")
        self.asked: dict[str, Any] = {}
        self.batches: list[list[str]] = []
        self.folder = None
        self.streams = True
        self.task = "classify"

    def train(self, data, *, report, **asked):
        self.asked = {"data": data, **asked}
        report.say("training")
        return self

    def plan(self, data, *, report, **asked):
        self.asked = {"data": data, **asked}
        return SimpleNamespace(rows=lambda: [("steps", "12")], as_dict=lambda: {"steps": 12, "loss": float("nan")})

    def load(self, name, **asked):
        self.asked = {"name": name, **asked}
        return self

    def translate(self, batch, *, details, n, **asked):
        assert details
        self.asked |= asked
        self.batches.append(batch)
        return [self.translation(source, number) for source in batch for number in range(n)]

    def translation(self, source, number):
        return SimpleNamespace(
            source=source, text=f"{source.upper()}\x1b[2J", tokens=[1, 2], score=-0.5 - number, logprob=-1.0,
            finish_reason="end", note="the source was cut" if len(source) > 100 else None,
        )  # fmt: skip

    def generate(self, batch, *, details, n, logprobs, **asked):
        assert details
        self.asked |= asked
        self.batches.append(batch)
        return [self.completion(prompt, number, logprobs) for prompt in batch for number in range(n)]

    def completion(self, prompt, number, logprobs):
        text = f"{prompt.upper()}\x1b[2J\n{number}"
        return SimpleNamespace(
            prompt=prompt, text=text, tokens=[1, 2], finish_reason="length", logprobs=logprobs and [float("-inf")],
            note="the prompt was cut" if len(prompt) > 100 else None,
        )  # fmt: skip

    def stream(self, prompt, **asked):
        self.asked |= asked
        yield from (prompt.upper(), "\x1b[2J", "\n0")

    def classify(self, name, **asked):
        self.asked |= asked
        if name.endswith(".txt"):
            raise NextileError(f"'{name}' is no picture")
        return [("cat\x1b[2J", 0.75), ("dog", 0.25)]

    def paint(self, n, **asked):
        self.asked |= {"n": n, **asked}
        return np.full((n, 4, 4, 3), 200, dtype=np.uint8)

    def probe(self, data, *, report):
        self.asked |= {"probed": data}
        return {"layers": {"layer 1": 0.5}, "pixels": 0.25, "untrained": 0.125}

    def evaluate(self, data, *, report, **asked):
        self.asked |= {"data": data, **asked}
        return {"loss": 1.25, "bits_per_byte": 0.5, "bleu_signature": "nrefs:1"}

    def describe(self):
        return {"family": "qwen3", "parameters": {"total": 12345}}


@pytest.fixture
def library(monkeypatch) -> Library:
    """The stand-in, in the place of nextile.api."""
    stand_in = Library()
    monkeypatch.setitem(sys.modules, "nextile.api", stand_in)
    monkeypatch.setattr(nextile, "api", stand_in, raising=False)
    return stand_in


@pytest.fixture
def nextile_(capsys, monkeypatch):
    """Runs a command line in this process."""
    monkeypatch.delenv("NEXTILE_DEBUG", raising=False)

    def call(*arguments: str) -> Answer:
        code = run(list(arguments))
        return Answer(code, *capsys.readouterr())

    return call
