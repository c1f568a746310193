"""A real server on the loopback, and routers that break every rule: only the one who breaks it is told."""

import asyncio
import gc
import logging
import pickle
import weakref
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from dspark.errors import DraftUnavailable, OutOfBlocks, ReplicaUnavailable, TargetUnavailable
from dspark.messages import DraftRequest, StepReport, VerifyRequest
from dspark.types import ReplicaId, RouterId, SessionId
from dspark.wire import codec, handshake, tensors
from dspark.wire.pb import drafting_pb2, session_pb2, verification_pb2
from dspark.wire.server import MAX_BATCHES_IN_FLIGHT, VerificationService, start_server
from dspark.wire.streams import MAX_MESSAGE_BYTES
from tests.wire.replicas import (
    CARD,
    RawRouter,
    ToyDrafter,
    ToyHost,
    ToyVerifier,
    chain,
    draft_service,
    failed,
    law,
    opening,
    raw_router,
    serving,
    target_service,
    until,
)

A, B = SessionId("a"), SessionId("b")


def rounds(*session_ids: str, base_length: int = 5) -> verification_pb2.VerifyBatch:
    return codec.verify_batch_to_pb([VerifyRequest(SessionId(name), 0, base_length, chain(base_length, 2)) for name in session_ids])


def drafts(batch_id: int, *session_ids: str) -> drafting_pb2.DraftBatch:
    return codec.draft_batch_to_pb(batch_id, [DraftRequest(SessionId(name), 5, (), 3, 3) for name in session_ids])


async def open_sessions(router: RawRouter, *session_ids: str) -> None:
    for name in session_ids:
        await router.say(open=codec.session_open_to_pb(opening(name)))


async def expect_round(router: RawRouter, session_id: str) -> None:
    """The session still works."""
    await router.say(verify=rounds(session_id))
    report = (await router.hear()).report
    assert [result.session_id for result in report.results] == [session_id]
    assert tensors.ints_from_pb(report.results[0].token_ids, "x").tolist() == [law(5), law(6), law(7)]


async def test_a_router_is_welcomed_with_the_card() -> None:
    async with serving(target_service(ToyHost())) as address, raw_router(address, "Verification") as router:
        card, replica_id = handshake.welcome_from_pb(await router.greet(model_fingerprint="m1", tokenizer_fingerprint="t1"))
        assert (card, replica_id) == (CARD, "app#Target#1")


@pytest.mark.parametrize("service", ["Verification", "Drafting"])
@pytest.mark.parametrize(
    ("change", "both"),
    [
        ({"protocol": "dspark.v2"}, ("dspark.v2", "dspark.v1")),
        ({"model_fingerprint": "m9"}, ("m9", "m1")),
        ({"tokenizer_fingerprint": "t9"}, ("t9", "t1")),
    ],
)
async def test_a_mismatch_is_refused_with_both_values_and_harms_nobody(service: str, change: dict[str, str], both: tuple[str, str]) -> None:
    host = ToyHost()
    async with serving(target_service(host), draft_service(ToyDrafter())) as address, raw_router(address, "Verification") as neighbour:
        await neighbour.greet()
        await open_sessions(neighbour, "a")
        async with raw_router(address, service) as router:
            await router.say(hello=session_pb2.Hello(**({"protocol": "dspark.v1", "router_id": "r"} | change)))
            code, text = await router.status()
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert all(value in text for value in both)
        assert len(host.views) == 1
        await expect_round(neighbour, "a")


@pytest.mark.parametrize(
    "first",
    [
        {"heartbeat": session_pb2.Heartbeat()},
        {"close": session_pb2.SessionClose(session_id="a")},
        {"hello": session_pb2.Hello(protocol="dspark.v1", router_id="")},
        {"hello": session_pb2.Hello(protocol="dspark.v1", router_id="a\nb")},
        {},
    ],
)
async def test_a_stream_without_a_proper_hello_is_refused(first: dict[str, Any]) -> None:
    async with serving(target_service(ToyHost())) as address, raw_router(address, "Verification") as router:
        await router.say(**first)
        assert (await router.status())[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_that_never_says_hello_is_ended() -> None:
    async with serving(target_service(ToyHost(), silence_s=0.2)) as address, raw_router(address, "Verification") as router:
        assert (await router.status())[0] is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_results_go_back_to_the_router_that_asked() -> None:
    host = ToyHost()
    async with (
        serving(target_service(host)) as address,
        raw_router(address, "Verification") as one,
        raw_router(address, "Verification") as two,
    ):
        await one.greet("one")
        await two.greet("two")
        await open_sessions(one, "a")
        await open_sessions(two, "b")
        await expect_round(two, "b")
        await expect_round(one, "a")
        assert host.routers == ["one", "two"]


async def test_a_session_of_another_stream_and_an_unknown_one_are_refused_alone() -> None:
    host = ToyHost()
    async with (
        serving(target_service(host)) as address,
        raw_router(address, "Verification") as one,
        raw_router(address, "Verification") as two,
    ):
        await one.greet("one")
        await two.greet("two")
        await open_sessions(one, "a")
        await open_sessions(two, "b")
        await two.say(close=session_pb2.SessionClose(session_id="a"))
        await two.say(verify=rounds("a", "b", "nobody"))
        reports = [(await two.hear()).report for _ in range(2)]
        failures = [failure for report in reports for failure in report.failures]
        assert {failed(name, failures).error for name in ("a", "nobody")} == {"UnknownSession"}
        assert [result.session_id for report in reports for result in report.results] == ["b"]
        await expect_round(one, "a")


async def test_another_routers_session_cannot_be_opened_again() -> None:
    host, ended = ToyHost(), list[SessionId]()
    async with serving(target_service(host, ended)) as address, raw_router(address, "Verification") as one:
        async with raw_router(address, "Verification") as two:
            await one.greet("one")
            await two.greet("two")
            await open_sessions(one, "a")
            await expect_round(one, "a")
            await open_sessions(two, "a")
            assert failed("a", (await two.hear()).report.failures).error == "InvalidMessage"
        await until(lambda: len(host.views) == 2)
        await expect_round(one, "a")
        assert ended == []


async def test_a_router_that_comes_back_takes_its_sessions_with_it() -> None:
    host, ended = ToyHost(), list[SessionId]()
    service = target_service(host, ended)
    async with serving(service) as address, raw_router(address, "Verification") as old:
        await old.greet("one")
        await open_sessions(old, "a", "b")
        await expect_round(old, "a")
        async with raw_router(address, "Verification") as new:
            await new.greet("one")
            await open_sessions(new, "a")
            await expect_round(new, "a")
            assert host.views[0].closed == [A]
            await old.close()
            await until(lambda: ended == [B])
            await expect_round(new, "a")
        await until(lambda: ended == [B, A])
        assert not service.holds(A)


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


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff garbage", pickle.dumps({"a": 1}), b"\x12\x05\x0a\x03\xff\xfe\xfd", b"\x12\x7f\x0a"], ids=repr
)
async def test_bytes_that_are_no_message_end_the_stream_without_a_leak(data: bytes) -> None:
    ended: list[SessionId] = []
    async with serving(target_service(ToyHost(), ended)) as address, raw_router(address, "Verification") as neighbour:
        await neighbour.greet("neighbour")
        await open_sessions(neighbour, "b")
        async with raw_router(address, "Verification") as router:
            await router.greet()
            await open_sessions(router, "a")
            await router.call.write(data)
            assert await router.status() == (grpc.StatusCode.INVALID_ARGUMENT, "the bytes are no VerificationRequest")
        await until(lambda: ended == [A])
        await expect_round(neighbour, "b")


async def test_a_message_over_the_limit_is_refused() -> None:
    async with serving(target_service(ToyHost())) as address, raw_router(address, "Verification") as router:
        await router.greet()
        await router.call.write(bytes(MAX_MESSAGE_BYTES + 1))
        assert (await router.status())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


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


async def test_there_is_a_limit_to_sessions() -> None:
    async with serving(target_service(ToyHost(), max_sessions=1)) as address, raw_router(address, "Verification") as router:
        await router.greet()
        await open_sessions(router, "a", "b")
        assert failed("b", (await router.hear()).report.failures).error == "Overloaded"
        await router.say(close=session_pb2.SessionClose(session_id="a"))
        await open_sessions(router, "b")
        await expect_round(router, "b")


async def test_a_closed_session_ends_once() -> None:
    host, ended = ToyHost(), list[SessionId]()
    service = target_service(host, ended)
    async with serving(service) as address, raw_router(address, "Verification") as router:
        await router.greet()
        await open_sessions(router, "a", "b")
        await router.say(close=session_pb2.SessionClose(session_id="a"))
        await until(lambda: ended == [A])
        assert (host.views[0].closed, service.holds(A), service.holds(B)) == ([A], False, True)
    await until(lambda: ended == [A, B])


async def leave_by_cancelling(router: RawRouter) -> None:
    router.call.cancel()


async def leave_by_finishing(router: RawRouter) -> None:
    await router.call.done_writing()


async def leave_by_silence(router: RawRouter) -> None:
    """The raw router sends no heartbeats."""


@pytest.mark.parametrize("leave", [leave_by_cancelling, leave_by_finishing, leave_by_silence])
async def test_every_session_ends_with_its_stream(leave: Any) -> None:
    host, drafter, ended = ToyHost(), ToyDrafter(), list[SessionId]()
    service = target_service(host, ended, silence_s=0.4)
    async with serving(service, draft_service(drafter, ended)) as address, raw_router(address, "Verification") as router:
        await router.greet()
        await open_sessions(router, "a", "b")
        await until(lambda: host.views and len(host.views[0].sessions) == 2)
        await leave(router)
        await until(lambda: sorted(ended) == [A, B], timeout_s=1.0)
        assert sorted(host.views[0].closed) == [A, B]
        assert not service.holds(A)


async def test_a_silent_router_is_told_why_and_a_talking_one_stays() -> None:
    async with (
        serving(target_service(ToyHost(), silence_s=0.3)) as address,
        raw_router(address, "Verification") as talking,
        raw_router(address, "Verification") as silent,
    ):
        await talking.greet("talking")
        await silent.greet("silent")
        await open_sessions(talking, "a")
        for _ in range(6):
            await asyncio.sleep(0.1)
            await talking.say(heartbeat=session_pb2.Heartbeat())
        code, text = await silent.status()
        assert (code, text) == (grpc.StatusCode.DEADLINE_EXCEEDED, "the peer was silent for 0.3 s")
        await expect_round(talking, "a")


async def test_an_idle_server_sends_heartbeats() -> None:
    async with serving(target_service(ToyHost(), silence_s=0.4)) as address, raw_router(address, "Verification") as router:
        await router.greet()
        async with asyncio.timeout(0.3):
            response = verification_pb2.VerificationResponse.FromString(await router.call.read())
        assert response.HasField("heartbeat")


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


async def test_a_close_or_a_callback_that_raises_keeps_no_other_session_alive() -> None:
    closed: list[SessionId] = []

    class Brittle(ToyVerifier):
        def close(self, session_id: SessionId) -> None:
            closed.append(session_id)
            raise RuntimeError("cannot close")

    class BrittleHost:
        def connect(self, router_id: RouterId) -> Brittle:
            return Brittle()

    told: list[SessionId] = []

    def tell(session_id: SessionId) -> None:
        told.append(session_id)
        raise RuntimeError("cannot hear")

    service = VerificationService(BrittleHost(), CARD, ReplicaId("r"), silence_timeout_s=2, on_session_end=tell)
    async with serving(service) as address, raw_router(address, "Verification") as router:
        await router.greet()
        await open_sessions(router, "a", "b")
        await until(lambda: service.holds(B))
        await router.close()
        await until(lambda: len(told) == 2)
        assert sorted(closed) == sorted(told) == [A, B]


@pytest.mark.parametrize("rubbish", [None, b"\xff\xff\xff"])
async def test_an_ended_stream_lets_go_of_its_view_without_the_garbage_collector(rubbish: bytes | None) -> None:
    views: list[weakref.ref[ToyVerifier]] = []

    class ForgettingHost:
        def connect(self, router_id: RouterId) -> ToyVerifier:
            view = ToyVerifier()
            views.append(weakref.ref(view))
            return view

    service = VerificationService(ForgettingHost(), CARD, ReplicaId("r"), silence_timeout_s=2)
    async with serving(service) as address, raw_router(address, "Verification") as router:
        await router.greet()
        await open_sessions(router, "a")
        await until(lambda: service.holds(A))
        gc.disable()
        try:
            await (router.close() if rubbish is None else router.call.write(rubbish))
            await until(lambda: views[0]() is None)
        finally:
            gc.enable()


async def test_no_task_outlives_its_stream() -> None:
    drafter = ToyDrafter()
    drafter.gates["a"] = asyncio.Event()
    async with serving(target_service(ToyHost()), draft_service(drafter)) as address:
        async with raw_router(address, "Verification") as one, raw_router(address, "Drafting") as two:
            await one.greet()
            await two.greet()
            await open_sessions(two, "a")
            before = asyncio.all_tasks()
            await two.say(draft=drafts(1, "a"))
            await until(lambda: asyncio.all_tasks() - before)
        await until(lambda: drafter.cancelled == 1)
        await until(lambda: not [task for task in asyncio.all_tasks() if "dspark" in repr(task) and "test" not in repr(task)])


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


async def test_reports_keep_their_order() -> None:
    host = ToyHost()
    async with serving(target_service(host)) as address, raw_router(address, "Verification") as router:
        await router.greet()
        await until(lambda: host.views)
        for rows in range(50):
            host.views[0].emit(StepReport(batch_rows=rows))
        assert [(await router.hear()).report.batch_rows for _ in range(50)] == list(range(50))


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
