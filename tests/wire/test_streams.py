"""One end of a stream: bytes that are no message, heartbeats, silence, order, and nothing left behind at its end."""

import asyncio
import gc
import pickle
import weakref

import grpc
import pytest

from dspark.messages import StepReport
from dspark.types import ReplicaId, RouterId, SessionId
from dspark.wire.pb import session_pb2, verification_pb2
from dspark.wire.server import VerificationService
from dspark.wire.streams import MAX_MESSAGE_BYTES
from tests.wire.raw_talk import A, drafts, expect_round, open_sessions
from tests.wire.replicas import CARD, ToyDrafter, ToyHost, ToyVerifier, draft_service, raw_router, serving, target_service, until


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
            assert ([view() for view in views], service.holds(A)) == ([None], False)
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
        await until(lambda: drafter.cancelled == 1 and not tasks_of_streams())
        assert (drafter.cancelled, tasks_of_streams()) == (1, [])


def tasks_of_streams() -> list[asyncio.Task[object]]:
    return [task for task in asyncio.all_tasks() if "dspark" in repr(task) and "test" not in repr(task)]


async def test_reports_keep_their_order() -> None:
    host = ToyHost()
    async with serving(target_service(host)) as address, raw_router(address, "Verification") as router:
        await router.greet()
        await until(lambda: host.views)
        for rows in range(50):
            host.views[0].emit(StepReport(batch_rows=rows))
        assert [(await router.hear()).report.batch_rows for _ in range(50)] == list(range(50))
