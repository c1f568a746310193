"""Who is welcomed, who owns which session, and when a session ends: on a real server on the loopback, with routers that break the rules."""

from typing import Any

import grpc
import pytest

from dspark.types import ReplicaId, RouterId, SessionId
from dspark.wire import handshake
from dspark.wire.pb import session_pb2
from dspark.wire.server import VerificationService
from tests.wire.raw_talk import A, B, expect_round, open_sessions, rounds
from tests.wire.replicas import (
    CARD,
    RawRouter,
    ToyDrafter,
    ToyHost,
    ToyVerifier,
    draft_service,
    failed,
    raw_router,
    serving,
    target_service,
    until,
)


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
