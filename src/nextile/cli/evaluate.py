"""`nextile evaluate`: how well a model predicts a text."""

from nextile.cli import options
from nextile.cli.result import write_json

EXAMPLES = """
\b
Examples:
  nextile evaluate runs/book                  on its own validation text
  nextile evaluate runs/book other.txt --json
"""


def evaluate(model: options.Name, data: options.Data = None, json: options.Json = False) -> None:
    """Measure how well a model predicts a text.

    In nats per token, perplexity and bits per byte, on DATA; without it, on what was held out when MODEL was trained.
    """
    from nextile import api
    from nextile.tasks.report import choose

    report = choose()
    measures = api.load(model).evaluate(data, report=report)
    if json:
        write_json(measures)
    else:
        rows = [(name.replace("_", " "), f"{value:.4f}") for name, value in measures.items()]
        report.table(f"{model} on {data or 'its validation text'}", rows)
