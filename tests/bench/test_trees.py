"""`dspark bench accept --nodes`: chains, trees and selected trees at equal numbers of candidates."""

import numpy as np
import pytest

from dspark.bench.trees import TreePlan, threshold_for, trees_table
from dspark.config import DrafterConfig, TargetConfig
from dspark.deepspec.decoding import DecodingPlan
from dspark.deepspec.traces import TraceRecorder


def test_the_threshold_leaves_the_wanted_number_of_candidates_in_the_mean_round() -> None:
    recorder, draw = TraceRecorder(), np.random.default_rng(0)
    for _ in range(200):
        recorder.add(0, 1.0, 0, draw.random(draw.integers(4, 13)).astype(np.float32))
    trace = recorder.trace()
    for nodes in (1, 3, 6):
        kept = (trace.score >= threshold_for(trace, nodes)).sum()
        assert kept == nodes * len(trace)
    assert threshold_for(trace, 1000) == trace.score.min()
    assert threshold_for(TraceRecorder().trace(), 4) == 0.0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trees_commit_more_than_chains_of_as_many_candidates() -> None:
    """12 prompts x 48 tokens at temperature 1. The noise is fixed by its seed, so nothing here is left to chance."""
    plan = TreePlan((1.0,), (7,), 4, DecodingPlan(max_tokens=48))
    table = trees_table(TargetConfig(num_threads=1), {"block": DrafterConfig(num_threads=1)}, None, 12, plan)
    row = table.splitlines()[-1].split("|")
    chain, tree, selected = (float(cell.split()[0]) for cell in row[5:8])
    assert tree > chain
    assert selected > chain
