"""Typed settings: defaults < file < environment < flags; an unknown key is an error with the nearest name."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from nextile.base.errors import UsageError
from nextile.base.schema import explain, members


class Settings(BaseModel):
    """A frozen tree of typed settings or specs; unknown names, NaN and infinity are refused.

    The members of a union of Settings tell themselves apart by a `type: Literal["..."]` field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)


SettingsType = TypeVar("SettingsType", bound=Settings)
Tree = dict[str, Any]


class Layer(dict[str, Any]):
    """One layer of settings that remembers where it came from, for the error message."""

    def __init__(self, values: Mapping[str, Any], source: str):
        super().__init__(values)
        self.source = source


# --- reading one layer --------------------------------------------------------------------------------------------

RESERVED = frozenset({"API_KEY", "CACHE", "DATA", "DEBUG"})  # variables of ours that are no settings


def read_toml(path: str | Path) -> Layer:
    """The settings in a TOML file. UsageError names the file and the line that is wrong."""
    try:
        return Layer(tomllib.loads(Path(path).read_text(encoding="utf-8")), source=str(path))
    except OSError as error:
        raise UsageError(f"cannot read '{path}': {error.strerror}; name a TOML file of settings") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"'{path}' is not UTF-8 text (byte {error.start}); name a TOML file of settings") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"'{path}' is not valid TOML: {error}") from error


def environment(prefix: str = "NEXTILE_", env: Mapping[str, str] = os.environ) -> Layer:
    """The settings in environment variables: NEXTILE_CHECKPOINT__EVERY=100 is checkpoint.every = 100."""
    names = [name for name in env if name.startswith(prefix) and name.removeprefix(prefix) not in RESERVED]
    values = {name.removeprefix(prefix).lower().replace("__", "."): literal(env[name]) for name in sorted(names)}
    return Layer(values, source="the environment")


def parse_assignments(assignments: Sequence[str]) -> Tree:
    """["a.b=3", "name=x"] -> {"a.b": 3, "name": "x"}; the last of two equal names wins."""
    tree: Tree = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"'{assignment}' is not a setting: write name=value, for example batch=16")
        tree[name.strip()] = literal(value.strip())
    return tree


def literal(text: str) -> Any:
    """A JSON or TOML value where the text is one (null and none are None), else the text itself."""
    if text.lower() in ("null", "none"):
        return None
    for read in (_json_value, _toml_value):
        try:
            return read(text)
        except (ValueError, RecursionError):
            continue
    return text


def _json_value(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse)


def _toml_value(text: str) -> Any:
    document = tomllib.loads(f"value = {text}", parse_float=_finite)
    value = document["value"]
    if len(document) > 1 or not isinstance(value, (bool, int, float, str, list, dict)):  # dates stay text
        raise ValueError(text)
    return value


def _finite(text: str) -> float:
    return _refuse(text) if text.lstrip("+-") in ("inf", "nan") else float(text)


def _refuse(text: str) -> Any:
    raise ValueError(text)


# --- merging layers -----------------------------------------------------------------------------------------------


def resolve(schema: type[SettingsType], *layers: Mapping[str, Any] | Settings) -> SettingsType:
    """The schema's settings with every layer laid over its defaults, the later layer winning.

    Nested settings merge key by key, keys may be dotted, a Settings instance is a layer as well. A union member may be
    named by its type alone (`schedule=cosine`); naming another type than the one below drops the other's keys.
    Errors: UsageError for the first unknown setting (with the nearest name), else for the first bad value.
    """
    trees = [_expand(layer) for layer in layers]
    tree: Tree = {}
    for layer in trees:
        tree = _merge(tree, layer)
    try:
        return schema.model_validate(_complete(schema, tree))
    except ValidationError as error:
        path, message = explain(schema, error)
        givers = [layer for layer, tree in zip(layers, trees, strict=True) if _holds(tree, path)]
        source = getattr(givers[-1], "source", "") if givers else ""
        raise UsageError(f"{message} (in {source})" if source else message) from error


def _holds(tree: Any, path: str) -> bool:
    """Whether the tree has something at the dotted path."""
    for name in path.split("."):
        if not isinstance(tree, dict) or name not in tree:
            return False
        tree = tree[name]
    return True


def _expand(layer: Mapping[str, Any] | Settings) -> Tree:
    """{"a.b": 1, "a": {"c": 2}} -> {"a": {"b": 1, "c": 2}}, at every level."""
    tree: Tree = {}
    for key, value in (layer.model_dump() if isinstance(layer, Settings) else layer).items():
        inner = _expand(value) if isinstance(value, (Mapping, Settings)) else value
        for name in reversed(key.split(".")):
            inner = {name: inner}
        tree = _merge(tree, inner)
    return tree


def _merge(below: Any, above: Any) -> Any:
    """`above` laid over `below`: trees key by key unless they are of different types, all else replaced."""
    if not isinstance(above, dict):
        return above
    if isinstance(below, str):
        below = {"type": below}
    if not isinstance(below, dict) or above.get("type", below.get("type")) != below.get("type", above.get("type")):
        return above
    return {**below, **{name: _merge(below.get(name), value) for name, value in above.items()}}


def _complete(schema: type[BaseModel], tree: Tree) -> Tree:
    """The tree with the defaults of its partly given branches, so that a union's member need not be named again."""
    fields = {name: field for name, field in schema.model_fields.items() if name in tree}
    return {**tree, **{name: _complete_branch(field, tree[name]) for name, field in fields.items()}}


def _complete_branch(field: FieldInfo, value: Any) -> Any:
    parts = members(field.annotation)
    if parts and isinstance(value, (list, tuple)):
        return [_complete_part(parts, None, item) for item in value]
    default = field.get_default(call_default_factory=not field.default_factory_takes_validated_data)
    return _complete_part(parts, default, value)


def _complete_part(parts: dict[str, type[BaseModel]], default: Any, value: Any) -> Any:
    if isinstance(value, str) and value in parts:
        value = {"type": value}
    if not isinstance(value, dict) or not parts:
        return value
    tree = _merge(default.model_dump() if isinstance(default, BaseModel) else {}, value)
    part = parts.get(str(tree.get("type"))) or (next(iter(parts.values())) if len(parts) == 1 else None)
    return _complete(part, tree) if part else tree
