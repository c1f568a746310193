"""What the HTTP API needs of ASGI: reading a bounded body, noticing that a client left, sending events, one middleware.

Knows HTTP, no models and no fields of the API.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dspark.errors import RequestAborted, RequestTooLarge
from dspark.serving.public_errors import RETRY_AFTER_S, public_error
from dspark.serving.validation import REQUEST_ID_PATTERN

logger = logging.getLogger(__name__)
T = TypeVar("T")

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def json_response(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`content` as JSON."""
    return Response(orjson.dumps(content), status, headers, "application/json")


def error_response(error: BaseException, request_id: str) -> Response:
    """The OpenAI error object, and what clients' retry rules look at."""
    shown = public_error(error, request_id)
    headers = {"retry-after": str(RETRY_AFTER_S)} if shown.retryable else {"x-should-retry": "false"}
    return json_response(shown.body(), shown.http_status, headers)


def plain_error(status: int, message: str, code: str, headers: dict[str, str] | None = None) -> Response:
    """An error of HTTP itself: route, method, media type."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return json_response({"error": error}, status, {"x-should-retry": "false", **(headers or {})})


async def read_body(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """The JSON body, never holding more than `max_bytes`.

    Raises RequestTooLarge, RequestAborted, or HTTPException 415 (media type, compression) and 408 (too slow).
    """
    _check_media_type(request.headers)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise RequestTooLarge(f"the body is over the limit of {max_bytes} bytes")
    try:
        async with asyncio.timeout(timeout_s):
            return await _collect(request, max_bytes)
    except TimeoutError:
        raise HTTPException(408, "the body came too slowly") from None
    except ClientDisconnect:
        raise RequestAborted("the client went away") from None


async def _collect(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_bytes:
            raise RequestTooLarge(f"the body is over the limit of {max_bytes} bytes")
    return bytes(body)


def _check_media_type(headers: Headers) -> None:
    # A page of another origin cannot send this type without asking first, and it is never allowed to: no CORS here.
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(415, "Content-Type must be application/json")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HTTPException(415, "Content-Encoding must be identity")


async def unless_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The result of `work`; cancelled, with RequestAborted raised, when the client goes away first.

    The body must have been read: whatever `receive` gives after it can only be the disconnect.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise RequestAborted("the client went away")
        return working.result()
    finally:
        # Wait for both: the work frees what it holds before anybody goes on.
        watching.cancel()
        working.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStreamResponse(Response):
    """Sends server-sent events; closes their source when they end, when the client leaves and when it does not read."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], stall_timeout_s: float) -> None:
        super().__init__()
        self._events = events
        self._stall_timeout_s = stall_timeout_s
        del self.headers["content-length"]
        self.headers["x-accel-buffering"] = "no"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._events):
                await unless_gone(self._send_all(send), receive)
        except RequestAborted:
            logger.info("the client of request %s left its stream", scope["state"]["request_id"])

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for event in self._events:
            await self._send_in_time(send, {"type": "http.response.body", "body": event, "more_body": True})
        await self._send_in_time(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_in_time(self, send: Send, message: Message) -> None:
        try:
            async with asyncio.timeout(self._stall_timeout_s):
                await send(message)
        except TimeoutError:
            raise RequestAborted("the client does not read") from None


class RequestIdentity:
    """Outermost ASGI layer: gives each request an id, each response its fixed headers, each bug a 500 that says nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers.update({"x-request-id": request_id, **SECURITY_HEADERS})
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            logger.exception("request %s failed", request_id)
            if started:
                raise  # the server breaks the connection: a cut answer must not look like a whole one
            await error_response(error, request_id)(scope, receive, send_with_headers)


def _request_id(wanted: str | None) -> str:
    """The client's own id if it is harmless, so that Abort can use it; otherwise a new one."""
    return wanted if wanted is not None and REQUEST_ID_PATTERN.fullmatch(wanted) else secrets.token_hex(16)
