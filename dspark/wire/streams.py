"""One end of a long bidirectional gRPC stream: sending in order, heartbeats, and noticing a peer that has gone silent.

The same for router and replica. Knows neither the messages nor what they do.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

from google.protobuf.message import DecodeError, Message
from grpc.aio import EOF

from dspark.errors import DeadlineExceeded, InvalidMessage, Overloaded

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
"""Largest message either end takes or sends. gRPC's own default is 4 MiB for receiving, and none for sending."""
MAX_UNSENT_MESSAGES = 4096
"""A peer that leaves this many unread is as good as gone."""
_BEATS_PER_TIMEOUT = 8

#: Options that both ends share. The pings find half-open connections below the heartbeats, which find stopped processes.
GRPC_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)

_In = TypeVar("_In", bound=Message)
_Out = TypeVar("_Out", bound=Message)


def parse(kind: type[_In], data: bytes) -> _In:
    """Bytes to message. gRPC would do it too, but answer garbage with UNKNOWN and the parser's own words.

    Raises InvalidMessage.
    """
    try:
        return kind.FromString(data)
    except DecodeError:
        raise InvalidMessage(f"the bytes are no {kind.DESCRIPTOR.name}") from None


class Duplex(Generic[_Out]):
    """Wraps the `read` and `write` of a gRPC call. `run` ends when the stream does, and leaves no task behind."""

    def __init__(
        self,
        read: Callable[[], Awaitable[Any]],
        write: Callable[[_Out], Awaitable[None]],
        heartbeat: _Out,
        silence_timeout_s: float,
    ) -> None:
        self._read = read
        self._write = write
        self._heartbeat = heartbeat
        self._silence_timeout_s = silence_timeout_s
        self._unsent: asyncio.Queue[_Out] = asyncio.Queue(MAX_UNSENT_MESSAGES)
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._heard = False
        self._sent = False

    async def send(self, message: _Out) -> None:
        """Queue a message; waits while the peer is slow to read."""
        await self._unsent.put(message)

    def send_nowait(self, message: _Out) -> None:
        """Queue a message, or give the stream up if the peer has not read for very long."""
        try:
            self._unsent.put_nowait(message)
        except asyncio.QueueFull:
            self.fail(Overloaded(f"the peer left {MAX_UNSENT_MESSAGES} messages unread"))

    def fail(self, error: Exception) -> None:
        """Make `run` end with this error."""
        if not self._failed.done():
            self._failed.set_exception(error)
            self._failed.exception()  # counts as looked at, also where `run` is already over

    async def run(self, handle: Callable[[bytes], Awaitable[None]], *others: Coroutine[Any, Any, None]) -> None:
        """Serve the stream until the peer ends it. `others` run beside it; the first of all to end, ends all.

        Raises what the calls raise, DeadlineExceeded when the peer is silent, and the error given to `fail`.
        """
        await first_of(self._receive(handle), self._transmit(), self._pulse(), self._failure(), *others)

    async def _receive(self, handle: Callable[[bytes], Awaitable[None]]) -> None:
        while (data := await self._read()) is not EOF:
            self._heard = True
            await handle(data)

    async def _transmit(self) -> None:
        while True:
            message = await self._unsent.get()
            await self._write(message)
            self._sent = True

    async def _failure(self) -> None:
        await self._failed

    async def _pulse(self) -> None:
        """Heartbeats at most a quarter of the timeout apart; a silent peer is noticed within the timeout."""
        beat_s = self._silence_timeout_s / _BEATS_PER_TIMEOUT
        silent_s = 0.0
        before = time.monotonic()
        while silent_s < self._silence_timeout_s - beat_s:
            await asyncio.sleep(beat_s)
            now = time.monotonic()
            # Where this very process was stopped, the peer's messages still wait to be read: a long beat counts little.
            silent_s = 0.0 if self._heard else silent_s + min(now - before, 2 * beat_s)
            before = now
            if not self._sent and self._unsent.empty():
                await self.send(self._heartbeat)
            self._heard = self._sent = False
        raise DeadlineExceeded(f"the peer was silent for {self._silence_timeout_s:g} s")


async def first_of(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run all until the first one ends, cancel the others, and raise what the first one raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    try:
        for task in done:
            task.result()
    finally:
        # An error holds this frame, and the frame's tasks hold the error: cut here, the stream's memory goes at once.
        del done, task, tasks
