"""Requests read within bounds: bytes and seconds before they are parsed, and a client that leaves while it waits."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from nextile.base.errors import NextileError
from nextile.serving.flow import Flow
from nextile.serving.protocol import BodyType, Refusal, parse, read_json

T = TypeVar("T")
log = logging.getLogger("uvicorn.error")
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


# --- bodies -----------------------------------------------------------------------------------------------------------


class Reader:
    """Reads bodies of at most `most` bytes, within `seconds` each, and of at most `together` bytes at a time."""

    def __init__(self, most: int, seconds: float, together: int):
        self._most, self._seconds, self._left = most, seconds, together

    async def read(self, request: Request, schema: type[BodyType]) -> BodyType:
        """The request in a body. Errors: Refusal: 415 for another type, 413 for too many bytes, 408 for too many
        seconds, 503 where too many others send as well, 400 for what is no such request.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal(415, f"the body is {kind[:80] or 'of no type'!r}: send content-type: application/json")
        self._refuse_declared(request.headers.get("content-length", ""))
        try:
            async with asyncio.timeout(self._seconds):
                data = await self._bytes(request)
        except TimeoutError:
            raise Refusal(408, f"the body did not come within {self._seconds:g} seconds") from None
        return parse(schema, read_json(data))

    def _refuse_declared(self, length: str) -> None:
        if length.isascii() and length.isdecimal() and int(length[:20]) > self._most:
            raise self._too_large()

    async def _bytes(self, request: Request) -> bytes:
        data = bytearray()
        try:
            async for chunk in request.stream():
                self._left -= len(chunk)
                data += chunk
                if len(data) > self._most:
                    raise self._too_large()
                if self._left < 0:
                    raise Refusal(503, "too many bodies are being read: come again", code="busy", retry=1)
        finally:
            self._left += len(data)
        return bytes(data)

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body has more than {self._most:,} bytes: send less at a time", code="body_too_large")


# --- clients that leave -----------------------------------------------------------------------------------------------


class Left(Exception):
    """The client has hung up: nobody waits for an answer."""


async def attended(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, which is cancelled when the client hangs up. Errors: Left, when it does."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Left
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# --- errors -----------------------------------------------------------------------------------------------------------


def refusal_of(error: Exception) -> Refusal:
    """What is told of an error: of one that nobody foresaw nothing but that, and the log has it whole."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, NextileError):
        return Refusal(500, str(error)[:1000])
    log.error("a request failed", exc_info=error)
    return Refusal(500, "something went wrong in the server, whose log says what", code="internal_error")


# --- streams ----------------------------------------------------------------------------------------------------------


class EventStream(Response):
    """Server-sent events as they come; a client that hangs up, or takes nothing for `seconds`, ends the flow."""

    media_type = "text/event-stream"

    def __init__(self, flow: Flow, events: AsyncIterator[bytes], seconds: float):
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._flow, self._events, self._seconds = flow, events, seconds

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Send them all."""
        with self._flow:
            try:
                await attended(receive, self._send(send))
            except (Left, TimeoutError):
                return  # the connection is closed, since the answer is not whole

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for event in self._events:
                await self._part(send, event, more=True)
        except TimeoutError:
            raise  # it takes nothing: the connection is closed
        except Exception as error:
            told = json.dumps(refusal_of(error).body())
            await self._part(send, f"data: {told}\n\n".encode(), more=True)
        await self._part(send, b"", more=False)

    async def _part(self, send: Send, data: bytes, more: bool) -> None:
        async with asyncio.timeout(self._seconds):
            await send({"type": "http.response.body", "body": data, "more_body": more})
