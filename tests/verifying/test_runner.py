"""VerifierRunner: routers share forwards, see only their own results, and are told when the target has stopped."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from dspark.errors import TargetUnavailable
from dspark.messages import SessionOpen, StepReport, VerifyRequest, VerifyResult
from dspark.tree import CandidateTree
from dspark.types import RouterId, SessionId
from dspark.verifying.runner import VerifierConnection, VerifierRunner
from dspark.verifying.verifier import BatchVerifier
from tests.runtime.tiny_models import packed_model, random_prompts
from tests.verifying.rounds import GREEDY, Rounds

A, B = SessionId("a"), SessionId("b")
PROMPTS = dict(zip((A, B), random_prompts((5, 12)), strict=True))


class GatedVerifier(BatchVerifier):
    """The real one; its steps can be held up, and are counted."""

    def __init__(self) -> None:
        super().__init__(packed_model("qwen3", deterministic=True), max_length=512, max_batch_rows=64)
        self.may_step = threading.Event()
        self.may_step.set()
        self.in_step = threading.Event()
        self.num_steps = 0
        self.error: Exception | None = None

    def step(self) -> StepReport:
        self.num_steps += 1
        self.in_step.set()
        assert self.may_step.wait(20)
        if self.error is not None:
            raise self.error
        return super().step()


@pytest.fixture
def verifier() -> GatedVerifier:
    return GatedVerifier()


@pytest.fixture
async def runner(verifier: GatedVerifier) -> AsyncIterator[VerifierRunner]:
    running = VerifierRunner(verifier)
    running.start()
    yield running
    verifier.may_step.set()
    await running.stop()


def begin(connection: VerifierConnection, session_id: SessionId, submit: bool = True) -> None:
    connection.open(SessionOpen(session_id, tuple(PROMPTS[session_id]), GREEDY))
    if submit:
        ask(connection, session_id, 0, len(PROMPTS[session_id]))


def ask(connection: VerifierConnection, session_id: SessionId, round_number: int, base_length: int) -> None:
    connection.submit([VerifyRequest(session_id, round_number, base_length, CandidateTree.empty())])


async def next_result(connection: VerifierConnection) -> VerifyResult:
    """Reports without a result of this router are skipped."""
    while True:
        report = await asyncio.wait_for(connection.next_report(), 20)
        assert not report.failures
        if report.results:
            (result,) = report.results
            return result


async def test_two_routers_share_a_forward_and_see_only_their_own_results(runner: VerifierRunner, verifier: GatedVerifier) -> None:
    first, second = runner.connect(RouterId("r1")), runner.connect(RouterId("r2"))
    begin(first, A)
    begin(second, B)
    result_a, result_b = await next_result(first), await next_result(second)
    assert (result_a.session_id, result_b.session_id) == (A, B)
    assert verifier.num_steps == 1
    assert runner.last_report.batch_rows == 17
    assert runner.num_sessions == 2


async def test_many_rounds_through_the_runner_give_the_text_of_the_verifier_alone(runner: VerifierRunner) -> None:
    async def decode(connection: VerifierConnection, session_id: SessionId) -> list[int]:
        begin(connection, session_id)
        output: list[int] = []
        for number in range(12):
            output += (await next_result(connection)).token_ids
            ask(connection, session_id, number + 1, len(PROMPTS[session_id]) + len(output))
        return output

    outputs = await asyncio.gather(decode(runner.connect(RouterId("r1")), A), decode(runner.connect(RouterId("r2")), B))
    assert outputs == Rounds(GatedVerifier(), list(PROMPTS.values())).run(12)


async def test_a_router_may_close_a_session_while_it_is_being_computed(runner: VerifierRunner, verifier: GatedVerifier) -> None:
    first, second = runner.connect(RouterId("r1")), runner.connect(RouterId("r2"))
    verifier.may_step.clear()
    begin(first, A)
    begin(second, B)
    await asyncio.to_thread(verifier.in_step.wait, 20)
    first.close(A)
    assert runner.num_sessions == 1
    verifier.may_step.set()
    assert (await next_result(second)).session_id == B
    ask(second, B, 1, 13)
    assert (await next_result(second)).round == 1
    assert verifier.num_sessions == 1, "its memory is free again after one step"
    while not first._reports.empty():
        report = await first.next_report()
        assert not report.results


async def test_a_router_cannot_close_another_routers_session(runner: VerifierRunner) -> None:
    first, second = runner.connect(RouterId("r1")), runner.connect(RouterId("r2"))
    begin(first, A)
    await next_result(first)
    second.close(A)
    ask(first, A, 1, 6)
    assert (await next_result(first)).round == 1


async def test_the_event_loop_is_free_while_a_forward_runs(runner: VerifierRunner, verifier: GatedVerifier) -> None:
    verifier.may_step.clear()
    connection = runner.connect(RouterId("r1"))
    begin(connection, A)
    await asyncio.to_thread(verifier.in_step.wait, 20)
    for _ in range(100):
        await asyncio.sleep(0)
    assert runner.alive
    verifier.may_step.set()
    await next_result(connection)


async def test_no_steps_are_run_while_nothing_can_be_done(runner: VerifierRunner, verifier: GatedVerifier) -> None:
    """B waits for blocks that A, the older, holds between its rounds: spinning would burn a core and flood the routers."""
    connection = runner.connect(RouterId("r1"))
    taken = verifier._model.pool.take(verifier._model.pool.num_blocks - 1)
    begin(connection, A)
    await next_result(connection)
    begin(connection, B)
    await asyncio.sleep(0.2)
    assert verifier.num_steps < 10
    verifier._model.pool.give_back(taken)
    ask(connection, A, 1, 6)
    answered: set[SessionId] = set()
    while answered != {A, B}:
        report = await asyncio.wait_for(connection.next_report(), 20)
        answered |= {result.session_id for result in report.results}


async def test_stopping_tells_everyone_who_waits_and_everyone_who_asks_later(runner: VerifierRunner) -> None:
    connection = runner.connect(RouterId("r1"))
    waiting = asyncio.create_task(connection.next_report())
    await asyncio.sleep(0)
    await runner.stop()
    assert not runner.alive
    for reading in (waiting, connection.next_report(), connection.next_report()):
        with pytest.raises(TargetUnavailable):
            await asyncio.wait_for(reading, 5)


async def test_a_router_that_connects_after_the_end_is_told_at_once(runner: VerifierRunner) -> None:
    await runner.stop()
    with pytest.raises(TargetUnavailable):
        await asyncio.wait_for(runner.connect(RouterId("late")).next_report(), 5)


async def test_an_error_of_the_step_loop_itself_reaches_the_routers(
    runner: VerifierRunner, verifier: GatedVerifier, caplog: pytest.LogCaptureFixture
) -> None:
    connection = runner.connect(RouterId("r1"))
    verifier.error = RuntimeError("a bug")
    begin(connection, A)
    with pytest.raises(TargetUnavailable):
        await asyncio.wait_for(connection.next_report(), 20)
    await asyncio.sleep(0)
    assert not runner.alive
    assert "the target's step loop ended" in caplog.text


async def test_sessions_that_come_and_go_are_not_told_as_a_step(runner: VerifierRunner, verifier: GatedVerifier) -> None:
    """A router would take it for the step that it is waiting for."""
    connection = runner.connect(RouterId("one"))
    begin(connection, A)
    begin(connection, B, submit=False)
    assert (await asyncio.wait_for(connection.next_report(), 20)).batch_rows > 0
    steps = verifier.num_steps
    connection.close(B)
    while verifier.num_steps == steps:
        await asyncio.sleep(0.01)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(connection.next_report(), 0.2)


async def test_what_a_session_that_left_gave_back_shows_in_the_last_report(runner: VerifierRunner) -> None:
    connection = runner.connect(RouterId("one"))
    begin(connection, A)
    await asyncio.wait_for(connection.next_report(), 20)
    assert runner.last_report.free_kv_blocks < runner.last_report.total_kv_blocks
    connection.close(A)
    async with asyncio.timeout(20):
        while runner.last_report.free_kv_blocks < runner.last_report.total_kv_blocks:
            await asyncio.sleep(0.01)
