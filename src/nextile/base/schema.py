"""Settings seen as names: the members of a union, the dotted paths of a tree, and what is wrong with a value."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def members(annotation: Any) -> dict[str, type[BaseModel]]:
    """The models within an annotation by their `type`, or by their class name where they have none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        tag = annotation.model_fields.get("type")
        return {str(tag.default) if tag else annotation.__name__: annotation}
    return {name: member for part in get_args(annotation) for name, member in members(part).items()}


def paths(schema: type[BaseModel]) -> dict[str, str]:
    """Every dotted name of the tree, those of all union members included, with the type it belongs to."""
    return dict(_walk(schema, prefix="", tag="", above=()))


def _walk(schema: type[BaseModel], prefix: str, tag: str, above: tuple[type, ...]) -> Iterator[tuple[str, str]]:
    for name, field in schema.model_fields.items():
        yield prefix + name, tag
        for member_tag, member in members(field.annotation).items():
            if member not in (*above, schema):  # a spec may contain itself
                yield from _walk(member, f"{prefix}{name}.", member_tag, (*above, schema))


# --- what is wrong -------------------------------------------------------------------------------------------------

NOT_A = {
    "bool": "is not true or false",
    "float": "is not a number",
    "finite_number": "is not a finite number",
    "int": "is not a whole number",
    "model": "is not a group of settings",
    "string": "is not text",
    "tuple": "is not a list",
}


def explain(schema: type[BaseModel], error: ValidationError) -> tuple[str, str]:
    """The dotted name and the one line for the first problem; an unknown name comes before a bad value."""
    problems = error.errors(include_url=False)
    problem = next((each for each in problems if each["type"] == "extra_forbidden"), problems[0])
    path, parts = _locate(schema, problem["loc"])
    if problem["type"] == "extra_forbidden":
        return path, _unknown(path, paths(schema))
    if problem["type"].startswith("model") and len(parts) > 1:  # a union was given something that names no member
        return path, _not_one_of(path, problem["input"], ", ".join(map(repr, parts)))
    return path, _bad_value(path, problem["type"], problem["input"], problem["msg"], problem.get("ctx", {}))


def _locate(schema: type[BaseModel], location: Sequence[int | str]) -> tuple[str, dict[str, type[BaseModel]]]:
    """pydantic's location without the union tags that it inserts, and the models that may stand there."""
    names: list[str] = []
    parts = {"": schema}
    for name in map(str, location):
        chosen = {tag: part for tag, part in parts.items() if name in (tag, part.__name__)}
        if len(parts) > 1 and chosen:
            parts = chosen
            continue
        names.append(name)
        field = next((part.model_fields[name] for part in parts.values() if name in part.model_fields), None)
        parts = members(field.annotation) if field else parts
    return ".".join(names), parts


def _unknown(path: str, known: dict[str, str]) -> str:
    plain = ".".join(part for part in path.split(".") if not part.isdigit())  # without places in lists
    parent, _, leaf = plain.rpartition(".")
    if plain in known:
        return f"setting '{path}' belongs to another type: set {parent}.type={known[plain]} as well"
    beside = [name for name in known if name.rpartition(".")[0] == parent]
    near = difflib.get_close_matches(leaf, [name.rpartition(".")[2] for name in beside], n=1)
    near = [path.removesuffix(leaf) + name for name in near]
    near = near or [name for name in known if name.rpartition(".")[2] == leaf]
    hint = f"did you mean '{near[0]}'?" if near else f"the settings are {', '.join(beside)}"
    return f"unknown setting '{path}': {hint}"


def _bad_value(path: str, kind: str, value: Any, message: str, context: Mapping[str, Any]) -> str:
    if kind == "missing":
        return f"setting '{path}' is missing: give it as {path}=..."
    if kind == "union_tag_not_found":
        return f"setting '{path}' has no type: give it as {path}.type=..."
    if kind == "union_tag_invalid":
        return _not_one_of(f"{path}.type", context["tag"], context["expected_tags"])
    if kind == "literal_error":
        return _not_one_of(path, value, context["expected"].replace(" or ", ", "))
    if kind == "value_error":  # a validator of ours, whose message says it all
        return f"setting '{path}': {context['error']}" if path else str(context["error"])
    said = NOT_A.get(kind) or NOT_A.get(kind.split("_")[0]) or message.replace("Input should", "should", 1)
    return f"setting '{path}': {reprlib.repr(value)} {said}"


def _not_one_of(path: str, value: Any, known: str) -> str:
    """`known` is pydantic's list: names in single quotes, separated by commas."""
    near = difflib.get_close_matches(str(value), known.split("'")[1::2], n=1)
    question = f"; did you mean '{near[0]}'?" if near else ""
    return f"setting '{path}': {reprlib.repr(value)} is not one of {known}{question}"
