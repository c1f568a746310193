"""What both internal services share: the handshake, and who owns which session. A session ends with the stream that opened it.

Knows no model and no lease: it calls the port behind it, and `on_session_end` for whoever holds something for a session.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import grpc
import grpc.aio

from dspark.errors import (
    DeadlineExceeded,
    DSparkError,
    InvalidMessage,
    Overloaded,
    UnknownSession,
    status_codes,
)
from dspark.messages import DraftRequest, SessionFailure, SessionOpen, VerifyRequest
from dspark.scheduling.curve import ThroughputCurve
from dspark.scheduling.draft_cost import DraftCall
from dspark.types import ModelCard, ReplicaId, RouterId, SessionId
from dspark.wire import codec, handshake
from dspark.wire.checks import MAX_TREE_NODES, Bounds, is_session_id, name_from_pb, session_id_from_pb
from dspark.wire.pb import drafting_pb2, session_pb2, verification_pb2
from dspark.wire.streams import Duplex, parse

logger = logging.getLogger(__name__)

MAX_SKIPS_LOGGED = 5
"""Per stream: a broken router must not flood the log."""

_Backend = TypeVar("_Backend")
_Asked = TypeVar("_Asked", DraftRequest, VerifyRequest)


class Replica(Protocol):
    """What Drafter and Verifier have in common."""

    def open(self, session: SessionOpen) -> None: ...

    def close(self, session_id: SessionId) -> None: ...


class RouterStream(ABC):
    """One router's stream and the sessions it owns. Lives as long as the call."""

    def __init__(self, service: "StreamService[Any]", router_id: RouterId, replica: Replica, duplex: Duplex[Any]) -> None:
        self.router_id = router_id
        self.sessions: set[SessionId] = set()
        self.service = service
        self._skipped = 0
        self._replica = replica
        self.duplex = duplex

    @abstractmethod
    async def handle(self, data: bytes) -> None:
        """Take one message of the router. Raises InvalidMessage if it does not fit as a whole, which ends the stream."""

    @abstractmethod
    def companions(self) -> list[Coroutine[Any, Any, None]]:
        """What runs beside reading for as long as the stream lives."""

    async def serve(self) -> None:
        """Until the stream ends, for whatever reason; then no session is left."""
        try:
            await self.duplex.run(self.handle, *self.companions())
        finally:
            for session_id in tuple(self.sessions):
                self.end_session(session_id)

    def end_session(self, session_id: SessionId) -> None:
        """Close it on the replica and tell the service. Must not raise: the sessions after it have to end too."""
        self.service.disown(session_id, self)
        self.close_on_replica(session_id)
        self.service.report_end(session_id)

    def close_on_replica(self, session_id: SessionId) -> None:
        """Forget the session here, without a word to anybody else."""
        self.sessions.discard(session_id)
        try:
            self._replica.close(session_id)
        except Exception:
            logger.exception("closing session %s failed", session_id)

    def open_session(self, message: session_pb2.SessionOpen) -> list[SessionFailure]:
        """Returns the failure, if there is one; a session that was open under the id before a malformed message stays."""
        try:
            session = codec.session_open_from_pb(message, self.service.bounds)
            self.service.own(session.session_id, self)
        except DSparkError as error:
            return self._refusal(message.session_id, error)
        try:
            self._replica.open(session)
        except Exception as error:
            self.end_session(session.session_id)
            return [failure(session.session_id, error)]
        return []

    def close_session(self, message: session_pb2.SessionClose) -> None:
        """Unknown ids, and those of other streams, are ignored like in the ports."""
        if message.session_id in self.sessions:
            self.end_session(session_id_from_pb(message.session_id))

    def owned(self, requests: Iterable[_Asked]) -> tuple[list[_Asked], list[SessionFailure]]:
        """The requests of this stream's own sessions, and failures for the others."""
        mine: list[_Asked] = []
        strange: list[SessionFailure] = []
        for request in requests:
            if request.session_id in self.sessions:
                mine.append(request)
            else:
                strange.append(failure(request.session_id, UnknownSession("this stream has no such session")))
        return mine, strange

    def skip(self, reason: str) -> None:
        """A message without a session to blame; the stream goes on."""
        self._skipped += 1
        if self._skipped <= MAX_SKIPS_LOGGED:
            logger.warning("router %s sent a message that does not fit: %s", self.router_id, reason)

    def _refusal(self, session_id: str, error: DSparkError) -> list[SessionFailure]:
        if is_session_id(session_id):
            return [failure(SessionId(session_id), error)]
        self.skip(str(error))
        return []


class StreamService(ABC, Generic[_Backend]):
    """Greets routers, keeps the list of owners, and decides how errors look to the peer."""

    service_name: str
    request_type: type[verification_pb2.VerificationRequest] | type[drafting_pb2.DraftingRequest]
    response_type: type[verification_pb2.VerificationResponse] | type[drafting_pb2.DraftingResponse]

    def __init__(
        self,
        backend: _Backend,
        card: ModelCard,
        replica_id: ReplicaId,
        *,
        silence_timeout_s: float,
        on_session_end: Callable[[SessionId], None] = lambda _: None,
        curve: ThroughputCurve | None = None,
        calls: Sequence[DraftCall] = (),
        max_nodes: int = MAX_TREE_NODES,
        max_sessions: int = 4096,
    ) -> None:
        """`silence_timeout_s` must be that of the routers: both ends derive their heartbeats from it. `curve` is a target's, `calls` are
        a drafter's.

        `on_session_end` is called once for each session that is over here: closed by its router, refused by the replica, or its
        stream ended. Not for one that its router took to a new stream.
        """
        self.backend = backend
        self.bounds = Bounds.of(card, max_nodes)
        self.silence_timeout_s = silence_timeout_s
        self._welcome = handshake.welcome_to_pb(card, replica_id, curve, calls)
        self._on_session_end = on_session_end
        self._max_sessions = max_sessions
        self._owners: dict[SessionId, RouterStream] = {}

    @abstractmethod
    def connect(self, router_id: RouterId, context: grpc.aio.ServicerContext[Any, Any]) -> RouterStream:
        """The stream of a router that has been welcomed."""

    def holds(self, session_id: SessionId) -> bool:
        """True while some stream has the session open."""
        return session_id in self._owners

    def add_to(self, server: grpc.aio.Server) -> None:
        """Requests come in as bytes, so that garbage is this module's to answer."""
        method: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            self._call, response_serializer=self.response_type.SerializeToString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(self.service_name, {"Connect": method}),))

    def own(self, session_id: SessionId, stream: RouterStream) -> None:
        """Raises InvalidMessage if another router has the session, Overloaded if there are too many.

        A router that comes back before the end of its old stream was noticed takes its sessions with it.
        """
        owner = self._owners.get(session_id)
        if owner is None and len(self._owners) >= self._max_sessions:
            raise Overloaded(f"the replica has {self._max_sessions} sessions")
        if owner is not None and owner is not stream:
            if owner.router_id != stream.router_id:
                raise InvalidMessage("the session belongs to another router", "session_id")
            owner.close_on_replica(session_id)
        self._owners[session_id] = stream
        stream.sessions.add(session_id)

    def disown(self, session_id: SessionId, stream: RouterStream) -> None:
        """Only the owner's word counts."""
        if self._owners.get(session_id) is stream:
            del self._owners[session_id]

    def report_end(self, session_id: SessionId) -> None:
        """Never raises."""
        try:
            self._on_session_end(session_id)
        except Exception:
            logger.exception("the callback for the end of session %s failed", session_id)

    async def _call(self, _: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        # Not aborted while an error is handled: the abort would hold the error, and it the stream, until the garbage collector comes.
        status = await self._serve(context)
        if status is not None:
            await context.abort(*status)

    async def _serve(self, context: grpc.aio.ServicerContext[Any, Any]) -> tuple[grpc.StatusCode, str] | None:
        """One stream from Hello to its end, and the status to end it with. Texts of errors not raised on purpose stay here."""
        try:
            router_id = await self._greet(context)
            if router_id is not None:
                await self.connect(router_id, context).serve()
        except DSparkError as error:
            logger.info("a router's stream ended: %s", error)
            return grpc.StatusCode[status_codes(error).grpc], error.message
        except grpc.aio.BaseError:
            logger.info("a router's stream broke")
        except Exception:
            logger.exception("a router's stream failed")
            return grpc.StatusCode.INTERNAL, "internal error"
        return None

    async def _greet(self, context: grpc.aio.ServicerContext[Any, Any]) -> RouterId | None:
        """The router's id, or None if it left without a word. Raises FingerprintMismatch, InvalidMessage or DeadlineExceeded."""
        try:
            async with asyncio.timeout(self.silence_timeout_s):
                data = await context.read()
        except TimeoutError:
            raise DeadlineExceeded("no hello in time") from None
        if data is grpc.aio.EOF:
            return None
        request = parse(self.request_type, data)
        if not request.HasField("hello"):
            raise InvalidMessage("the first message must be a hello")
        handshake.check_match(request.hello, self._welcome)
        router_id = RouterId(name_from_pb("router_id", request.hello.router_id))
        await context.write(self.response_type(welcome=self._welcome))
        return router_id


def failure(session_id: SessionId, error: Exception) -> SessionFailure:
    """What the router may know; what was not raised on purpose goes to the log."""
    if not isinstance(error, DSparkError):
        logger.error("session %s failed", session_id, exc_info=error)
    return codec.failure_of(session_id, error)
