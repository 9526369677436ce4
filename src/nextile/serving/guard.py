"""What every request passes before its route: host, key, whether there is room; and what every answer carries."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from nextile.serving.metrics import Metrics
from nextile.serving.protocol import Refusal

Message = dict[str, Any]
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEALTH = "/health"
HEADER_BYTES = 32 << 10  # of a request's line and headers
POLICY = "; ".join(
    ("default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data: blob:", "connect-src 'self'",
     "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'")
)  # fmt: skip
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
RAW_HEADERS = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


# --- refusals as answers ----------------------------------------------------------------------------------------------


def headers_of(refusal: Refusal) -> dict[str, str]:
    """What a refusal says beside its body."""
    return {} if refusal.retry is None else {"retry-after": str(refusal.retry)}


async def send_refusal(send: Send, refusal: Refusal, headers: Iterable[tuple[str, str]] = ()) -> None:
    """Answer with a refusal, where nothing was answered yet."""
    body = json.dumps(refusal.body()).encode()
    fields = {"content-type": "application/json", "content-length": str(len(body)), **headers_of(refusal)}
    raw = [(name.encode(), value.encode()) for name, value in (*fields.items(), *headers)]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


# --- the guard --------------------------------------------------------------------------------------------------------


def same(given: bytes, wanted: bytes) -> bool:
    """Whether two secrets are the same, in a time that tells nothing of them, nor of their lengths."""
    return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(wanted).digest())


def given_key(authorization: bytes) -> bytes:
    """The key in an Authorization header: of Bearer, or the password of Basic; empty where there is none."""
    scheme, _, rest = authorization.strip().partition(b" ")
    if scheme.lower() == b"bearer":
        return rest.strip()
    if scheme.lower() != b"basic":
        return b""
    try:
        return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""


def host_of(header: bytes) -> str:
    """The name in a Host header, without its port, in small letters."""
    text = header.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[: text.find("]") + 1]
    return text.partition(":")[0]


@dataclass
class Life:
    """Where a server is in its life."""

    closing: bool = False  # it takes on nothing new
    open: int = 0  # requests that are being answered


class Guard:
    """An ASGI app around another.

    key: what requests must know, all but those for /health; None: nothing. hosts: the names by which the server may be
    called; None: any. room: how many requests are answered at a time. routes: paths that are counted by name.
    """

    def __init__(
        self, app: App, metrics: Metrics, life: Life, *, key: str | None, hosts: frozenset[str] | None, room: int,
        routes: frozenset[str],
    ):  # fmt: skip
        self.app, self.metrics, self.life = app, metrics, life
        self.hosts, self.room, self.routes = hosts, room, routes
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # a server without a websocket library never asks
        answered = _Answer(send)
        self.life.open += 1
        self.metrics.open.set(self.life.open)
        try:
            await self._guarded(scope, receive, answered)
        finally:
            self.life.open -= 1
            self.metrics.open.set(self.life.open)
            route = scope["path"] if scope["path"] in self.routes else "other"
            self.metrics.requests.labels(route, str(answered.status or 499)).inc()  # nginx's for a client that left

    async def _guarded(self, scope: Scope, receive: Receive, send: _Answer) -> None:
        headers = dict(scope["headers"])
        refusal = self._refusal(scope, headers)
        if refusal is None:
            await self.app(scope, receive, send)
            return
        more = []
        if refusal.status == 401:
            page = scope["method"] in ("GET", "HEAD") and not scope["path"].startswith("/v1/")
            more.append(("www-authenticate", 'Basic realm="nextile", charset="UTF-8"' if page else "Bearer"))
        await send_refusal(send, refusal, more)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> Refusal | None:
        """Why a request is not even looked at."""
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEADER_BYTES:
            said = f"the headers have more than {HEADER_BYTES:,} bytes: leave some out"
            return Refusal(431, said, code="headers_too_large")
        if self.hosts is not None and host_of(headers.get(b"host", b"")) not in self.hosts:
            return Refusal(
                403, "this server does not go by that name: call it by the address that it said at its start"
            )
        if scope["path"] == HEALTH:
            return None
        if self._key is not None and not same(given_key(headers.get(b"authorization", b"")), self._key):
            return Refusal(
                401, "the key is missing or wrong: send it as 'Authorization: Bearer KEY'", code="invalid_api_key"
            )
        if self.life.closing:
            return closing()
        if self.life.open > self.room:
            return full()
        return None


def closing() -> Refusal:
    """What is said while the server ends."""
    return Refusal(503, "the server is being stopped: ask it again later", code="stopping", retry=10)


def full() -> Refusal:
    """What is said while there is no room."""
    return Refusal(
        429, "the server is full: ask it again a little later", kind="rate_limit_error", code="rate_limit_exceeded",
        retry=1,
    )  # fmt: skip


class _Answer:
    """Sends, adds the headers that every answer has, and keeps the status."""

    def __init__(self, send: Send):
        self._send = send
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *RAW_HEADERS]}
        await self._send(message)
