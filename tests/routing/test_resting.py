"""Sessions whose drafter is known not to pay: no draft place is taken, no hidden states travel, and the text is the same."""

import asyncio

import numpy as np
import pytest

from dspark.messages import SessionOpen
from dspark.scheduling.curve import ThroughputCurve
from dspark.session import Session
from tests.routing.parts import GREEDY, session_named
from tests.routing.readers import LAW, SPEC, House, expected_text, reader


class SlowHouse(House):
    """Drafts that take far longer than they can be worth: a step takes 1 ms."""

    def __init__(self, draft_s: float) -> None:
        super().__init__(reader(delay_s=draft_s), "planned", draft_timeout_s=1.0)
        self.targets.curve = ThroughputCurve(np.asarray([1, 64]), np.asarray([0]), np.asarray([[1.0, 1.0]]))
        self.opened: list[SessionOpen] = []
        opens = self.target.open
        self.target.open = lambda message: (self.opened.append(message), opens(message))[1]  # type: ignore[method-assign,func-returns-value]

    async def serve(self, name: str) -> Session:
        session = session_named(name, (1, 2, 3), GREEDY, 60)
        assert await self.text_of(session) == expected_text(session)
        return session


async def test_after_the_first_session_has_found_out_hardly_any_takes_a_place_at_the_drafter() -> None:
    house = SlowHouse(draft_s=0.05)
    first = await house.serve("first")
    assert house.opened[0].features == SPEC
    for number in range(9):
        assert (await house.serve(f"s{number}")).drafter == first.drafter, "its rounds still count as that drafter's"
    assert [message.features for message in house.opened] == [SPEC] * 10, "should drafts pay later, they can be had"
    assert house.drafters.num_acquired <= 3, "one or two may try"
    assert house.drafter.num_drafts <= 8
    await house.loop.stop()


async def test_where_drafts_pay_every_session_has_them() -> None:
    house = SlowHouse(draft_s=0.0)
    house.targets.curve = ThroughputCurve(np.asarray([1, 64]), np.asarray([0]), np.asarray([[50.0, 50.0]]))
    for number in range(3):
        await house.serve(f"s{number}")
    assert [message.features for message in house.opened] == [SPEC] * 3
    assert house.observer.num_accepted > 3 * 60 * 0.6
    await house.loop.stop()


@pytest.mark.parametrize("draft_s", [0.0, 0.02])
async def test_sessions_that_come_together_say_what_plain_decoding_says(draft_s: float) -> None:
    house = SlowHouse(draft_s)
    for turn in range(3):
        running = [session_named(f"{turn}-{number}", (number + 1, 2), GREEDY, 40) for number in range(6)]
        texts = await asyncio.gather(*(house.text_of(session) for session in running))
        assert texts == [LAW.continuation(session.prompt_ids, GREEDY, 40) for session in running]
    await house.loop.stop()
