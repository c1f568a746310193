"""The whole service as its clients see it: HTTP, OpenAI's client, gRPC; errors, cancellation, and replicas that are killed.

The tests that kill stand last; each leaves the service as it found it.
"""

import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from contextlib import closing
from typing import Any

import grpc
import pytest

from dspark.client import Client
from dspark.errors import DeadlineExceeded, ReplicaUnavailable, RequestAborted
from dspark.wire.pb import generation_pb2 as pb
from dspark.wire.pb import generation_pb2_grpc as rpc
from tests.serve.conftest import Cluster, answers, wait_until, wait_until_idle

pytestmark = pytest.mark.serve

PROMPT = "def read_lines(path):\n"
SAMPLED: dict[str, Any] = {"max_tokens": 48, "temperature": 0.8, "seed": 7, "ignore_eos": True}
ENDLESS: dict[str, Any] = {"max_tokens": 1500, "temperature": 1.0, "seed": 1, "ignore_eos": True}


@pytest.fixture
def client(cluster: Cluster) -> Any:
    with Client(cluster.grpc_address) as client:
        yield client


def post(cluster: Cluster, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(f"{cluster.http_url}{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60.0) as response:
        return json.load(response)


def test_a_completion_over_http_is_the_one_over_grpc_and_the_one_without_speculation(cluster: Cluster, client: Client) -> None:
    plain = client.generate(PROMPT, speculation=False, **SAMPLED)
    chunks = list(client.stream(PROMPT, **SAMPLED))
    (choice,) = post(cluster, "/v1/completions", {"model": "demo:target", "prompt": PROMPT, **SAMPLED})["choices"]
    assert len(plain.token_ids) == 48
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == plain.token_ids
    assert "".join(chunk.text for chunk in chunks) == choice["text"] == plain.text
    assert plain.usage.drafted_tokens == 0
    usage = chunks[-1].usage
    assert usage.drafted_tokens >= usage.selected_tokens >= usage.accepted_tokens
    assert usage.drafted_tokens > 0, "nobody drafted"


def test_openais_client_streams_a_chat(cluster: Cluster) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{cluster.http_url}/v1", api_key="none", max_retries=0) as client:
        (model,) = client.models.list().data
        chat = {"model": model.id, "messages": [{"role": "user", "content": "Write a function."}], "max_tokens": 24, "seed": 3}
        whole = client.chat.completions.create(**chat)
        pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**chat, stream=True) if chunk.choices]
        assert "".join(pieces) == whole.choices[0].message.content
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**(chat | {"model": "other"}))
        with pytest.raises(openai.BadRequestError, match="temperature"):
            client.chat.completions.create(**chat, temperature=3.0)


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"text": PROMPT, "temperature": float("nan")}, "INVALID_ARGUMENT", "temperature must be a number from 0 to 2"),
        ({"text": PROMPT, "max_tokens": -1}, "INVALID_ARGUMENT", "max_tokens must be an integer"),
        ({"token_ids": pb.TokenIds(ids=[2**31 - 1])}, "INVALID_ARGUMENT", "token ids"),
        ({}, "INVALID_ARGUMENT", "prompt must not be empty"),
        ({"text": PROMPT, "model": "../../etc"}, "NOT_FOUND", "does not exist"),
        ({"text": PROMPT, "request_id": "a b"}, "INVALID_ARGUMENT", "request_id must be"),
    ],
)
def test_a_bad_grpc_request_gets_its_code_and_only_a_short_text(cluster: Cluster, fields: dict[str, Any], code: str, words: str) -> None:
    with grpc.insecure_channel(cluster.grpc_address) as channel:
        stub = rpc.GenerationStub(channel)
        request = pb.GenerateRequest(**fields)
        for call in (lambda: stub.Generate(request, timeout=30.0), lambda: list(stub.GenerateStream(request, timeout=30.0))):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code().name == code
            assert words in caught.value.details()
            assert "Traceback" not in caught.value.details()
            assert ".py" not in caught.value.details()


def test_leaving_a_stream_frees_everything_over_grpc(cluster: Cluster, client: Client) -> None:
    with closing(client.stream(PROMPT, **ENDLESS)) as chunks:  # type: ignore[type-var]
        next(chunks)
        wait_until(lambda: cluster.metric("kv_blocks_used") > 0, 10.0, "the session shows in the metrics")
        assert cluster.metric("leases", deployment="Target") == 1
    wait_until_idle(cluster)


def test_leaving_a_stream_frees_everything_over_http(cluster: Cluster) -> None:
    body = json.dumps({"model": "demo:target", "prompt": PROMPT, "stream": True, **ENDLESS}).encode()
    host, _, port = cluster.http_url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30.0) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        received = b""
        while b"data:" not in received:
            piece = connection.recv(4096)
            assert piece, f"the server hung up after {received!r}"
            received += piece
    assert received.startswith(b"HTTP/1.1 200 ")
    wait_until_idle(cluster)
    assert [cluster.metric(name) for name in ("sessions", "leases", "kv_blocks_used")] == [0, 0, 0]


def test_abort_ends_a_request_from_another_connection(cluster: Cluster, client: Client) -> None:
    chunks = client.stream(PROMPT, request_id="to-be-ended", **ENDLESS)
    next(chunks)
    with Client(cluster.grpc_address) as other:
        assert other.abort("to-be-ended")
    with pytest.raises(RequestAborted):
        list(chunks)
    assert not client.abort("to-be-ended")
    wait_until_idle(cluster)


def test_a_request_ends_at_its_own_timeout(cluster: Cluster, client: Client) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        client.generate(PROMPT, timeout_s=0.5, **ENDLESS)
    assert time.monotonic() - started < 10.0
    wait_until_idle(cluster)


def test_the_metrics_agree_with_what_clients_were_told(cluster: Cluster, client: Client) -> None:
    names = ("committed_tokens_total", "drafted_tokens_total", "accepted_tokens_total", "rounds_total")
    before = [cluster.metric(name) for name in names]
    usage = client.generate(PROMPT, **SAMPLED).usage
    told = [usage.completion_tokens, usage.drafted_tokens, usage.accepted_tokens, usage.rounds]
    wait_until(lambda: [cluster.metric(name) for name in names] == [a + b for a, b in zip(before, told, strict=True)], 10.0, str(told))
    at_positions = sum(cluster.metric("accepted_at_position_total", position=str(position)) for position in range(1, 65))
    assert at_positions == cluster.metric("accepted_tokens_total")


def test_a_killed_drafter_costs_nothing_but_speed(cluster: Cluster, client: Client) -> None:
    golden = client.generate(PROMPT, speculation=False, **SAMPLED)
    token_ids: list[int] = []
    (pid,) = cluster.replica_pids("Draft")
    for number, chunk in enumerate(client.stream(PROMPT, **SAMPLED)):
        token_ids += chunk.token_ids
        if number == 5:
            os.kill(pid, signal.SIGKILL)
    assert tuple(token_ids) == golden.token_ids
    assert client.generate(PROMPT, **SAMPLED).token_ids == golden.token_ids
    wait_until(lambda: cluster.replica_pids("Draft") not in ([], [pid]), 60.0, "a new drafter")
    wait_until(lambda: client.generate(PROMPT, max_tokens=16, ignore_eos=True).usage.drafted_tokens > 0, 60.0, "drafts again")


def test_a_killed_target_is_a_clear_error_and_the_service_comes_back(cluster: Cluster, client: Client) -> None:
    golden = client.generate(PROMPT, **SAMPLED)
    (pid,) = cluster.replica_pids("Target")
    chunks = client.stream(PROMPT, **ENDLESS)
    for _ in range(5):
        next(chunks)
    os.kill(pid, signal.SIGKILL)
    killed_at = time.monotonic()
    with pytest.raises(ReplicaUnavailable, match="try again later"):
        list(chunks)
    assert time.monotonic() - killed_at < 5.0
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{cluster.http_url}/ready", timeout=60.0)
    assert caught.value.code == 503
    caught.value.close()
    wait_until(lambda: answers(client), 90.0, "a new target")
    assert client.generate(PROMPT, **SAMPLED).token_ids == golden.token_ids
    wait_until_idle(cluster)
