"""Lanes: rounds that are ready together go together, planned as one batch, and nobody waits for a replica that is gone or silent."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from dspark.errors import InvalidMessage, ProtocolError, StaleRound, TargetUnavailable, UnknownSession
from dspark.fakes import ToyLaw, ToyTarget
from dspark.messages import SessionFailure, SessionOpen, StepReport, VerifyRequest
from dspark.routing.draft_lane import error_of
from dspark.routing.lanes import Drafted, Verdict, VerifyLane
from dspark.session import Session
from dspark.tree import CandidateTree
from dspark.types import SessionId
from tests.routing.parts import GREEDY, CountingObserver, session_named


def lane_to(target: ToyTarget, max_rows: int = 64, silence_timeout_s: float = 5.0) -> VerifyLane:
    return VerifyLane(target, CountingObserver(), max_rows=max_rows, silence_timeout_s=silence_timeout_s)


def opened(target: ToyTarget, *names: str) -> list[Session]:
    sessions = [session_named(name, prompt=(index + 1, 2, 3)) for index, name in enumerate(names)]
    for session in sessions:
        target.open(session.opening())
    return sessions


async def verify(lane: VerifyLane, session: Session, tree: CandidateTree | None = None) -> Verdict:
    return await asyncio.wait_for(lane.verify(session, Drafted(CandidateTree.empty() if tree is None else tree)), 10)


async def test_sessions_that_are_ready_together_go_in_one_submit() -> None:
    target = ToyTarget(ToyLaw())
    lane = lane_to(target)
    sessions = opened(target, "a", "b", "c")
    verdicts = await asyncio.gather(*(verify(lane, session) for session in sessions))
    assert [verdict.result.session_id for verdict in verdicts] == ["a", "b", "c"]
    assert target.batches == [("a", "b", "c")]
    await lane.stop()


async def test_a_session_that_comes_while_the_target_is_busy_waits_for_the_report() -> None:
    target = ToyTarget(ToyLaw(), step_s=0.05)
    lane = lane_to(target)
    first, second, third = opened(target, "a", "b", "c")
    running = asyncio.create_task(verify(lane, first))
    await asyncio.sleep(0.01)
    waiting = [asyncio.create_task(verify(lane, session)) for session in (second, third)]
    await asyncio.sleep(0.01)
    assert target.batches == [("a",)]
    await asyncio.gather(running, *waiting)
    assert target.batches == [("a",), ("b", "c")]
    await lane.stop()


async def test_a_session_that_is_ready_at_once_joins_those_who_wait() -> None:
    target = ToyTarget(ToyLaw(), step_s=0.02)
    lane = lane_to(target)
    first, second = opened(target, "a", "b")

    async def two_rounds(session: Session) -> None:
        for _ in range(2):
            session.commit((await lane.verify(session, Drafted(CandidateTree.empty()))).result)

    running = asyncio.create_task(two_rounds(first))
    await asyncio.sleep(0.01)
    await asyncio.gather(running, two_rounds(second))
    assert target.batches[:2] == [("a",), ("b", "a")] or target.batches[:2] == [("a",), ("a", "b")]
    await lane.stop()


async def test_the_plan_is_made_over_all_that_is_ready_and_the_verdict_tells_what_was_sent() -> None:
    target = ToyTarget(ToyLaw())
    lane = lane_to(target, max_rows=5)
    first, second = opened(target, "a", "b")
    sure, unsure = CandidateTree.chain([1, 2, 3], [0.9, 0.8, 0.7]), CandidateTree.chain([1, 2, 3], [0.3, 0.2, 0.1])
    one, other = await asyncio.gather(verify(lane, first, sure), verify(lane, second, unsure))
    assert (one.num_selected, other.num_selected) == (3, 0)
    await lane.stop()


async def test_accepted_nodes_are_those_of_the_selected_tree_and_commit() -> None:
    law = ToyLaw()
    target = ToyTarget(law)
    lane = lane_to(target, max_rows=3)
    (session,) = opened(target, "a")
    right = law.continuation(session.prompt_ids, GREEDY, 2)
    wrong = (right[0] + 1) % 12
    tree = CandidateTree(
        np.asarray([wrong, right[0], right[1]], np.int32), np.asarray([-1, -1, 1], np.int32), np.asarray([0.1, 0.9, 0.8], np.float32)
    )
    verdict = await verify(lane, session, tree)
    assert (verdict.num_selected, verdict.result.accepted) == (2, (0, 1))
    assert session.commit(verdict.result).token_ids[:2] == tuple(right)
    await lane.stop()


async def test_a_failure_of_one_session_is_raised_at_it_alone() -> None:
    target = ToyTarget(ToyLaw())
    lane = lane_to(target)
    first, second, third = opened(target, "a", "b", "c")
    target.close(second.session_id)
    third.round = 5
    answers = await asyncio.gather(*(verify(lane, session) for session in (first, second, third)), return_exceptions=True)
    assert isinstance(answers[0], Verdict)
    assert isinstance(answers[1], UnknownSession)
    assert isinstance(answers[2], StaleRound)
    assert isinstance(await verify(lane, first), Verdict), "the lane goes on"
    await lane.stop()


async def test_a_silent_target_is_given_up_in_time() -> None:
    target = ToyTarget(ToyLaw(), step_s=60)
    lane = lane_to(target, silence_timeout_s=0.1)
    sessions = opened(target, "a", "b")
    loop = asyncio.get_running_loop()
    started = loop.time()
    running = asyncio.create_task(verify(lane, sessions[0]))
    await asyncio.sleep(0.01)
    answers = await asyncio.gather(running, verify(lane, sessions[1]), return_exceptions=True)
    assert all(isinstance(answer, TargetUnavailable) for answer in answers)
    assert 0.1 <= loop.time() - started < 1
    assert lane.lost
    with pytest.raises(TargetUnavailable, match="silent"):
        await verify(lane, sessions[0])
    await lane.stop()


async def test_a_pause_before_a_round_is_not_the_targets_silence() -> None:
    """The reader has been waiting for most of the timeout when the round begins; only the round itself counts."""
    target = ToyTarget(ToyLaw())
    lane = lane_to(target, silence_timeout_s=0.3)
    (session,) = opened(target, "a")
    session.commit((await verify(lane, session)).result)
    await asyncio.sleep(0.25)
    target.step_s = 0.2
    session.commit((await verify(lane, session)).result)
    assert not lane.lost
    await lane.stop()


async def test_a_slow_but_speaking_target_is_not_silent() -> None:
    target = ToyTarget(ToyLaw(), step_s=0.06)
    lane = lane_to(target, silence_timeout_s=0.2)
    (session,) = opened(target, "a")
    for _ in range(6):
        session.commit((await verify(lane, session)).result)
    assert (session.round, lane.lost) == (6, False)
    await lane.stop()


async def test_a_dead_target_is_told_to_everyone_who_waits() -> None:
    target = ToyTarget(ToyLaw(), step_s=60)
    lane = lane_to(target)
    sessions = opened(target, "a", "b")
    running = asyncio.create_task(verify(lane, sessions[0]))
    await asyncio.sleep(0)
    target.die()
    for waiting in (running, verify(lane, sessions[1])):
        with pytest.raises(TargetUnavailable):
            await waiting


async def test_stopping_a_lane_tells_everyone_who_waits() -> None:
    target = ToyTarget(ToyLaw(), step_s=60)
    lane = lane_to(target)
    sessions = opened(target, "a", "b")
    running = [asyncio.create_task(verify(lane, session)) for session in sessions]
    await asyncio.sleep(0.01)
    await lane.stop()
    for task in running:
        with pytest.raises(TargetUnavailable, match="closed"):
            await task


async def test_a_finished_round_does_not_fire_before_its_neighbours_are_back() -> None:
    """Else sessions would fall into groups that take turns, each in a batch of half the size."""
    target = ToyTarget(ToyLaw(), step_s=0.01)
    lane = lane_to(target)
    sessions = opened(target, "a", "b", "c", "d")

    async def rounds(session: Session) -> None:
        for _ in range(5):
            session.commit((await lane.verify(session, Drafted(CandidateTree.empty()))).result)

    tasks = [asyncio.create_task(rounds(session)) for session in sessions[:3]]
    await asyncio.sleep(0.005)
    await asyncio.gather(*tasks, rounds(sessions[3]))
    assert [len(batch) for batch in target.batches] == [3, 4, 4, 4, 4, 1]
    await lane.stop()


async def test_a_session_that_gives_up_does_not_keep_the_others_waiting() -> None:
    """Its result may never come: the lane must not believe for ever that the target is busy with it."""
    target = ToyTarget(ToyLaw(), step_s=60)
    lane = lane_to(target)
    first, second = opened(target, "a", "b")
    hasty = asyncio.create_task(verify(lane, first))
    await asyncio.sleep(0.01)
    patient = asyncio.create_task(verify(lane, second))
    await asyncio.sleep(0.01)
    assert target.batches == [("a",)]
    hasty.cancel()
    await asyncio.sleep(0.01)
    assert target.batches == [("a",), ("b",)]
    patient.cancel()
    await asyncio.gather(hasty, patient, return_exceptions=True)
    await lane.stop()


class BrokenObserver(CountingObserver):
    def step_done(self, report: StepReport) -> None:
        raise ZeroDivisionError


async def test_a_bug_beside_the_reader_is_told_to_those_who_wait(caplog: pytest.LogCaptureFixture) -> None:
    target = ToyTarget(ToyLaw())
    lane = VerifyLane(target, BrokenObserver(), max_rows=8, silence_timeout_s=5)
    first, second = opened(target, "a", "b")
    assert isinstance(await verify(lane, first), Verdict)
    with pytest.raises(TargetUnavailable):
        await verify(lane, second)
    assert "ZeroDivisionError" in caplog.text
    await lane.stop()


async def test_a_bug_in_what_is_learned_of_steps_costs_no_answer(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    target = ToyTarget(ToyLaw())
    lane = VerifyLane(target, CountingObserver(), max_rows=8, silence_timeout_s=5)
    monkeypatch.setattr(lane.books, "step_done", lambda *_: 1 / 0)
    for session in opened(target, "a", "b"):
        assert isinstance(await verify(lane, session), Verdict)
    assert "a step could not be learned from" in caplog.text
    await lane.stop()


class SilentVerifier:
    """Never answers; only what `VerifyLane` does by itself counts."""

    def __init__(self) -> None:
        self.requests: list[VerifyRequest] = []

    def open(self, session: SessionOpen) -> None:
        """Nothing to hold."""

    def submit(self, requests: Sequence[VerifyRequest]) -> None:
        self.requests += requests

    async def next_report(self) -> StepReport:
        return await asyncio.get_running_loop().create_future()

    def close(self, session_id: SessionId) -> None:
        """Nothing to free."""


async def test_the_reader_of_a_silent_replica_is_not_left_behind() -> None:
    lane = VerifyLane(SilentVerifier(), CountingObserver(), max_rows=8, silence_timeout_s=0.05)
    with pytest.raises(TargetUnavailable):
        await verify(lane, session_named("a"))
    await lane.stop()
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("StaleRound", StaleRound),
        ("InvalidMessage", InvalidMessage),
        *((name, ProtocolError) for name in ("Exception", "RETRYABLE", "status_codes", "StatusCodes", "", "__name__")),
    ],
)
def test_a_failures_name_becomes_its_error_and_never_anything_else(name: str, kind: type[Exception]) -> None:
    error = error_of(SessionFailure(SessionId("a"), name, "why"))
    assert type(error) is kind
    assert str(error) == "why"
