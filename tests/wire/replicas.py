"""A small target and a small drafter behind the ports, and a router that can say anything. Run as a script: a target to be stopped.

The law: the token at absolute position p is 7 * p + 3, whatever stood before.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc.aio

from dspark.messages import (
    DraftReport,
    DraftRequest,
    DraftResult,
    SessionFailure,
    SessionOpen,
    StepReport,
    VerifyRequest,
    VerifyResult,
)
from dspark.tree import ANCHOR, CandidateTree
from dspark.types import ModelCard, ReplicaId, RouterId, SamplingParams, SessionId
from dspark.wire.handshake import PROTOCOL_VERSION
from dspark.wire.pb import drafting_pb2, session_pb2, verification_pb2
from dspark.wire.server import DraftingService, Service, VerificationService, start_server

CARD = ModelCard("toy", vocab_size=500, max_length=4096, eos_token_ids=(0,), model_fingerprint="m1", tokenizer_fingerprint="t1")
REPLICA = ReplicaId("app#Target#1")
SILENCE_S = 2.0


def law(position: int) -> int:
    return (7 * position + 3) % CARD.vocab_size


def opening(session_id: str, length: int = 5, **changes: Any) -> SessionOpen:
    token_ids = tuple(law(position) for position in range(length))
    return SessionOpen(SessionId(session_id), token_ids, SamplingParams(temperature=0.5, top_p=0.9, seed=7), **changes)


def chain(base_length: int, depth: int, wrong_from: int | None = None) -> CandidateTree:
    """What the target would say next, up to `wrong_from`."""
    right = [law(base_length + step) for step in range(depth)]
    first_wrong = depth if wrong_from is None else wrong_from
    tokens = [token if step < first_wrong else (token + 1) % CARD.vocab_size for step, token in enumerate(right)]
    return CandidateTree.chain(tokens, [0.5] * depth)


class ToyVerifier:
    """Answers at once. Rounds and lengths are taken as they come."""

    def __init__(self) -> None:
        self.sessions: dict[SessionId, SessionOpen] = {}
        self.closed: list[SessionId] = []
        self.refuse_open: Exception | None = None
        self.refuse_submit: Exception | None = None
        self._reports: asyncio.Queue[StepReport | Exception] = asyncio.Queue()

    def open(self, session: SessionOpen) -> None:
        if self.refuse_open is not None:
            raise self.refuse_open
        self.sessions[session.session_id] = session

    def close(self, session_id: SessionId) -> None:
        self.closed.append(session_id)
        self.sessions.pop(session_id, None)

    def submit(self, requests: Sequence[VerifyRequest]) -> None:
        if self.refuse_submit is not None:
            raise self.refuse_submit
        if requests:
            results = tuple(self._walk(request) for request in requests)
            self.emit(StepReport(results, (), 1.5, batch_rows=len(requests), free_kv_blocks=60, total_kv_blocks=64))

    def emit(self, report: StepReport | Exception) -> None:
        self._reports.put_nowait(report)

    async def next_report(self) -> StepReport:
        report = await self._reports.get()
        if isinstance(report, Exception):
            raise report
        return report

    @staticmethod
    def _walk(request: VerifyRequest) -> VerifyResult:
        accepted: list[int] = []
        parents, token_ids = request.tree.parents.tolist(), request.tree.token_ids.tolist()
        wanted = law(request.base_length)
        for node, token_id in enumerate(token_ids):
            if parents[node] == (accepted[-1] if accepted else ANCHOR) and token_id == wanted:
                accepted.append(node)
                wanted = law(request.base_length + len(accepted))
        committed = tuple(law(request.base_length + step) for step in range(len(accepted) + 1))
        return VerifyResult(request.session_id, request.round, request.base_length, tuple(accepted), committed)


class ToyHost:
    """One view for each connection, kept to be looked at."""

    def __init__(self) -> None:
        self.views: list[ToyVerifier] = []
        self.routers: list[RouterId] = []

    def connect(self, router_id: RouterId) -> ToyVerifier:
        self.views.append(ToyVerifier())
        self.routers.append(router_id)
        return self.views[-1]


class ToyDrafter:
    """Right chains. `gates` holds back the batches of a session until its event is set."""

    def __init__(self) -> None:
        self.sessions: dict[SessionId, SessionOpen] = {}
        self.closed: list[SessionId] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.refuse: Exception | None = None
        self.leave_out: set[str] = set()
        self.cancelled = 0

    def open(self, session: SessionOpen) -> None:
        self.sessions[session.session_id] = session

    def close(self, session_id: SessionId) -> None:
        self.closed.append(session_id)
        self.sessions.pop(session_id, None)

    async def draft(self, requests: Sequence[DraftRequest]) -> DraftReport:
        try:
            for request in requests:
                if request.session_id in self.gates:
                    await self.gates[request.session_id].wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.refuse is not None:
            raise self.refuse
        results = [
            DraftResult(request.session_id, request.base_length, chain(request.base_length, request.max_depth))
            for request in requests
            if request.session_id not in self.leave_out
        ]
        return DraftReport(tuple(results), draft_ms=0.5)


class RawRouter:
    """A router below the client's manners: any message, any bytes."""

    def __init__(self, address: str, service: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self.call: Any = self._channel.stream_stream(f"/dspark.v1.{service}/Connect")()
        self._drafting = service == "Drafting"

    def request(self, **kind: Any) -> bytes:
        kinds = drafting_pb2.DraftingRequest if self._drafting else verification_pb2.VerificationRequest
        return kinds(**kind).SerializeToString()

    async def say(self, **kind: Any) -> None:
        await self.call.write(self.request(**kind))

    async def greet(self, router_id: str = "raw", **changes: str) -> Any:
        """Returns the welcome."""
        await self.say(hello=session_pb2.Hello(**({"protocol": PROTOCOL_VERSION, "router_id": router_id} | changes)))
        return (await self.hear()).welcome

    async def hear(self) -> Any:
        """The next message that is not a heartbeat."""
        kinds = drafting_pb2.DraftingResponse if self._drafting else verification_pb2.VerificationResponse
        while True:
            async with asyncio.timeout(5):
                data = await self.call.read()
            response = kinds.FromString(data)
            if not response.HasField("heartbeat"):
                return response

    async def status(self) -> tuple[grpc.StatusCode, str]:
        """How the stream ended; what is still unread stands before the end."""
        async with asyncio.timeout(5):
            with suppress(grpc.aio.AioRpcError):
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            return await self.call.code(), await self.call.details()

    async def close(self) -> None:
        self.call.cancel()
        await self._channel.close()


@asynccontextmanager
async def serving(*services: Service) -> AsyncIterator[str]:
    """The address of a server that has the services."""
    server, port = await start_server(services)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@asynccontextmanager
async def raw_router(address: str, service: str) -> AsyncIterator[RawRouter]:
    router = RawRouter(address, service)
    try:
        yield router
    finally:
        await router.close()


def target_service(
    host: ToyHost, ended: list[SessionId] | None = None, silence_s: float = SILENCE_S, **options: Any
) -> VerificationService:
    on_end = (lambda _: None) if ended is None else ended.append
    return VerificationService(host, CARD, REPLICA, silence_timeout_s=silence_s, on_session_end=on_end, **options)


def draft_service(drafter: ToyDrafter, ended: list[SessionId] | None = None, **options: Any) -> DraftingService:
    on_end = (lambda _: None) if ended is None else ended.append
    return DraftingService(drafter, CARD, REPLICA, silence_timeout_s=SILENCE_S, on_session_end=on_end, **options)


def failed(session_id: str, failures: Sequence[Any]) -> SessionFailure:
    """The one failure of a session."""
    found = [failure for failure in failures if failure.session_id == session_id]
    assert len(found) == 1, failures
    return found[0]


async def until(condition: Any, timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def _run_target() -> None:
    _, port = await start_server([target_service(ToyHost(), silence_s=float(sys.argv[1])), draft_service(ToyDrafter())])
    print(port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_run_target())
