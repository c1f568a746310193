"""The public gRPC service as a mixin of the Router: protobuf in, the one validator, the one service, protobuf out.

Ray Serve calls the methods by their rpc names. It hands over neither the client's deadline, hence the metadata key below, nor a way
to abort with a status, hence `set_code` and then an exception that says nothing: Serve would send its text to the client.
"""

import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Protocol, cast

import grpc

from dspark.config import LimitsConfig
from dspark.errors import DSparkError, InvalidRequest, RequestTooLarge
from dspark.serving.generation import GenerationChunk, GenerationRequest, GenerationService, Usage
from dspark.serving.public_errors import public_error
from dspark.serving.validation import Prompt, RawOptions, check_model, check_request_id, generation_requests
from dspark.wire.pb import generation_pb2 as pb

logger = logging.getLogger(__name__)

TIMEOUT_KEY = "dspark-timeout-s"
"""Metadata: seconds the client is willing to wait, beside its deadline, which ends at Serve's proxy."""


class RpcContext(Protocol):
    """What is used of Serve's, and of grpc.aio's, context."""

    def invocation_metadata(self) -> Any:
        """(key, value) pairs."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """Status of the call."""

    def set_details(self, details: str) -> None:
        """Text of the status."""


class RpcFailedError(Exception):
    """The call's status is already set; carries no text on purpose."""


class GenerationRpc:
    """The four methods of dspark.v1.Generation. The class that mixes it in sets `service` and `limits`."""

    service: GenerationService
    limits: LimitsConfig

    async def Generate(self, request: pb.GenerateRequest, grpc_context: RpcContext) -> pb.GenerateResponse:  # noqa: N802
        """The whole answer at once."""
        request_id = _request_id(request)
        with _told_to(grpc_context, request_id):
            generation = self._read(request, request_id, grpc_context)
            response = pb.GenerateResponse(request_id=generation.request_id, seed=generation.sampling.seed)
            async with aclosing(_generator(self.service.stream(generation))) as chunks:
                async for chunk in chunks:
                    response.text += chunk.text
                    response.token_ids.extend(chunk.token_ids)
                    response.finish_reason = chunk.finish_reason or ""
                    response.usage.CopyFrom(_usage(chunk.usage))
            return response

    async def GenerateStream(  # noqa: N802
        self, request: pb.GenerateRequest, grpc_context: RpcContext
    ) -> AsyncGenerator[pb.GenerateChunk, None]:
        """The answer in pieces."""
        request_id = _request_id(request)
        with _told_to(grpc_context, request_id):
            generation = self._read(request, request_id, grpc_context)
            async with aclosing(_generator(self.service.stream(generation))) as chunks:
                async for chunk in chunks:
                    yield _chunk(generation, chunk)

    async def Abort(self, request: pb.AbortRequest, grpc_context: RpcContext) -> pb.AbortResponse:  # noqa: N802
        """End a request by its id."""
        with _told_to(grpc_context, secrets.token_hex(16)):
            return pb.AbortResponse(aborted=await self.abort_anywhere(check_request_id(request.request_id)))

    async def ListModels(self, request: pb.ListModelsRequest, grpc_context: RpcContext) -> pb.ListModelsResponse:  # noqa: N802
        """The one model of this service."""
        card = self.service.card
        return pb.ListModelsResponse(models=[pb.Model(name=card.name, max_length=card.max_length, vocab_size=card.vocab_size)])

    async def abort_anywhere(self, request_id: str) -> bool:
        """Where the request may run on another router, the mixing class looks there too."""
        return self.service.abort(request_id)

    def _read(self, request: pb.GenerateRequest, request_id: str, context: RpcContext) -> GenerationRequest:
        """One prompt, one choice: n is not part of this service, several calls are. Raises InvalidRequest."""
        check_request_id(request_id)
        if request.ByteSize() > self.limits.max_body_bytes:
            raise RequestTooLarge(f"the request has more than {self.limits.max_body_bytes} bytes")
        if request.model:
            check_model(request.model, self.service.card)
        (generation,) = generation_requests(
            _raw_options(request, request_id, _timeout_s(context)),
            self.service.card,
            self.limits,
            self.service.encode,
            drafters=self.service.drafters,
        )
        return generation


@contextmanager
def _told_to(context: RpcContext, request_id: str) -> Iterator[None]:
    """Errors become the call's status; what was not raised on purpose becomes INTERNAL and a log entry."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, DSparkError):
            logger.exception("gRPC request %s failed", request_id)
        shown = public_error(error, request_id)
        context.set_code(grpc.StatusCode[shown.grpc_code])
        context.set_details(shown.message)
        raise RpcFailedError from None


def _request_id(request: pb.GenerateRequest) -> str:
    return request.request_id or secrets.token_hex(16)


def _raw_options(request: pb.GenerateRequest, request_id: str, timeout_s: float | None) -> RawOptions:
    def said(field: str, message: Any = request) -> Any:
        return getattr(message, field) if message.HasField(field) else None

    return RawOptions(
        prompts=(_prompt(request),),
        request_id=request_id,
        max_tokens=said("max_tokens"),
        temperature=said("temperature"),
        top_p=said("top_p"),
        top_k=said("top_k"),
        min_p=said("min_p"),
        seed=said("seed"),
        stop=tuple(request.stop),
        ignore_eos=said("ignore_eos"),
        speculation_enabled=_speculation_enabled(request),
        drafter=request.speculation.drafter or None,
        max_nodes=said("max_nodes", request.speculation),
        min_tokens_per_second=said("min_tokens_per_second", request.speculation),
        priority=said("priority"),
        timeout_s=timeout_s,
    )


def _speculation_enabled(request: pb.GenerateRequest) -> bool | None:
    """Clients of the first version write false as an empty message: the field had no presence then."""
    if not request.HasField("speculation"):
        return None
    speculation = request.speculation
    return speculation.enabled if speculation.HasField("enabled") else bool(speculation.ListFields())


def _prompt(request: pb.GenerateRequest) -> Prompt:
    """Neither text nor ids is an empty text, which the validator refuses."""
    return tuple(request.token_ids.ids) if request.WhichOneof("prompt") == "token_ids" else request.text


def _timeout_s(context: RpcContext) -> float | None:
    said = dict(context.invocation_metadata() or ()).get(TIMEOUT_KEY)
    try:
        return None if said is None else float(said)
    except ValueError:
        raise InvalidRequest(f"the metadata {TIMEOUT_KEY} must be a number of seconds", TIMEOUT_KEY) from None


def _chunk(request: GenerationRequest, chunk: GenerationChunk) -> pb.GenerateChunk:
    return pb.GenerateChunk(
        request_id=request.request_id,
        text=chunk.text,
        token_ids=chunk.token_ids,
        finish_reason=chunk.finish_reason or "",
        usage=_usage(chunk.usage),
        seed=request.sampling.seed,
    )


def _usage(usage: Usage) -> pb.Usage:
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        drafted_tokens=usage.drafted_tokens,
        selected_tokens=usage.selected_tokens,
        accepted_tokens=usage.accepted_tokens,
        rounds=usage.rounds,
        drafter=usage.drafter or "",
        max_nodes=usage.max_nodes,
        min_tokens_per_second=usage.min_tokens_per_second,
        priority=usage.priority,
    )


def _generator(chunks: AsyncIterator[GenerationChunk]) -> AsyncGenerator[GenerationChunk, None]:
    """A service's stream is a generator: closing it is what ends the work."""
    return cast(AsyncGenerator[GenerationChunk, None], chunks)
