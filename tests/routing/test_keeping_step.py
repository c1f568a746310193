"""A lane and its target keep step: a report frees the target once it has seen what was handed in last, and not before."""

import asyncio
from collections.abc import Sequence

import pytest

from dspark.messages import DraftReport, DraftRequest, DraftResult, StepReport, VerifyRequest, VerifyResult
from dspark.routing.draft_lane import DraftLane
from dspark.routing.lanes import REPORTS_TO_BE_SEEN, Drafted, Verdict, VerifyLane
from dspark.session import Session
from dspark.tree import CandidateTree
from dspark.types import SessionId
from tests.routing.parts import CountingObserver, session_named

OF_OTHERS = StepReport(batch_rows=5)
"""Of a step of other routers' rounds."""


class TalkingTarget:
    """A target that reports what it is told to, when it is told to."""

    def __init__(self) -> None:
        self.reports: asyncio.Queue[StepReport] = asyncio.Queue()
        self.submits: list[list[SessionId]] = []

    def open(self, session: object) -> None:
        pass

    def close(self, session_id: SessionId) -> None:
        pass

    def submit(self, requests: Sequence[VerifyRequest]) -> None:
        self.submits.append([request.session_id for request in requests])

    async def next_report(self) -> StepReport:
        return await self.reports.get()

    async def say(self, report: StepReport) -> None:
        self.reports.put_nowait(report)
        await asyncio.sleep(0.01)


class House:
    """A lane with a first session whose round was handed in; a second one becomes ready after that."""

    def __init__(self, first_round: int) -> None:
        self.target = TalkingTarget()
        self.lane = VerifyLane(self.target, CountingObserver(), max_rows=64, silence_timeout_s=60.0)
        self.first, self.second = session_named("a"), session_named("b")
        self.first.round = first_round

    async def begin(self) -> list[asyncio.Task[Verdict]]:
        rounds = [self.ready(self.first)]
        await asyncio.sleep(0.01)
        rounds.append(self.ready(self.second))
        await asyncio.sleep(0.01)
        assert self.target.submits == [["a"]]
        return rounds

    async def end(self, rounds: list[asyncio.Task[Verdict]]) -> None:
        for running in rounds:
            running.cancel()
        await asyncio.gather(*rounds, return_exceptions=True)
        await self.lane.stop()

    def ready(self, session: Session) -> asyncio.Task[Verdict]:
        return asyncio.create_task(self.lane.verify(session, Drafted(CandidateTree.empty())))


def answered(session: Session) -> StepReport:
    result = VerifyResult(session.session_id, session.round, session.base_length, (), (7,))
    return StepReport(results=(result,), batch_rows=1)


async def test_a_step_of_other_routers_does_not_free_the_target_for_a_second_group() -> None:
    house = House(first_round=3)
    rounds = await house.begin()
    await house.target.say(OF_OTHERS)
    assert house.target.submits == [["a"]], "the first round's step is under way"
    await house.target.say(answered(house.first))
    assert house.target.submits == [["a"], ["b"]]
    await house.end(rounds)


async def test_after_so_many_steps_a_round_has_had_its_turn_and_waits_for_memory() -> None:
    house = House(first_round=3)
    rounds = await house.begin()
    for _ in range(REPORTS_TO_BE_SEEN):
        assert house.target.submits == [["a"]]
        await house.target.say(OF_OTHERS)
    assert house.target.submits == [["a"], ["b"]]
    await house.end(rounds)


@pytest.mark.parametrize(("first_round", "report"), [(0, OF_OTHERS), (3, StepReport())], ids=["a prompt in pieces", "nothing could run"])
async def test_a_prompt_that_takes_many_steps_and_one_that_cannot_run_hold_up_nobody(first_round: int, report: StepReport) -> None:
    house = House(first_round)
    rounds = await house.begin()
    await house.target.say(report)
    assert house.target.submits == [["a"], ["b"]]
    await house.end(rounds)


class SlowDrafter:
    """Drafts for 2 ms, behind other work of the same thread."""

    async def draft(self, requests: Sequence[DraftRequest]) -> DraftReport:
        await asyncio.sleep(0.1)
        empty = CandidateTree.empty()
        return DraftReport(tuple(DraftResult(r.session_id, r.base_length, empty) for r in requests), draft_ms=2.0)

    async def close(self, session_id: SessionId) -> None:
        pass


async def test_a_place_behind_other_work_is_not_what_a_draft_costs() -> None:
    costs: list[float] = []
    lane = DraftLane(SlowDrafter(), CountingObserver(), lambda sessions, depth, cost_ms, *_: costs.append(cost_ms))
    await lane.draft(DraftRequest(SessionId("a"), 2, (1, 2), max_depth=3, max_nodes=3))
    await lane.stop()
    assert costs == [4.0], "the way there and back is taken for no longer than the draft, until a shorter one was seen"
