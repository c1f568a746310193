"""A router's ends of the streams, connected for a test, and a replica that lies."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from dspark.messages import DraftRequest
from dspark.types import RouterId, SessionId
from dspark.wire import handshake
from dspark.wire.pb import drafting_pb2, session_pb2, verification_pb2
from tests.wire import replicas
from tests.wire.replicas import CARD, REPLICA

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
