"""A plain gRPC server in Serve's place, and a channel that keeps Serve's way with statuses."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio

from deployments.grpc_api import GenerationRpc
from dspark.config import LimitsConfig
from dspark.wire.pb import generation_pb2 as pb
from dspark.wire.pb import generation_pb2_grpc as rpc
from tests.serving.echo_service import EchoService


class Servicer(GenerationRpc):
    """What the Router is to Serve, for a plain gRPC server."""

    def __init__(self, service: EchoService) -> None:
        self.service = service
        self.limits = LimitsConfig(max_body_bytes=4096)


@asynccontextmanager
async def serving(service: EchoService) -> AsyncIterator[str]:
    server = grpc.aio.server()
    rpc.add_GenerationServicer_to_server(Servicer(service), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


class RecordedContext:
    """Serve's context keeps the code and text that were set; a plain aio server would replace the text by the exception's class."""

    def __init__(self, timeout_s: float | None) -> None:
        self.timeout_s = timeout_s
        self.code = grpc.StatusCode.OK
        self.details = ""

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("user-agent", "test")] + ([] if self.timeout_s is None else [("dspark-timeout-s", str(self.timeout_s))])

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


class ServeLikeChannel:
    """Calls the servicer directly, after a trip through bytes; a raised call ends with the code and text that were set before."""

    def __init__(self, servicer: Servicer) -> None:
        self._servicer = servicer

    def unary_unary(self, path: str, **_: object) -> "ServeLikeCall":
        return ServeLikeCall(getattr(self._servicer, path.rpartition("/")[2]))

    def unary_stream(self, path: str, **_: object) -> "ServeLikeCall":
        return ServeLikeCall(getattr(self._servicer, path.rpartition("/")[2]))


class ServeLikeCall:
    def __init__(self, method: object) -> None:
        self._method = method

    def __call__(self, request: pb.GenerateRequest, timeout: float | None = None, metadata: tuple[tuple[str, str], ...] = ()) -> object:
        said = dict(metadata).get("dspark-timeout-s")
        context = RecordedContext(None if said is None else float(said))
        answer = self._method(type(request).FromString(request.SerializeToString()), context)  # type: ignore[operator]
        return self._items(answer, context) if hasattr(answer, "__aiter__") else self._item(answer, context)

    async def _item(self, answer: object, context: RecordedContext) -> object:
        try:
            return await answer  # type: ignore[misc]
        except Exception as error:
            raise self._status(error, context) from None

    async def _items(self, answers: object, context: RecordedContext) -> AsyncIterator[object]:
        try:
            async for answer in answers:  # type: ignore[attr-defined]
                yield answer
        except Exception as error:
            raise self._status(error, context) from None

    def _status(self, error: Exception, context: RecordedContext) -> grpc.aio.AioRpcError:
        assert str(error) == "", "Serve would send this text to the client"
        empty = grpc.aio.Metadata()
        return grpc.aio.AioRpcError(context.code, empty, empty, details=context.details)
