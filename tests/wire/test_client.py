"""RemoteVerifier and RemoteDrafter against a real server on the loopback."""

import asyncio
import socket
from typing import Any

import pytest

from dspark.errors import DraftUnavailable, FingerprintMismatch, TargetUnavailable
from dspark.messages import VerifyRequest
from dspark.types import SessionId
from dspark.wire.client import RemoteDrafter, RemoteReplica, RemoteVerifier
from dspark.wire.server import start_server
from tests.wire.connections import ROUTER, A, B, ask, connected, soon
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
