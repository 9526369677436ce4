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
    json: options.Json = False,
) -> None:
    """Measure how well a model does what it was trained for.

    In nats per token, perplexity and bits per byte, on DATA; without it, on what was held out when MODEL was trained.
    Of a translator also by BLEU, chrF, and the share of translations that are the reference to the letter; of a
    classifier by the share of pictures or texts that it knows; of a painter by bits per dimension. Of a language model
    with --tasks by what lm_eval measures; a task file is code that you chose to run.
    """
    from nextile import api
    from nextile.tasks.report import choose

    sources = data or []
    if probe and not sources:
        raise UsageError("--probe asks for classes: name labelled pictures as DATA")
    asked = {"stride": stride, "tasks": _named(tasks), "limit": limit, "shots": shots}
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
        rows = [(name.replace("_", " "), _shown(value)) for name, value in measures.items()]
        report.table(f"{model} on {' + '.join(data) if data else 'what was held out'}", rows)


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
