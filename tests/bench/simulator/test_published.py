"""Built-in numbers: derived from what others published, and held against what was measured."""

import numpy as np
import pytest

from dspark.bench.simulator.acceptance import ChanceTable, DraftBook
from dspark.bench.simulator.published import ACCEPTANCE, H100, PUBLISHED_POINTS, QWEN3_8B, SETUPS, SIBLING_SHARE, SPREAD, roofline
from dspark.scheduling.drafting_plan import DraftLimits

#: Coupled chains and best-first trees of a 5.8 M pair at temperature 1, 64 prompts x 128 tokens: candidates -> tau.
MEASURED_CHAINS = {2: 1.99, 4: 2.24, 7: 2.32}
MEASURED_TREES = {4: 2.43, 7: 2.76, 12: 3.04, 16: 3.18, 32: 3.47}
#: Its conditional acceptance under rejection sampling, of which shared noise keeps 0.92.
CHAIN = 0.92 * np.asarray([0.70, 0.62, 0.58, 0.55, 0.51, 0.49, 0.51])


def test_the_acceptance_model_gives_the_measured_tau_of_chains_and_trees() -> None:
    """1,000 drafts: a standard error of tau is at most 0.06; the model itself is within 0.06 of the table."""
    table = ChanceTable.of_chain(CHAIN, width=4, sibling_share=SIBLING_SHARE, spread=SPREAD)
    for size, tau in MEASURED_CHAINS.items():
        assert 1 + DraftBook(table, DraftLimits(7, 1, size), 1000, 1).mean_accepted == pytest.approx(tau, abs=0.15)
    for size, tau in MEASURED_TREES.items():
        assert 1 + DraftBook(table, DraftLimits(7, 4, size), 1000, 1).mean_accepted == pytest.approx(tau, abs=0.15)


def test_a_roofline_is_flat_until_arithmetic_takes_longer_than_memory() -> None:
    target = roofline(QWEN3_8B, H100, memory_efficiency=1.0, compute_efficiency=1.0)
    read_ms = 1e3 * QWEN3_8B.weight_bytes / H100.memory_bytes_per_second
    assert target.step_ms(1, 0.0, 0.0) == target.step_ms(128, 0.0, 0.0) == pytest.approx(read_ms)
    assert read_ms == pytest.approx(4.5, abs=0.1), "15 GB at 3.35 TB/s"
    assert target.step_ms(2048, 0.0, 0.0) == pytest.approx(1e3 * 2 * QWEN3_8B.parameters_read * 2048 / H100.flops_per_second)
    assert QWEN3_8B.kv_bytes_per_token == 147_456


@pytest.mark.parametrize("name", ["qwen3-8b-h100", "llama-3.1-8b-h100"])
def test_plain_decoding_of_one_client_is_as_published(name: str) -> None:
    point = next(p for p in PUBLISHED_POINTS if p.setup == name and p.clients == 1 and p.tau is None)
    assert 1e3 / SETUPS[name].target.step_ms(1, 0.0, 0.0) == pytest.approx(point.tokens_per_second, rel=1e-6)


def test_every_set_up_says_that_it_is_derived_and_every_fact_where_it_is_from() -> None:
    assert all("derived" in setup.label for setup in SETUPS.values())
    assert all(point.source for point in PUBLISHED_POINTS)
    assert all(table.conditional.shape == (7, 4) for table in ACCEPTANCE.values())
