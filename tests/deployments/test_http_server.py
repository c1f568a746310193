"""The HTTP API behind a real server on loopback, with OpenAI's own client and with clients that go away."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
import uvicorn
from openai import AsyncOpenAI, BadRequestError

from deployments.http_api import build_http_app
from dspark.config import LimitsConfig
from tests.serving.echo_service import EchoService

PROMPT = "The quick brown fox jumps. "


@pytest.fixture
def service() -> EchoService:
    return EchoService(max_length=200_000)


@pytest.fixture
async def port(service: EchoService) -> AsyncIterator[int]:
    app = build_http_app(lambda: service, LimitsConfig(client_stall_timeout_s=0.5, max_buffered_chunks=4))
    config = uvicorn.Config(app, log_level="critical", lifespan="off", http="httptools", ws="none", loop="asyncio")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        task = asyncio.create_task(server.serve([listening]))
        await until(lambda: server.started, within_s=5)
        yield listening.getsockname()[1]
        server.should_exit = server.force_exit = True
        await task


async def until(condition: Callable[[], bool], within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)


async def send_request(port: int, **fields: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    body = json.dumps({"model": "echo/tiny", "prompt": PROMPT, "max_tokens": 50, **fields}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    return reader, writer


async def test_openais_own_client_reads_whole_answers(port: int) -> None:
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
        completion = await client.completions.create(model="echo/tiny", prompt=PROMPT, max_tokens=10, n=2, seed=3)
        assert completion.choices[0].text.startswith("The quick")
        assert completion.usage is not None
        assert completion.usage.completion_tokens_details is not None
        assert completion.usage.completion_tokens_details.accepted_prediction_tokens == 16
        assert completion.model_extra is not None
        assert completion.model_extra["dspark"]["seed"] == 3
        chat = await client.chat.completions.create(model="echo/tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=5)
        assert chat.choices[0].message.role == "assistant"
        assert [model.id async for model in client.models.list()] == ["echo/tiny"]
        with pytest.raises(BadRequestError, match="temperature must be a number from 0 to 2") as caught:
            await client.completions.create(model="echo/tiny", prompt=PROMPT, temperature=7)
        assert (caught.value.param, caught.value.code) == ("temperature", "invalid_value")


async def test_openais_own_client_reads_streams(port: int, service: EchoService) -> None:
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="echo/tiny",
            messages=[{"role": "user", "content": "日本語 😀"}],
            max_completion_tokens=30,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"speculation": {"enabled": False}},
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]).startswith("user: 日本語 😀\n")
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 30
    assert service.requests[0].speculation_enabled is False


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("pause_after", [0, 1, 5])
async def test_a_client_that_goes_away_ends_the_work_at_any_point(
    port: int, service: EchoService, stream: bool, pause_after: int
) -> None:
    service.pause_after = pause_after
    _, writer = await send_request(port, stream=stream, n=2)
    await until(lambda: service.open_streams == 2, within_s=2)
    await asyncio.sleep(0.02)
    writer.close()
    await writer.wait_closed()
    await until(lambda: service.open_streams == 0, within_s=1)
    assert (len(service.requests), service.open_streams, service.go_on.is_set()) == (2, 0, False), "nobody let them go on"


async def test_a_client_that_stops_reading_is_cut_off(port: int, service: EchoService) -> None:
    _, writer = await send_request(port, stream=True, max_tokens=150_000)
    await until(lambda: service.rounds > 0, within_s=2)
    await until(lambda: service.open_streams == 0, within_s=10)
    assert service.rounds < 50_000  # it was not the end of the answer that closed the stream
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def test_the_next_request_on_the_same_connection_is_served(port: int) -> None:
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
        texts = [(await client.completions.create(model="echo/tiny", prompt=PROMPT, seed=1)).choices[0].text for _ in range(3)]
    assert len(set(texts)) == 1
