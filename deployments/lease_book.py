"""Which leases a replica has given out, and when each of them ends. Knows nothing of Ray, gRPC or models.

A lease lives as long as its session: it ends when the session is closed on the data stream, when the stream of its router ends
(which closes all its sessions), or when nobody opened the session in time. So no lost message can leak a place on the replica.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from dspark.messages import DraftReport, DraftRequest, SessionOpen, StepReport, VerifyRequest
from dspark.ports import Drafter, Verifier, VerifierHost
from dspark.types import RouterId, SessionId


class LeaseEntry:
    """One lease, from its call's start to its end."""

    def __init__(self, silence_timeout_s: float) -> None:
        self._silence_timeout_s = silence_timeout_s
        self._opened = asyncio.Event()
        self._over = asyncio.Event()
        self._close: Callable[[], None] | None = None

    async def until_over(self) -> None:
        """Until the session is closed, another lease took its place, or nobody opened it in time."""
        try:
            async with asyncio.timeout(self._silence_timeout_s):
                await self._opened.wait()
        except TimeoutError:
            return
        await self._over.wait()

    def opened(self, close: Callable[[], None]) -> None:
        """The session is open; `close` frees its memory."""
        self._close = close
        self._opened.set()

    def closed(self) -> None:
        """The session is closed, or is another lease's business from now on."""
        self._close = None
        self._opened.set()
        self._over.set()

    def free(self) -> None:
        """Close the session if it is still open."""
        if self._close is not None:
            self._close()


class LeaseBook:
    """All leases of one replica; used from one event loop."""

    def __init__(self, silence_timeout_s: float) -> None:
        self._silence_timeout_s = silence_timeout_s
        self._leases: dict[SessionId, LeaseEntry] = {}

    def __len__(self) -> int:
        return len(self._leases)

    @contextmanager
    def entry(self, session_id: SessionId) -> Iterator[LeaseEntry]:
        """The lease is in the book inside the block; leaving the block frees the session. A second lease of a session ends the first."""
        former = self._leases.get(session_id)
        if former is not None:
            former.closed()
        entry = self._leases[session_id] = LeaseEntry(self._silence_timeout_s)
        try:
            yield entry
        finally:
            if self._leases.get(session_id) is entry:
                del self._leases[session_id]
            entry.free()

    def opened(self, session_id: SessionId, close: Callable[[], None]) -> None:
        """The router opened the session; `close` frees it. One without a lease lives as long as its router's stream."""
        if session_id in self._leases:
            self._leases[session_id].opened(close)

    def closed(self, session_id: SessionId) -> None:
        """The session is closed: its lease is over."""
        if session_id in self._leases:
            self._leases[session_id].closed()


class LeasedDrafter:
    """A Drafter whose opens are written into the book. Closes come from the data service, which alone knows who owns a session."""

    def __init__(self, drafter: Drafter, book: LeaseBook) -> None:
        self._drafter = drafter
        self._book = book

    def open(self, session: SessionOpen) -> None:
        """See ports.Drafter."""
        self._drafter.open(session)
        self._book.opened(session.session_id, partial(self._drafter.close, session.session_id))

    async def draft(self, requests: Sequence[DraftRequest]) -> DraftReport:
        """See ports.Drafter."""
        return await self._drafter.draft(requests)

    def close(self, session_id: SessionId) -> None:
        """See ports.Drafter."""
        self._drafter.close(session_id)


class LeasedVerifierHost:
    """A VerifierHost whose routers' opens are written into the book."""

    def __init__(self, host: VerifierHost, book: LeaseBook) -> None:
        self._host = host
        self._book = book

    def connect(self, router_id: RouterId) -> Verifier:
        """See ports.VerifierHost."""
        return _LeasedVerifier(self._host.connect(router_id), self._book)


class _LeasedVerifier:
    """One router's view, with the same entries."""

    def __init__(self, verifier: Verifier, book: LeaseBook) -> None:
        self._verifier = verifier
        self._book = book

    def open(self, session: SessionOpen) -> None:
        self._verifier.open(session)
        self._book.opened(session.session_id, partial(self._verifier.close, session.session_id))

    def submit(self, requests: Sequence[VerifyRequest]) -> None:
        self._verifier.submit(requests)

    async def next_report(self) -> StepReport:
        return await self._verifier.next_report()

    def close(self, session_id: SessionId) -> None:
        self._verifier.close(session_id)
