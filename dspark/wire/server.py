"""Verifiers and drafters as gRPC services: messages in, calls of the port, reports out."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, Protocol

import grpc
import grpc.aio

from dspark.errors import DraftUnavailable, Overloaded, ReplicaUnavailable
from dspark.messages import DraftReport, DraftRequest, SessionFailure, StepReport
from dspark.ports import Drafter, Verifier, VerifierHost
from dspark.types import RouterId
from dspark.wire import codec
from dspark.wire.pb.drafting_pb2 import DESCRIPTOR as DRAFTING
from dspark.wire.pb.drafting_pb2 import DraftBatch, DraftingRequest, DraftingResponse
from dspark.wire.pb.drafting_pb2 import DraftReport as DraftReportPb
from dspark.wire.pb.session_pb2 import Heartbeat
from dspark.wire.pb.verification_pb2 import DESCRIPTOR as VERIFICATION
from dspark.wire.pb.verification_pb2 import VerificationRequest, VerificationResponse, VerifyBatch
from dspark.wire.stream_service import RouterStream, StreamService, failure
from dspark.wire.streams import GRPC_OPTIONS, Duplex, parse

MAX_BATCHES_IN_FLIGHT = 64
"""Draft batches of one router that are worked on at the same time; more are refused."""

_SERVER_OPTIONS = (
    *GRPC_OPTIONS,
    # A second server on the same port is a mistake to be told of, not to be shared with.
    ("grpc.so_reuseport", 0),
    # Routers ping on purpose; without these the server would call that abuse and close the connection.
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
)


class VerificationService(StreamService[VerifierHost]):
    """A target replica for its routers. Reports go out in the order in which the verifier gives them."""

    service_name = VERIFICATION.services_by_name["Verification"].full_name
    request_type = VerificationRequest
    response_type = VerificationResponse

    def connect(self, router_id: RouterId, context: grpc.aio.ServicerContext[Any, Any]) -> "_VerificationStream":
        heartbeat = VerificationResponse(heartbeat=Heartbeat())
        duplex = Duplex(context.read, context.write, heartbeat, self.silence_timeout_s)
        return _VerificationStream(self, router_id, self.backend.connect(router_id), duplex)


class DraftingService(StreamService[Drafter]):
    """A draft replica for its routers. Each batch is answered as soon as it is ready, whatever came in before it."""

    service_name = DRAFTING.services_by_name["Drafting"].full_name
    request_type = DraftingRequest
    response_type = DraftingResponse

    def connect(self, router_id: RouterId, context: grpc.aio.ServicerContext[Any, Any]) -> "_DraftingStream":
        heartbeat = DraftingResponse(heartbeat=Heartbeat())
        duplex = Duplex(context.read, context.write, heartbeat, self.silence_timeout_s)
        return _DraftingStream(self, router_id, self.backend, duplex)


class _VerificationStream(RouterStream):
    def __init__(self, service: VerificationService, router_id: RouterId, verifier: Verifier, duplex: Duplex[VerificationResponse]) -> None:
        super().__init__(service, router_id, verifier, duplex)
        self._verifier = verifier
        self._last_report = StepReport()

    async def handle(self, data: bytes) -> None:
        request = parse(VerificationRequest, data)
        failures: list[SessionFailure] = []
        match request.WhichOneof("kind"):
            case "open":
                failures = self.open_session(request.open)
            case "verify":
                failures = self._submit(request.verify)
            case "close":
                self.close_session(request.close)
            case "heartbeat":
                pass
            case other:
                self.skip(f"kind {other}")
        if failures:
            await self._send_failures(failures)

    def companions(self) -> list[Coroutine[Any, Any, None]]:
        return [self._forward_reports()]

    def _submit(self, batch: VerifyBatch) -> list[SessionFailure]:
        requests, malformed = codec.verify_batch_from_pb(batch, self.service.bounds)
        mine, strange = self.owned(requests)
        try:
            self._verifier.submit(mine)
        except Exception as error:
            return [*malformed, *strange, *(failure(request.session_id, error) for request in mine)]
        return [*malformed, *strange]

    async def _forward_reports(self) -> None:
        while True:
            report = await self._verifier.next_report()
            self._last_report = report
            for message in codec.step_report_to_pbs(report):
                await self.duplex.send(VerificationResponse(report=message))

    async def _send_failures(self, failures: Iterable[SessionFailure]) -> None:
        """A report of no step: the state of the cache is that of the last one."""
        last = self._last_report
        report = StepReport((), tuple(failures), free_kv_blocks=last.free_kv_blocks, total_kv_blocks=last.total_kv_blocks)
        await self.duplex.send(VerificationResponse(report=codec.step_report_to_pb(report)))


class _DraftingStream(RouterStream):
    def __init__(self, service: DraftingService, router_id: RouterId, drafter: Drafter, duplex: Duplex[DraftingResponse]) -> None:
        super().__init__(service, router_id, drafter, duplex)
        self._drafter = drafter
        self._batches: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        try:
            await super().serve()
        finally:
            for task in self._batches:
                task.cancel()
            await asyncio.gather(*self._batches, return_exceptions=True)

    async def handle(self, data: bytes) -> None:
        request = parse(DraftingRequest, data)
        match request.WhichOneof("kind"):
            case "open":
                # No batch to answer in: the router is told with the session's first draft, where it is unknown.
                for refused in self.open_session(request.open):
                    self.skip(f"session {refused.session_id} was not opened: {refused.message}")
            case "draft":
                await self._start_batch(request.draft)
            case "close":
                self.close_session(request.close)
            case "heartbeat":
                pass
            case other:
                self.skip(f"kind {other}")

    def companions(self) -> list[Coroutine[Any, Any, None]]:
        return []

    async def _start_batch(self, batch: DraftBatch) -> None:
        requests, malformed = codec.draft_batch_from_pb(batch, self.service.bounds)
        mine, strange = self.owned(requests)
        failures = [*malformed, *strange]
        if len(self._batches) >= MAX_BATCHES_IN_FLIGHT:
            busy = Overloaded(f"{MAX_BATCHES_IN_FLIGHT} draft batches of this router are in flight")
            failures += [failure(request.session_id, busy) for request in mine]
            mine = []
        if mine:
            task = asyncio.create_task(self._draft(batch.batch_id, mine, failures))
            self._batches.add(task)
            task.add_done_callback(self._batches.discard)
        else:
            await self._answer(codec.draft_report_to_pb(batch.batch_id, DraftReport(failures=tuple(failures))))

    async def _draft(self, batch_id: int, requests: list[DraftRequest], failures: list[SessionFailure]) -> None:
        try:
            report = await self._drafter.draft(requests)
            whole = DraftReport(report.results, (*report.failures, *failures), report.draft_ms)
            message = codec.draft_report_to_pb(batch_id, whole)
        except DraftUnavailable as error:
            self.duplex.fail(error)
            return
        except Exception as error:
            failures += [failure(request.session_id, error) for request in requests]
            message = codec.draft_report_to_pb(batch_id, DraftReport(failures=tuple(failures)))
        await self._answer(message)

    async def _answer(self, message: DraftReportPb) -> None:
        await self.duplex.send(DraftingResponse(report=message))


class Service(Protocol):
    """What `start_server` can serve."""

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the service's methods."""


async def start_server(services: Iterable[Service], host: str = "127.0.0.1", port: int = 0) -> tuple[grpc.aio.Server, int]:
    """Serve on a port of its own choice, or on the given one. Returns the server and the port.

    Raises ReplicaUnavailable if the port is taken.
    """
    server = grpc.aio.server(options=_SERVER_OPTIONS)
    for service in services:
        service.add_to(server)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound_port = server.add_insecure_port(address)
    except RuntimeError:
        raise ReplicaUnavailable(f"cannot listen on {address}") from None
    await server.start()
    return server, bound_port
