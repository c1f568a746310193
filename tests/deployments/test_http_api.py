"""The HTTP API in one process, behind it a service without models: answers, streams, and the refusal of what is wrong."""

import json
import re
from typing import Any

import httpx
import pytest

from tests.deployments.http_calls import CHAT, COMPLETION, PATHS, assert_error, events_of
from tests.serving.echo_service import EchoService


async def test_a_completion_has_openais_shape_and_counts_what_speculation_did(client: httpx.AsyncClient) -> None:
    body = (await client.post("/v1/completions", json=COMPLETION)).json()
    assert body["object"] == "text_completion"
    assert body["model"] == "echo/tiny"
    assert body["system_fingerprint"] == "0123456789ab"
    (choice,) = body["choices"]
    assert choice["text"].startswith("The quick")
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "length", None)
    usage = body["usage"]
    assert usage["completion_tokens"] == 20
    assert usage["total_tokens"] == usage["prompt_tokens"] + 20
    assert usage["completion_tokens_details"] == {"accepted_prediction_tokens": 14, "rejected_prediction_tokens": 7}
    counts = {"rounds": 7, "drafted_tokens": 28, "selected_tokens": 21, "accepted_tokens": 14}
    asked = {"max_nodes": None, "min_tokens_per_second": None, "priority": 0}
    assert body["dspark"] == {"seed": 5, **counts, "drafter": "general", **asked}


async def test_a_chat_answers_as_the_assistant(client: httpx.AsyncClient) -> None:
    body = (await client.post("/v1/chat/completions", json=CHAT)).json()
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    message = body["choices"][0]["message"]
    assert message["role"] == "assistant"
    assert message["content"].startswith("user: one two")


@pytest.mark.parametrize("extra", [{}, {"stop": ["fox"]}, {"n": 3}, {"return_token_ids": True}])
async def test_a_stream_says_the_same_as_the_whole_answer(client: httpx.AsyncClient, extra: dict[str, Any]) -> None:
    whole = (await client.post("/v1/completions", json=COMPLETION | extra)).json()
    *events, done = events_of(await client.post("/v1/completions", json=COMPLETION | extra | {"stream": True}))
    assert done == "[DONE]"
    for choice in whole["choices"]:
        pieces = [c for event in events for c in event["choices"] if c["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        assert [piece["finish_reason"] for piece in pieces if piece["finish_reason"]] == [choice["finish_reason"]]
        if "return_token_ids" in extra:
            assert [token_id for piece in pieces for token_id in piece["token_ids"]] == choice["token_ids"]
            assert pieces[0]["prompt_token_ids"] == choice["prompt_token_ids"]
            assert not any("prompt_token_ids" in piece for piece in pieces[1:])
    assert events[-1]["dspark"] == whole["dspark"]
    assert not any("dspark" in event for event in events[:-1])


async def test_a_chat_stream_tells_the_role_first_and_the_usage_last(client: httpx.AsyncClient) -> None:
    request = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    *events, usage, done = events_of(await client.post("/v1/chat/completions", json=request))
    assert done == "[DONE]"
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in event["choices"][0]["delta"] for event in events[1:])
    assert all(event["object"] == "chat.completion.chunk" and event["usage"] is None for event in events)
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 20
    assert usage["dspark"]["rounds"] == 7


async def test_continuous_usage_grows_with_every_chunk(client: httpx.AsyncClient) -> None:
    options = {"stream": True, "stream_options": {"continuous_usage_stats": True}}
    *events, _ = events_of(await client.post("/v1/completions", json=COMPLETION | options))
    assert [event["usage"]["completion_tokens"] for event in events] == [3, 6, 9, 12, 15, 18, 20]


async def test_several_prompts_with_several_choices_come_prompt_by_prompt(client: httpx.AsyncClient) -> None:
    request = COMPLETION | {"prompt": ["abcdef", "uvwxyz"], "n": 2, "max_tokens": 6, "return_token_ids": True}
    body = (await client.post("/v1/completions", json=request)).json()
    assert [choice["text"] for choice in body["choices"]] == ["abcdef", "bcdefa", "uvwxyz", "vwxyzu"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    # Each prompt is counted once, however many choices continue it.
    assert body["usage"]["prompt_tokens"] == sum(len(body["choices"][at]["prompt_token_ids"]) for at in (0, 2))
    assert body["usage"]["completion_tokens"] == 24


async def test_a_stop_string_ends_the_text_and_the_count(client: httpx.AsyncClient) -> None:
    body = (await client.post("/v1/completions", json=COMPLETION | {"stop": "brown", "return_token_ids": True})).json()
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("The quick ", "stop")
    assert body["usage"]["completion_tokens"] == len(choice["token_ids"]) < 20


async def test_switching_speculation_off_reaches_the_service(client: httpx.AsyncClient, service: EchoService) -> None:
    request = COMPLETION | {"speculation": {"enabled": False}}
    body = (await client.post("/v1/completions", json=request)).json()
    assert service.requests[0].speculation_enabled is False
    assert (body["dspark"]["drafted_tokens"], body["dspark"]["drafter"], body["dspark"]["max_nodes"]) == (0, None, 0)


async def test_a_drafter_is_chosen_by_its_name(client: httpx.AsyncClient, service: EchoService) -> None:
    body = (await client.post("/v1/completions", json=COMPLETION | {"speculation": {"drafter": "code"}})).json()
    (request,) = service.requests
    assert (request.speculation_enabled, request.drafter) == (True, "code")
    assert body["dspark"]["drafter"] == "code"


@pytest.mark.parametrize("stream", [False, True])
async def test_wishes_for_speed_reach_the_service_and_are_reported(client: httpx.AsyncClient, service: EchoService, stream: bool) -> None:
    wishes = {"speculation": {"max_nodes": 6, "min_tokens_per_second": 12.5}, "priority": -5}
    response = await client.post("/v1/completions", json=COMPLETION | wishes | {"stream": stream})
    (request,) = service.requests
    assert (request.speculation_enabled, request.max_nodes, request.min_tokens_per_second, request.priority) == (True, 6, 12.5, -5)
    told = events_of(response)[-2]["dspark"] if stream else response.json()["dspark"]
    assert (told["max_nodes"], told["min_tokens_per_second"], told["priority"]) == (6, 12.5, -5)


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("enabled", [{}, {"enabled": False}])
async def test_an_unknown_drafter_is_a_bad_request_that_lists_the_known(
    client: httpx.AsyncClient, service: EchoService, route: str, enabled: dict[str, bool]
) -> None:
    body = COMPLETION if route == "/v1/completions" else CHAT
    response = await client.post(route, json=body | {"speculation": {"drafter": "cod\n", **enabled}})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "speculation.drafter"
    assert error["message"] == "speculation.drafter must be one of 'code', 'general', not 'cod?'"
    assert service.requests == []


async def test_models_are_listed_and_found_by_a_name_with_a_slash(client: httpx.AsyncClient) -> None:
    (model,) = (await client.get("/v1/models")).json()["data"]
    assert (model["id"], model["max_model_len"]) == ("echo/tiny", 256)
    assert (await client.get("/v1/models/echo/tiny")).json() == model
    assert_error(await client.get("/v1/models/other"), 404, "model_not_found", "model")


async def test_health_is_about_the_process_and_ready_about_the_targets(client: httpx.AsyncClient, service: EchoService) -> None:
    assert (await client.get("/ready")).status_code == 200
    service.is_ready = False
    refused = await client.get("/ready")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/version")).json()["version"]


BAD_BODIES = [
    b"",
    b"[]",
    b"{",
    b'{"n":1,"n":2}',
    b'{"a": NaN}',
    b"\xff\xfe{}",
    b"\xef\xbb\xbf{}",
    b'{"p": "\\ud800"}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", BAD_BODIES)
async def test_a_body_that_is_no_clear_json_object_gets_400(client: httpx.AsyncClient, path: str, body: bytes) -> None:
    response = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert_error(response, 400)
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "nope"}, 404, "model"),
        ({"temperature": 3}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"n": 5}, 400, "n"),
        ({"seed": 2**70}, 400, "seed"),
        ({"max_tokens": 2**63}, 400, "max_tokens"),
        ({"max_tokens": 255}, 400, "max_tokens"),
        ({"stop": ["a"] * 5}, 400, "stop"),
        ({"logprobs": 2}, 400, "logprobs"),
        ({"priority": 101}, 400, "priority"),
        ({"speculation": {"max_nodes": -1}}, 400, "speculation.max_nodes"),
        ({"speculation": {"min_tokens_per_second": 0}}, 400, "speculation.min_tokens_per_second"),
        ({"speculation": {"min_tokens_per_second": 10**9}}, 400, "speculation.min_tokens_per_second"),
        ({"speculation": {"max_tokens": 4}}, 400, "speculation.max_tokens"),
        ({"tempratur": 1}, 400, "tempratur"),
    ],
)
async def test_a_wrong_field_is_named(client: httpx.AsyncClient, change: dict[str, Any], status: int, param: str) -> None:
    for path, body in PATHS.items():
        assert_error(await client.post(path, json=body | change), status, param=param)


@pytest.mark.parametrize("prompt", [[-1], [320], [2**63], [1.5], [True], [], [[]], [1, "a"], "", None])
async def test_a_wrong_prompt_is_named(client: httpx.AsyncClient, prompt: Any) -> None:
    assert_error(await client.post("/v1/completions", json=COMPLETION | {"prompt": prompt}), 400, param="prompt")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/docs", 404),
        ("GET", "/v1/completions", 405),
        ("POST", "/v1/models", 405),
        ("DELETE", "/", 405),
        ("GET", "/playground/../../../pyproject.toml", 404),
        ("GET", "/playground/%2e%2e%2f%2e%2e%2ftext.py", 404),
        ("GET", "/playground/text.py", 404),
    ],
)
async def test_unknown_routes_and_methods_get_the_same_error_object(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await client.request(method, path)
    assert_error(response, status)
    assert response.headers["x-should-retry"] == "false"


async def test_a_timeout_header_reaches_the_service(client: httpx.AsyncClient, service: EchoService) -> None:
    await client.post("/v1/completions", json=COMPLETION, headers={"x-dspark-timeout-seconds": "2.5"})
    assert service.requests[0].timeout_s == 2.5
    for bad in ("soon", "-1", "nan"):
        response = await client.post("/v1/completions", json=COMPLETION, headers={"x-dspark-timeout-seconds": bad})
        assert_error(response, 400)


async def test_the_page_loads_nothing_from_elsewhere_and_runs_no_inline_code(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    for part in ("default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"):
        assert part in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    linked = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sorted(linked) == ["playground/playground.css", "playground/playground.js"]
    assert not re.search(r"<style|<script>|\son\w+=|\sstyle=", page.text)
    for path, media_type in zip(linked, ("text/css", "text/javascript"), strict=True):
        assert (await client.get(f"/{path}")).headers["content-type"].startswith(media_type)
    script = (await client.get("/playground/playground.js")).text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function", script)


async def test_the_schema_describes_the_bodies_and_every_reference_leads_somewhere(client: httpx.AsyncClient) -> None:
    schema = (await client.get("/openapi.json")).json()
    known = schema["components"]["schemas"]
    assert {"prompt", "speculation", "top_k"} <= known["CompletionRequest"]["properties"].keys()
    references = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(schema))
    assert set(references) <= known.keys()
    assert "ChatCompletionRequest" in references
