"""A thin client of the public gRPC service, blocking and async.

    with Client("127.0.0.1:9000") as client:
        print(client.generate("def add(", max_tokens=32).text)

Needs neither torch nor ray. Errors of the service come as the classes of dspark.errors. Leaving a stream early ends its work.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NoReturn, Self, TypedDict, Unpack

import grpc
import grpc.aio

from dspark.errors import (
    DeadlineExceeded,
    DSparkError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ReplicaUnavailable,
    RequestAborted,
)
from dspark.serving.generation import Usage
from dspark.wire.pb import generation_pb2 as pb
from dspark.wire.pb import generation_pb2_grpc as rpc

DEFAULT_ADDRESS = "127.0.0.1:9000"
TIMEOUT_KEY = "dspark-timeout-s"
DEADLINE_GRACE_S = 2.0
"""The service ends a request at its timeout with a clear error; the call's own deadline, this much later, is for one that is gone."""
ABORT_TIMEOUT_S = 2.0
_SPECULATION = ("drafter", "max_nodes", "min_tokens_per_second")
"""Options that travel in the message Speculation under their own names."""

_ERRORS: dict[grpc.StatusCode, type[DSparkError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: ModelNotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: RequestAborted,
    grpc.StatusCode.UNAVAILABLE: ReplicaUnavailable,
}


class Options(TypedDict, total=False):
    """What a request can say beside its prompt; what is not given is the service's default."""

    model: str
    max_tokens: int
    temperature: float
    """0 is greedy."""
    top_p: float
    top_k: int
    min_p: float
    seed: int
    """The same seed and prompt give the same tokens, whoever drafts."""
    stop: Sequence[str]
    ignore_eos: bool
    speculation: bool
    """False: plain decoding; the same tokens, only slower."""
    drafter: str
    """Who drafts, by the service's name for it; not given, the service chooses."""
    max_nodes: int
    """Candidates per round at most; 0 is plain decoding."""
    min_tokens_per_second: float
    """A speed to be kept. A service that enforces promises raises Overloaded where it cannot."""
    priority: int
    """-100 to 100; a lower value goes first."""
    request_id: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one round added to the answer."""

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    """ "stop" or "length" in the last chunk, "" before."""
    usage: Usage
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer."""

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    usage: Usage
    seed: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model that the service offers."""

    name: str
    max_length: int
    """Longest prompt plus output, in tokens."""
    vocab_size: int


class Client:
    """Blocking client. Give a channel of your own for TLS or interceptors; it is yours to close then."""

    def __init__(self, address: str = DEFAULT_ADDRESS, *, channel: grpc.Channel | None = None) -> None:
        self._own = grpc.insecure_channel(address) if channel is None else None
        self._stub: rpc.GenerationStub = rpc.GenerationStub(channel or self._own)  # type: ignore[no-untyped-call]

    def generate(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Completion:
        """The whole answer. Raises the errors of dspark.errors."""
        call = _Call.of(prompt, options)
        try:
            return _completion(self._stub.Generate(call.request, timeout=call.deadline_s, metadata=call.metadata))
        except grpc.RpcError as error:
            _raise(error)

    def stream(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Iterator[Chunk]:
        """The answer in pieces. Close the iterator (or leave the loop and drop it) to end the request early."""
        call = _Call.of(prompt, options)
        chunks = self._stub.GenerateStream(call.request, timeout=call.deadline_s, metadata=call.metadata)
        finished = False
        try:
            for chunk in chunks:
                finished = bool(chunk.finish_reason)
                yield _chunk(chunk)
        except grpc.RpcError as error:
            finished = True
            _raise(error)
        finally:
            if not finished:
                chunks.cancel()
                self._abort_quietly(call.request.request_id)

    def abort(self, request_id: str) -> bool:
        """End a request by its id; False if there is none."""
        try:
            return bool(self._stub.Abort(pb.AbortRequest(request_id=request_id), timeout=ABORT_TIMEOUT_S).aborted)
        except grpc.RpcError as error:
            _raise(error)

    def models(self) -> list[Model]:
        """What the service offers."""
        try:
            return _models(self._stub.ListModels(pb.ListModelsRequest(), timeout=10.0))
        except grpc.RpcError as error:
            _raise(error)

    def close(self) -> None:
        """Close the connection, if this client made it."""
        if self._own is not None:
            self._own.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _abort_quietly(self, request_id: str) -> None:
        """A cancel does not always get through the service's proxy; an Abort does. Best effort: the call is over anyway."""
        try:
            self._stub.Abort(pb.AbortRequest(request_id=request_id), timeout=ABORT_TIMEOUT_S)
        except grpc.RpcError:
            return


class AsyncClient:
    """The same for asyncio; to be made inside a running event loop."""

    def __init__(self, address: str = DEFAULT_ADDRESS, *, channel: grpc.aio.Channel | None = None) -> None:
        self._own = grpc.aio.insecure_channel(address) if channel is None else None
        self._stub: Any = rpc.GenerationStub(channel or self._own)  # type: ignore[no-untyped-call]

    async def generate(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Completion:
        """The whole answer. Raises the errors of dspark.errors."""
        call = _Call.of(prompt, options)
        try:
            return _completion(await self._stub.Generate(call.request, timeout=call.deadline_s, metadata=call.metadata))
        except grpc.RpcError as error:
            _raise(error)

    async def stream(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> AsyncIterator[Chunk]:
        """The answer in pieces. Close the generator (`aclosing`) to end the request early."""
        call = _Call.of(prompt, options)
        chunks = self._stub.GenerateStream(call.request, timeout=call.deadline_s, metadata=call.metadata)
        finished = False
        try:
            async for chunk in chunks:
                finished = bool(chunk.finish_reason)
                yield _chunk(chunk)
        except grpc.RpcError as error:
            finished = True
            _raise(error)
        except asyncio.CancelledError:
            if _is_cancelled_here():
                raise
            # grpc.aio says this, too, where the service ended the call with the status CANCELLED.
            finished = True
            raise RequestAborted("the request was aborted") from None
        finally:
            if not finished:
                chunks.cancel()
                await self._abort_quietly(call.request.request_id)

    async def abort(self, request_id: str) -> bool:
        """End a request by its id; False if there is none."""
        try:
            response = await self._stub.Abort(pb.AbortRequest(request_id=request_id), timeout=ABORT_TIMEOUT_S)
        except grpc.RpcError as error:
            _raise(error)
        return bool(response.aborted)

    async def models(self) -> list[Model]:
        """What the service offers."""
        try:
            return _models(await self._stub.ListModels(pb.ListModelsRequest(), timeout=10.0))
        except grpc.RpcError as error:
            _raise(error)

    async def close(self) -> None:
        """Close the connection, if this client made it."""
        if self._own is not None:
            await self._own.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def _abort_quietly(self, request_id: str) -> None:
        """As Client._abort_quietly."""
        try:
            await self._stub.Abort(pb.AbortRequest(request_id=request_id), timeout=ABORT_TIMEOUT_S)
        except grpc.RpcError:
            return


@dataclass(frozen=True, slots=True)
class _Call:
    request: pb.GenerateRequest
    deadline_s: float | None = None
    metadata: tuple[tuple[str, str], ...] = field(default=())

    @staticmethod
    def of(prompt: str | Sequence[int], options: Options) -> "_Call":
        request = _request(prompt, options)
        timeout_s = options.get("timeout_s")
        if timeout_s is None:
            return _Call(request)
        return _Call(request, timeout_s + DEADLINE_GRACE_S, ((TIMEOUT_KEY, repr(timeout_s)),))


def _request(prompt: str | Sequence[int], options: Options) -> pb.GenerateRequest:
    """Raises InvalidRequest for values that the message cannot carry; all else is for the service to judge."""
    fields: dict[str, Any] = {k: v for k, v in options.items() if k not in ("timeout_s", "speculation", *_SPECULATION)}
    fields.setdefault("request_id", uuid.uuid4().hex)  # so that leaving a stream early can abort it
    try:
        if not options.keys().isdisjoint(("speculation", *_SPECULATION)):
            said: dict[str, Any] = {key: value for key, value in options.items() if key in _SPECULATION}
            fields["speculation"] = pb.Speculation(enabled=options.get("speculation", True), **said)
        if isinstance(prompt, str):
            return pb.GenerateRequest(text=prompt, **fields)
        return pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), **fields)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"the request cannot be sent: {error}") from None


def _is_cancelled_here() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _chunk(chunk: pb.GenerateChunk) -> Chunk:
    return Chunk(chunk.request_id, chunk.text, tuple(chunk.token_ids), chunk.finish_reason, _usage(chunk.usage), chunk.seed)


def _completion(answer: pb.GenerateResponse) -> Completion:
    return Completion(answer.request_id, answer.text, tuple(answer.token_ids), answer.finish_reason, _usage(answer.usage), answer.seed)


def _usage(usage: pb.Usage) -> Usage:
    return Usage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.drafted_tokens,
        usage.selected_tokens,
        usage.accepted_tokens,
        usage.rounds,
        usage.drafter or None,
        usage.max_nodes if usage.HasField("max_nodes") else None,
        usage.min_tokens_per_second if usage.HasField("min_tokens_per_second") else None,
        usage.priority,
    )


def _models(response: pb.ListModelsResponse) -> list[Model]:
    return [Model(model.name, model.max_length, model.vocab_size) for model in response.models]


def _raise(error: grpc.RpcError) -> NoReturn:
    """As the class of dspark.errors that stands for the status. Every RpcError of a call is a Call with code and details."""
    code, details = error.code(), error.details()
    raise _ERRORS.get(code, DSparkError)(details or code.name) from None
