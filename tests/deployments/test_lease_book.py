"""A lease lives exactly as long as its session."""

import asyncio
import time

import pytest

from deployments.lease_book import LeaseBook
from dspark.types import SessionId

SESSION = SessionId("one")


class Freed:
    """Counts how often a session's memory was freed."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


async def hold(book: LeaseBook, session_id: SessionId = SESSION) -> None:
    """What a replica's `lease` does."""
    with book.entry(session_id) as entry:
        await entry.until_over()


async def start(book: LeaseBook) -> asyncio.Task[None]:
    task = asyncio.create_task(hold(book))
    await asyncio.sleep(0)
    return task


async def test_a_lease_ends_when_its_session_is_closed() -> None:
    book, freed = LeaseBook(silence_timeout_s=60.0), Freed()
    lease = await start(book)
    book.opened(SESSION, freed)
    await asyncio.sleep(0)
    assert not lease.done()
    assert len(book) == 1
    book.closed(SESSION)
    await asyncio.wait_for(lease, 1.0)
    assert (len(book), freed.count) == (0, 0), "who closed the session has freed it"


async def test_a_lease_that_nobody_opens_ends_by_itself() -> None:
    book = LeaseBook(silence_timeout_s=0.05)
    started = time.monotonic()
    await asyncio.wait_for(hold(book), 2.0)
    assert time.monotonic() - started >= 0.05
    assert len(book) == 0


async def test_an_open_session_is_not_timed() -> None:
    book = LeaseBook(silence_timeout_s=0.05)
    lease = await start(book)
    book.opened(SESSION, Freed())
    await asyncio.sleep(0.15)
    assert not lease.done()
    book.closed(SESSION)
    await lease


async def test_a_cancelled_lease_frees_its_session() -> None:
    book, freed = LeaseBook(silence_timeout_s=60.0), Freed()
    lease = await start(book)
    book.opened(SESSION, freed)
    lease.cancel()
    with pytest.raises(asyncio.CancelledError):
        await lease
    assert (len(book), freed.count) == (0, 1)


async def test_a_second_lease_ends_the_first_and_keeps_the_session() -> None:
    book, former, latter = LeaseBook(silence_timeout_s=60.0), Freed(), Freed()
    first = await start(book)
    book.opened(SESSION, former)
    second = await start(book)
    await asyncio.wait_for(first, 1.0)
    book.opened(SESSION, latter)
    await asyncio.sleep(0)
    assert not second.done()
    assert (former.count, latter.count, len(book)) == (0, 0, 1)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert (former.count, latter.count, len(book)) == (0, 1, 0)


async def test_sessions_without_a_lease_are_nobodys_business() -> None:
    book = LeaseBook(silence_timeout_s=60.0)
    book.opened(SESSION, Freed())
    book.closed(SESSION)
    assert len(book) == 0
