"""Who answers: the engine, this project's own HTTP service over it, and servers that know only text. All on loopback."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deployments.http_api import build_http_app
from dspark.config import DrafterConfig, LimitsConfig, TargetConfig
from dspark.deepspec import answers as answers_module
from dspark.deepspec.answers import EngineAnswerer, Job, ServerAnswerer, engine_config
from dspark.deepspec.prompts import Ends, Prompt
from dspark.engine import Engine
from dspark.errors import ConfigError, InvalidRequest, TargetUnavailable
from dspark.runtime.loading import load_tokenizer
from dspark.serving.text_codec import TextCodec

MESSAGES = [{"role": "user", "content": "name"}]
Handler = Callable[[str, dict[str, Any]], Response]


@pytest.fixture(scope="module")
def codec(tiny_folder: Path) -> TextCodec:
    return TextCodec(load_tokenizer(tiny_folder))


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "FIRST_PAUSE_S", 0.001)


def _job(codec: TextCodec, text: str = "def self", *, temperature: float = 0.8, seed: int = 3, chat: bool = False) -> Job:
    ids = tuple(codec.encode_chat(MESSAGES) if chat else codec.encode(text))
    prompt = Prompt("file:1", ids, "" if chat else text, MESSAGES if chat else None)
    return Job(f"{seed}#0", prompt, temperature, 12, seed)


def _config(tiny_folder: Path) -> Any:
    target = TargetConfig(model=str(tiny_folder), num_threads=1)
    return engine_config(target, DrafterConfig(kind="none"), concurrency=4, tokens_per_sample=64)


@asynccontextmanager
async def _listening(app: Any) -> AsyncIterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", http="httptools", ws="none", loop="asyncio"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        task = asyncio.create_task(server.serve([listening]))
        async with asyncio.timeout(5):
            while not server.started:
                await asyncio.sleep(0.005)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = server.force_exit = True
        await task


@asynccontextmanager
async def _foreign_server(handle: Handler) -> AsyncIterator[str]:
    """A server of someone else: whatever `handle` says to a path and a body."""

    async def answer(request: Request) -> Response:
        return handle(request.url.path, json.loads(await request.body() or b"{}"))

    async with _listening(Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])) as url:
        yield url


def _text_server(codec: TextCodec, asked: list[tuple[str, dict[str, Any]]]) -> Handler:
    """Knows texts only, as many do: ids for a prompt are refused, answers are text."""

    def handle(path: str, body: dict[str, Any]) -> Response:
        asked.append((path, body))
        if path == "/v1/models":
            return JSONResponse({"data": [{"id": "theirs"}]})
        if path == "/v1/completions" and not isinstance(body["prompt"], str):
            return JSONResponse({"error": {"message": "prompt must be a string"}}, 400)
        if path == "/v1/completions":
            return JSONResponse({"choices": [{"text": " value name"}]})
        return JSONResponse({"choices": [{"message": {"role": "assistant", "content": "value"}}]})

    return handle


async def test_the_engine_gives_the_same_ids_for_the_same_seed_whatever_runs_beside_it(tiny_folder: Path, codec: TextCodec) -> None:
    async with EngineAnswerer(_config(tiny_folder), ignore_eos=True) as answerer:
        alone = await answerer.answer(_job(codec, seed=3))
        together = await asyncio.gather(*(answerer.answer(_job(codec, seed=seed)) for seed in (3, 4, 5)))
    assert len(alone) == 12
    assert together[0] == alone
    assert together[1] != alone


async def test_this_projects_service_gives_the_engines_own_ids(tiny_folder: Path, codec: TextCodec) -> None:
    config = _config(tiny_folder)
    jobs = [_job(codec, seed=seed, chat=seed % 2 == 0) for seed in range(4)]
    async with EngineAnswerer(config, ignore_eos=True) as answerer:
        expected = [await answerer.answer(job) for job in jobs]
    engine = Engine.from_config(config)
    async with (
        engine,
        _listening(build_http_app(lambda: engine, LimitsConfig())) as url,
        ServerAnswerer(f"{url}/v1/", None, codec, 1000, ignore_eos=True) as answerer,
    ):
        assert list(await asyncio.gather(*map(answerer.answer, jobs))) == expected
        too_long = Job("x#0", Prompt("file:9", (1,) * 300, "x"), 1.0, 5, 0)
        with pytest.raises(InvalidRequest, match="maximum context length is 256"):
            await answerer.answer(too_long)


async def test_a_server_without_ids_is_asked_with_text_and_its_answer_tokenised(codec: TextCodec) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []
    async with _foreign_server(_text_server(codec, asked)) as url, ServerAnswerer(url, None, codec, 1000) as answerer:
        ids = await asyncio.gather(*(answerer.answer(_job(codec, seed=seed)) for seed in range(5)))
        chat = await answerer.answer(_job(codec, chat=True))
    assert ids == [codec.encode(" value name")] * 5
    assert chat == codec.encode("value")
    refused = [body for path, body in asked if path == "/v1/completions" and not isinstance(body["prompt"], str)]
    assert len(refused) == 1, "the first answer tells what the server can do"
    path, body = asked[-1]
    assert path == "/v1/chat/completions"
    assert body == {"model": "theirs", "max_tokens": 12, "temperature": 0.8, "seed": 3, "messages": MESSAGES}


@pytest.mark.parametrize(("reason", "ends"), [("stop", True), ("length", False), (None, False)])
async def test_a_natural_stop_of_a_server_without_ids_leaves_the_end_that_the_target_wrote(
    codec: TextCodec, reason: str | None, ends: bool
) -> None:
    def handle(path: str, body: dict[str, Any]) -> Response:
        if path == "/v1/completions" and not isinstance(body["prompt"], str):
            return JSONResponse({}, 400)
        return JSONResponse({"choices": [{"text": "value", "message": {"content": "name"}, "finish_reason": reason}]})

    async with _foreign_server(handle) as url, ServerAnswerer(url, "m", codec, 1000, ends=Ends((0,), (2,))) as answerer:
        assert await answerer.answer(_job(codec)) == codec.encode("value") + ([0] if ends else [])
        assert await answerer.answer(_job(codec, chat=True)) == codec.encode("name") + ([2] if ends else [])


async def test_a_server_that_ignores_the_wish_for_ids_is_asked_with_text(codec: TextCodec) -> None:
    def handle(path: str, body: dict[str, Any]) -> Response:
        return JSONResponse({"choices": [{"text": "value" if isinstance(body["prompt"], str) else "nonsense"}]})

    async with _foreign_server(handle) as url, ServerAnswerer(url, "m", codec, 1000) as answerer:
        assert await answerer.answer(_job(codec)) == codec.encode("value")


@pytest.mark.parametrize(
    ("ids", "text", "words"),
    [
        ([5, 1000], "x", "outside the vocabulary"),
        ([5, -1], "x", "outside the vocabulary"),
        ([40, 41, 42, 43], "quite another text", "other text"),
    ],
)
async def test_ids_of_another_model_are_refused(codec: TextCodec, ids: list[int], text: str, words: str) -> None:
    def handle(path: str, body: dict[str, Any]) -> Response:
        return JSONResponse({"choices": [{"text": text, "token_ids": ids}]})

    async with _foreign_server(handle) as url, ServerAnswerer(url, "m", codec, 1000) as answerer:
        with pytest.raises(ConfigError, match=words):
            await answerer.answer(_job(codec))


async def test_a_busy_server_is_asked_again_and_a_gone_one_given_up(codec: TextCodec) -> None:
    left = 3

    def handle(path: str, body: dict[str, Any]) -> Response:
        nonlocal left
        left -= 1
        answer = {"choices": [{"text": "value name", "token_ids": codec.encode("value name")}]}
        return JSONResponse(answer) if left < 0 else JSONResponse({}, 429)

    async with _foreign_server(handle) as url, ServerAnswerer(url, "m", codec, 1000) as answerer:
        assert await answerer.answer(_job(codec)) == codec.encode("value name")
    async with ServerAnswerer(url, "m", codec, 1000) as answerer:
        with pytest.raises(TargetUnavailable, match="5 tries"):
            await answerer.answer(_job(codec))


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (JSONResponse({"error": {"message": "no such model"}}, 404), "status 404 .no such model"),
        (Response("<html>", media_type="text/html"), "not JSON"),
        (JSONResponse({"choices": []}), "no choices"),
        (JSONResponse({"choices": [{}]}), "without text"),
    ],
)
async def test_a_server_of_another_kind_is_a_clear_error(codec: TextCodec, response: Response, words: str) -> None:
    async with _foreign_server(lambda path, body: response) as url, ServerAnswerer(url, "m", codec, 1000) as answerer:
        with pytest.raises(ConfigError, match=words):
            await answerer.answer(_job(codec))


async def test_a_server_that_splits_off_the_thinking_is_refused(codec: TextCodec) -> None:
    def handle(path: str, body: dict[str, Any]) -> Response:
        if path == "/v1/completions":
            return JSONResponse({}, 400)
        return JSONResponse({"choices": [{"message": {"content": "value", "reasoning_content": "let me see"}}]})

    async with _foreign_server(handle) as url, ServerAnswerer(url, "m", codec, 1000) as answerer:
        with pytest.raises(ConfigError, match="reasoning parser"):
            await answerer.answer(_job(codec, chat=True))


async def test_the_wish_for_thinking_reaches_a_chat_server(codec: TextCodec) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []
    job = _job(codec, chat=True)
    prompt = Prompt("file:1", job.prompt.token_ids, "", MESSAGES, thinking=False)
    async with _foreign_server(_text_server(codec, asked)) as url, ServerAnswerer(url, "m", codec, 1000) as answerer:
        with suppress(InvalidRequest):
            await answerer.answer(Job("1#0", prompt, 1.0, 5, 0))
    assert asked[-1][1]["chat_template_kwargs"] == {"enable_thinking": False}
