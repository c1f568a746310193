"""A bounded buffer between a session and its client: the session may run ahead, but only so far, and not for ever."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Generic, TypeVar

from dspark.errors import ClientTooSlow, DeadlineExceeded

Item = TypeVar("Item")


class BoundedBuffer(Generic[Item]):
    """One writer, one reader, one event loop."""

    def __init__(self, max_items: int, stall_timeout_s: float) -> None:
        self._items: asyncio.Queue[Item | None] = asyncio.Queue(max_items)
        self._stall_timeout_s = stall_timeout_s
        self._error: Exception | None = None
        self._ended = asyncio.Event()

    async def put(self, item: Item) -> None:
        """Add an item; waits while the buffer is full. Raises ClientTooSlow if it stays full for `stall_timeout_s`."""
        if not self._items.full():
            self._items.put_nowait(item)
            return
        try:
            async with asyncio.timeout(self._stall_timeout_s):  # `wait_for` can swallow a cancellation in Python 3.11
                await self._items.put(item)
        except TimeoutError:
            raise ClientTooSlow(f"the client read nothing for {self._stall_timeout_s:g} s") from None

    def end(self, error: Exception | None = None) -> None:
        """No more items; the reader gets the rest, then `error` if there is one."""
        self._error = error
        self._ended.set()
        if not self._items.full():
            self._items.put_nowait(None)  # wakes a reader that waits on an empty buffer

    async def items(self, deadline_s: float | None) -> AsyncGenerator[Item, None]:
        """All items in order. Raises DeadlineExceeded at `deadline_s` (event loop time), or the writer's error."""
        while not (self._ended.is_set() and self._items.empty()):
            try:
                async with asyncio.timeout_at(deadline_s):
                    item = await self._items.get()
            except TimeoutError:
                raise DeadlineExceeded("the request's time is over") from None
            if item is None:
                break
            yield item
        if self._error is not None:
            raise self._error
