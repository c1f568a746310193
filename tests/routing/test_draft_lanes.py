"""Draft lanes: one call for what is wanted together, errors for those whom they concern, and a log that is not flooded."""

import asyncio
import logging
from collections.abc import Sequence

import pytest

from dspark.errors import DraftUnavailable, ProtocolError, StaleRound, UnknownSession
from dspark.fakes import FakeDrafter, FakePool, ToyLaw
from dspark.messages import DraftReport, DraftRequest, DraftResult
from dspark.routing.draft_lane import DraftLane
from dspark.routing.draft_lanes import FAILURE_LOG_S, DraftLanes, FailureLog
from dspark.scheduling.draft_cost import DraftCall
from dspark.types import SessionId
from tests.routing.parts import GREEDY, CountingObserver, session_named


def drafted(name: str, base_length: int = 3) -> DraftRequest:
    return DraftRequest(SessionId(name), base_length, (), 2, 2)


async def test_drafts_that_are_wanted_together_are_one_call_and_failures_stay_apart() -> None:
    law = ToyLaw()
    drafter, observer = FakeDrafter(law.guess), CountingObserver()
    lane = DraftLane(drafter, observer)
    for name in "ab":
        drafter.open(session_named(name).opening())
    answers = await asyncio.gather(
        lane.draft(drafted("a")), lane.draft(drafted("nobody")), lane.draft(drafted("b", 9)), return_exceptions=True
    )
    assert isinstance(answers[0], DraftResult)
    assert answers[0].tree.token_ids.tolist() == law.continuation((1, 2, 3), GREEDY, 2)
    assert isinstance(answers[1], UnknownSession)
    assert isinstance(answers[2], StaleRound)
    assert (drafter.num_drafts, observer.num_drafts) == (1, 1)


class ForgetfulDrafter(FakeDrafter):
    async def draft(self, requests: Sequence[DraftRequest]) -> DraftReport:
        return DraftReport()


async def test_a_request_left_out_of_the_answer_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="left a request out"):
        await DraftLane(ForgetfulDrafter(ToyLaw().guess), CountingObserver()).draft(drafted("a"))


async def test_a_dropped_draft_lane_tells_those_who_wait_that_the_drafter_is_gone() -> None:
    """Not with a cancellation: that would end their sessions."""
    drafter = FakeDrafter(ToyLaw().guess, delay_s=60)
    lane = DraftLane(drafter, CountingObserver())
    running = asyncio.create_task(lane.draft(drafted("a")))
    await asyncio.sleep(0.01)
    waiting = asyncio.create_task(lane.draft(drafted("b")))
    await asyncio.sleep(0.01)
    await lane.stop()
    for task in (running, waiting):
        with pytest.raises(DraftUnavailable):
            await task


async def test_a_lane_tells_when_its_call_in_hand_began_so_that_what_waits_for_the_next_one_is_known() -> None:
    drafter = FakeDrafter(ToyLaw().guess, delay_s=60)
    lane, clock = DraftLane(drafter, CountingObserver()), asyncio.get_running_loop().time
    assert lane.call_began_s == 0
    asked_s = clock()
    running = asyncio.create_task(lane.draft(drafted("a")))
    await asyncio.sleep(0.01)
    began_s, later_s = lane.call_began_s, clock()
    assert asked_s <= began_s <= later_s
    waiting = asyncio.create_task(lane.draft(drafted("b")))
    await asyncio.sleep(0.01)
    assert lane.call_began_s == began_s < later_s
    await lane.stop()
    await asyncio.gather(running, waiting, return_exceptions=True)


async def test_what_a_call_cost_is_told_with_the_context_that_was_news_and_the_candidates_beyond_chains() -> None:
    told: list[tuple[int, int, int, int]] = []
    drafter = FakeDrafter(ToyLaw().guess)
    lane = DraftLane(drafter, CountingObserver(), lambda sessions, depth, _, *rest: told.append((sessions, depth, *rest)))
    for name in "ab":
        drafter.open(session_named(name).opening())
    requests = [DraftRequest(SessionId("a"), 5, (7, 8), 2, 5), DraftRequest(SessionId("b"), 4, (9,), 1, 1)]
    await asyncio.gather(*(lane.draft(request) for request in requests))
    assert told == [(2, 2, 3, 3)]


def test_a_drafter_that_fails_round_after_round_is_told_once_at_length_and_then_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    log = FailureLog()
    for number in range(1000):
        log.tell(ZeroDivisionError(f"failure {number}"), 0.2 * number)
    records = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(records) == 1 + int(200 / FAILURE_LOG_S)
    assert records[0].exc_info is not None
    assert not any(record.exc_info for record in records[1:])
    assert "300 more times, at last with ZeroDivisionError: failure 300" in caplog.text


async def test_what_a_replica_says_of_its_calls_is_told_once() -> None:
    """Real calls are seen afterwards, and say more."""
    costs: list[tuple[int, int, float, int, int]] = []
    pool = FakePool(FakeDrafter(ToyLaw().guess))
    lanes = DraftLanes(CountingObserver(), lambda *cost: costs.append(cost))
    for _ in range(2):
        lease = await pool.acquire(SessionId("s"))
        lease.calls = (DraftCall(4, 2, 1.5, 12),)
        lanes.enter(lease)
        await lanes.leave(lease)
    assert costs == [(4, 2, 1.5, 12, 0)]
