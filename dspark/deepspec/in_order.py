"""Many answers in flight, handed on in the order of their jobs: a run that is killed and one that is not write the same files.

Does not know who answers, nor what is done with the answers.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator

from dspark.deepspec.answers import Answerer, Job
from dspark.errors import InvalidRequest

LOOK_AHEAD = 4
"""Jobs begun or waiting, per place: a long answer holds back those behind it, which go on meanwhile."""

Answered = tuple[Job, list[int] | InvalidRequest | None]


async def answer_in_order(
    jobs: Iterator[Job], answerer: Answerer, *, concurrency: int, deadline_s: float | None = None
) -> AsyncGenerator[Answered, None]:
    """Jobs with their answers, or with the reason why this prompt has none. `deadline_s` is on `time.monotonic`.

    After the deadline nothing new is begun; what runs is finished and handed on, and the first job that was not begun comes with
    None as the last item. Any other error ends all.
    """
    places = asyncio.Semaphore(concurrency)

    def over() -> bool:
        return deadline_s is not None and time.monotonic() >= deadline_s

    async def one(job: Job) -> list[int] | InvalidRequest | None:
        async with places:  # first come, first served: after the deadline, those not begun are the last ones
            if over():
                return None
            try:
                return await answerer.answer(job)
            except InvalidRequest as error:
                return error

    pending: deque[tuple[Job, asyncio.Task[list[int] | InvalidRequest | None]]] = deque()
    try:
        while True:
            while len(pending) < concurrency * LOOK_AHEAD and not over() and (job := next(jobs, None)) is not None:
                pending.append((job, asyncio.create_task(one(job))))
            if not pending:
                return
            job, task = pending.popleft()
            answer = await task
            yield job, answer
            if answer is None:
                return
    finally:
        for _, task in pending:
            task.cancel()
        await asyncio.gather(*(task for _, task in pending), return_exceptions=True)
