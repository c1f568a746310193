"""A promised speed over HTTP, on a real Engine: refused where the target's curve rules it out, served where it does not."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from deployments.http_api import build_http_app
from dspark.config import DrafterConfig, EngineConfig, LimitsConfig, TargetConfig
from dspark.engine import Engine
from dspark.local import LocalBackend
from dspark.runtime.loading import load_tokenizer
from dspark.scheduling.curve import ThroughputCurve
from dspark.serving.text_codec import TextCodec
from dspark.verifying.target_model import load_target

SECOND_PER_STEP = ThroughputCurve(np.asarray([1, 64]), np.asarray([0]), np.full((1, 2), 1000.0))
"""Whatever the tiny model really takes: by this curve nobody gets more than one token per second."""
COMPLETION = {"model": "tiny", "prompt": "def self", "max_tokens": 3, "ignore_eos": True}


@pytest.fixture
async def client(tiny_folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    target = TargetConfig(model=str(tiny_folder), served_name="tiny", num_threads=1)
    config = EngineConfig(target=target, drafter=DrafterConfig(kind="none"), limits=LimitsConfig(enforce_promises=True))
    backend = LocalBackend(load_target(target), {}, SECOND_PER_STEP)
    async with Engine(backend, TextCodec(load_tokenizer(tiny_folder)), config) as engine:
        transport = httpx.ASGITransport(build_http_app(lambda: engine, config.limits))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


def promising(tokens_per_second: float) -> dict[str, Any]:
    return COMPLETION | {"speculation": {"min_tokens_per_second": tokens_per_second}}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_speed_that_cannot_be_kept_is_429_and_what_can_be_is_served(client: httpx.AsyncClient, stream: bool) -> None:
    refused = await client.post("/v1/completions", json=promising(20.0) | {"stream": stream})
    assert refused.status_code == 429, refused.text
    assert refused.headers["retry-after"] == "1"
    error = refused.json()["error"]
    assert error["code"] == "speed_unavailable"
    assert "min_tokens_per_second is 20, but even alone a session reaches about 1 here" in error["message"]
    for request in (COMPLETION, promising(0.5)):
        served = await client.post("/v1/completions", json=request)
        assert served.status_code == 200, served.text
        assert served.json()["usage"]["completion_tokens"] == 3
