"""A gate before the engine: so many sessions at once, so many waiting, the rest are told to come back later.

Knows nothing of requests or replicas. One event loop; the lowest priority number goes first, and of equals who came first.
"""

import asyncio
from bisect import insort
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

from dspark.errors import Overloaded

_Turn = tuple[int, int, asyncio.Future[None]]
"""(priority, arrival, the caller's turn), and so in the order of the queue; no two arrivals are equal."""


class Admission:
    """`async with admission.place():` holds one of `max_sessions` places."""

    def __init__(self, max_sessions: int, max_queued: int) -> None:
        self._max_sessions = max_sessions
        self._max_queued = max_queued
        self._running = 0
        self._waiting: list[_Turn] = []
        self._arrivals = count()

    @property
    def running(self) -> int:
        """Places taken."""
        return self._running

    @property
    def waiting(self) -> int:
        """Callers in the queue."""
        return len(self._waiting)

    @asynccontextmanager
    async def place(self, priority: int = 0) -> AsyncIterator[None]:
        """Wait for a place and hold it; a lower priority number waits before higher ones. Safe to cancel at any time.

        Raises Overloaded at once if the queue is full, whatever the priority: who waits is not sent away for another.
        """
        await self._enter(priority)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, priority: int) -> None:
        if self._running < self._max_sessions:
            self._running += 1
            return
        if len(self._waiting) >= self._max_queued:
            raise Overloaded(f"{self._running} requests are running and {self._max_queued} are waiting; try again later")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = (priority, next(self._arrivals), turn)
        insort(self._waiting, waiting)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the place was handed over in the same moment: pass it on
                self._leave()
            elif waiting in self._waiting:  # it is not if somebody left in the same moment and skipped it
                self._waiting.remove(waiting)
            raise

    def _leave(self) -> None:
        # A place goes straight to the first in the queue, so nobody who comes now can overtake.
        while self._waiting:
            *_, turn = self._waiting.pop(0)
            if not turn.done():
                turn.set_result(None)
                return
        self._running -= 1
