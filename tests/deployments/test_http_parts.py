"""What HTTP brings along: bodies too large, too slow or of another kind, errors before and in a stream, request ids, clients that leave."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from deployments.http_api import build_http_app
from dspark.config import LimitsConfig
from dspark.errors import DeadlineExceeded, Overloaded, RequestAborted, SpeedUnavailable, TargetUnavailable
from tests.deployments.http_calls import COMPLETION, assert_error, events_of
from tests.serving.echo_service import EchoService


async def test_a_body_over_the_limit_gets_413_whether_or_not_it_says_its_size(client: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 50_000
            yield b" " * 50_000

    headers = {"content-type": "application/json"}
    assert_error(await client.post("/v1/completions", content=b" " * 200_001, headers=headers), 413, "request_too_large")
    assert_error(await client.post("/v1/completions", content=endless(), headers=headers), 413)
    assert sent <= 300_000


async def test_a_body_that_does_not_come_gets_408(service: EchoService) -> None:
    app = build_http_app(lambda: service, LimitsConfig(client_stall_timeout_s=0.05))

    async def silent() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        response = await client.post("/v1/completions", content=silent(), headers={"content-type": "application/json"})
    assert_error(response, 408)


async def test_only_plain_json_is_read(client: httpx.AsyncClient) -> None:
    content = json.dumps(COMPLETION).encode()
    for headers in (
        {"content-type": "text/plain"},
        {},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ):
        assert_error(await client.post("/v1/completions", content=content, headers=headers), 415)
    headers = {"content-type": "application/json; charset=utf-8", "content-encoding": "identity"}
    assert (await client.post("/v1/completions", content=content, headers=headers)).status_code == 200


async def test_a_large_body_is_served_like_a_small_one(client: httpx.AsyncClient) -> None:
    padded = json.dumps(COMPLETION).encode() + b" " * 100_000
    response = await client.post("/v1/completions", content=padded, headers={"content-type": "application/json"})
    assert response.json()["choices"][0]["text"].startswith("The quick")


@pytest.mark.parametrize(
    ("failure", "status", "retry_after"),
    [
        (Overloaded("full"), 429, "1"),
        (SpeedUnavailable("too many"), 429, "1"),
        (TargetUnavailable("10.0.0.7:5555"), 503, "1"),
        (DeadlineExceeded("late"), 504, None),
        (RequestAborted("aborted"), 499, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_chunk_has_its_own_status(
    client: httpx.AsyncClient, service: EchoService, failure: Exception, status: int, retry_after: str | None, stream: bool
) -> None:
    service.pause_after, service.failure = 0, failure
    response = await client.post("/v1/completions", json=COMPLETION | {"stream": stream})
    error = assert_error(response, status)
    assert "10.0.0.7" not in error["message"]
    assert response.headers.get("retry-after") == retry_after
    assert response.headers.get("x-should-retry") == (None if retry_after else "false")
    assert service.open_streams == 0


async def test_an_error_in_the_stream_is_its_last_event_and_there_is_no_done(
    client: httpx.AsyncClient, service: EchoService
) -> None:
    service.pause_after, service.failure = 2, TargetUnavailable("10.0.0.7:5555")
    response = await client.post("/v1/completions", json=COMPLETION | {"stream": True, "n": 2})
    events = events_of(response)
    assert response.status_code == 200
    assert events[-1]["error"]["code"] == "no_target"
    assert all("choices" in event for event in events[:-1])
    assert "[DONE]" not in response.text
    assert "10.0.0.7" not in response.text
    assert service.open_streams == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bug_gets_500_with_the_request_id_and_the_log_gets_the_rest(
    client: httpx.AsyncClient, service: EchoService, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    service.pause_after, service.failure = 0, ZeroDivisionError("secret detail")
    with caplog.at_level(logging.ERROR):
        response = await client.post("/v1/completions", json=COMPLETION | {"stream": stream}, headers={"x-request-id": "bug-1"})
    error = assert_error(response, 500, "internal_error")
    assert error["message"] == "internal error; request id bug-1"
    assert "secret detail" in caplog.text
    assert "bug-1" in caplog.text


async def test_the_clients_request_id_is_used_if_it_is_harmless(client: httpx.AsyncClient, service: EchoService) -> None:
    response = await client.post("/v1/completions", json=COMPLETION, headers={"x-request-id": "my-id_1"})
    assert response.headers["x-request-id"] == service.requests[0].request_id == "my-id_1"
    assert response.json()["id"] == "cmpl-my-id_1"
    for bad in ("<script>", "x" * 65, "a b"):
        replaced = (await client.get("/health", headers={"x-request-id": bad})).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", replaced)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("pause_after", [0, 2])
async def test_cancelling_the_request_closes_every_stream(
    client: httpx.AsyncClient, service: EchoService, stream: bool, pause_after: int
) -> None:
    service.pause_after = pause_after
    request = asyncio.create_task(client.post("/v1/completions", json=COMPLETION | {"stream": stream, "n": 2}))
    await until(lambda: service.open_streams == 2)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert service.open_streams == 0
