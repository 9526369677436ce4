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
  nextile evaluate runs/photos test.parquet
  nextile evaluate runs/painter photos/ --probe   what a painter knows of classes
  nextile evaluate runs/pairs test.en test.de --beams 5 --length-penalty 1.4
"""


Width = Annotated[int, typer.Option("--beams", metavar="B", parser=whole(1), help="Of a translator; 1 is greedy.")]
Penalty = Annotated[float, typer.Option(metavar="A", parser=number, help="Of its beams: above 0 for longer texts.")]
Words = Annotated[
    str, typer.Option("--bleu-tokens", metavar="NAME", help="How BLEU splits words: 13a, intl, char, or none.")
]


Probe = Annotated[bool, typer.Option("--probe", help="Of a painter: what its layers know of DATA's classes.")]


def evaluate(
    model: options.Name,
    data: options.Data = None,
    beams: Width = 5,
    length_penalty: Penalty = 1.0,
    bleu_tokens: Words = "13a",
    probe: Probe = False,
    json: options.Json = False,
) -> None:
    """Measure how well a model does what it was trained for.

    In nats per token, perplexity and bits per byte, on DATA; without it, on what was held out when MODEL was trained.
    Of a translator also by BLEU, chrF, and the share of translations that are the reference to the letter; of a
    classifier by the share of pictures that it knows; of a painter by bits per dimension.
    """
    from nextile import api
    from nextile.tasks.report import choose

    sources = data or []
    if probe and not sources:
        raise UsageError("--probe asks for classes: name labelled pictures as DATA")
    report, loaded = choose(), api.load(model)
    if probe:
        found = loaded.probe(sources, report=report)
        measures = {**found["layers"], "raw pixels": found["pixels"], "untrained network": found["untrained"]}
    else:
        measures = loaded.evaluate(
            sources or None, beams=beams, length_penalty=length_penalty, bleu_tokens=bleu_tokens, report=report
        )
    if json:
        write_json(measures)
    else:
        rows = [(name.replace("_", " "), _shown(value)) for name, value in measures.items()]
        report.table(f"{model} on {' + '.join(data) if data else 'what was held out'}", rows)


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
