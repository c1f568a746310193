import asyncio
from contextlib import aclosing

import pytest

from dspark.config import LimitsConfig
from dspark.errors import TargetUnavailable
from dspark.serving.choices import merged_chunks
from dspark.serving.generation import GenerationRequest
from dspark.serving.validation import RawOptions, generation_requests
from tests.serving.echo_service import EchoService


def requests_for(service: EchoService, n: int) -> list[GenerationRequest]:
    raw = RawOptions(prompts=((65, 66, 67, 68, 69),), n=n, max_tokens=20)
    return generation_requests(raw, service.card, LimitsConfig(), service.encode, drafters=())


async def test_choices_run_at_the_same_time_each_in_its_order() -> None:
    service = EchoService()
    order: list[int] = []
    counts: dict[int, list[int]] = {0: [], 1: [], 2: []}
    async for index, chunk in merged_chunks(service, requests_for(service, 3), 4):
        order.append(index)
        counts[index].append(chunk.usage.completion_tokens)
    assert order != sorted(order)
    assert all(tokens == [3, 6, 9, 12, 15, 18, 20] for tokens in counts.values())
    assert service.open_streams == 0


@pytest.mark.parametrize("n", [1, 4])
async def test_closing_in_the_middle_closes_every_choice(n: int) -> None:
    service = EchoService()
    service.pause_after = 2
    async with aclosing(merged_chunks(service, requests_for(service, n), 2)) as chunks:
        await anext(chunks)
        assert service.open_streams >= 1
    assert service.open_streams == 0
    assert len(asyncio.all_tasks()) == 1


async def test_the_first_error_is_raised_and_ends_the_others() -> None:
    service = EchoService()
    service.pause_after, service.failure = 1, TargetUnavailable("gone")
    with pytest.raises(TargetUnavailable):
        async for _ in merged_chunks(service, requests_for(service, 3), 2):
            pass
    assert service.open_streams == 0


async def test_what_nobody_reads_is_not_generated_ahead_without_bound() -> None:
    service = EchoService()
    raw = RawOptions(prompts=((65, 66, 67),), n=2, max_tokens=200)
    requests = generation_requests(raw, service.card, LimitsConfig(), service.encode, drafters=())
    told: list[int] = []
    make = service.stream

    async def counted(request: GenerationRequest):  # type: ignore[no-untyped-def]
        async with aclosing(make(request)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                told.append(1)
                yield chunk

    service.stream = counted  # type: ignore[method-assign]
    async with aclosing(merged_chunks(service, requests, 4)) as chunks:
        await anext(chunks)
        for _ in range(200):
            await asyncio.sleep(0)
        assert len(told) <= 1 + 4 + 2  # read, waiting in the queue, one in each choice's hands
