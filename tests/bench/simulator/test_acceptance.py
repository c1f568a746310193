"""Simulated drafts: trees that are legal, scores that mean what they say, and traces that come back as they were recorded."""

import numpy as np
import pytest

from dspark.bench.simulator.acceptance import ChainTraceSource, ChanceTable, Draft, DraftBook, NodeTraceSource
from dspark.deepspec.node_traces import NodeTrace, NodeTraceRecorder
from dspark.deepspec.traces import TraceRecorder
from dspark.errors import ConfigError
from dspark.scheduling.drafting_plan import SKIP, DraftLimits
from dspark.scheduling.signals import NodeSignals
from dspark.tree import CandidateTree

SEED = 5
TABLE = ChanceTable(np.asarray([[0.6, 0.2], [0.5, 0.2], [0.4, 0.1]]), spread=0.3)
LIMITS = DraftLimits(max_depth=3, max_width=2, max_nodes=6)


def test_trees_are_legal_and_grown_likeliest_first() -> None:
    for draft in DraftBook(TABLE, LIMITS, 200, SEED).drafts:
        draft.tree.check(vocab_size=100, max_nodes=6)
        assert len(draft.tree) == 6
        assert int(draft.tree.depths.max()) <= 3
        assert np.all(np.diff(draft.tree.scores) <= 1e-7), "best first"
        assert np.bincount(draft.tree.parents + 1).max() <= 2
        assert list(draft.accepted) == (draft.tree.path(draft.accepted[-1]) if draft.accepted else [])


def test_scores_are_calibrated_and_their_means_are_the_tables() -> None:
    """6,000 drafts: bins of 0.1 with at least 200 nodes; 5 standard errors (false alarm below 1e-4 over all bins)."""
    drafts = DraftBook(TABLE, DraftLimits(1, 2, 2), 6000, SEED).drafts
    scores = np.concatenate([draft.tree.scores for draft in drafts])
    right = np.concatenate([np.isin(np.arange(len(draft.tree)), draft.accepted) for draft in drafts])
    bins = np.minimum((scores * 10).astype(int), 9)
    for chosen in (bins == b for b in range(10)):
        if chosen.sum() >= 200:
            assert abs(right[chosen].mean() - scores[chosen].mean()) < 5 * 0.5 / np.sqrt(chosen.sum())
    assert scores.sum() / len(drafts) == pytest.approx(0.8, abs=0.015)
    assert right.sum() / len(drafts) == pytest.approx(0.8, abs=0.03)


def test_a_chain_without_spread_has_the_tables_products_as_scores() -> None:
    chain = ChanceTable.of_chain([0.8, 0.5])
    [draft] = DraftBook(chain, DraftLimits(7, 4, 16), 1, SEED).drafts
    assert draft.tree.is_chain
    np.testing.assert_allclose(draft.tree.scores, [0.8, 0.4], rtol=1e-6)


def test_siblings_each_take_the_same_share_of_what_is_left() -> None:
    table = ChanceTable.of_chain([0.6], width=3, sibling_share=0.25)
    np.testing.assert_allclose(table.conditional, [[0.6, 0.1, 0.075]])


def test_nothing_is_drafted_under_limits_of_nothing() -> None:
    [draft] = DraftBook(TABLE, SKIP, 1, SEED).drafts
    assert len(draft.tree) == 0
    assert draft.accepted == ()


def test_only_what_was_verified_is_accepted() -> None:
    draft = Draft(CandidateTree.chain([1, 2, 3]), accepted=(0, 1, 2))
    assert [draft.accepted_of(kept) for kept in ([], [0], [0, 1], [0, 1, 2])] == [(), (0,), (0, 1), (0, 1, 2)]


@pytest.mark.parametrize(
    ("table", "spread"), [([[0.7, 0.4]], 0.0), ([[-0.1]], 0.0), ([], 0.0), ([[float("nan")]], 0.0), ([[0.5]], 1.0), ([[0.5]], -0.1)]
)
def test_what_is_no_table_is_refused(table: list[list[float]], spread: float) -> None:
    with pytest.raises(ConfigError):
        ChanceTable(np.asarray(table, np.float64), spread)


def test_recorded_rounds_come_back_as_they_were() -> None:
    recorder = TraceRecorder()
    recorder.add(0, 1.0, num_accepted=2, score=[0.9, 0.5, 0.2])
    recorder.add(1, 1.0, num_accepted=2, score=[0.8, 0.7, 0.6], num_verified=2)
    found = DraftBook(ChainTraceSource(recorder.trace()), DraftLimits(7, 4, 16), 50, SEED).drafts
    shown = {(tuple(round(score, 3) for score in draft.tree.scores.tolist()), draft.accepted) for draft in found}
    assert shown == {((0.9, 0.5, 0.2), (0, 1)), ((0.8, 0.7), (0, 1))}, "of the second round's last position nothing is known"
    short = DraftBook(ChainTraceSource(recorder.trace()), DraftLimits(1, 1, 1), 9, SEED).drafts
    assert {(len(draft.tree), draft.accepted) for draft in short} == {(1, (0,))}


def test_a_trace_without_rounds_or_scores_is_refused() -> None:
    with pytest.raises(ConfigError, match="no rounds"):
        ChainTraceSource(TraceRecorder().trace())
    unknown = TraceRecorder()
    unknown.add(0, 1.0, 0, [float("nan")])
    with pytest.raises(ConfigError, match="without scores"):
        ChainTraceSource(unknown.trace())


def recorded_trees(table: ChanceTable, rounds: int) -> NodeTrace:
    recorder = NodeTraceRecorder()
    for draft in DraftBook(table, LIMITS, rounds, SEED).drafts:
        size = len(draft.tree)
        parents = draft.tree.parents.tolist()
        ranks = np.asarray([parents[:node].count(parent) for node, parent in enumerate(parents)], np.int32)
        unknown = np.full(size, np.nan, np.float32)
        signals = NodeSignals(draft.tree.depths, ranks, unknown, unknown, unknown, np.ones(size, np.float32))
        recorder.add(0, 1.0, draft.tree, signals, None, draft.accepted)
    return recorder.trace()


def test_trees_from_a_trace_of_candidates_accept_as_much_as_those_it_was_recorded_from() -> None:
    """1,500 trees each way; standard error of a mean about 0.025: the bound is 4 of them and a little for groups cut by the size limit."""
    source = NodeTraceSource(recorded_trees(TABLE, 1500))
    drafts = DraftBook(source, LIMITS, 1500, SEED + 1)
    drafts.drafts[0].tree.check(vocab_size=100, max_nodes=6)
    assert drafts.mean_accepted == pytest.approx(DraftBook(TABLE, LIMITS, 1500, SEED + 2).mean_accepted, abs=0.15)


def test_a_trace_of_candidates_with_a_missing_depth_is_refused() -> None:
    trace = recorded_trees(TABLE, 50)
    with pytest.raises(ConfigError, match=r"at depths \[1, 3\] only"):
        NodeTraceSource(trace.select(trace.depth != 2))
