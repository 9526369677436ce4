"""From the engine's thread to the event loop: what tickets tell, in order, at most so much of it unread."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from nextile.serving.protocol import Refusal

MOST_UNREAD = 1 << 14  # things told that nobody has taken; a client that reads slower than that is given up

T = TypeVar("T")
Told = tuple[int, Any]  # the number of a ticket, and what it told


class Ticket(Protocol):
    """Work that was given to an engine."""

    def cancel(self) -> None:
        """End it; any number of times."""
        ...


class Flow:
    """What several tickets tell, by their numbers. Left by `with`, it cancels those that are not done.

    Made in the event loop; `teller` gives what is called in the engine's thread.
    """

    def __init__(self):
        self._loop = asyncio.get_running_loop()
        self._told: deque[Told] = deque()
        self._news, self._woken = asyncio.Event(), False
        self._tickets: list[Ticket] = []
        self.lost = False  # whether more was told than is kept

    def __enter__(self) -> Flow:
        return self

    def __exit__(self, *error: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """End all tickets."""
        for ticket in self._tickets:
            ticket.cancel()

    def teller(self, number: int) -> Callable[[Any], None]:
        """What hears a ticket of this number."""
        return partial(self._tell, number)

    def hold(self, ticket: Ticket) -> None:
        """Answer for a ticket from now on."""
        self._tickets.append(ticket)

    def _tell(self, number: int, thing: Any) -> None:
        """In the engine's thread. The loop is woken once, however much is told before it looks."""
        if self.lost:
            return
        self._told.append((number, thing))
        if len(self._told) > MOST_UNREAD:
            self.lost = True
            self._later(self.cancel)
        if not self._woken:
            self._woken = True
            self._later(self._news.set)

    def _later(self, call: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever would read
            self._loop.call_soon_threadsafe(call)

    async def batches(self) -> AsyncIterator[list[Told]]:
        """What was told, all that there is at a time, without end. Errors: Refusal when more was told than is kept."""
        while True:
            await self._news.wait()
            self._news.clear()
            self._woken = False  # before taking: what is told from here on wakes us again
            if self.lost:
                raise Refusal(503, "the answer was not read for too long: it was given up", code="slow_reader")
            yield [self._told.popleft() for _ in range(len(self._told))]


class Done(Generic[T]):
    """The last thing that a job tells: what it was for."""

    def __init__(self, result: T):
        self.result = result


def job(work: Iterator[Any]) -> Iterator[Any]:
    """A generator that returns a result as one that yields it last, which is all that is asked of an engine's job."""
    result = yield from work
    yield Done(result)


async def worked(run: Callable[[Iterator[Any], Callable[[Any], None]], Ticket], work: Iterator[Any]) -> Any:
    """The result of a generator that the engine runs beside its batch. Errors: whatever the generator raises."""
    with Flow() as flow:
        flow.hold(run(job(work), flow.teller(0)))
        async for batch in flow.batches():
            for _, told in batch:
                if isinstance(told, BaseException):
                    raise told
                if isinstance(told, Done):
                    return told.result
    raise AssertionError("a flow has no end")
