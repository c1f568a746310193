"""NaturalBatcher: what waits while a batch runs goes together in the next one."""

import asyncio

import pytest

from dspark.batching import NaturalBatcher
from dspark.errors import DraftUnavailable, StaleRound


class Doubler:
    """Doubles numbers, when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_go = asyncio.Event()
        self.may_go.set()
        self.started = asyncio.Event()

    async def __call__(self, items: list[int]) -> list[int | Exception]:
        self.batches.append(items)
        self.started.set()
        await self.may_go.wait()
        if 13 in items:
            raise DraftUnavailable("all of them")
        return [StaleRound("only this one") if item == 7 else 2 * item for item in items]


async def test_callers_of_the_same_moment_share_a_batch() -> None:
    process = Doubler()
    batcher = NaturalBatcher(process)
    assert await asyncio.gather(*(batcher.submit(item) for item in (1, 2, 3))) == [2, 4, 6]
    assert process.batches == [[1, 2, 3]]


async def test_what_arrives_while_a_batch_runs_goes_together_in_the_next() -> None:
    process = Doubler()
    process.may_go.clear()
    batcher = NaturalBatcher(process)
    first = asyncio.create_task(batcher.submit(1))
    await process.started.wait()
    later = [asyncio.create_task(batcher.submit(item)) for item in (2, 3)]
    await asyncio.sleep(0)
    assert process.batches == [[1]], "one batch at a time"
    process.may_go.set()
    assert await asyncio.gather(first, *later) == [2, 4, 6]
    assert process.batches == [[1], [2, 3]]


async def test_an_answer_that_is_an_exception_is_raised_at_its_caller_only() -> None:
    batcher = NaturalBatcher(Doubler())
    answers = await asyncio.gather(*(batcher.submit(item) for item in (6, 7, 8)), return_exceptions=True)
    assert answers[0] == 12
    assert isinstance(answers[1], StaleRound)
    assert answers[2] == 16


async def test_an_exception_of_the_whole_batch_is_raised_at_everyone_and_the_next_batch_runs() -> None:
    batcher = NaturalBatcher(Doubler())
    answers = await asyncio.gather(*(batcher.submit(item) for item in (12, 13)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [DraftUnavailable, DraftUnavailable]
    assert await batcher.submit(5) == 10


async def test_a_caller_that_gives_up_leaves_its_batch_unharmed() -> None:
    process = Doubler()
    process.may_go.clear()
    batcher = NaturalBatcher(process)
    patient, hasty = asyncio.create_task(batcher.submit(1)), asyncio.create_task(batcher.submit(2))
    await process.started.wait()
    hasty.cancel()
    late = asyncio.create_task(batcher.submit(3))
    never = asyncio.create_task(batcher.submit(4))
    await asyncio.sleep(0)
    never.cancel()
    await asyncio.sleep(0)
    process.may_go.set()
    assert await asyncio.gather(patient, late) == [2, 6]
    assert process.batches == [[1, 2], [3]], "who gave up before the batch began is not in it"
    assert hasty.cancelled()


async def test_stop_ends_the_batch_and_tells_everyone_who_waits_why() -> None:
    process = Doubler()
    process.may_go.clear()
    batcher = NaturalBatcher(process)
    running = asyncio.create_task(batcher.submit(1))
    await process.started.wait()
    waiting = asyncio.create_task(batcher.submit(2))
    await asyncio.sleep(0)
    await batcher.stop(DraftUnavailable("stopped"))
    for task in (running, waiting):
        with pytest.raises(DraftUnavailable, match="stopped"):
            await task
    assert process.batches == [[1]]


async def test_stopping_an_idle_batcher_is_nothing() -> None:
    batcher = NaturalBatcher(Doubler())
    await batcher.stop(DraftUnavailable("stopped"))
    assert await batcher.submit(2) == 4
    await batcher.stop(DraftUnavailable("stopped"))
