"""Pools on Ray Serve handles: a lease is an open streaming call to a replica, data goes over one gRPC connection per replica.

Serve counts the open call for autoscaling, waits for it when it drains a replica, and breaks it when the replica dies. Knows Serve's
traps (see `_Call`), and nothing of what a session does.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from dspark.errors import DSparkError, ReplicaUnavailable
from dspark.types import ReplicaId, SessionId

logger = logging.getLogger(__name__)


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
        """A place on some replica, within acquire_timeout_s. Raises TargetUnavailable or DraftUnavailable."""
        call = _Call(self._handle.remote(session_id))
        try:
            async with asyncio.timeout(self._acquire_timeout_s):
                place = await call.first()
                connection = await self._connections.to(place)
        except asyncio.CancelledError:
            await call.cancel()
            raise
        except Exception as error:
            await call.cancel()
            raise self._translated(error) from error
        call.watch()
        return Lease(call, connection)

    async def close(self) -> None:
        """Close all connections."""
        await self._connections.close()

    def _translated(self, error: Exception) -> Exception:
        """What the loop can act on. Serve's own texts name machines and paths, so they stay in the log."""
        if isinstance(error, TimeoutError):
            return self._unavailable(f"no replica had a free place within {self._acquire_timeout_s:g} s")
        if isinstance(error, DSparkError):
            logger.warning("a replica cannot be used: %s", error)
            return self._unavailable(error.message)
        if isinstance(error, (RayError, RayServeException, OSError)):
            logger.warning("a lease failed: %s", type(error).__name__)
            return self._unavailable("no replica could be reached")
        return error


class Connections(Generic[C]):
    """One connection per start of a replica, made on first use and replaced when lost."""

    def __init__(self, connect: Callable[[str], Awaitable[C]]) -> None:
        self._connect = connect
        self._open: dict[Place, C] = {}
        self._locks: dict[Place, asyncio.Lock] = {}

    async def to(self, place: Place) -> C:
        """The connection to that replica. Raises what `connect` raises."""
        await self._drop_lost()
        async with self._locks.setdefault(place, asyncio.Lock()):
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
            connection = self._open.pop(place)
            lock = self._locks.get(place)
            if lock is not None and not lock.locked():
                del self._locks[place]
            await connection.disconnect()


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
