"""Pools of one Draft replica each: an EAGLE-3-style drafter, and the block drafter growing trees, whose only replica is killed in the end.

The target is deterministic: tokens are compared exactly. Scheduling is fixed: whether drafts pay on this machine is not the question here.
The test that kills stands last.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest

from dspark.client import Chunk, Client
from dspark.config import ModelSource
from dspark.runtime.loading import load_tokenizer, resolve_folder
from tests.serve.conftest import Cluster, running, wait_until, wait_until_idle, write_config
from tests.serve.test_drafters import BFLOAT16_BYTES, GREEDY, HIDDEN_SIZE, PROMPTS, SAMPLED, at_once, metrics, over_grpc, plain_answers
from tests.warm_drafters import write_drafter

pytestmark = [pytest.mark.serve, pytest.mark.timeout(600)]  # three models load at once, and one of them twice

MAX_DEPTH, MAX_WIDTH, MAX_NODES = 4, 4, 12
EAGLE_TOKENS = 24
"""One pass for each depth makes it slow, and without training it saves nothing."""
MAX_TOKENS = 1_800
"""Far more than are decoded while a replica starts; the stream is left when enough is known."""
TOKENS_BEFORE = 48
"""Before the replica is killed."""
PLAIN_ROUNDS = 10
"""So many in a row without a candidate, and the drafter is gone."""
HEAD_START_TOKENS, COMPARED_TOKENS = 48, 64
"""Before drafts are back: where another session on the same text begins. After it: how far the rounds of both are compared."""
ARGS = """\
      target: {{num_threads: 1, deterministic: true, kv_cache: {{num_tokens: 16384}}}}
      scheduling: {{mode: fixed}}
      drafters:
        tree: {{kind: block, model: "demo:dspark", num_threads: 1, max_depth: {depth}, max_width: {width}, max_nodes: {nodes}}}
        eagle: {{kind: eagle, model: "{eagle}", num_threads: 1, max_depth: {depth}, max_width: {width}, max_nodes: {depth}}}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, ray_environment: dict[str, str]) -> Iterator[Cluster]:
    """Two drafters that read hidden states, of one replica each; the EAGLE one is not trained."""
    folder = tmp_path_factory.mktemp("single")
    eagle = write_drafter(folder / "eagle", "eagle3")
    config, http_port, grpc_port = write_config(folder, ARGS.format(depth=MAX_DEPTH, width=MAX_WIDTH, nodes=MAX_NODES, eagle=eagle))
    with running(config, http_port, grpc_port, ray_environment) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.grpc_address) as client:
        yield client


def read_until(chunks: Iterator[Chunk], done: Callable[[list[Chunk]], bool], what: str) -> list[Chunk]:
    """Chunks up to the first with which `done` is true of them; fails if the stream ends before."""
    read: list[Chunk] = []
    for chunk in chunks:
        read.append(chunk)
        if done(read):
            return read
    raise AssertionError(f"the stream ended before {what}, with {read[-1].usage if read else 'nothing more'}")


def without_drafts(chunks: Sequence[Chunk]) -> bool:
    """No candidate from the first of these chunks to the last."""
    return chunks[0].usage.drafted_tokens == chunks[-1].usage.drafted_tokens


def drafts_are_back(chunks: Sequence[Chunk]) -> bool:
    return not without_drafts(chunks[-2:])


def tokens_of(chunks: Sequence[Chunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


def rounds_ending_in(chunks: Sequence[Chunk], start: int, stop: int) -> int:
    """Rounds after which the answer has start..stop-1 tokens."""
    return sum(start <= chunk.usage.completion_tokens < stop for chunk in chunks)


def test_streams_with_an_eagle_drafter_give_the_tokens_of_plain_decoding(cluster: Cluster) -> None:
    num_accepted = 0
    for options in (GREEDY | {"max_tokens": EAGLE_TOKENS}, SAMPLED | {"max_tokens": EAGLE_TOKENS}):
        drafted = at_once(over_grpc, cluster, options | {"drafter": "eagle"})
        assert [tokens for tokens, _ in drafted] == plain_answers(cluster, options)
        assert all((usage.drafter, usage.drafted_tokens > 0) == ("eagle", True) for _, usage in drafted)
        num_accepted += sum(usage.accepted_tokens for _, usage in drafted)
    assert num_accepted > 0, "its first weights guess a little"
    num_bytes, rows = metrics(cluster, "feature_bytes_total", "feature_rows_total", drafter="eagle")
    assert num_bytes == rows * BFLOAT16_BYTES * HIDDEN_SIZE, "one vector of the drafter's width for each token"


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_streams_with_trees_give_the_tokens_of_plain_decoding(cluster: Cluster, options: dict[str, Any]) -> None:
    drafted = at_once(over_grpc, cluster, options | {"drafter": "tree"})
    assert [tokens for tokens, _ in drafted] == plain_answers(cluster, options)
    usages = [usage for _, usage in drafted]
    num_rounds, num_selected = sum(u.rounds for u in usages), sum(u.selected_tokens for u in usages)
    assert MAX_DEPTH * num_rounds < num_selected <= MAX_NODES * num_rounds, "more than any chain, no more than allowed"
    assert sum(u.accepted_tokens for u in usages) > 0


def test_a_session_outlives_the_restart_of_its_only_draft_replica(cluster: Cluster, client: Client) -> None:
    """Plain decoding for a while, the same tokens, and then drafts as good as those of another session on the same text."""
    prompt = load_tokenizer(resolve_folder(ModelSource(model="demo:target"))).encode(PROMPTS[0])
    names = ("feature_rows_total", "committed_tokens_total")
    before = metrics(cluster, *names, drafter="tree")
    (victim,) = cluster.replica_pids("Draft-tree")
    stream = client.stream(prompt, drafter="tree", **SAMPLED | {"max_tokens": MAX_TOKENS})
    with closing(stream):  # type: ignore[type-var]
        first = read_until(stream, lambda read: read[-1].usage.completion_tokens >= TOKENS_BEFORE, "its first tokens")
        os.kill(victim, signal.SIGKILL)
        plain = read_until(stream, lambda read: len(read) > PLAIN_ROUNDS and without_drafts(read[-PLAIN_ROUNDS - 1 :]), "plain rounds")
        later = read_until(stream, lambda read: len(read) > 1 and drafts_are_back(read), "drafts came back")
        resumed = len(tokens_of([*first, *plain, *later]))
        enough = resumed + COMPARED_TOKENS + MAX_DEPTH + 1  # drafts are shorter near the end of an answer
        last = read_until(stream, lambda read: read[-1].usage.completion_tokens >= enough, "enough drafts")
    wait_until_idle(cluster)
    chunks = [*first, *plain, *later, *last]
    tokens = tokens_of(chunks)
    assert tuple(tokens) == client.generate(prompt, speculation=False, **SAMPLED | {"max_tokens": len(tokens)}).token_ids
    assert first[-1].usage.accepted_tokens > 0
    wait_until(lambda: cluster.replica_pids("Draft-tree") not in ([], [victim]), 60.0, "a new drafter")

    rows, committed = (now - then for now, then in zip(metrics(cluster, *names, drafter="tree"), before, strict=True))
    sent_again = rows - (len(prompt) + committed - 1)  # the last anchor has no features yet
    known, lost = (len(prompt) + part[-1].usage.completion_tokens for part in (first, plain))
    assert known - 1 <= sent_again <= lost, "the whole context for the new replica, out of the target's store, and everything else once"

    start = resumed - HEAD_START_TOKENS
    options = SAMPLED | {"max_tokens": len(tokens) - start}
    again = list(client.stream([*prompt, *tokens[:start]], drafter="tree", **options))
    assert tokens_of(again) == tokens[start:]
    num_rounds = rounds_ending_in(chunks, resumed, resumed + COMPARED_TOKENS)
    num_fresh = rounds_ending_in(again, resumed - start, resumed - start + COMPARED_TOKENS)
    assert abs(num_rounds - num_fresh) <= 3, "as good as another's; one that saw nothing would need more than twice the rounds"
