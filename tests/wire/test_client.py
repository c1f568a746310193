"""RemoteVerifier and RemoteDrafter against a real server on the loopback, a server that lies, and a process that is stopped."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from dspark.errors import DraftUnavailable, FingerprintMismatch, InvalidMessage, TargetUnavailable
from dspark.messages import DraftRequest, StepReport, VerifyRequest
from dspark.types import ReplicaId, RouterId, SessionId
from dspark.wire import codec, handshake, tensors
from dspark.wire.client import RemoteDrafter, RemoteReplica, RemoteVerifier
from dspark.wire.pb import drafting_pb2, session_pb2, verification_pb2
from dspark.wire.server import start_server
from tests.wire import replicas
from tests.wire.replicas import (
    CARD,
    REPLICA,
    ToyDrafter,
    ToyHost,
    chain,
    draft_service,
    failed,
    law,
    opening,
    serving,
    target_service,
    until,
)

A, B = SessionId("a"), SessionId("b")
ROUTER = RouterId("app#Router#1")


@asynccontextmanager
async def connected(kind: Any, address: str, silence_s: float = replicas.SILENCE_S, **options: str) -> AsyncIterator[Any]:
    replica = await kind.connect(address, ROUTER, silence_timeout_s=silence_s, connect_timeout_s=5.0, **options)
    try:
        yield replica
    finally:
        await replica.disconnect()


def ask(*session_ids: str, depth: int = 3, max_nodes: int = 8) -> list[DraftRequest]:
    return [DraftRequest(SessionId(name), 5, (), depth, max_nodes) for name in session_ids]


async def soon(awaitable: Any) -> Any:
    async with asyncio.timeout(5):
        return await awaitable


async def test_a_session_lives_on_a_remote_target() -> None:
    host, ended = ToyHost(), list[SessionId]()
    async with serving(target_service(host, ended)) as address, connected(RemoteVerifier, address) as verifier:
        assert (verifier.card, verifier.replica_id, verifier.lost()) == (CARD, REPLICA, False)
        verifier.open(opening("a", epoch=3))
        length = 5
        for number, wrong_from in enumerate([None, 0, 2, 1]):
            verifier.submit([VerifyRequest(A, number, length, chain(length, 4, wrong_from))])
            report = await soon(verifier.next_report())
            (result,) = report.results
            accepted = 4 if wrong_from is None else wrong_from
            assert (result.session_id, result.round, result.base_length) == (A, number, length)
            assert result.accepted == tuple(range(accepted))
            assert result.token_ids == tuple(law(length + step) for step in range(accepted + 1))
            length += accepted + 1
        assert (report.verify_ms, report.batch_rows, report.free_kv_blocks, report.total_kv_blocks) == (1.5, 1, 60, 64)
        assert host.views[0].sessions[A] == opening("a", epoch=3)
        verifier.close(A)
        await until(lambda: ended == [A])


async def test_sessions_live_on_a_remote_drafter() -> None:
    drafter = ToyDrafter()
    async with serving(draft_service(drafter)) as address, connected(RemoteDrafter, address) as remote:
        remote.open(opening("a"))
        remote.open(opening("b"))
        report = await soon(remote.draft(ask("a", "b", "nobody")))
        assert [(result.session_id, result.base_length) for result in report.results] == [(A, 5), (B, 5)]
        assert report.results[0].tree.token_ids.tolist() == [law(5), law(6), law(7)]
        assert failed("nobody", report.failures).error == "UnknownSession"
        assert report.draft_ms == 0.5
        remote.close(A)
        await until(lambda: drafter.closed == [A])


@pytest.mark.parametrize("kind", [RemoteVerifier, RemoteDrafter])
@pytest.mark.parametrize("option", ["model_fingerprint", "tokenizer_fingerprint"])
async def test_a_router_that_expects_another_model_is_told_both(kind: Any, option: str) -> None:
    async with serving(target_service(ToyHost()), draft_service(ToyDrafter())) as address:
        with pytest.raises(FingerprintMismatch, match=r"the router expects 'other', the replica has '[mt]1'"):
            await kind.connect(address, ROUTER, silence_timeout_s=1, connect_timeout_s=5, **{option: "other"})
        async with connected(kind, address, model_fingerprint="m1", tokenizer_fingerprint="t1") as replica:
            assert not replica.lost()


@pytest.mark.parametrize(("kind", "error"), [(RemoteVerifier, TargetUnavailable), (RemoteDrafter, DraftUnavailable)])
async def test_nobody_at_the_address_is_unavailable(kind: Any, error: type[Exception]) -> None:
    server, port = await start_server([])
    with pytest.raises(error, match="UNIMPLEMENTED"):
        await kind.connect(f"127.0.0.1:{port}", ROUTER, silence_timeout_s=1, connect_timeout_s=5)
    await server.stop(None)
    with pytest.raises(error) as caught:
        await kind.connect(f"127.0.0.1:{port}", ROUTER, silence_timeout_s=1, connect_timeout_s=5)
    assert "127.0.0.1" not in str(caught.value)


async def test_a_server_that_says_nothing_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(TargetUnavailable, match="in time"):
            await RemoteVerifier.connect(address, ROUTER, silence_timeout_s=1, connect_timeout_s=0.3)


class LyingService:
    """Welcomes, then says what the test wants for each message it gets."""

    def __init__(self, service: str, answer: Callable[[Any], list[Any]], welcome: session_pb2.Welcome | None = None) -> None:
        self._name = f"dspark.v1.{service}"
        pb: Any = drafting_pb2 if service == "Drafting" else verification_pb2
        self._request, self._response = getattr(pb, f"{service}Request"), getattr(pb, f"{service}Response")
        self._answer = answer
        self._welcome = welcome or handshake.welcome_to_pb(CARD, REPLICA)

    def add_to(self, server: grpc.aio.Server) -> None:
        method: Any = grpc.stream_stream_rpc_method_handler(self._serve)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(self._name, {"Connect": method}),))

    async def _serve(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for data in requests:
            request = self._request.FromString(data)
            if request.HasField("hello"):
                yield self._response(welcome=self._welcome).SerializeToString()
            for answer in self._answer(request):
                yield answer if isinstance(answer, bytes) else self._response(report=answer).SerializeToString()


async def test_a_welcome_of_another_model_is_refused_by_the_router_too() -> None:
    for welcome, error in (
        (handshake.welcome_to_pb(CARD, REPLICA), FingerprintMismatch),
        (session_pb2.Welcome(protocol=handshake.PROTOCOL_VERSION), InvalidMessage),
    ):
        async with serving(LyingService("Verification", lambda _: [], welcome)) as address:
            with pytest.raises(error):
                await RemoteVerifier.connect(address, ROUTER, model_fingerprint="m2", silence_timeout_s=1, connect_timeout_s=5)


async def test_a_result_that_does_not_fit_fails_its_session_only() -> None:
    good = verification_pb2.VerifyResult(session_id="a", base_length=5, accepted=tensors.ints_to_pb(()), token_ids=tensors.ints_to_pb((7,)))
    bad = verification_pb2.VerifyResult()
    bad.CopyFrom(good)
    bad.session_id = "b"
    bad.token_ids.CopyFrom(tensors.ints_to_pb((CARD.vocab_size,)))
    report = verification_pb2.StepReport(results=[bad, good])

    def answer(request: Any) -> list[Any]:
        return [report] if request.HasField("verify") else []

    async with serving(LyingService("Verification", answer)) as address, connected(RemoteVerifier, address) as verifier:
        verifier.submit([VerifyRequest(A, 0, 5, chain(5, 1))])
        received = await soon(verifier.next_report())
        assert [result.token_ids for result in received.results] == [(7,)]
        assert failed("b", received.failures).error == "InvalidMessage"


@pytest.mark.parametrize(
    "rubbish", [b"\xff\xff\xff", verification_pb2.StepReport(verify_ms=float("nan")), verification_pb2.StepReport(free_kv_blocks=1)]
)
async def test_a_target_that_sends_rubbish_is_lost(rubbish: Any) -> None:
    def answer(request: Any) -> list[Any]:
        return [rubbish] if request.HasField("verify") else []

    async with serving(LyingService("Verification", answer)) as address, connected(RemoteVerifier, address) as verifier:
        verifier.submit([VerifyRequest(A, 0, 5, chain(5, 1))])
        with pytest.raises(TargetUnavailable):
            await soon(verifier.next_report())
        assert verifier.lost()


async def test_a_lying_drafter_gets_one_entry_for_each_request_into_the_report() -> None:
    """Too many nodes, a session left out, one that nobody asked for, and one twice."""

    def answer(request: Any) -> list[Any]:
        if not request.HasField("draft"):
            return []
        results = [
            drafting_pb2.DraftResult(session_id=name, base_length=5, tree=codec._tree_to_pb(chain(5, depth)))
            for name, depth in (("a", 2), ("a", 2), ("stranger", 1), ("b", 9))
        ]
        return [drafting_pb2.DraftReport(batch_id=request.draft.batch_id, results=results)]

    async with serving(LyingService("Drafting", answer)) as address, connected(RemoteDrafter, address) as drafter:
        report = await soon(drafter.draft(ask("a", "b", "c")))
        assert [result.session_id for result in report.results] == [A]
        assert failed("b", report.failures).error == "InvalidMessage"
        assert failed("c", report.failures).error == "ProtocolError"
        assert len(report.failures) == 2


async def test_answers_of_many_drafts_find_their_callers() -> None:
    drafter = ToyDrafter()
    async with serving(draft_service(drafter)) as address, connected(RemoteDrafter, address) as remote:
        for index in range(20):
            remote.open(opening(f"s{index}"))
        drafter.gates["s3"] = asyncio.Event()
        calls = [asyncio.create_task(remote.draft(ask(f"s{index}", depth=index % 5))) for index in range(20)]
        await until(lambda: sum(call.done() for call in calls) == 19)
        drafter.gates["s3"].set()
        reports = [await soon(call) for call in calls]
        assert [report.results[0].session_id for report in reports] == [f"s{index}" for index in range(20)]
        assert [len(report.results[0].tree) for report in reports] == [index % 5 for index in range(20)]


async def test_the_answer_to_a_call_that_was_given_up_is_dropped() -> None:
    drafter = ToyDrafter()
    drafter.gates["a"] = asyncio.Event()
    async with serving(draft_service(drafter)) as address, connected(RemoteDrafter, address) as remote:
        remote.open(opening("a"))
        remote.open(opening("b"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await remote.draft(ask("a"))
        drafter.gates.pop("a").set()
        assert len((await soon(remote.draft(ask("b")))).results) == 1
        assert len((await soon(remote.draft(ask("a")))).results) == 1
        assert not remote.lost()


async def test_a_server_that_stops_is_noticed_at_once() -> None:
    host, drafter = ToyHost(), ToyDrafter()
    drafter.gates["a"] = asyncio.Event()
    server, port = await start_server([target_service(host), draft_service(drafter)])
    address = f"127.0.0.1:{port}"
    async with connected(RemoteVerifier, address) as verifier, connected(RemoteDrafter, address) as remote:
        remote.open(opening("a"))
        waiting = [asyncio.create_task(remote.draft(ask("a"))) for _ in range(3)]
        reports = [asyncio.create_task(verifier.next_report()) for _ in range(2)]
        await asyncio.sleep(0.05)
        await server.stop(None)
        for task in waiting:
            with pytest.raises(DraftUnavailable, match="broke"):
                await asyncio.wait_for(task, 1)
        for task in reports:
            with pytest.raises(TargetUnavailable, match="broke"):
                await asyncio.wait_for(task, 1)
        assert verifier.lost()
        assert remote.lost()
        verifier.open(opening("b"))
        verifier.submit([VerifyRequest(B, 0, 5, chain(5, 1))])
        verifier.close(B)
        with pytest.raises(TargetUnavailable):
            await soon(verifier.next_report())
        with pytest.raises(DraftUnavailable):
            await soon(remote.draft(ask("a")))


async def test_reports_from_before_the_loss_are_still_given() -> None:
    host = ToyHost()
    server, port = await start_server([target_service(host)])
    async with connected(RemoteVerifier, f"127.0.0.1:{port}") as verifier:
        await until(lambda: host.views)
        host.views[0].emit(StepReport(batch_rows=1))
        host.views[0].emit(StepReport(batch_rows=2))
        await asyncio.sleep(0.1)
        host.views[0].emit(TargetUnavailable("gone"))
        await until(verifier.lost)
        assert [(await soon(verifier.next_report())).batch_rows for _ in range(2)] == [1, 2]
        with pytest.raises(TargetUnavailable):
            await soon(verifier.next_report())
    await server.stop(None)


async def test_idle_streams_stay_alive_on_heartbeats() -> None:
    async with (
        serving(target_service(ToyHost(), silence_s=0.4)) as address,
        connected(RemoteVerifier, address, silence_s=0.4) as verifier,
    ):
        await asyncio.sleep(1.2)
        assert not verifier.lost()
        verifier.open(opening("a"))
        verifier.submit([VerifyRequest(A, 0, 5, chain(5, 1))])
        assert len((await soon(verifier.next_report())).results) == 1


async def test_a_router_that_was_itself_held_up_does_not_blame_the_replica() -> None:
    """Both ends live in this stalled process: neither may take its own sleep for the other's."""
    async with (
        serving(target_service(ToyHost(), silence_s=0.4)) as address,
        connected(RemoteVerifier, address, silence_s=0.4) as verifier,
    ):
        for _ in range(6):
            await asyncio.sleep(0.13)
            time.sleep(0.5)  # noqa: ASYNC251 (the stall is the point)
        await asyncio.sleep(0.2)
        assert not verifier.lost()


async def test_a_stopped_process_is_noticed_in_time_and_stays_lost() -> None:
    silence_s = 1.0
    script = Path(replicas.__file__)
    process = await asyncio.create_subprocess_exec(
        sys.executable, script, str(silence_s), stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(script.parents[2])}
    )
    try:
        assert process.stdout is not None
        address = f"127.0.0.1:{int(await asyncio.wait_for(process.stdout.readline(), 30))}"
        async with (
            connected(RemoteVerifier, address, silence_s=silence_s) as verifier,
            connected(RemoteDrafter, address, silence_s=silence_s) as drafter,
        ):
            drafter.open(opening("a"))
            assert len((await soon(drafter.draft(ask("a")))).results) == 1
            process.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            drafting = asyncio.create_task(drafter.draft(ask("a")))
            with pytest.raises(TargetUnavailable, match="silent"):
                await soon(verifier.next_report())
            assert time.monotonic() - stopped <= silence_s + 0.3
            with pytest.raises(DraftUnavailable, match="silent"):
                await soon(drafting)
            process.send_signal(signal.SIGCONT)
            await asyncio.sleep(0.2)
            assert verifier.lost()
            async with connected(RemoteVerifier, address, silence_s=silence_s) as again:
                again.open(opening("a"))
                again.submit([VerifyRequest(A, 0, 5, chain(5, 2))])
                assert len((await soon(again.next_report())).results) == 1
    finally:
        process.kill()
        await process.wait()


async def test_a_killed_process_is_noticed_at_once() -> None:
    script = Path(replicas.__file__)
    process = await asyncio.create_subprocess_exec(
        sys.executable, script, "30", stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(script.parents[2])}
    )
    assert process.stdout is not None
    address = f"127.0.0.1:{int(await asyncio.wait_for(process.stdout.readline(), 30))}"
    async with connected(RemoteVerifier, address, silence_s=30) as verifier:
        process.kill()
        with pytest.raises(TargetUnavailable):
            await asyncio.wait_for(verifier.next_report(), 2)
    await process.wait()


@pytest.mark.parametrize("kind", [RemoteVerifier, RemoteDrafter])
async def test_disconnecting_ends_the_sessions_there_and_leaves_no_task_here(kind: type[RemoteReplica]) -> None:
    ended: list[SessionId] = []
    async with serving(target_service(ToyHost(), ended), draft_service(ToyDrafter(), ended)) as address:
        before = asyncio.all_tasks()
        replica: Any = await kind.connect(address, ROUTER, silence_timeout_s=2, connect_timeout_s=5)
        replica.open(opening("a"))
        await asyncio.sleep(0.05)
        await replica.disconnect()
        await replica.disconnect()
        assert replica.lost()
        await until(lambda: ended == [A])
        await until(lambda: not [task for task in asyncio.all_tasks() - before if "grpc" not in repr(task)])


async def test_a_replica_that_does_not_read_is_given_up() -> None:
    """The stream's window fills first, then the queue: it does not grow for ever."""

    class Deaf(LyingService):
        async def _serve(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            yield self._response(welcome=self._welcome).SerializeToString()
            await asyncio.sleep(60)

    async with serving(Deaf("Verification", lambda _: [])) as address, connected(RemoteVerifier, address, silence_s=60) as verifier:
        long = opening("a", length=4000)
        async with asyncio.timeout(20):
            while not verifier.lost():
                verifier.open(long)
                await asyncio.sleep(0)
        with pytest.raises(TargetUnavailable, match="unread"):
            await soon(verifier.next_report())


async def test_a_new_replica_at_an_old_address_is_reached_without_delay() -> None:
    server, port = await start_server([target_service(ToyHost())])
    address = f"127.0.0.1:{port}"
    async with connected(RemoteVerifier, address) as old:
        await server.stop(None)
        await until(old.lost)
        for _ in range(5):
            with pytest.raises(TargetUnavailable):
                await RemoteVerifier.connect(address, ROUTER, silence_timeout_s=1, connect_timeout_s=1)
        server, _ = await start_server([target_service(ToyHost())], port=port)
        began = time.monotonic()
        async with connected(RemoteVerifier, address) as new:
            assert (new.replica_id, time.monotonic() - began < 0.5) == (ReplicaId("app#Target#1"), True)
        await server.stop(None)
