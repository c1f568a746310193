"""Leases never leak, whatever happens while one is taken. Serve's handle is played by a small stand-in; tests/serve has the real one."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError
from ray.serve.exceptions import BackPressureError

from deployments.leases import Connections, LeasePool, Place
from dspark.errors import FingerprintMismatch, TargetUnavailable
from dspark.types import ReplicaId, SessionId

SESSION = SessionId("one")


class Call:
    """An open call of Serve: items, an end or an error, and whether it was cancelled."""

    def __init__(self, script: AsyncIterator[dict[str, str]]) -> None:
        self._script = script
        self.cancelled = False

    def __aiter__(self) -> "Call":
        return self

    async def __anext__(self) -> dict[str, str]:
        return await anext(self._script)

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """A DeploymentHandle whose calls follow scripts."""

    def __init__(self, *scripts: Any) -> None:
        self._scripts = list(scripts)
        self.calls: list[Call] = []
        self.chosen: dict[str, Any] = {}

    def options(self, **chosen: Any) -> "Handle":
        self.chosen = chosen
        return self

    def remote(self, session_id: str) -> Call:
        script = self._scripts[min(len(self.calls), len(self._scripts) - 1)]
        self.calls.append(Call(script()))
        return self.calls[-1]


class Connection:
    """To a replica that says who it is."""

    def __init__(self, replica_id: str) -> None:
        self.replica_id = ReplicaId(replica_id)
        self.is_lost = False
        self.disconnects = 0

    def lost(self) -> bool:
        return self.is_lost

    async def disconnect(self) -> None:
        self.disconnects += 1
        await asyncio.sleep(0)


class Network:
    """Makes connections; by default every address is replica `r1`."""

    def __init__(self) -> None:
        self.made: list[Connection] = []
        self.replica_id = "r1"
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None

    async def connect(self, address: str) -> Connection:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.made.append(Connection(self.replica_id))
        return self.made[-1]


def place(replica_id: str = "r1", epoch: str = "e1") -> dict[str, str]:
    return {"replica_id": replica_id, "epoch": epoch, "address": "127.0.0.1:4711"}


async def open_for_ever() -> AsyncIterator[dict[str, str]]:
    yield place()
    await asyncio.Event().wait()


async def over_at_once() -> AsyncIterator[dict[str, str]]:
    return
    yield


async def ended_by_the_replica() -> AsyncIterator[dict[str, str]]:
    yield place()


async def broken_later() -> AsyncIterator[dict[str, str]]:
    yield place()
    raise ActorUnavailableError("10.1.2.3 died", None)


async def refused() -> AsyncIterator[dict[str, str]]:
    raise BackPressureError(num_queued_requests=3, max_queued_requests=2)
    yield


async def dead() -> AsyncIterator[dict[str, str]]:
    raise ActorUnavailableError("10.1.2.3 died", None)
    yield


async def never() -> AsyncIterator[dict[str, str]]:
    await asyncio.Event().wait()
    yield place()


def pool_of(handle: Handle, network: Network, acquire_timeout_s: float = 5.0) -> LeasePool[Connection]:
    return LeasePool(
        handle,  # type: ignore[arg-type]
        network.connect,
        acquire_timeout_s=acquire_timeout_s,
        unavailable=TargetUnavailable,
    )


async def test_leases_go_over_the_transport_that_ends_them_when_the_router_dies() -> None:
    handle = Handle(open_for_ever)
    pool_of(handle, Network())
    assert handle.chosen == {"method_name": "lease", "stream": True, "_by_reference": False}


async def test_all_leases_of_a_replica_share_one_connection() -> None:
    handle, network = Handle(open_for_ever), Network()
    pool = pool_of(handle, network)
    leases = await asyncio.gather(*(pool.acquire(SessionId(str(number))) for number in range(5)))
    assert len(network.made) == 1
    assert {id(lease.connection) for lease in leases} == {id(network.made[0])}
    for lease in leases:
        await lease.release()
        await lease.release()
    assert all(call.cancelled for call in handle.calls)
    assert network.made[0].disconnects == 0
    await pool.close()
    assert network.made[0].disconnects == 1


@pytest.mark.parametrize("script", [ended_by_the_replica, broken_later])
async def test_a_lease_that_ends_by_itself_is_lost(script: Any) -> None:
    pool = pool_of(Handle(script), Network())
    lease = await pool.acquire(SESSION)
    assert not lease.lost()
    for _ in range(10):
        await asyncio.sleep(0)
    assert lease.lost()
    await lease.release()


async def test_a_lease_whose_connection_is_lost_is_lost_and_the_next_one_connects_anew() -> None:
    handle, network = Handle(open_for_ever), Network()
    pool = pool_of(handle, network)
    first = await pool.acquire(SESSION)
    network.made[0].is_lost = True
    assert first.lost()
    second = await pool.acquire(SESSION)
    assert second.connection is network.made[1]
    assert network.made[0].disconnects == 1
    for lease in (first, second):
        await lease.release()


async def test_a_restarted_replica_at_the_same_address_is_another_one() -> None:
    async def restarted() -> AsyncIterator[dict[str, str]]:
        yield place(epoch="e2")
        await asyncio.Event().wait()

    handle, network = Handle(open_for_ever, restarted), Network()
    pool = pool_of(handle, network)
    leases = [await pool.acquire(SESSION), await pool.acquire(SESSION)]
    assert len(network.made) == 2
    for lease in leases:
        await lease.release()


async def test_an_address_where_another_replica_answers_is_refused() -> None:
    handle, network = Handle(open_for_ever), Network()
    network.replica_id = "r2"
    with pytest.raises(TargetUnavailable, match="another replica answered"):
        await pool_of(handle, network, acquire_timeout_s=0.05).acquire(SESSION)
    assert handle.calls[0].cancelled
    assert network.made[0].disconnects == 1


@pytest.mark.parametrize(("script", "words"), [(refused, "no replica could be reached"), (over_at_once, "gave no place")])
async def test_a_lease_refused_to_the_end_is_unavailable_for_that_reason(script: Any, words: str) -> None:
    handle = Handle(script)
    with pytest.raises(TargetUnavailable, match=words):
        await pool_of(handle, Network(), acquire_timeout_s=0.3).acquire(SESSION)
    assert len(handle.calls) == 2
    assert all(call.cancelled for call in handle.calls)


@pytest.mark.parametrize("script", [dead, refused, over_at_once])
async def test_a_request_outlasts_the_time_until_serve_notices_that_a_replica_died(script: Any) -> None:
    handle = Handle(script, open_for_ever)
    lease = await pool_of(handle, Network()).acquire(SESSION)
    assert [call.cancelled for call in handle.calls] == [True, False]
    await lease.release()


async def test_a_replica_that_does_not_fit_is_not_asked_again() -> None:
    handle, network = Handle(open_for_ever), Network()
    network.error = FingerprintMismatch("model: a is not b")
    with pytest.raises(TargetUnavailable, match="a is not b") as caught:
        await asyncio.wait_for(pool_of(handle, network).acquire(SESSION), 1.0)
    assert caught.value.__cause__ is network.error
    assert [call.cancelled for call in handle.calls] == [True]


async def test_a_caller_that_gives_up_between_two_tries_leaks_nothing() -> None:
    handle = Handle(dead)
    task = asyncio.create_task(pool_of(handle, Network()).acquire(SESSION))
    await asyncio.sleep(0.05)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [call.cancelled for call in handle.calls] == [True]


@pytest.mark.parametrize("error", [OSError("10.1.2.3 refused"), FingerprintMismatch("model: a is not b"), TargetUnavailable("gone")])
async def test_a_connection_that_fails_gives_the_lease_back(error: Exception) -> None:
    handle, network = Handle(open_for_ever), Network()
    network.error = error
    with pytest.raises(TargetUnavailable) as caught:
        await pool_of(handle, network, acquire_timeout_s=0.05).acquire(SESSION)
    assert handle.calls[0].cancelled
    assert "10.1.2.3" not in str(caught.value)


async def test_a_lease_that_does_not_come_in_time_is_cancelled() -> None:
    handle = Handle(never)
    with pytest.raises(TargetUnavailable, match=r"within 0\.05 s"):
        await pool_of(handle, Network(), acquire_timeout_s=0.05).acquire(SESSION)
    assert handle.calls[0].cancelled


@pytest.mark.parametrize("script", [never, open_for_ever])
async def test_a_caller_that_gives_up_in_the_middle_leaks_nothing(script: Any) -> None:
    """In the wait for the first item, and in the wait for the connection."""
    handle, network = Handle(script), Network()
    network.gate = asyncio.Event()
    task = asyncio.create_task(pool_of(handle, network).acquire(SESSION))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert handle.calls[0].cancelled


async def test_one_caller_giving_up_does_not_take_the_others_connection() -> None:
    handle, network = Handle(open_for_ever), Network()
    network.gate = asyncio.Event()
    pool = pool_of(handle, network)
    hasty, patient = (asyncio.create_task(pool.acquire(SessionId(name))) for name in ("hasty", "patient"))
    await asyncio.sleep(0.01)
    hasty.cancel()
    await asyncio.gather(hasty, return_exceptions=True)
    network.gate.set()
    lease = await asyncio.wait_for(patient, 1.0)
    assert not lease.lost()
    await lease.release()


async def test_callers_that_find_the_same_connections_lost_close_each_once() -> None:
    network = Network()
    connections = Connections(network.connect)
    places = [Place("r1", f"e{number}", "127.0.0.1:4711") for number in range(3)]
    for place_ in places:
        await connections.to(place_)
    lost = network.made[:]
    for connection in lost:
        connection.is_lost = True
    again = await asyncio.gather(*(connections.to(place_) for place_ in places))
    assert [connection.disconnects for connection in lost] == [1, 1, 1]
    assert not any(connection.lost() for connection in again)


async def test_a_lock_is_kept_only_while_somebody_connects() -> None:
    network = Network()
    network.gate = asyncio.Event()
    connections = Connections(network.connect)
    tasks = [asyncio.create_task(connections.to(Place(**place()))) for _ in range(3)]
    await asyncio.sleep(0)
    assert len(connections._locks) == 1
    network.gate.set()
    assert len({id(connection) for connection in await asyncio.gather(*tasks)}) == 1
    assert len(connections._locks) == 0
