"""A real server in a thread, before models of a few thousand numbers."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from nextile.api import Model
from nextile.images.processor import Normaliser, Palette
from nextile.models.build import build
from nextile.models.families import bidirectional, compact, gpt2, imagegpt, t5
from nextile.nn import specs
from nextile.serving.engine import Engine
from nextile.serving.guard import Guard
from nextile.serving.http import ServerSettings, create_app
from nextile.serving.run import Server, bind
from nextile.text.characters import byte_tokenizer, train_characters
from nextile.text.masks import for_masks, for_spans
from nextile.text.pairs import for_pairs, start_of

LETTERS = "abcdefgh .,\n"
TEMPLATE = (
    "{% for message in messages %}{{ message['role'][:1] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


# --- models -----------------------------------------------------------------------------------------------------------


def lively(model: torch.nn.Module) -> Any:
    """The model with weights large enough that its predictions differ from place to place."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            spread = 0.3 if parameter.dim() > 1 else 0.1
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)), alpha=spread)
    return model.eval()


def writer(tokenizer: Any, context: int = 64) -> Model:
    """A language model."""
    spec = gpt2.spec(vocab=tokenizer.vocab_size, context=context, width=32, depth=1, heads=4)
    return Model(lively(build(spec)), tokenizer, spec, "gpt2")


@cache
def made(name: str) -> Model:
    """A tiny model of a kind: lm, octets, talker, translator, classifier, painter, labeller, masker, denoiser."""
    return MAKERS[name]()


def _talker() -> Model:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return writer(tokenizer, context=128)


def _translator() -> Model:
    tokenizer = for_pairs(train_characters([LETTERS]))
    stack = {"width": 32, "depth": 1, "attention": specs.Attention(heads=4), "feed_forward": specs.MLP(hidden=64)}
    spec = specs.EncoderDecoder(
        context=32, start=start_of(tokenizer),
        source=specs.TokenEmbedding(vocab=tokenizer.vocab_size, position=specs.Sinusoidal(length=32)),
        encoder=specs.Stack(**stack), decoder=specs.Stack(**stack, causal=True, cross=specs.Attention(heads=4)),
    )  # fmt: skip
    return Model(lively(build(spec)), tokenizer, spec, "nextile")


def _classifier() -> Model:
    spec = compact.spec(classes=("cat", "dog", "<b>cow</b>"), image=8, channels=3, width=16, depth=1, heads=2)
    return Model(lively(build(spec)), Normaliser(size=8, mean=(0.5,) * 3, std=(0.5,) * 3), spec, "nextile")


def _painter() -> Model:
    palette = Palette(size=4, colours=((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0), (0.0, 0.5, -0.5)))
    spec = imagegpt.spec(vocab=palette.vocab_size, context=16, width=16, depth=1, heads=2)
    return Model(lively(build(spec)), palette, spec, "imagegpt")


def _labeller() -> Model:
    tokenizer = byte_tokenizer()
    body = gpt2.spec(vocab=tokenizer.vocab_size, context=64, width=16, depth=1, heads=2)
    spec = specs.TextClassifier(
        context=64, embed=body.embed, stack=body.stack, head=specs.LastHead(classes=("good", "bad"))
    )  # fmt: skip
    return Model(lively(build(spec)), tokenizer, spec, "nextile")


def _masker() -> Model:
    tokenizer = for_masks(train_characters([LETTERS]))
    spec = bidirectional.spec(vocab=tokenizer.vocab_size, context=32, width=16, depth=1, heads=2)
    return Model(lively(build(spec)), tokenizer, spec, "nextile")


def _denoiser() -> Model:
    tokenizer = for_spans(train_characters([LETTERS]))
    spec = t5.spec(
        vocab=tokenizer.vocab_size, context=32, width=16, depth=1, heads=2, start=start_of(tokenizer)
    )  # fmt: skip
    return Model(lively(build(spec)), tokenizer, spec, "t5")


MAKERS: dict[str, Callable[[], Model]] = {
    "lm": lambda: writer(train_characters([LETTERS])),
    "octets": lambda: writer(byte_tokenizer()),
    "talker": _talker,
    "translator": _translator,
    "classifier": _classifier,
    "painter": _painter,
    "labeller": _labeller,
    "masker": _masker,
    "denoiser": _denoiser,
}


# --- servers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        """Its content."""
        return json.loads(self.content)

    @property
    def error(self) -> dict[str, Any]:
        """What went wrong; fails for any other shape than OpenAI's."""
        assert self.headers["content-type"] == "application/json"
        found = self.json
        assert set(found) == {"error"}
        assert set(found["error"]) == {"message", "type", "param", "code"}
        assert isinstance(found["error"]["message"], str)
        assert found["error"]["message"]
        return found["error"]

    @property
    def events(self) -> list[Any]:
        """The server-sent events, the last of which is [DONE] and left out."""
        assert self.headers["content-type"].startswith("text/event-stream")
        parts = self.content.decode().split("\n\n")
        assert parts[-2:] == ["data: [DONE]", ""]
        return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


@dataclass(frozen=True)
class Running:
    """A server that runs."""

    model: Model
    engine: Any
    app: Guard
    server: Server
    loop: asyncio.AbstractEventLoop
    port: int

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def connection(self, seconds: float = 30.0) -> http.client.HTTPConnection:
        """A connection of one's own."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)

    def ask(self, method: str, path: str, content: bytes | None = None, **headers: str) -> Answer:
        """The answer to any request."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(self.connection()) as connection:
            connection.request(method, path, content, named)
            response = connection.getresponse()
            fields = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, fields, response.read())

    def get(self, path: str, **headers: str) -> Answer:
        """GET."""
        return self.ask("GET", path, **headers)

    def post(self, path: str, **body: Any) -> Answer:
        """POST of a JSON object."""
        return self.ask("POST", path, json.dumps(body).encode(), content_type="application/json")


@contextmanager
def running(model: Model, *, rows: int = 8, queue: int = 64, drain: float = 5.0, **settings: Any) -> Iterator[Running]:
    """A server in a thread, and its end."""
    engine, bound = Engine(model.model, rows=rows, queue=queue), bind("127.0.0.1", 0)
    port = bound.getsockname()[1]
    app = create_app(model, engine, ServerSettings(**{"name": "tiny", **settings}))
    ready, loops = threading.Event(), list[asyncio.AbstractEventLoop]()

    def said() -> None:
        loops.append(asyncio.get_running_loop())
        ready.set()

    server = Server(app, engine, drain=drain, ready=said)
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield Running(model, engine, app, server, loops[0], port)
    finally:
        if thread.is_alive():
            loops[0].call_soon_threadsafe(server.end)
        thread.join(30)
        engine.close(0)
        assert not thread.is_alive()


def _fixture(name: str) -> Any:
    @pytest.fixture(scope="module", name=name)
    def serve() -> Iterator[Running]:
        with running(made(name)) as found:
            yield found

    return serve


lm, octets, talker, translator, classifier, painter, labeller, masker, denoiser = map(_fixture, MAKERS)


@pytest.fixture(name="made", scope="session")
def _made() -> Callable[[str], Model]:
    """A tiny model by the name of its kind."""
    return made


@pytest.fixture(name="serving", scope="session")
def _serving() -> Callable[..., Any]:
    """`with serving(model, rows=..., key=...) as running:` is a server of one's own."""
    return running


@pytest.fixture(name="data_url", scope="session")
def _data_url() -> Callable[..., str]:
    """A picture, uint8 (H, W, C), as a data URL."""
    return data_url


@pytest.fixture(autouse=True)
def one_thread():
    """Small models are quickest on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def data_url(pixels: np.ndarray, kind: str = "PNG") -> str:
    """A picture, uint8 (H, W, C), as a data URL."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
