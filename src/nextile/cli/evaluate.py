"""`nextile evaluate`: how well a model predicts a text, translates, classifies or paints."""

from typing import Annotated, Any

import typer

from nextile.base.errors import UsageError
from nextile.cli import options
from nextile.cli.options import number, whole
from nextile.cli.result import write_json

EXAMPLES = """
\b
Examples:
  nextile evaluate runs/book                  on its own validation text
  nextile evaluate runs/book other.txt --json
  nextile evaluate runs/book other.txt --stride 64   each token after more of the text
  nextile evaluate runs/book --without 2.3    head 3 of layer 2 switched off; also 2, each-head, each-layer
  nextile evaluate runs/book --tasks hellaswag,my_task.yaml --limit 100
  nextile evaluate runs/photos test.parquet
  nextile evaluate runs/painter photos/ --probe   what a painter knows of classes
  nextile evaluate runs/pairs test.en test.de --beams 5 --length-penalty 1.4
"""


Width = Annotated[int, typer.Option("--beams", metavar="B", parser=whole(1), help="Of a translator; 1 is greedy.")]
Penalty = Annotated[float, typer.Option(metavar="A", parser=number, help="Of its beams: above 0 for longer texts.")]
Words = Annotated[
    str, typer.Option("--bleu-tokens", metavar="NAME", help="How BLEU splits words: 13a, intl, char, or none.")
]


Stride = Annotated[
    int | None,
    typer.Option(metavar="N", parser=whole(1), help="Of a language model: windows go on by N. [default: end to end]"),
]
Tasks = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Tasks of lm_eval, or paths of their YAML files: these are code, which is run."),
]
Limit = Annotated[int | None, typer.Option(metavar="N", parser=whole(1), help="Of each task the first N questions.")]
Shots = Annotated[int | None, typer.Option(metavar="K", parser=whole(0), help="Examples shown before each question.")]
Without = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Parts to switch off: 2.3 (layer.head), 4 (a layer); or each-head, each-layer."),
]
Probe = Annotated[bool, typer.Option("--probe", help="Of a painter: what its layers know of DATA's classes.")]


def evaluate(
    model: options.Name,
    data: options.Data = None,
    beams: Width = 5,
    length_penalty: Penalty = 1.0,
    bleu_tokens: Words = "13a",
    probe: Probe = False,
    stride: Stride = None,
    tasks: Tasks = None,
    limit: Limit = None,
    shots: Shots = None,
    without: Without = None,
    json: options.Json = False,
) -> None:
    """Measure how well a model does what it was trained for.

    In nats per token, perplexity and bits per byte, on DATA; without it, on what was held out when MODEL was trained.
    Of a translator also by BLEU, chrF, and the share of translations that are the reference to the letter; of a
    classifier by the share of pictures or texts that it knows; of a painter by bits per dimension. Of a language model
    with --tasks by what lm_eval measures; a task file is code that you chose to run. --without tells how it does while
    parts of it are switched off, beside how the whole does, or how much the loss rises without each of them.
    """
    from nextile import api
    from nextile.tasks.report import choose

    sources = data or []
    if probe and not sources:
        raise UsageError("--probe asks for classes: name labelled pictures as DATA")
    asked = {"stride": stride, "tasks": _named(tasks), "limit": limit, "shots": shots, "without": _named(without)}
    asked = {name: value for name, value in asked.items() if value is not None}
    if probe and asked:
        raise UsageError(f"--probe asks what layers know: leave out --{next(iter(asked))}")
    report, loaded = choose(), api.load(model)
    if probe:
        found = loaded.probe(sources, report=report)
        measures = {**found["layers"], "raw pixels": found["pixels"], "untrained network": found["untrained"]}
    else:
        measures = loaded.evaluate(
            sources or None, beams=beams, length_penalty=length_penalty, bleu_tokens=bleu_tokens, report=report, **asked
        )
    if json:
        write_json(measures)
    elif tasks:
        report.table(f"{model} on tasks of lm_eval {measures['lm_eval']}", _task_rows(measures["tasks"]))
    else:
        rows = [row for name, value in measures.items() for row in _rows(name, value, measures)]
        report.table(f"{model} on {' + '.join(data) if data else 'what was held out'}", rows)


def _rows(name: str, value: Any, measures: dict[str, Any]) -> list[tuple[str, str]]:
    """A row for a measure, beside that of the whole model where parts are silent; for the heads of a layer one."""
    if name == "heads":
        return _rises(value)
    if name == "layers":
        return [(f"without {each['part']}", f"{each['rise']:+.4f}") for each in value]
    whole = measures.get("whole", {})
    if name == "whole":
        return []
    shown = ", ".join(value) if isinstance(value, list) else _shown(value)
    return [(name.replace("_", " "), shown + (f"   whole model {_shown(whole[name])}" if name in whole else ""))]


def _rises(heads: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """How much the loss rises without each head, those of a layer in one row."""
    found: dict[str, list[str]] = {}
    for each in heads:
        found.setdefault(each["part"].rpartition(".")[0], []).append(f"{each['rise']:+.4f}")
    return [(f"without heads of {layer}", "  ".join(rises)) for layer, rises in found.items()]


def _named(tasks: str | None) -> list[str] | None:
    return None if tasks is None else [name.strip() for name in tasks.split(",") if name.strip()]


def _task_rows(tasks: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """A row for each measure of each task, with its standard error where it has one."""
    rows = []
    for task, measures in tasks.items():
        for name, value in measures.items():
            error = measures.get(_error_of(name))
            beside = "" if error is None else f" ± {_shown(error)}"
            rows += [] if "_stderr" in name else [(f"{task} {name}", _shown(value) + beside)]
    return rows


def _error_of(name: str) -> str:
    """acc -> acc_stderr, exact_match,strict -> exact_match_stderr,strict."""
    measure, comma, way = name.partition(",")
    return f"{measure}_stderr{comma}{way}"


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
