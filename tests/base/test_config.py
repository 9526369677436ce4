"""Settings: layers over defaults, and one line for the first thing that is wrong."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError, field_validator

from nextile.base.config import Settings, environment, literal, parse_assignments, read_toml, resolve
from nextile.base.errors import NextileError, UsageError


class Rotary(Settings):
    type: Literal["rotary"] = "rotary"
    base: float = 10_000.0


class Relative(Settings):
    type: Literal["relative"] = "relative"
    buckets: int = 32


Position = Annotated[Rotary | Relative, Field(discriminator="type")]


class Stack(Settings):
    depth: int = Field(default=4, ge=1)
    position: Position | None = Rotary(base=500.0)
    others: tuple[Position, ...] = ()

    @field_validator("depth")
    @classmethod
    def _not_thirteen(cls, depth: int) -> int:
        if depth == 13:
            raise ValueError("13 brings bad luck; use 12")
        return depth


class Decoder(Settings):
    type: Literal["decoder"] = "decoder"
    stack: Stack = Stack()


class Translator(Settings):
    type: Literal["translator"] = "translator"
    source: Stack = Stack()


class Checkpoint(Settings):
    every: int = 100
    keep: int = 2


class Run(Settings):
    lr: float = 1e-3
    name: str = "run"
    compile: bool = False
    kind: Literal["char", "word", "bpe"] = "char"
    checkpoint: Checkpoint = Checkpoint()
    model: Annotated[Decoder | Translator, Field(discriminator="type")] = Decoder()


def error(*layers) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(Run, *layers)
    return str(caught.value)


# --- merging -------------------------------------------------------------------------------------------------------


def test_no_layers_are_the_defaults():
    assert resolve(Run) == Run()


def test_a_later_layer_wins_key_by_key():
    run = resolve(Run, {"checkpoint": {"every": 5, "keep": 3}}, {"checkpoint.every": 7})
    assert run.checkpoint == Checkpoint(every=7, keep=3)


def test_dotted_and_nested_keys_of_one_layer_merge():
    assert resolve(Run, {"checkpoint.every": 5, "checkpoint": {"keep": 9}}).checkpoint == Checkpoint(every=5, keep=9)


def test_the_default_union_member_need_not_be_named():
    run = resolve(Run, {"model.stack.position.base": 7.0, "model.stack.depth": 6})
    assert run.model == Decoder(stack=Stack(depth=6, position=Rotary(base=7.0)))


def test_untouched_defaults_of_a_branch_stay():
    assert resolve(Run, {"model.stack.depth": 6}).model == Decoder(stack=Stack(depth=6))


def test_another_type_drops_the_keys_of_the_one_below():
    run = resolve(Run, {"model.stack.position.base": 7.0}, {"model.stack.position.type": "rotary"})
    assert run.model == Decoder(stack=Stack(position=Rotary(base=7.0)))
    run = resolve(Run, {"model.stack.position": {"type": "rotary", "base": 7.0}}, {"model.stack.position": "relative"})
    assert run.model == Decoder(stack=Stack(position=Relative()))


def test_a_type_alone_names_a_member_and_its_keys_may_follow():
    run = resolve(Run, {"model.stack.position": "relative"}, {"model.stack.position.buckets": 8})
    assert run.model == Decoder(stack=Stack(position=Relative(buckets=8)))


def test_a_settings_instance_is_a_layer_and_a_value():
    assert resolve(Run, Run(lr=5.0), {"kind": "bpe"}) == Run(lr=5.0, kind="bpe")
    assert resolve(Run, {"model": Translator(source=Stack(depth=9))}).model == Translator(source=Stack(depth=9))


def test_none_and_lists_replace():
    run = resolve(Run, {"model.stack.position": None, "model.stack.others": [{"type": "relative"}, "rotary"]})
    assert run.model == Decoder(stack=Stack(position=None, others=(Relative(), Rotary())))


def test_the_layers_are_not_changed():
    below, above = {"checkpoint": {"every": 5}}, {"checkpoint.keep": 1}
    resolve(Run, below, above)
    assert (below, above) == ({"checkpoint": {"every": 5}}, {"checkpoint.keep": 1})


def test_settings_are_frozen_and_finite():
    with pytest.raises(ValidationError, match="frozen"):
        Run().lr = 3.0  # type: ignore[misc]
    with pytest.raises(ValidationError, match="finite"):
        Run(lr=float("inf"))


# --- what is wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"checkpoint.evry": 3}, "unknown setting 'checkpoint.evry': did you mean 'checkpoint.every'?"),
        ({"model.stack.depht": 3}, "unknown setting 'model.stack.depht': did you mean 'model.stack.depth'?"),
        ({"depth": 3}, "unknown setting 'depth': did you mean 'model.stack.depth'?"),
        ({"qqq": 1}, "unknown setting 'qqq': the settings are lr, name, compile, kind, checkpoint, model"),
        ({"checkpoint.qqq": 1}, "unknown setting 'checkpoint.qqq': the settings are checkpoint.every, checkpoint.keep"),
        (
            {"model.stack.position.bukets": 1, "model.stack.position.type": "relative"},
            "unknown setting 'model.stack.position.bukets': did you mean 'model.stack.position.buckets'?",
        ),
        (
            {"model.stack.position.buckets": 1},
            "setting 'model.stack.position.buckets' belongs to another type: "
            "set model.stack.position.type=relative as well",
        ),
        (
            {"model.stack.others": [{"type": "rotary", "bse": 1}]},
            "unknown setting 'model.stack.others.0.bse': did you mean 'model.stack.others.0.base'?",
        ),
        ({"lr": "abc"}, "setting 'lr': 'abc' is not a number"),
        ({"lr": None}, "setting 'lr': None is not a number"),
        ({"lr": "nan"}, "setting 'lr': 'nan' is not a finite number"),
        ({"lr.x": 1}, "setting 'lr': {'x': 1} is not a number"),
        ({"checkpoint.every": 1.5}, "setting 'checkpoint.every': 1.5 is not a whole number"),
        ({"checkpoint": 3}, "setting 'checkpoint': 3 is not a group of settings"),
        ({"compile": "maybe"}, "setting 'compile': 'maybe' is not true or false"),
        ({"name": [1]}, "setting 'name': [1] is not text"),
        ({"kind": "chars"}, "setting 'kind': 'chars' is not one of 'char', 'word', 'bpe'; did you mean 'char'?"),
        ({"kind": "zzz"}, "setting 'kind': 'zzz' is not one of 'char', 'word', 'bpe'"),
        ({"model.stack.depth": 0}, "setting 'model.stack.depth': 0 should be greater than or equal to 1"),
        ({"model.stack.depth": 13}, "setting 'model.stack.depth': 13 brings bad luck; use 12"),
        (
            {"model.stack.position.type": "rotry"},
            "setting 'model.stack.position.type': 'rotry' is not one of 'rotary', 'relative'; did you mean 'rotary'?",
        ),
        ({"model.stack.others": [{"base": 1}]}, "setting 'model.stack.others.0' has no type"),
        (
            {"model": "decodr"},
            "setting 'model': 'decodr' is not one of 'decoder', 'translator'; did you mean 'decoder'?",
        ),
        ({"model": 3}, "setting 'model': 3 is not one of 'decoder', 'translator'"),
        ({"modle.stack.deph": 3}, "unknown setting 'modle': did you mean 'model'?"),
        ({"": 1}, "unknown setting ''"),
    ],
)
def test_the_first_problem_in_one_line(layer, message):
    assert error(layer).startswith(message)
    assert "\n" not in error(layer)


def test_an_unknown_name_comes_before_a_bad_value():
    assert error({"lr": "abc", "kindd": 1}).startswith("unknown setting 'kindd'")


def test_a_missing_setting():
    class Needs(Settings):
        vocab: int

    with pytest.raises(UsageError, match=r"setting 'vocab' is missing: give it as vocab=\.\.\."):
        resolve(Needs)


def test_the_message_names_the_file_or_the_environment(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("lr = 1e-4\n[checkpoint]\nevry = 3\n")
    assert error(read_toml(recipe)).endswith(f"did you mean 'checkpoint.every'? (in {recipe})")
    assert error(environment(env={"NEXTILE_LR": "x"})) == "setting 'lr': 'x' is not a number (in the environment)"
    assert error(environment(env={"NEXTILE_LR": "x"}), {"lr": "y"}) == "setting 'lr': 'y' is not a number"


def test_usage_errors_exit_with_2():
    assert (UsageError.exit_code, NextileError.exit_code) == (2, 1)


# --- reading layers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("3", 3),
        ("1e-3", 1e-3),
        ("1_000", 1000),
        ('"x"', "x"),
        ("'x'", "x"),
        ("[1, 2]", [1, 2]),
        ('{"a": 1}', {"a": 1}),
        ("{a = 1}", {"a": 1}),
        ("null", None),
        ("None", None),
        ("muon", "muon"),
        ("", ""),
        ("nan", "nan"),
        ("NaN", "NaN"),
        ("-inf", "-inf"),
        ("2024-01-01", "2024-01-01"),
        ("a=b", "a=b"),
        ("[" * 100_000, "[" * 100_000),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_literals(text, value):
    assert literal(text) == value
    assert type(literal(text)) is type(value)


def test_assignments():
    assert parse_assignments(["a.b=3", "name = x=y", "a.b=4"]) == {"a.b": 4, "name": "x=y"}
    with pytest.raises(UsageError, match="'batch' is not a setting: write name=value, for example batch=16"):
        parse_assignments(["batch"])
    with pytest.raises(UsageError, match="'=3' is not a setting"):
        parse_assignments(["=3"])


def test_environment_reads_ours_only():
    env = {"NEXTILE_LR": "1e-3", "NEXTILE_CHECKPOINT__EVERY": "7", "NEXTILE_CACHE": "/x", "HOME": "/y"}
    assert environment(env=env) == {"lr": 1e-3, "checkpoint.every": 7}


def test_the_order_of_the_four_layers(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('lr = 1.0\nname = "file"\nkind = "word"\n')
    layers = read_toml(recipe), environment(env={"NEXTILE_NAME": "env", "NEXTILE_KIND": "bpe"})
    assert resolve(Run, *layers, parse_assignments(["kind=char"])) == Run(lr=1.0, name="env", kind="char")


def test_broken_toml_names_the_line(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("lr = 1\nname = \n")
    with pytest.raises(UsageError, match=r"bad\.toml' is not valid TOML: .*line 2"):
        read_toml(path)
    path.write_bytes(b"lr = \xff")
    with pytest.raises(UsageError, match=r"is not UTF-8 text \(byte 5\)"):
        read_toml(path)
    with pytest.raises(UsageError, match=r"cannot read .*No such file"):
        read_toml(tmp_path / "none.toml")


def test_the_floor_needs_no_torch():
    modules = "config", "schema", "errors", "files", "device"
    lines = "; ".join(f"import nextile.base.{name}" for name in modules)
    subprocess.run([sys.executable, "-c", f"{lines}; import sys; assert 'torch' not in sys.modules"], check=True)
