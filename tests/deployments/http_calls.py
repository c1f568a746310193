"""Requests for the HTTP API behind an EchoService, and how their answers are read."""

import json
from typing import Any

import httpx

from dspark.config import LimitsConfig

LIMITS = LimitsConfig(max_body_bytes=200_000, max_choices=4, client_stall_timeout_s=5.0)
COMPLETION = {"model": "echo/tiny", "prompt": "The quick brown fox jumps. ", "max_tokens": 20, "seed": 5}
CHAT = {"model": "echo/tiny", "messages": [{"role": "user", "content": "one two three"}], "max_tokens": 20}
PATHS = {"/v1/completions": COMPLETION, "/v1/chat/completions": CHAT}


def events_of(response: httpx.Response) -> list[Any]:
    """The decoded events of a stream; [DONE] stays a string."""
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("\n\n")
    lines = response.text.removesuffix("\n\n").split("\n\n")
    data = [line.removeprefix("data: ") for line in lines]
    return [text if text == "[DONE]" else json.loads(text) for text in data]


def assert_error(response: httpx.Response, status: int, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    assert "/site-packages" not in response.text
    assert code is None or error["code"] == code
    assert param is None or error["param"] == param
    return error
