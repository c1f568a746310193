"""Pools on Ray Serve handles: a lease is an open streaming call to a replica, data goes over one gRPC connection per replica.

Serve counts the open call for autoscaling, waits for it when it drains a replica, and breaks it when the replica dies. Knows Serve's
traps (see `_Call`), and nothing of what a session does.
"""

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from dspark.errors import DSparkError, ReplicaUnavailable
from dspark.types import ReplicaId, SessionId

logger = logging.getLogger(__name__)

RETRY_PAUSE_S = 0.2
#: What passes by itself: until Serve notices that a replica died, it still sends callers there; a full one has room soon.
PASSING: tuple[type[Exception], ...] = (RayError, RayServeException, OSError, ReplicaUnavailable)


class Connection(Protocol):
    """What a pool needs of wire.RemoteVerifier and wire.RemoteDrafter."""

    @property
    def replica_id(self) -> ReplicaId:
        """Who answered."""

    def lost(self) -> bool:
        """True once it is of no use any more."""

    async def disconnect(self) -> None:
        """Close it. Safe to call twice."""


C = TypeVar("C", bound=Connection)


@dataclass(frozen=True, slots=True)
class Place:
    """First item of a lease: where the session will live."""

    replica_id: str
    epoch: str
    """Differs for every start of a replica."""
    address: str
    """host:port of the replica's data service."""


class Lease(Generic[C]):
    """One session's place; `release` gives it back. The connection stays, for the next lease."""

    def __init__(self, call: "_Call", connection: C) -> None:
        self.replica_id = connection.replica_id
        self.connection = connection
        self._call = call

    def lost(self) -> bool:
        """True once the replica ended the lease, or is known to be gone."""
        return self._call.over() or self.connection.lost()

    async def release(self) -> None:
        """Give the place back. Safe to call twice, and after the replica died."""
        await self._call.cancel()


class LeasePool(Generic[C]):
    """Leases of one deployment, and this router's connections to its replicas."""

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        connect: Callable[[str], Awaitable[C]],
        *,
        acquire_timeout_s: float,
        unavailable: type[ReplicaUnavailable],
    ) -> None:
        # The default transport does not end calls of a router that died: its leases would stay for ever.
        self._handle = handle.options(method_name="lease", stream=True, _by_reference=False)
        self._connections = Connections(connect)
        self._acquire_timeout_s = acquire_timeout_s
        self._unavailable = unavailable

    async def acquire(self, session_id: SessionId) -> Lease[C]:
        """A place on some replica, within acquire_timeout_s, whatever passes in the meantime.

        Raises TargetUnavailable or DraftUnavailable; its `__cause__` is the error that kept the lease from being made.
        """
        last: Exception | None = None
        try:
            async with asyncio.timeout(self._acquire_timeout_s) as limit:
                while True:
                    try:
                        return await self._attempt(session_id)
                    except PASSING as error:
                        self._log_change(last, error)
                        last = error
                    await asyncio.sleep(RETRY_PAUSE_S)
        except Exception as error:
            cause = last if last is not None and limit.expired() else error
            raise self._translated(cause) from cause

    async def _attempt(self, session_id: SessionId) -> Lease[C]:
        """One call. It is cancelled unless it becomes a lease."""
        call = _Call(self._handle.remote(session_id))
        try:
            connection = await self._connections.to(await call.first())
        except BaseException:
            await call.cancel()
            raise
        call.watch()
        return Lease(call, connection)

    def _log_change(self, last: Exception | None, error: Exception) -> None:
        """A caller may try many times: only what is new is worth a line."""
        if type(error) is not type(last):
            logger.warning("a lease failed, trying again: %s", error if isinstance(error, DSparkError) else type(error).__name__)

    async def close(self) -> None:
        """Close all connections."""
        await self._connections.close()

    def _translated(self, error: Exception) -> Exception:
        """What the loop can act on. Serve's own texts name machines and paths, so they stay in the log."""
        if isinstance(error, TimeoutError):
            return self._unavailable(f"no replica had a free place within {self._acquire_timeout_s:g} s")
        if isinstance(error, DSparkError):
            if not isinstance(error, PASSING):
                logger.warning("a replica cannot be used: %s", error)
            return self._unavailable(error.message)
        if isinstance(error, (RayError, RayServeException, OSError)):
            return self._unavailable("no replica could be reached")
        return error


class Connections(Generic[C]):
    """One connection per start of a replica, made on first use and replaced when lost."""

    def __init__(self, connect: Callable[[str], Awaitable[C]]) -> None:
        self._connect = connect
        self._open: dict[Place, C] = {}
        # A lock is gone with its last user. An unlocked one may still have a waiter, so nobody can drop it by hand.
        self._locks: weakref.WeakValueDictionary[Place, asyncio.Lock] = weakref.WeakValueDictionary()

    async def to(self, place: Place) -> C:
        """The connection to that replica. Raises what `connect` raises."""
        await self._drop_lost()
        lock = self._locks.setdefault(place, asyncio.Lock())
        async with lock:
            connection = self._open.get(place)
            if connection is None or connection.lost():
                connection = await self._connect(place.address)
                await self._check_identity(place, connection)
                self._open[place] = connection
            return connection

    async def close(self) -> None:
        """Close them all."""
        connections = list(self._open.values())
        self._open.clear()
        await asyncio.gather(*(connection.disconnect() for connection in connections))

    async def _check_identity(self, place: Place, connection: C) -> None:
        """A port can pass from a dead replica to a living one."""
        if connection.replica_id != place.replica_id:
            await connection.disconnect()
            raise ReplicaUnavailable("another replica answered at the address of the lease")

    async def _drop_lost(self) -> None:
        for place in [place for place, connection in self._open.items() if connection.lost()]:
            lost = self._open.pop(place, None)  # another caller may have taken it during the wait below
            if lost is not None:
                await lost.disconnect()


class _Call:
    """An open `lease` call. Dropping it gives nothing back: `cancel` must be called, whatever happens."""

    def __init__(self, items: Any) -> None:  # ray.serve.handle.DeploymentResponseGenerator
        self._items = items
        self._watcher: asyncio.Task[None] | None = None

    async def first(self) -> Place:
        """Where the session may live. Raises ReplicaUnavailable if the replica ends the call at once."""
        item = await anext(self._items, None)
        if item is None:
            raise ReplicaUnavailable("the replica gave no place")
        return Place(**item)

    def watch(self) -> None:
        """From now on `over` tells whether the call still runs."""
        self._watcher = asyncio.create_task(self._until_over())

    def over(self) -> bool:
        """True once the replica ended the call or died."""
        return self._watcher is not None and self._watcher.done()

    async def cancel(self) -> None:
        """End the call at the replica."""
        self._items.cancel()
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    async def _until_over(self) -> None:
        try:
            async for _ in self._items:
                pass
        except (RayError, RayServeException) as error:
            logger.info("a lease broke: %s", type(error).__name__)
