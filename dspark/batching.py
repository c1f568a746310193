"""Natural batching: while a batch runs, what arrives waits; when it is done, all that waits goes together. No timer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class NaturalBatcher(Generic[Item, Answer]):
    """Runs `process` on everything that is waiting, one batch at a time, in order of arrival.

    `process` returns one answer per item; an answer that is an exception is raised at its item's caller, and an exception of
    `process` itself at all of them. A caller that gives up leaves its batch unharmed. Lives on one event loop.
    """

    def __init__(self, process: Callable[[list[Item]], Awaitable[list[Answer | Exception]]]) -> None:
        self._process = process
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._running: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Answer:
        """Wait for the item's answer."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._drain())
        return await future

    async def stop(self, error: Exception) -> None:
        """Cancel what runs; everyone who waits is given `error` (a cancellation would look like their own)."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        for _, future in (*self._running, *self._take()):
            _settle(future, error)

    async def _drain(self) -> None:
        await asyncio.sleep(0)  # callers woken by the same event still get into the first batch
        while batch := [(item, future) for item, future in self._take() if not future.done()]:
            self._running = batch
            try:
                answers = await self._process([item for item, _ in batch])
            except Exception as error:
                answers = [error] * len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                _settle(future, answer)
            await asyncio.sleep(0)  # let the answered callers come back with their next item

    def _take(self) -> list[tuple[Item, asyncio.Future[Answer]]]:
        batch, self._waiting = self._waiting, []
        return batch


def _settle(future: asyncio.Future[Answer], answer: Answer | Exception) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
