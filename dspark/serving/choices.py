"""All choices of one call at the same time, their chunks in the order they come.

Knows the generation service's port and nothing of protocols. Whoever stops reading must close the generator: that closes
every choice.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

from dspark.serving.generation import GenerationChunk, GenerationRequest, GenerationService

_Item = tuple[int, GenerationChunk] | BaseException | None


async def merged_chunks(
    service: GenerationService, requests: Sequence[GenerationRequest], max_buffered: int
) -> AsyncGenerator[tuple[int, GenerationChunk], None]:
    """(index of the request, its chunk), each request's in order, until all are over.

    The first error ends all and is raised. No more than `max_buffered` chunks wait here to be read. Each request's stream
    is read by one task for its whole life, whoever reads the merged ones.
    """
    queue: asyncio.Queue[_Item] = asyncio.Queue(max_buffered)
    tasks = [asyncio.create_task(_pump(service, request, at, queue)) for at, request in enumerate(requests)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        await _end(tasks)


async def _pump(service: GenerationService, request: GenerationRequest, index: int, queue: asyncio.Queue[_Item]) -> None:
    """Move one choice's chunks to the queue; then None, or the error that ended it."""
    try:
        async with _closing(service.stream(request)) as chunks:
            async for chunk in chunks:
                await queue.put((index, chunk))
    except Exception as error:  # raised again by the reader
        await queue.put(error)
    else:
        await queue.put(None)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _closing(chunks: AsyncIterator[GenerationChunk]) -> AsyncIterator[AsyncIterator[GenerationChunk]]:
    """Close the iterator at once, not whenever it is collected: it holds cache blocks and leases."""
    try:
        yield chunks
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()
