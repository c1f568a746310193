"""A replica that stops, is stopped or is killed is noticed in time; one that is only idle is not blamed."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from dspark.errors import DraftUnavailable, TargetUnavailable
from dspark.messages import StepReport, VerifyRequest
from dspark.types import ReplicaId
from dspark.wire.client import RemoteDrafter, RemoteVerifier
from dspark.wire.server import start_server
from tests.wire import replicas
from tests.wire.connections import ROUTER, A, B, ask, connected, soon
from tests.wire.replicas import ToyDrafter, ToyHost, chain, draft_service, opening, serving, target_service, until


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
