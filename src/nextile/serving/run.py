"""A server as a process: its socket, uvicorn with bounds of its own, and how it ends when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.pretrained import Pretrained
from nextile.serving.engine import Engine
from nextile.serving.guard import HEADER_BYTES, HEADERS, Guard
from nextile.serving.http import ServerSettings, create_app
from nextile.serving.protocol import Refusal
from nextile.tasks.report import printable

HEADER_SECONDS = 10.0  # for them to come
IDLE_SECONDS = 15  # that a connection may wait for its next request
LAST_SECONDS = 5  # for answers to go out when the engine is closed
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


# --- where ------------------------------------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; a name counts if all that it stands for do."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"the host {host!r} is not known ({error.strerror}): give an address, as 127.0.0.1") from None
    return all(ipaddress.ip_address(str(each[4][0]).partition("%")[0]).is_loopback for each in found)


def bind(host: str, port: int) -> socket.socket:
    """A socket at this place; port 0 chooses one. Errors: NextileError where there is none; UsageError for no port."""
    if not 0 <= port < 1 << 16:
        raise UsageError(f"{port} is no port: choose one from 1 to 65535, or 0 for any that is free")
    found = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        if os.name == "posix":
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that has just ended is no obstacle
        found.bind(address)
        found.listen()  # so that a place that is taken is known before anything is loaded
    except OSError as error:
        if found is not None:
            found.close()
        why = error.strerror or str(error)
        raise NextileError(f"cannot serve at {host}:{port}: {why}; choose another --port, or --port 0") from error
    return found


def address_of(bound: socket.socket) -> str:
    """The address of a bound socket, as a browser wants it."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def allowed_hosts(host: str) -> tuple[str, ...] | None:
    """The names by which a server at this host may be called, against other names that lead here; None: any.

    A page of another site whose name was made to lead to this machine could else ask us (DNS rebinding).
    """
    if not is_loopback(host):
        return None
    named = f"[{host}]" if ":" in host else host
    return (*LOOPBACK, named.lower())


# --- connections ------------------------------------------------------------------------------------------------------


class Bounded(H11Protocol):
    """A connection that must say in HEADER_SECONDS what it wants, and whose own errors have our shape.

    So long it may also go on sending a body that was refused: who is cut off in the midst of it reads no answer.
    """

    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.their_state is h11.IDLE:
            if self.conn.trailing_data[0]:
                self._wait()  # the headers of the next request have begun
        elif not self._refused:
            self._stop()  # the headers are whole

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._refused:
            self._wait()

    @property
    def _refused(self) -> bool:
        """Whether it was answered before it said all."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _wait(self) -> None:
        if self._due is None:
            self._due = self.loop.call_later(HEADER_SECONDS, self._end)

    def _stop(self) -> None:
        if self._due is not None:
            self._due.cancel()
        self._due = None

    def _end(self) -> None:
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(Refusal(400, "this is no HTTP that can be read", code="invalid_http").body()).encode()
            fields = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            raw = [(name.encode(), value.encode()) for name, value in {**fields, **HEADERS}.items()]
            for event in (h11.Response(status_code=400, headers=raw), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


# --- its life ---------------------------------------------------------------------------------------------------------


class Server(uvicorn.Server):
    """Told to end, it refuses what is new, lets what runs go on for `drain` seconds, and ends; told twice, at once.

    `ready` is called when it listens.
    """

    def __init__(self, app: Guard, engine: Engine, *, drain: float = 30.0, ready: Callable[[], None] = lambda: None):
        config = uvicorn.Config(
            app, http=Bounded, ws="none", lifespan="off", loop="asyncio", log_config=None, access_log=False,
            proxy_headers=False, server_header=False, timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=LAST_SECONDS, h11_max_incomplete_event_size=HEADER_BYTES,
        )  # fmt: skip
        super().__init__(config)
        self._app, self._engine, self._drain, self._ready = app, engine, drain, ready
        self._ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn ends by the signal itself, and does not answer while it ends; ours does, and exits by 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # Windows; not the main thread
                loop.add_signal_handler(number, self._told, number)
        yield

    def _told(self, number: int) -> None:
        if self._ending is not None and number == signal.SIGINT:
            os._exit(130)
        self.end()

    def end(self) -> None:
        """Begin to end; in the event loop."""
        if self._ending is None:
            self._app.life.closing = True
            self._ending = asyncio.ensure_future(self._end())

    async def _end(self) -> None:
        await asyncio.to_thread(self._engine.close, self._drain)
        self.should_exit = True


def serve(
    model: Pretrained, engine: Engine, settings: ServerSettings, bound: socket.socket, *, drain: float,
    ready: Callable[[], None],
) -> None:  # fmt: skip
    """Serve until told to end, and close the engine."""
    _log_to_standard_error()
    try:
        Server(create_app(model, engine, settings), engine, drain=drain, ready=ready).run([bound])
    finally:
        engine.close(0.0)


class _Printable(logging.Formatter):
    """Lines in which no text of a client's drives a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _log_to_standard_error() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("nextile: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # of what is no HTTP nobody need hear
