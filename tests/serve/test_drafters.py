"""Drafters that read the target's hidden states, in the real service: the same tokens, a choice by name, and a drafter that is killed and
brought up to date out of the target's store.

The target is deterministic: tokens are compared exactly, however many sessions share a forward. Scheduling is fixed: whether
drafts pay on this machine is not the question here. The tests that kill stand last.
"""

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest

from dspark.bench.prompts import load_prompts
from dspark.client import Chunk, Client, Completion
from dspark.errors import InvalidRequest, ReplicaUnavailable
from dspark.serving.generation import Usage
from tests.serve.conftest import METRICS_DELAY_S, Cluster, answers, running, wait_until, wait_until_idle, write_config

pytestmark = pytest.mark.serve

NUM_STREAMS = 8
PROMPTS = load_prompts(None, NUM_STREAMS)
MAX_TOKENS = 48
GREEDY: dict[str, Any] = {"max_tokens": MAX_TOKENS, "temperature": 0.0, "ignore_eos": True}
SAMPLED: dict[str, Any] = {"max_tokens": MAX_TOKENS, "temperature": 0.8, "seed": 7, "ignore_eos": True}
LONG: dict[str, Any] = SAMPLED | {"max_tokens": 320}
ENDLESS: dict[str, Any] = SAMPLED | {"max_tokens": 1500}
HIDDEN_SIZE, NUM_TAPS, BFLOAT16_BYTES = 256, 5, 2
ARGS = """\
      target: {num_threads: 1, deterministic: true, kv_cache: {num_tokens: 16384}}
      scheduling: {mode: fixed}
      drafters:
        general: {kind: block, model: "demo:dspark", num_threads: 1, max_depth: 7, max_nodes: 7, max_width: 1}
        small: {kind: language_model, model: "demo:drafter", num_threads: 1, max_depth: 4, max_nodes: 4, max_width: 1}
        lookup: {kind: lookup, max_depth: 4, max_nodes: 4, max_width: 1}
      draft_deployments:
        general: {health_check_period_s: 1, autoscaling: {min_replicas: 2, max_replicas: 2}}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, ray_environment: dict[str, str]) -> Iterator[Cluster]:
    """Three drafters for one target, one of them with two replicas."""
    config, http_port, grpc_port = write_config(tmp_path_factory.mktemp("drafters"), ARGS)
    with running(config, http_port, grpc_port, ray_environment) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.grpc_address) as client:
        yield client


def over_grpc(cluster: Cluster, prompt: str, options: dict[str, Any]) -> tuple[list[int], Usage]:
    """One stream: its tokens and its last usage."""
    chunks = chunks_of(cluster, prompt, options)
    return [token for chunk in chunks for token in chunk.token_ids], chunks[-1].usage


def chunks_of(cluster: Cluster, prompt: str, options: dict[str, Any], on_its_way: Event | None = None) -> list[Chunk]:
    """One stream; `on_its_way` is set at its tenth chunk."""
    chunks = []
    with Client(cluster.grpc_address) as client:
        for chunk in client.stream(prompt, **options):
            chunks.append(chunk)
            if on_its_way is not None and len(chunks) == 10:
                on_its_way.set()
    return chunks


def over_http(cluster: Cluster, prompt: str, options: dict[str, Any]) -> tuple[list[int], Usage]:
    """The same over server-sent events; `drafter` stands among the options of speculation there."""
    options = dict(options)
    speculation = {"enabled": options.pop("speculation", True), "drafter": options.pop("drafter", None)}
    body = {"model": "demo:target", "prompt": prompt, "stream": True, "return_token_ids": True, "speculation": speculation, **options}
    token_ids: list[int] = []
    told: dict[str, Any] = {}
    with post(cluster, body) as response:
        for line in response:
            data = line.decode().removeprefix("data:").strip()
            if data and data != "[DONE]":
                event = json.loads(data)
                token_ids += [token for choice in event["choices"] for token in choice["token_ids"]]
                told = event.get("dspark", told)
    told = {name: value for name, value in told.items() if name != "seed"}
    return token_ids, Usage(completion_tokens=len(token_ids), **told)


def post(cluster: Cluster, body: dict[str, Any]) -> Any:
    url = f"{cluster.http_url}/v1/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    return urllib.request.urlopen(request, timeout=120.0)


def plain_answers(cluster: Cluster, options: dict[str, Any]) -> list[list[int]]:
    """Without speculation, all prompts at once."""
    return [tokens for tokens, _ in at_once(over_grpc, cluster, options | {"speculation": False})]


def at_once(stream: Any, cluster: Cluster, options: dict[str, Any]) -> list[tuple[list[int], Usage]]:
    """All prompts at the same time, in their order."""
    with ThreadPoolExecutor(NUM_STREAMS) as threads:
        return list(threads.map(lambda prompt: stream(cluster, prompt, options), PROMPTS))


def metrics(cluster: Cluster, *names: str, **labels: str) -> list[float]:
    """Newest values, after everything that happened before has been published."""
    time.sleep(METRICS_DELAY_S)
    return [cluster.metric(name, **labels) for name in names]


def test_the_banner_and_the_replicas_are_those_of_the_configuration(cluster: Cluster) -> None:
    wait_until(lambda: "try:" in cluster.log.read_text(), 10.0, "the banner")
    told = "draft general: demo:dspark (depth 7), small: demo:drafter (depth 4), lookup: lookup (depth 4) |"
    assert told in cluster.log.read_text()
    replicas = [len(cluster.replica_pids(f"Draft-{name}")) for name in ("general", "small", "lookup")]
    assert replicas == [2, 1, 0]


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("stream", [over_grpc, over_http])
def test_eight_streams_with_the_block_drafter_give_the_tokens_of_plain_decoding(
    cluster: Cluster, stream: Any, options: dict[str, Any]
) -> None:
    golden = plain_answers(cluster, options)
    drafted = at_once(stream, cluster, options | {"drafter": "general"})
    assert [tokens for tokens, _ in drafted] == golden
    assert all(len(tokens) == MAX_TOKENS for tokens in golden)
    usages = [usage for _, usage in drafted]
    assert {usage.drafter for usage in usages} == {"general"}
    assert all(usage.drafted_tokens > 0 for usage in usages)
    assert sum(usage.accepted_tokens for usage in usages) > 0


@pytest.mark.parametrize("drafter", ["general", "small", "lookup"])
def test_a_request_gets_the_drafter_that_it_names(client: Client, drafter: str) -> None:
    plain = client.generate(PROMPTS[0], speculation=False, **SAMPLED)
    named = client.generate(PROMPTS[0], drafter=drafter, **SAMPLED)
    assert named.token_ids == plain.token_ids
    assert (named.usage.drafter, plain.usage.drafter) == (drafter, None)
    assert named.usage.drafted_tokens > 0


def test_an_unknown_drafter_is_refused_with_the_names_that_there_are(cluster: Cluster, client: Client) -> None:
    with (
        pytest.raises(urllib.error.HTTPError) as caught,
        post(cluster, {"model": "demo:target", "prompt": "def", "speculation": {"drafter": "magic"}}),
    ):
        pass
    assert caught.value.code == 400
    error = json.load(caught.value)["error"]
    caught.value.close()
    assert error["param"] == "speculation.drafter"
    assert "'general', 'lookup', 'small'" in error["message"]
    with pytest.raises(InvalidRequest, match=r"speculation\.drafter"):
        client.generate("def", drafter="magic")


def test_requests_without_a_name_try_every_drafter_and_then_mostly_the_best(client: Client) -> None:
    """The fewest sessions that the choice takes (routing/choice.py): four for each drafter, and then one in twenty for the others."""
    tried: dict[str, list[Completion]] = {}
    for turn in range(12):
        answer = client.generate(PROMPTS[turn % NUM_STREAMS], **SAMPLED)
        assert answer.usage.drafter is not None
        tried.setdefault(answer.usage.drafter, []).append(answer)
    assert {name: len(answers) for name, answers in tried.items()} == {"general": 4, "small": 4, "lookup": 4}
    taus = {name: sum(a.usage.completion_tokens for a in own) / sum(a.usage.rounds for a in own) for name, own in tried.items()}
    later = Counter(client.generate(PROMPTS[turn], **SAMPLED).usage.drafter for turn in range(NUM_STREAMS))
    assert later[max(taus, key=taus.__getitem__)] > NUM_STREAMS / 2, (taus, later)


def test_a_vector_of_the_drafters_width_travels_for_each_token(cluster: Cluster, client: Client) -> None:
    names = ("feature_bytes_total", "feature_rows_total")
    before = metrics(cluster, *names, drafter="general")
    usage = client.generate(PROMPTS[0], drafter="general", **SAMPLED).usage
    num_bytes, rows = (after - then for after, then in zip(metrics(cluster, *names, drafter="general"), before, strict=True))
    assert num_bytes == rows * BFLOAT16_BYTES * HIDDEN_SIZE, "512 bytes per token"
    # Each position once; the last anchor's, and those of a last round that cannot be drafted for, are left out.
    assert usage.prompt_tokens < rows < usage.prompt_tokens + usage.completion_tokens
    assert metrics(cluster, *names, drafter="small") == metrics(cluster, *names, drafter="lookup") == [0, 0]


def test_a_killed_drafter_is_replaced_by_one_that_the_targets_store_brings_up_to_date(cluster: Cluster) -> None:
    """Its sessions go on with a replica that has never heard of them; the target computes no row twice for it."""
    golden = plain_answers(cluster, LONG)
    rows_before, features_before = metrics(cluster, "target_rows_total", "feature_rows_total")
    lost_before = cluster.metric("draft_lost_total", drafter="general")
    victim, _ = cluster.replica_pids("Draft-general")
    started = [Event() for _ in PROMPTS]
    with ThreadPoolExecutor(NUM_STREAMS) as threads:
        streams = [
            threads.submit(chunks_of, cluster, prompt, LONG | {"drafter": "general"}, event)
            for prompt, event in zip(PROMPTS, started, strict=True)
        ]
        assert all(event.wait(60.0) for event in started)
        os.kill(victim, signal.SIGKILL)
        answers = [stream.result() for stream in streams]
    assert [[token for chunk in chunks for token in chunk.token_ids] for chunks in answers] == golden
    for chunks in answers:
        late = chunks[len(chunks) * 3 // 4].usage
        assert chunks[-1].usage.drafted_tokens > late.drafted_tokens, "everyone drafts again, or still"
    usages = [chunks[-1].usage for chunks in answers]
    rows, features = metrics(cluster, "target_rows_total", "feature_rows_total")
    assert cluster.metric("draft_lost_total", drafter="general") > lost_before, "some sessions drafted on the replica that was killed"
    assert rows - rows_before == sum(u.prompt_tokens - 1 + u.rounds + u.selected_tokens for u in usages), "prompts, anchors, candidates"
    positions = sum(u.prompt_tokens + u.completion_tokens for u in usages)
    assert features - features_before > positions, "undisturbed, each position's features come once at most"
    wait_until(lambda: len(set(cluster.replica_pids("Draft-general")) - {victim}) == 2, 60.0, "a new drafter")


def test_a_killed_target_is_a_clear_error_and_the_drafters_go_on_with_the_next(cluster: Cluster, client: Client) -> None:
    golden = client.generate(PROMPTS[0], drafter="general", **SAMPLED)
    (pid,) = cluster.replica_pids("Target")
    chunks = client.stream(PROMPTS[0], drafter="general", **ENDLESS)
    for _ in range(5):
        next(chunks)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ReplicaUnavailable, match="try again later"):
        list(chunks)
    wait_until(lambda: answers(client), 90.0, "a new target")
    again = client.generate(PROMPTS[0], drafter="general", **SAMPLED)
    assert again.token_ids == golden.token_ids
    assert again.usage.drafted_tokens > 0
    wait_until_idle(cluster)
