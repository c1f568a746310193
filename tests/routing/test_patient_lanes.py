"""A lane to a free target: it waits for drafts where that pays and no longer, and fires half of its sessions where they go in two waves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from dspark.errors import TargetUnavailable
from dspark.fakes import ToyLaw, ToyTarget
from dspark.routing.economy import Economy
from dspark.routing.lanes import Verdict, VerifyLane
from dspark.routing.rounds import Verified
from dspark.routing.target_economy import TargetEconomy
from dspark.scheduling.curve import ThroughputCurve
from dspark.scheduling.drafting_plan import SKIP, DraftLimits
from dspark.session import Session
from dspark.tree import CandidateTree
from tests.routing.parts import DRAFTER, LIMITS_OF_DRAFTER, CountingObserver
from tests.routing.test_lanes import opened, verify

STEP_MS, LONG_MS = 3_600_000.0, 360_000.0
"""A step takes an hour and a long draft six minutes."""


class LateDrafts:
    """A proposer whose draft comes when it is told to, or never."""

    def __init__(self) -> None:
        self.arrives = asyncio.Event()
        self.answered_to = SKIP
        self.num_told = 0
        self.call_began_s = 0.0

    async def propose(self, limits: DraftLimits) -> CandidateTree:
        self.call_began_s = asyncio.get_running_loop().time()
        await self.arrives.wait()
        self.answered_to = limits
        return CandidateTree.chain([1], [0.9])


class PatientHouse:
    """A lane to a target that is free, whose books say that a step takes an hour and a draft `draft_ms`: waiting pays."""

    def __init__(self, draft_ms: float) -> None:
        self.economy = economy = Economy({"default": DRAFTER})
        for sessions in (1, 2, 3):
            for depth in (1, 2, 3, 4):
                economy.draft_done("default", sessions, depth, draft_ms)
        curve = ThroughputCurve(np.asarray([1, 64]), np.asarray([0]), np.full((1, 2), STEP_MS))
        self.target = ToyTarget(ToyLaw())
        books = TargetEconomy(economy, curve, max_rows=64)
        self.lane = VerifyLane(self.target, CountingObserver(), max_rows=64, silence_timeout_s=5.0, books=books)
        self.sessions = opened(self.target, "a", "b", "c")
        for session in self.sessions:
            session.drafter = "default"
            books.enter(session)

    async def round_of(self, session: Session, drafts: LateDrafts) -> Verdict:
        return await self.lane.verify(session, await self.lane.drafted(session, drafts))

    def ready(self, session: Session) -> asyncio.Task[Verdict]:
        return asyncio.create_task(verify(self.lane, session))

    def drafting(self, session: Session, drafts: LateDrafts) -> asyncio.Task[Verdict]:
        return asyncio.create_task(self.round_of(session, drafts))


@asynccontextmanager
async def house_with_a_draft_on_its_way(draft_ms: float) -> AsyncIterator[tuple[PatientHouse, LateDrafts, asyncio.Task[Verdict]]]:
    """The house, the draft that session b has just begun to wait for, and b's round; at the end nothing is left of them."""
    house, drafts = PatientHouse(draft_ms), LateDrafts()
    round_of_b = house.drafting(house.sessions[1], drafts)
    await asyncio.sleep(0.01)
    try:
        yield house, drafts, round_of_b
    finally:
        await given_up(round_of_b)
        await house.lane.stop()


async def given_up(*rounds: asyncio.Task[Verdict]) -> None:
    """Cancelled and over; those that are done stay as they are."""
    for task in rounds:
        task.cancel()
    await asyncio.gather(*rounds, return_exceptions=True)


async def test_a_free_target_waits_for_a_draft_on_its_way_and_fires_when_it_comes() -> None:
    async with house_with_a_draft_on_its_way(LONG_MS) as (house, drafts, late):
        ready = [house.ready(session) for session in house.sessions[::2]]
        await asyncio.sleep(0.05)
        assert house.target.batches == []
        drafts.arrives.set()
        await asyncio.wait_for(asyncio.gather(late, *ready), 10)
        assert house.target.batches == [("a", "c", "b")]


async def test_exploring_is_priced_by_what_the_drafter_has_read_so_far() -> None:
    """Also where it had been told more, and lost it with the session's place."""
    house, drafts = PatientHouse(LONG_MS), LateDrafts()
    session, books = house.sessions[1], house.lane.books
    books.step_done(1, STEP_MS, STEP_MS, [Verified(session, LIMITS_OF_DRAFTER, CandidateTree.chain([1], [0.9]), [0], (), 1.0)])
    assert books._news(session) == 0
    drafts.num_told = 1
    round_of_b = house.drafting(session, drafts)
    await asyncio.sleep(0.01)
    assert books._news(session) == session.base_length - 1
    await given_up(round_of_b)
    await house.lane.stop()


async def test_a_drafter_that_hangs_is_waited_for_as_long_as_a_draft_takes_and_no_longer() -> None:
    async with house_with_a_draft_on_its_way(30.0) as (house, _, _):
        assert isinstance(await verify(house.lane, house.sessions[0]), Verdict)
        assert house.target.batches == [("a",)]


@pytest.mark.parametrize("has_begun", [True, False])
async def test_what_a_draft_waited_for_its_drafter_is_no_part_of_what_it_takes(has_begun: bool) -> None:
    """Its call has just begun, or is still to begin; else the sessions it comes for and those that had their drafts before would go by
    turns for good, each paying a step of its own."""
    async with house_with_a_draft_on_its_way(400.0) as (house, drafts, late):
        await asyncio.sleep(0.45)
        drafts.call_began_s = asyncio.get_running_loop().time() if has_begun else drafts.call_began_s - 0.2
        ready = house.ready(house.sessions[0])
        await asyncio.sleep(0.05)
        assert house.target.batches == []
        drafts.arrives.set()
        await asyncio.wait_for(asyncio.gather(late, ready), 10)
        assert house.target.batches == [("a", "b")]


async def test_a_draft_that_is_given_up_is_not_waited_for() -> None:
    """The session goes on without it, so that all are ready."""
    async with house_with_a_draft_on_its_way(LONG_MS) as (house, _, hanging):
        ready = house.ready(house.sessions[0])
        await asyncio.sleep(0.01)
        assert house.target.batches == []
        hanging.cancel()
        await asyncio.sleep(0.01)
        other = house.ready(house.sessions[1])
        await asyncio.wait_for(asyncio.gather(ready, other), 10)
        assert house.target.batches == [("a", "b")]


async def test_a_session_that_left_while_the_target_waited_does_not_take_the_next_ones_timer_along() -> None:
    """The timer of its wait finds nobody ready; who comes then needs one of his own, or waits as long as the drafter hangs."""
    async with house_with_a_draft_on_its_way(50.0) as (house, never, _):
        left = house.ready(house.sessions[0])
        await asyncio.sleep(0.01)
        left.cancel()
        await asyncio.sleep(0.1)
        hanging = house.drafting(house.sessions[2], never)
        await asyncio.sleep(0)
        assert isinstance(await asyncio.wait_for(house.ready(house.sessions[0]), 2), Verdict)
        await given_up(left, hanging)


async def test_a_lane_that_is_stopped_while_the_target_waits_tells_those_who_are_ready() -> None:
    async with house_with_a_draft_on_its_way(LONG_MS) as (house, _, _):
        ready = house.ready(house.sessions[0])
        await asyncio.sleep(0.01)
        assert not ready.done()
        await house.lane.stop()
        with pytest.raises(TargetUnavailable):
            await ready
    assert house.target.batches == []


async def test_in_two_waves_half_of_the_sessions_go_and_the_other_half_follows() -> None:
    house = PatientHouse(LONG_MS)
    house.lane.books.most_to_fire = lambda: 2  # type: ignore[method-assign]
    verdicts = await asyncio.gather(*(verify(house.lane, session) for session in house.sessions))
    assert house.target.batches == [("a", "b"), ("c",)]
    assert [verdict.result.session_id for verdict in verdicts] == ["a", "b", "c"]
    await house.lane.stop()


async def test_a_wait_is_counted_once_however_many_sessions_become_ready_in_it() -> None:
    async with house_with_a_draft_on_its_way(LONG_MS) as (house, drafts, late):
        ready = [house.ready(session) for session in house.sessions[::2]]
        await asyncio.sleep(0.02)
        drafts.arrives.set()
        await asyncio.wait_for(asyncio.gather(late, *ready), 10)
        assert house.economy.standings()["default"].waits == 1
