"""`nextile serve`: a model behind OpenAI's protocol, with a page to play with."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nextile.base.errors import NextileError, UsageError
from nextile.cli import options
from nextile.cli.options import number, whole

EXAMPLES = """
\b
Examples:
  nextile serve runs/book                                 # then open http://127.0.0.1:8000
  nextile serve runs/book --port 0                        # any free port: it is said
  NEXTILE_API_KEY=... nextile serve runs/book --host 0.0.0.0
  curl http://127.0.0.1:8000/v1/completions -H 'content-type: application/json' -d '{"prompt": "It was"}'
"""

LIBRARIES = ("fastapi", "starlette", "uvicorn", "h11", "prometheus_client")

Host = Annotated[str, typer.Option(metavar="ADDRESS", help="Where it is served; 0.0.0.0 is everywhere.")]
Port = Annotated[int, typer.Option(metavar="N", parser=whole(0), help="0 chooses one that is free.")]
Key = Annotated[
    str | None,
    typer.Option(
        "--api-key", metavar="KEY", envvar="NEXTILE_API_KEY", help="What clients must know.", show_default=False
    ),
]
Anyone = Annotated[bool, typer.Option("--allow-anyone", help="Serve other machines without a key.")]
Called = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="What clients call the model. [default: its folder's name]")
]
Rows = Annotated[int, typer.Option(metavar="N", parser=whole(1), help="Texts written at a time.")]
Queue = Annotated[int, typer.Option(metavar="N", parser=whole(0), help="Texts that wait; more are refused (429).")]
Memory = Annotated[
    float | None,
    typer.Option(metavar="GB", parser=number, help="For keys and values. [default: by the model and the machine]"),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Write a text that is alone by a compiled step, as soon as there is one.")
]
Quantize = Annotated[
    str | None,
    typer.Option(
        metavar="KIND", help="int8 or int4: the blocks' weights in fewer bits. Less memory; quicker by --compile alone."
    ),
]
Drain = Annotated[
    float, typer.Option(metavar="S", parser=number, help="Seconds that what runs has when it is stopped.")
]


def serve(
    model: options.Name,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: Key = None,
    allow_anyone: Anyone = False,
    name: Called = None,
    rows: Rows = 32,
    queue: Queue = 256,
    memory: Memory = None,
    compile: Compile = False,
    quantize: Quantize = None,
    drain: Drain = 30.0,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Serve a model by OpenAI's protocol, and a page at /.

    Ctrl-C or SIGTERM ends it when what runs is finished, a second Ctrl-C at once.
    """
    _check(api_key, memory, drain, quantize)
    try:
        from nextile.serving import http, run
    except ImportError as error:
        if (error.name or "").partition(".")[0] in LIBRARIES:
            raise NextileError(f"serving needs {error.name}: pip install 'nextile[serve]'") from error
        raise
    from nextile import api
    from nextile.base.device import has_compiler
    from nextile.serving.engine import Engine
    from nextile.tasks.report import choose

    if api_key is None and not allow_anyone and not run.is_loopback(host):
        raise UsageError(f"other machines can reach {host}: give an --api-key, or say --allow-anyone")
    if compile and not has_compiler():
        raise UsageError("--compile needs a C++ compiler (CXX, else g++) and the headers of this Python: leave it out")
    report = choose()
    with run.bind(host, port) as bound:
        report.say(f"loading {model}")
        loaded = api.load(model, device=device, dtype=dtype)
        if quantize is not None:
            _pack(loaded.model, quantize)
        called = name or Path(model).expanduser().resolve().name
        settings = http.ServerSettings(name=called, key=api_key, hosts=run.allowed_hosts(host))
        room = None if memory is None else int(memory * 1e9)
        engine = Engine(loaded.model, rows=rows, queue=queue, memory=room, compiled=compile)
        address = run.address_of(bound)
        run.serve(
            loaded, engine, settings, bound, drain=drain, ready=lambda: report.say(f"serving {called} at {address}")
        )


def _pack(model: Any, kind: str) -> None:
    """Errors: NextileError for a model without linear layers that are left to pack."""
    from nextile.nn.quantize import Int4, Int8, quantize

    quantize(model, Int8() if kind == "int8" else Int4())


def _check(key: str | None, memory: float | None, drain: float, quantize: str | None) -> None:
    """Errors: UsageError for what cannot be meant, before anything is loaded."""
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key and key):
        raise UsageError("the key is to be of printable ASCII, without space at its ends: choose another")
    if memory is not None and not 0 < memory < 1e6:
        raise UsageError(f"memory is {memory:g} GB: give a number above 0")
    if quantize not in (None, "int8", "int4"):
        raise UsageError(f"'{quantize}' is no way to quantize: choose int8 or int4")
    if not 0 <= drain <= 3600:
        raise UsageError(f"drain is {drain:g} seconds: give 0 to 3600")
