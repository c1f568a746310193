"""One drafter by `drafter:`, on a target that has not got its projection: raw taps travel, and the tokens are the same."""

from collections.abc import Iterator

import pytest

from dspark.client import Client
from tests.serve.conftest import Cluster, running, write_config
from tests.serve.test_drafters import BFLOAT16_BYTES, HIDDEN_SIZE, NUM_TAPS, PROMPTS, SAMPLED, metrics

pytestmark = pytest.mark.serve

ARGS = """\
      target: {num_threads: 1, deterministic: true}
      scheduling: {mode: fixed}
      drafter: {kind: block, model: "demo:dspark", num_threads: 1, max_depth: 7, max_nodes: 7}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, ray_environment: dict[str, str]) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("raw")
    config, http_port, grpc_port = write_config(folder, ARGS, "tests.serve.raw_taps:build")
    with running(config, http_port, grpc_port, ray_environment) as cluster:
        yield cluster


def test_raw_taps_travel_where_the_target_has_no_projection(cluster: Cluster) -> None:
    with Client(cluster.grpc_address) as client:
        plain = client.generate(PROMPTS[0], speculation=False, **SAMPLED)
        drafted = client.generate(PROMPTS[0], **SAMPLED)
    assert drafted.token_ids == plain.token_ids
    assert drafted.usage.drafter == "default"
    assert drafted.usage.accepted_tokens > 0
    num_bytes, rows = metrics(cluster, "feature_bytes_total", "feature_rows_total", drafter="default")
    assert rows > drafted.usage.prompt_tokens
    assert num_bytes == rows * BFLOAT16_BYTES * NUM_TAPS * HIDDEN_SIZE, "2560 bytes per token"
