"""A real server on the loopback, and routers that send rubbish: only the one who sends it is told."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from dspark.errors import DraftUnavailable, OutOfBlocks, ReplicaUnavailable, TargetUnavailable
from dspark.types import SessionId
from dspark.wire import codec, tensors
from dspark.wire.pb import session_pb2
from dspark.wire.server import MAX_BATCHES_IN_FLIGHT, start_server
from tests.wire.raw_talk import A, B, drafts, expect_round, open_sessions, rounds
from tests.wire.replicas import ToyDrafter, ToyHost, draft_service, failed, law, opening, raw_router, serving, target_service, until


async def test_a_malformed_message_fails_its_session_only() -> None:
    async with serving(target_service(ToyHost())) as address, raw_router(address, "Verification") as router:
        await router.greet()
        await open_sessions(router, "a")
        bad_open = codec.session_open_to_pb(opening("b"))
        bad_open.sampling.temperature = float("nan")
        await router.say(open=bad_open)
        assert "temperature" in failed("b", (await router.hear()).report.failures).message
        batch = rounds("a", "b")
        batch.requests[1].tree.token_ids.data = b"\xff" * 8
        await router.say(verify=batch)
        reports = [(await router.hear()).report for _ in range(2)]
        failure = failed("b", [failure for report in reports for failure in report.failures])
        assert (failure.error, failure.message) == ("InvalidMessage", "tree.token_ids outside 0..499")
        await expect_round(router, "a")


async def test_a_malformed_second_open_leaves_the_session_as_it_was() -> None:
    async with serving(target_service(ToyHost())) as address, raw_router(address, "Verification") as router:
        await router.greet()
        await open_sessions(router, "a")
        await router.say(open=session_pb2.SessionOpen(session_id="a"))
        assert failed("a", (await router.hear()).report.failures).error == "InvalidMessage"
        await expect_round(router, "a")


async def test_messages_that_name_no_session_are_skipped_and_do_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(target_service(ToyHost())) as address, raw_router(address, "Verification") as router:
        await router.greet()
        await open_sessions(router, "a")
        for _ in range(20):
            await router.say(open=session_pb2.SessionOpen(session_id="no id\n"))
            await router.say()
            await router.say(hello=session_pb2.Hello())
            await router.say(close=session_pb2.SessionClose(session_id="/"))
        await expect_round(router, "a")
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert 1 <= len(warnings) <= 5
    assert all("\n" not in record.getMessage() for record in warnings)


async def test_an_open_or_a_round_that_the_replica_refuses_fails_that_session() -> None:
    host, ended = ToyHost(), list[SessionId]()
    service = target_service(host, ended)
    async with serving(service) as address, raw_router(address, "Verification") as router:
        await router.greet()
        await until(lambda: host.views)
        host.views[0].refuse_open = OutOfBlocks("no free block")
        await open_sessions(router, "b")
        failure = failed("b", (await router.hear()).report.failures)
        assert (failure.error, failure.message) == ("OutOfBlocks", "no free block")
        assert ended == [B]
        host.views[0].refuse_open, host.views[0].refuse_submit = None, RuntimeError("/secret/path")
        await open_sessions(router, "a")
        await router.say(verify=rounds("a"))
        failure = failed("a", (await router.hear()).report.failures)
        assert (failure.error, failure.message) == ("DSparkError", "internal error")
        host.views[0].refuse_submit = None
        await expect_round(router, "a")


async def test_a_failure_tells_the_cache_state_of_the_last_step() -> None:
    async with serving(target_service(ToyHost())) as address, raw_router(address, "Verification") as router:
        await router.greet()
        await open_sessions(router, "a")
        await expect_round(router, "a")
        await router.say(verify=rounds("nobody"))
        report = (await router.hear()).report
        assert (report.batch_rows, report.free_kv_blocks, report.total_kv_blocks) == (0, 60, 64)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (TargetUnavailable("the target has stopped"), grpc.StatusCode.UNAVAILABLE, "the target has stopped"),
        (RuntimeError("/secret/path"), grpc.StatusCode.INTERNAL, "internal error"),
    ],
)
async def test_a_target_that_is_gone_ends_the_stream(error: Exception, code: grpc.StatusCode, text: str) -> None:
    host, ended = ToyHost(), list[SessionId]()
    async with serving(target_service(host, ended)) as address, raw_router(address, "Verification") as router:
        await router.greet()
        await open_sessions(router, "a")
        await until(lambda: host.views and host.views[0].sessions)
        host.views[0].emit(error)
        assert await router.status() == (code, text)
        assert ended == [A]


async def test_drafts_are_answered_as_they_become_ready() -> None:
    drafter = ToyDrafter()
    drafter.gates["a"] = asyncio.Event()
    async with serving(draft_service(drafter)) as address, raw_router(address, "Drafting") as router:
        await router.greet()
        await open_sessions(router, "a", "b")
        await router.say(draft=drafts(1, "a"))
        await router.say(draft=drafts(2, "b"))
        second = (await router.hear()).report
        drafter.gates["a"].set()
        first = (await router.hear()).report
        assert [(report.batch_id, report.results[0].session_id) for report in (first, second)] == [(1, "a"), (2, "b")]
        assert tensors.ints_from_pb(first.results[0].tree.token_ids, "x").tolist() == [law(5), law(6), law(7)]


async def test_a_draft_for_a_bad_or_unknown_session_fails_alone() -> None:
    async with serving(draft_service(ToyDrafter())) as address, raw_router(address, "Drafting") as router:
        await router.greet()
        await open_sessions(router, "a", "b")
        batch = drafts(1, "a", "nobody", "b")
        batch.requests[2].new_token_ids.shape[0] = -3
        await router.say(draft=batch)
        report = (await router.hear()).report
        assert [result.session_id for result in report.results] == ["a"]
        assert failed("nobody", report.failures).error == "UnknownSession"
        assert failed("b", report.failures).error == "InvalidMessage"


async def test_a_drafter_that_fails_a_batch_goes_on_with_the_next() -> None:
    drafter = ToyDrafter()
    async with serving(draft_service(drafter)) as address, raw_router(address, "Drafting") as router:
        await router.greet()
        await open_sessions(router, "a")
        drafter.refuse = ValueError("/secret/path")
        await router.say(draft=drafts(1, "a"))
        failure = failed("a", (await router.hear()).report.failures)
        assert (failure.error, failure.message) == ("DSparkError", "internal error")
        drafter.refuse = None
        await router.say(draft=drafts(2, "a"))
        assert len((await router.hear()).report.results) == 1


async def test_a_drafter_that_is_gone_ends_the_stream() -> None:
    drafter, ended = ToyDrafter(), list[SessionId]()
    async with serving(draft_service(drafter, ended)) as address, raw_router(address, "Drafting") as router:
        await router.greet()
        await open_sessions(router, "a")
        drafter.refuse = DraftUnavailable("the drafter has stopped")
        await router.say(draft=drafts(1, "a"))
        assert await router.status() == (grpc.StatusCode.UNAVAILABLE, "the drafter has stopped")
        await until(lambda: ended == [A])


async def test_there_is_a_limit_to_drafts_in_flight() -> None:
    drafter = ToyDrafter()
    drafter.gates["a"] = asyncio.Event()
    async with serving(draft_service(drafter)) as address, raw_router(address, "Drafting") as router:
        await router.greet()
        await open_sessions(router, "a")
        for batch_id in range(1, MAX_BATCHES_IN_FLIGHT + 2):
            await router.say(draft=drafts(batch_id, "a"))
        report = (await router.hear()).report
        assert (report.batch_id, failed("a", report.failures).error) == (MAX_BATCHES_IN_FLIGHT + 1, "Overloaded")
        drafter.gates["a"].set()
        answered = [(await router.hear()).report.batch_id for _ in range(MAX_BATCHES_IN_FLIGHT)]
        assert answered == list(range(1, MAX_BATCHES_IN_FLIGHT + 1))


async def test_an_empty_batch_is_answered() -> None:
    async with serving(draft_service(ToyDrafter())) as address, raw_router(address, "Drafting") as router:
        await router.greet()
        await router.say(draft=drafts(7))
        assert (await router.hear()).report.batch_id == 7


async def test_a_port_in_use_is_named() -> None:
    server, port = await start_server([])
    with pytest.raises(ReplicaUnavailable, match=str(port)):
        await start_server([], port=port)
    await server.stop(None)


async def test_forged_messages_at_once_harm_nobody() -> None:
    """64 routers send every kind of rubbish while one goes on with its session."""
    batch = rounds("a")
    batch.requests[0].tree.parents.shape[0] = 2**62

    async def forge(address: str, index: int) -> Sequence[Any]:
        async with raw_router(address, "Verification") as router:
            await router.greet(f"forger-{index}")
            await router.say(verify=batch)
            return (await router.hear()).report.failures

    async with serving(target_service(ToyHost())) as address, raw_router(address, "Verification") as honest:
        await honest.greet("honest")
        await open_sessions(honest, "a")
        forgers = [asyncio.create_task(forge(address, index)) for index in range(64)]
        while not all(task.done() for task in forgers):
            await expect_round(honest, "a")
        assert {failed("a", await task).error for task in forgers} == {"InvalidMessage"}
