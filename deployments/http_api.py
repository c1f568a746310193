"""The HTTP API: OpenAI's routes, health, the playground page.

Knows routes and headers; what is behind them is a GenerationService.
No Ray here: the router deployment mounts the app, tests run it as it is.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI, Request
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.responses import Response

from deployments.http_parts import (
    EventStreamResponse,
    RequestIdentity,
    error_response,
    json_response,
    plain_error,
    read_body,
    unless_gone,
)
from dspark.config import LimitsConfig
from dspark.errors import DSparkError, InvalidRequest
from dspark.serving.choices import merged_chunks
from dspark.serving.generation import GenerationService
from dspark.serving.json_body import parse_object
from dspark.serving.openai import Call, ChatCompletionRequest, CompletionRequest, chat_call, completion_call
from dspark.serving.openai_answers import Answer, event, model_object
from dspark.serving.public_errors import public_error
from dspark.serving.validation import check_model

logger = logging.getLogger(__name__)

ServiceGetter = Callable[[], GenerationService]
CallMaker = Callable[..., Call]

TIMEOUT_HEADER = "x-dspark-timeout-seconds"
"""Not `x-request-timeout-seconds`: Ray Serve's proxy takes that one for itself and cuts the connection."""
"""Ray Serve reads the same header."""
_LARGE_BODY_BYTES = 64 * 1024
"""Above this, parsing and encoding would hold up the streams of others; a thread does it."""
_PLAYGROUND_TYPES = {"index.html": "text/html", "playground.css": "text/css", "playground.js": "text/javascript"}
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 408: "request_timeout", 415: "unsupported_media_type"}


def build_http_app(service: ServiceGetter, limits: LimitsConfig) -> FastAPI:
    """The ASGI app. `service` is called for every request, so the app may exist before the service does."""
    # The generated documentation pages load scripts from other hosts, so only the schema itself is offered.
    app = FastAPI(title="DSpark", version=_version(), docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(RequestIdentity)
    app.add_exception_handler(DSparkError, _on_dspark_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    _add_status_routes(app, service)
    _add_model_routes(app, service)
    _add_generation_routes(app, service, limits)
    _add_playground(app)
    return app


def _add_status_routes(app: FastAPI, service: ServiceGetter) -> None:
    @app.get("/health", response_class=Response)
    async def health() -> Response:
        """200 while the process answers at all."""
        return json_response({"status": "alive"})

    @app.get("/ready", response_class=Response)
    async def ready() -> Response:
        """200 if requests can be served, else 503."""
        if await service().ready():
            return json_response({"status": "ready"})
        return json_response({"status": "not ready"}, 503, {"retry-after": "1"})

    @app.get("/version", response_class=Response)
    async def version_of_package() -> Response:
        """The version of this package."""
        return json_response({"version": _version()})


def _add_model_routes(app: FastAPI, service: ServiceGetter) -> None:
    created_s = int(time.time())

    @app.get("/v1/models", response_class=Response)
    async def models() -> Response:
        """The one model served, as a list."""
        return json_response({"object": "list", "data": [model_object(service().card, created_s)]})

    @app.get("/v1/models/{name:path}", response_class=Response)
    async def model(name: str) -> Response:
        """The model served, if `name` is its name."""
        check_model(name, service().card)
        return json_response(model_object(service().card, created_s))


def _add_generation_routes(app: FastAPI, service: ServiceGetter, limits: LimitsConfig) -> None:
    names = (CompletionRequest.__name__, ChatCompletionRequest.__name__)

    @app.post("/v1/completions", response_class=Response, openapi_extra=_body_schema(names[0]))
    async def completions(request: Request) -> Response:
        """Continue a prompt."""
        return await _generate(request, service(), limits, completion_call)

    @app.post("/v1/chat/completions", response_class=Response, openapi_extra=_body_schema(names[1]))
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        return await _generate(request, service(), limits, chat_call)

    make_schema = app.openapi

    def openapi() -> dict[str, Any]:
        # Bodies are parsed by hand, for stricter JSON; so their schemas have to be added by hand.
        schema = make_schema()
        bodies = [(CompletionRequest, "validation"), (ChatCompletionRequest, "validation")]
        _, definitions = models_json_schema(bodies, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
        schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add_playground(app: FastAPI) -> None:
    folder = resources.files("dspark.serving") / "playground"
    files = {name: (folder / name).read_bytes() for name in _PLAYGROUND_TYPES}

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(files["index.html"], media_type=_PLAYGROUND_TYPES["index.html"])

    @app.get("/playground/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return Response(files[name], media_type=_PLAYGROUND_TYPES[name])


async def _generate(request: Request, service: GenerationService, limits: LimitsConfig, make_call: CallMaker) -> Response:
    body = await read_body(request, limits.max_body_bytes, limits.client_stall_timeout_s)
    context = {"request_id": request.state.request_id, "timeout_s": _timeout_s(request)}

    def check() -> Call:
        return make_call(parse_object(body), service, limits, **context)

    call = await asyncio.to_thread(check) if len(body) > _LARGE_BODY_BYTES else check()
    if not call.stream:
        return json_response(await unless_gone(_whole(call, service, limits), request.receive))
    events = _events(call, service, limits)
    # The first event decides between a stream and an error with its own status.
    first = await unless_gone(anext(events), request.receive)
    told = _first_then(first, events, request.state.request_id)
    return EventStreamResponse(told, limits.client_stall_timeout_s)


async def _whole(call: Call, service: GenerationService, limits: LimitsConfig) -> dict[str, Any]:
    answer = Answer(call, service.card)
    async with aclosing(merged_chunks(service, call.requests, limits.max_buffered_chunks)) as chunks:
        async for index, chunk in chunks:
            answer.add(index, chunk)
    return answer.whole()


async def _events(call: Call, service: GenerationService, limits: LimitsConfig) -> AsyncGenerator[bytes, None]:
    answer = Answer(call, service.card)
    async with aclosing(merged_chunks(service, call.requests, limits.max_buffered_chunks)) as chunks:
        async for index, chunk in chunks:
            for told in answer.events(index, chunk):
                yield told
    for told in answer.closing_events():
        yield told


async def _first_then(first: bytes, events: AsyncGenerator[bytes, None], request_id: str) -> AsyncGenerator[bytes, None]:
    """The whole stream; an error on the way becomes its last event, and then there is no [DONE]."""
    async with aclosing(events):
        yield first
        try:
            async for told in events:
                yield told
        except Exception as error:  # the status is sent: an event is all that is left to tell it with
            shown = public_error(error, request_id)
            if shown.http_status >= 500:
                logger.warning("request %s ended in its stream", request_id, exc_info=error)
            yield event(shown.body())


def _timeout_s(request: Request) -> float | None:
    value = request.headers.get(TIMEOUT_HEADER)
    try:
        return None if value is None else float(value)
    except ValueError:
        raise InvalidRequest(f"the header {TIMEOUT_HEADER} must be a number of seconds", TIMEOUT_HEADER) from None


async def _on_dspark_error(request: Request, error: Exception) -> Response:
    response = error_response(error, request.state.request_id)
    if response.status_code >= 500:
        logger.warning("request %s got %d", request.state.request_id, response.status_code, exc_info=error)
    return response


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reason = {404: "no such route", 405: "this route does not take this method"}.get(error.status_code, error.detail)
    return plain_error(error.status_code, reason, _HTTP_CODES.get(error.status_code, "http_error"), dict(error.headers or {}))


def _body_schema(name: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _version() -> str:
    try:
        return version("dspark")
    except PackageNotFoundError:  # run from a source tree
        return "0+source"
