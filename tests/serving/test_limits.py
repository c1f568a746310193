import asyncio

import pytest

from dspark.errors import Overloaded
from dspark.serving.limits import Admission


async def hold(gate: Admission, entered: list[int], number: int, leave: asyncio.Event, priority: int = 0) -> None:
    async with gate.place(priority):
        entered.append(number)
        await leave.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_exactly_the_overflow_is_refused_and_the_rest_come_in_order() -> None:
    gate, entered, leave = Admission(2, 3), [], asyncio.Event()
    tasks = [asyncio.create_task(hold(gate, entered, number, leave)) for number in range(8)]
    await settle()
    assert (entered, gate.running, gate.waiting) == ([0, 1], 2, 3)
    leave.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, Overloaded) for result in results] == [False] * 5 + [True] * 3
    assert (entered, gate.running, gate.waiting) == ([0, 1, 2, 3, 4], 0, 0)


async def test_the_lowest_priority_number_goes_first_and_equals_keep_their_order() -> None:
    gate, entered, leave = Admission(1, 6), [], asyncio.Event()
    priorities = [0, 5, 0, -3, 5, 0, -3]
    tasks = [asyncio.create_task(hold(gate, entered, number, leave, p)) for number, p in enumerate(priorities)]
    await settle()
    assert (entered, gate.waiting) == ([0], 6), "whoever has a place keeps it"
    leave.set()
    await asyncio.gather(*tasks)
    assert entered == [0, 3, 6, 2, 5, 1, 4]


async def test_a_full_queue_refuses_also_who_would_go_first() -> None:
    gate, entered, leave = Admission(1, 1), [], asyncio.Event()
    tasks = [asyncio.create_task(hold(gate, entered, number, leave, p)) for number, p in enumerate((0, 50, -100))]
    await settle()
    leave.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), type(None), Overloaded]
    assert entered == [0, 1]


async def test_one_that_gives_up_waiting_leaves_the_others_in_their_order() -> None:
    gate, entered, leave = Admission(1, 4), [], asyncio.Event()
    tasks = [asyncio.create_task(hold(gate, entered, number, leave, p)) for number, p in enumerate((0, 3, 1, 2, -1))]
    await settle()
    tasks[2].cancel()
    await settle()
    assert gate.waiting == 3
    leave.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (entered, gate.running, gate.waiting) == ([0, 4, 3, 1], 0, 0)


async def test_a_place_is_given_back_after_an_error() -> None:
    gate = Admission(1, 1)
    with pytest.raises(ValueError, match="inside"):
        async with gate.place():
            raise ValueError("inside")
    assert gate.running == 0


async def test_one_that_gives_up_waiting_leaves_the_queue() -> None:
    gate, entered, leave = Admission(1, 1), [], asyncio.Event()
    first = asyncio.create_task(hold(gate, entered, 1, leave))
    await settle()
    second = asyncio.create_task(hold(gate, entered, 2, leave))
    await settle()
    second.cancel()
    await settle()
    third = asyncio.create_task(hold(gate, entered, 3, leave))
    await settle()
    assert gate.waiting == 1
    leave.set()
    await asyncio.gather(first, third)
    assert (entered, gate.running, gate.waiting) == ([1, 3], 0, 0)


async def test_one_that_gives_up_in_the_moment_another_leaves_is_just_cancelled() -> None:
    gate, entered, leave = Admission(1, 2), [], asyncio.Event()
    first, second, third = (asyncio.create_task(hold(gate, entered, number, leave)) for number in (1, 2, 3))
    await settle()
    leave.set()  # the first wakes before the second and finds a queue whose head was cancelled
    second.cancel()
    results = await asyncio.gather(first, second, third, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), asyncio.CancelledError, type(None)]
    assert (entered, gate.running, gate.waiting) == ([1, 3], 0, 0)


async def test_a_place_handed_to_one_that_is_cancelled_in_the_same_moment_goes_on_to_the_next() -> None:
    gate, entered, leave = Admission(1, 2), [], asyncio.Event()
    tasks = [asyncio.create_task(hold(gate, entered, number, asyncio.Event())) for number in (1, 2)]
    third = asyncio.create_task(hold(gate, entered, 3, leave))
    await settle()
    tasks[0].cancel()
    await asyncio.sleep(0)  # the first leaves: its place is handed to the second, which has not run yet
    tasks[1].cancel()
    await settle()
    assert entered == [1, 3]
    leave.set()
    await third
    assert (gate.running, gate.waiting) == (0, 0)
