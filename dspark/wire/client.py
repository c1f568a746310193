"""The far end of the internal services: a replica behind gRPC, as the Verifier or Drafter of ports.py.

Knows one replica and one stream. That there may be others to turn to when it is lost, is the business of routing/.
"""

import asyncio
import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import grpc
import grpc.aio

from dspark.errors import (
    DraftUnavailable,
    DSparkError,
    FingerprintMismatch,
    InvalidMessage,
    ProtocolError,
    ReplicaUnavailable,
    TargetUnavailable,
)
from dspark.messages import DraftReport, DraftRequest, DraftResult, SessionFailure, SessionOpen, StepReport, VerifyRequest
from dspark.scheduling.curve import ThroughputCurve
from dspark.scheduling.draft_cost import DraftCall
from dspark.types import ModelCard, ReplicaId, RouterId, SessionId
from dspark.wire import codec, handshake
from dspark.wire.checks import Bounds
from dspark.wire.features import FeatureJoiner, draft_batches
from dspark.wire.pb.drafting_pb2 import DESCRIPTOR as DRAFTING
from dspark.wire.pb.drafting_pb2 import DraftingRequest, DraftingResponse
from dspark.wire.pb.session_pb2 import Heartbeat, Hello, SessionClose, Welcome
from dspark.wire.pb.verification_pb2 import DESCRIPTOR as VERIFICATION
from dspark.wire.pb.verification_pb2 import VerificationRequest, VerificationResponse
from dspark.wire.streams import GRPC_OPTIONS, Duplex, parse

logger = logging.getLogger(__name__)

_CHANNEL_OPTIONS = (
    *GRPC_OPTIONS,
    # A connection of its own for each stream: no shared flow control, no back-off inherited from a dead replica at the same address.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
)


class RemoteReplica(ABC):
    """One stream to one replica. Once lost it stays lost; a new connection is a new object."""

    service_name: str
    request_type: type[VerificationRequest] | type[DraftingRequest]
    response_type: type[VerificationResponse] | type[DraftingResponse]
    unavailable: type[ReplicaUnavailable]

    def __init__(self, address: str, silence_timeout_s: float) -> None:
        """Use `connect`."""
        self.card: ModelCard
        self.replica_id: ReplicaId
        self.curve: ThroughputCurve | None = None
        """Of a target that was profiled."""
        self.calls: tuple[DraftCall, ...] = ()
        """Of a drafter that was."""
        self._loss: ReplicaUnavailable | None = None
        self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        connect: grpc.aio.StreamStreamMultiCallable[Any, Any] = self._channel.stream_stream(
            f"/{self.service_name}/Connect", request_serializer=self.request_type.SerializeToString
        )
        self._call = connect()
        heartbeat = self.request_type(heartbeat=Heartbeat())
        self.duplex: Duplex[Any] = Duplex(self._call.read, self._call.write, heartbeat, silence_timeout_s)
        self._task: asyncio.Task[None]

    @classmethod
    async def connect(
        cls,
        address: str,
        router_id: RouterId,
        *,
        model_fingerprint: str = "",
        tokenizer_fingerprint: str = "",
        silence_timeout_s: float,
        connect_timeout_s: float,
    ) -> Self:
        """Greet the replica at `host:port`. An empty fingerprint takes whatever model is there.

        `silence_timeout_s` must be that of the replica. Raises FingerprintMismatch, InvalidMessage for a welcome that does
        not fit, and TargetUnavailable or DraftUnavailable if there is no answer in time.
        """
        hello = Hello(
            protocol=handshake.PROTOCOL_VERSION,
            router_id=router_id,
            model_fingerprint=model_fingerprint,
            tokenizer_fingerprint=tokenizer_fingerprint,
        )
        replica = cls(address, silence_timeout_s)
        try:
            async with asyncio.timeout(connect_timeout_s):
                replica._take(await replica._greet(hello), hello)
        except BaseException as error:
            await replica._channel.close()
            if isinstance(error, TimeoutError):
                raise cls.unavailable("the replica did not answer in time") from None
            raise
        replica._task = asyncio.create_task(replica._supervise())
        return replica

    def lost(self) -> bool:
        """True once the replica is known to be gone, or `disconnect` was called."""
        return self._loss is not None

    async def disconnect(self) -> None:
        """End the stream; the replica forgets this router's sessions. Safe to call twice, and after the replica died."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._lose("disconnected")
        await self._channel.close()

    def open(self, session: SessionOpen) -> None:
        """Send it on its way. A refusal comes as a failure in a report."""
        self.send(self.request_type(open=codec.session_open_to_pb(session)))

    def close(self, session_id: SessionId) -> None:
        """Send it on its way; a replica that is gone has nothing left to close."""
        self.send(self.request_type(close=SessionClose(session_id=session_id)))

    def send(self, request: VerificationRequest | DraftingRequest) -> None:
        """Queue a request; after the loss there is nobody to send it to."""
        if self._loss is None:
            self.duplex.send_nowait(request)

    def loss(self) -> ReplicaUnavailable:
        """A fresh error for each caller, because a raised one carries its caller's traceback."""
        return self.unavailable(str(self._loss))

    @abstractmethod
    async def handle(self, data: bytes) -> None:
        """Take one message of the replica. Raises InvalidMessage if it does not fit as a whole, which loses the replica."""

    @abstractmethod
    def wake(self) -> None:
        """Let everybody who waits for an answer see the loss."""

    async def _greet(self, hello: Hello) -> Welcome:
        try:
            await self._call.write(self.request_type(hello=hello))
            data: Any = await self._call.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            data = grpc.aio.EOF
        if data is grpc.aio.EOF:
            if await self._call.code() == grpc.StatusCode.FAILED_PRECONDITION:
                raise FingerprintMismatch(await self._call.details())
            raise self.unavailable(f"the replica cannot be reached ({(await self._call.code()).name})")
        return parse(self.response_type, data).welcome

    def _take(self, welcome: Welcome, hello: Hello) -> None:
        """The replica compares too; but a router that trusts a wrong card would give wrong answers."""
        self.card, self.replica_id = handshake.welcome_from_pb(welcome)
        self.curve = handshake.curve_of_welcome(welcome)
        self.calls = handshake.calls_of_welcome(welcome)
        handshake.check_match(hello, welcome)
        self.bounds = Bounds.of(self.card)

    async def _supervise(self) -> None:
        reason = "the replica ended the stream"
        try:
            await self.duplex.run(self.handle)
        except grpc.aio.AioRpcError as error:
            reason = f"the stream to the replica broke ({error.code().name})"
        except (grpc.aio.BaseError, asyncio.InvalidStateError):
            reason = "the stream to the replica broke"
        except DSparkError as error:
            reason = str(error)
        except Exception:
            logger.exception("the stream to replica %s failed", self.replica_id)
            reason = "the stream to the replica failed"
        finally:
            self._lose(reason)
            self._call.cancel()

    def _lose(self, reason: str) -> None:
        if self._loss is None:
            self._loss = self.unavailable(reason)
            logger.info("replica %s is lost: %s", self.replica_id, reason)
            self.wake()


class RemoteVerifier(RemoteReplica):
    """A Verifier (ports.py) in another process."""

    service_name = VERIFICATION.services_by_name["Verification"].full_name
    request_type = VerificationRequest
    response_type = VerificationResponse
    unavailable = TargetUnavailable

    def __init__(self, address: str, silence_timeout_s: float) -> None:
        super().__init__(address, silence_timeout_s)
        self._reports: asyncio.Queue[StepReport | None] = asyncio.Queue()
        self._features = FeatureJoiner()

    def close(self, session_id: SessionId) -> None:
        """See RemoteReplica."""
        self._features.forget(session_id)
        super().close(session_id)

    def submit(self, requests: Sequence[VerifyRequest]) -> None:
        """Hand in rounds, as one message."""
        if requests:
            self._features.expect(requests)
            self.send(VerificationRequest(verify=codec.verify_batch_to_pb(requests)))

    async def next_report(self) -> StepReport:
        """The next step's report, in order; those that came in before the loss are still given. Raises TargetUnavailable."""
        report = await self._reports.get()
        if report is None:
            self.wake()  # the mark of the loss stays for the next call
            raise self.loss()
        return report

    async def handle(self, data: bytes) -> None:
        response = parse(VerificationResponse, data)
        if not response.HasField("report"):
            return
        self._features.take(response.report.features, self.bounds)
        if not response.report.partial:
            report = codec.step_report_from_pb(response.report, self.bounds)
            self._reports.put_nowait(replace(report, results=tuple(map(self._features.attach, report.results))))

    def wake(self) -> None:
        self._reports.put_nowait(None)


class RemoteDrafter(RemoteReplica):
    """A Drafter (ports.py) in another process."""

    service_name = DRAFTING.services_by_name["Drafting"].full_name
    request_type = DraftingRequest
    response_type = DraftingResponse
    unavailable = DraftUnavailable

    def __init__(self, address: str, silence_timeout_s: float) -> None:
        super().__init__(address, silence_timeout_s)
        self._batch_ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[DraftReport | None]] = {}

    async def draft(self, requests: Sequence[DraftRequest]) -> DraftReport:
        """One batch, in several messages where its features need them. The answer to a call that was given up is dropped.

        Several calls may be in flight. Every session asked for is in the report, the ones that the replica left out or answered
        out of bounds as failures. Raises DraftUnavailable.
        """
        batches = list(draft_batches(requests))
        if len(batches) == 1:
            return await self._draft(requests)
        return _joined(await asyncio.gather(*(self._draft(batch) for batch in batches)))

    async def _draft(self, requests: Sequence[DraftRequest]) -> DraftReport:
        if self.lost():
            raise self.loss()
        batch_id = next(self._batch_ids)
        answer = self._waiting[batch_id] = asyncio.get_running_loop().create_future()
        try:
            self.send(DraftingRequest(draft=codec.draft_batch_to_pb(batch_id, requests)))
            report = await answer
        finally:
            del self._waiting[batch_id]
        if report is None:
            raise self.loss()
        return _complete(report, requests)

    async def handle(self, data: bytes) -> None:
        response = parse(DraftingResponse, data)
        if not response.HasField("report"):
            return
        answer = self._waiting.get(response.report.batch_id)
        if answer is not None and not answer.done():
            answer.set_result(codec.draft_report_from_pb(response.report, self.bounds))

    def wake(self) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_result(None)


def _joined(reports: Sequence[DraftReport]) -> DraftReport:
    """The parts of one batch as one report."""
    return DraftReport(
        tuple(result for report in reports for result in report.results),
        tuple(failure for report in reports for failure in report.failures),
        max(report.draft_ms for report in reports),  # not their sum: the replica may have worked on the parts together
    )


def _complete(report: DraftReport, requests: Sequence[DraftRequest]) -> DraftReport:
    """The report with exactly one entry for each request; what was not asked for is dropped."""
    results: dict[SessionId, DraftResult] = {result.session_id: result for result in report.results}
    failures: dict[SessionId, SessionFailure] = {failure.session_id: failure for failure in report.failures}
    kept: list[DraftResult] = []
    failed: list[SessionFailure] = []
    for request in requests:
        result = results.get(request.session_id)
        if result is not None and len(result.tree) <= request.max_nodes:
            kept.append(result)
        elif result is not None:
            error = InvalidMessage(f"the tree has more than the {request.max_nodes} nodes asked for", "tree")
            failed.append(codec.failure_of(request.session_id, error))
        else:
            missing = codec.failure_of(request.session_id, ProtocolError("the drafter left the session out"))
            failed.append(failures.get(request.session_id, missing))
    return DraftReport(tuple(kept), tuple(failed), report.draft_ms)
