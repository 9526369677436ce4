"""The app: a model and its engine behind OpenAI's routes, the page, health and metrics; errors have one shape."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from nextile.base.config import Settings
from nextile.checkpoint.pretrained import Pretrained
from nextile.serving import routes
from nextile.serving.engine import Engine
from nextile.serving.guard import HEALTH, Guard, Life, headers_of
from nextile.serving.metrics import Metrics
from nextile.serving.page import File, page_files
from nextile.serving.protocol import ErrorAnswer, ModelEntry, ModelList, Refusal, StreamOptions, schemas
from nextile.serving.reading import Left, Reader, refusal_of
from nextile.serving.served import Served

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ServerSettings(Settings):
    """What a server allows. hosts: the names by which it may be called; None: any."""

    name: str  # of the model, as clients ask for it
    key: str | None = None
    hosts: tuple[str, ...] | None = None
    most_body: Annotated[int, Field(ge=1024)] = 8 << 20  # bytes
    most_bodies: Annotated[int, Field(ge=1024)] = 128 << 20  # bytes, of all that are being read
    most_requests: Annotated[int, Field(ge=1)] = 512  # answered at a time
    read_seconds: Annotated[float, Field(gt=0)] = 30.0  # for a body
    write_seconds: Annotated[float, Field(gt=0)] = 30.0  # that a client may take nothing of a stream


# --- errors -----------------------------------------------------------------------------------------------------------


def refusal_response(refusal: Refusal) -> Response:
    """A refusal as an answer."""
    return JSONResponse(refusal.body(), refusal.status, headers=headers_of(refusal))


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router finds wrong."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:200]
    said = {404: f"there is nothing at {path!r}", 405: f"{request.method[:20]} is not done at {path!r}"}
    refusal = Refusal(error.status_code, said.get(error.status_code, str(error.detail)), code="unknown_route")
    return JSONResponse(refusal.body(), refusal.status, headers=error.headers)


async def _error(request: Request, error: Exception) -> Response:
    return refusal_response(refusal_of(error))


# --- the app ----------------------------------------------------------------------------------------------------------


def create_app(model: Pretrained, engine: Engine, settings: ServerSettings) -> Guard:
    """The ASGI app of a model and its engine; that is closed by whoever made it.

    Errors: UsageError for a model that reads text and came without a tokenizer.
    """
    metrics, life = Metrics(engine.statistics), Life()
    reader = Reader(settings.most_body, settings.read_seconds, settings.most_bodies)
    served = Served(model, engine, settings.name, reader, metrics, life, settings.write_seconds)
    served.prepare()
    app = FastAPI(title="nextile", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _error)
    _add_routes(app, served)
    _add_pages(app, page_files())
    _describe(app)
    paths = frozenset(route.path for route in app.routes)  # type: ignore[attr-defined]
    hosts = None if settings.hosts is None else frozenset(settings.hosts)
    return Guard(app, metrics, life, key=settings.key, hosts=hosts, room=settings.most_requests, routes=paths)  # type: ignore[arg-type]


def _add_routes(app: FastAPI, served: Served) -> None:
    wrong: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorAnswer}, "5XX": {"model": ErrorAnswer}}
    for route in routes.POSTED:
        asked = {"required": True, "content": {"application/json": {"schema": _named(route.body)}}}
        app.add_api_route(
            route.path, _endpoint(served, route.handle), methods=["POST"], summary=route.handle.__doc__,
            operation_id=route.path, openapi_extra={"requestBody": asked},
            responses={200: {"model": route.answer}, **wrong},
        )  # fmt: skip
    for path, handle, shape in (
        ("/v1/models", routes.models, ModelList), ("/v1/models/{name:path}", routes.model, ModelEntry),
    ):  # fmt: skip
        app.add_api_route(path, _endpoint(served, handle), methods=["GET"], responses={200: {"model": shape}, **wrong})
    app.add_api_route(HEALTH, partial(_health, served), methods=["GET"])
    app.add_api_route("/metrics", partial(_metrics, served), methods=["GET"])


def _endpoint(served: Served, handle: Callable[[Served, Request], Awaitable[Response]]) -> Callable[..., Any]:
    async def endpoint(request: Request) -> Response:
        try:
            return await handle(served, request)
        except (Left, ClientDisconnect):
            return Response(status_code=499)  # nobody reads it
        except Exception as error:
            return refusal_response(refusal_of(error))

    return endpoint


async def _health(served: Served) -> Response:
    """Whether the engine works."""
    if await asyncio.to_thread(lambda: served.engine.alive):  # it may look twice
        return JSONResponse({"status": "ok"})
    return refusal_response(Refusal(503, "the engine does not work: start the server again", code="engine_dead"))


async def _metrics(served: Served) -> Response:
    text = await asyncio.to_thread(served.metrics.text)
    return Response(text, media_type=METRICS_TYPE)


def _add_pages(app: FastAPI, files: dict[str, File]) -> None:
    """The page's files, which a browser asks for again only when they are others."""
    for path, file in files.items():
        app.add_route(path, partial(_page, file), methods=["GET"], include_in_schema=False)


async def _page(file: File, request: Request) -> Response:
    headers = {"etag": file.tag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers | {"content-type": file.type})


def _named(schema: type[Any]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema.__name__}"}


def _describe(app: FastAPI) -> None:
    """Make /openapi.json know the requests, which fastapi does not read itself."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        found = plain()
        known = found.setdefault("components", {}).setdefault("schemas", {})
        known |= schemas([*(route.body for route in routes.POSTED), StreamOptions], [])
        return found

    app.openapi = openapi
