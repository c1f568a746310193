"""Traces of candidates: a verdict counts only where there was one, and a file gives back what was recorded."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dspark.deepspec.node_traces import COLUMNS, FORMAT, NodeTrace, NodeTraceRecorder
from dspark.errors import ConfigError
from dspark.scheduling.signals import NodeSignals
from dspark.tree import ANCHOR, CandidateTree

#: Two roots; the first has two children, the second one; the first child has one.
TREE = CandidateTree(
    np.array([10, 11, 12, 13, 14, 15], np.int32),
    np.array([ANCHOR, ANCHOR, 0, 0, 1, 2], np.int32),
    np.array([0.6, 0.3, 0.3, 0.2, 0.1, 0.1], np.float32),
)


def signals(count: int = 6) -> NodeSignals:
    """Told apart by their gaps."""
    depths, ranks = np.array([1, 1, 2, 2, 2, 3], np.int32), np.array([0, 1, 0, 1, 0, 0], np.int32)
    gaps = np.arange(count, dtype=np.float32)
    return NodeSignals(depths[:count], ranks[:count], gaps, -gaps, gaps / 2, np.full(count, 0.7, np.float32))


def recorded(selected: list[int] | None, accepted: list[int]) -> NodeTrace:
    recorder = NodeTraceRecorder()
    recorder.add(3, 0.7, TREE, signals(), selected, accepted)
    return recorder.trace()


def small_trace() -> NodeTrace:
    recorder = NodeTraceRecorder()
    recorder.add(3, 0.7, TREE, signals(), None, [0, 2])
    recorder.add(4, 0.0, TREE, signals(), [0, 1], [1])
    recorder.add(4, 0.0, CandidateTree.empty(), signals(0), None, [])
    return recorder.trace()


def same(first: NodeTrace, second: NodeTrace) -> bool:
    return all(np.array_equal(getattr(first, name), getattr(second, name), equal_nan=name != "accepted") for name in COLUMNS)


def test_of_a_tree_those_are_kept_whose_parent_was_accepted() -> None:
    trace = recorded(None, [0, 2])
    assert trace.gap.tolist() == [0, 1, 2, 3, 5]
    assert trace.accepted.tolist() == [True, False, True, False, False]
    assert trace.depth.tolist() == [1, 1, 2, 2, 3]


def test_of_a_rejected_tree_only_the_roots_have_verdicts() -> None:
    trace = recorded(None, [])
    assert trace.gap.tolist() == [0, 1]
    assert not trace.accepted.any()


def test_what_was_not_selected_has_no_verdict_and_accepted_nodes_count_in_the_selected_tree() -> None:
    """Selected are 1 and 4; both are accepted."""
    trace = recorded([1, 4], [0, 1])
    assert trace.gap.tolist() == [1, 4]
    assert trace.accepted.tolist() == [True, True]


def test_chances_served_are_survival_over_the_parents() -> None:
    trace = recorded(None, [0, 2])
    assert trace.parent_score.tolist() == pytest.approx([1, 1, 0.6, 0.6, 0.3])
    assert trace.served.tolist() == pytest.approx([0.6, 0.3, 0.5, 1 / 3, 1 / 3])


def test_rounds_are_numbered_with_those_that_taught_nothing() -> None:
    recorder = NodeTraceRecorder()
    recorder.add(0, 0.0, TREE, signals(), [], [])
    recorder.add(0, 0.0, TREE, signals(), [0], [0])
    assert recorder.trace().round.tolist() == [1]
    assert recorder.num_rounds == 2


def test_the_signals_are_those_that_were_recorded() -> None:
    trace = small_trace()
    assert trace.signals.ranks.tolist() == [0, 1, 0, 1, 0, 0, 1]
    assert trace.signals.confidence_logits.tolist() == [0, 0.5, 1, 1.5, 2.5, 0, 0.5]
    assert trace.signals.temperatures.tolist() == pytest.approx([0.7] * 5 + [0.0] * 2)
    assert trace.temperatures == (0.0, 0.7)
    assert trace.has_confidence


def test_signals_that_are_not_one_per_node_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 signals for a tree of 6 nodes"):
        NodeTraceRecorder().add(0, 0.0, TREE, signals(5), None, [])


def test_concatenated_traces_keep_their_rounds_apart_and_their_sessions_together() -> None:
    trace = small_trace()
    both = NodeTrace.concatenate([trace, NodeTraceRecorder().trace(), trace])
    assert both.session.tolist() == trace.session.tolist() * 2
    assert both.round.tolist() == [*trace.round.tolist(), *(trace.round + 2).tolist()]
    assert len(NodeTrace.concatenate([])) == 0


@pytest.mark.parametrize("trace", [small_trace(), NodeTraceRecorder().trace()])
def test_a_file_gives_back_what_was_written(tmp_path: Path, trace: NodeTrace) -> None:
    trace.write(tmp_path / "new" / "nodes.safetensors")
    assert same(NodeTrace.read(tmp_path / "new" / "nodes.safetensors"), trace)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gap": np.zeros(3, np.float32)}, "'gap' has shape"),
        ({"depth": np.zeros(7, np.int32)}, "'depth' holds a value below 1"),
        ({"rank": np.full(7, -1, np.int32)}, "'rank' holds a value below 0"),
        ({"temperature": np.full(7, np.nan, np.float32)}, "'temperature' holds a negative or non-finite value"),
        ({"accepted": np.zeros(7, np.int32)}, "'accepted' is int32"),
        ({"token": np.zeros(7, np.int32)}, r"unknown columns \['token'\]"),
    ],
)
def test_what_does_not_fit_is_named_with_its_file(tmp_path: Path, changes: dict[str, np.ndarray], said: str) -> None:
    path = tmp_path / "nodes.safetensors"
    small_trace().write(path)
    save_file(load_file(path) | changes, path, {"format": FORMAT})
    with pytest.raises(ConfigError, match=f"nodes.safetensors: .*{said}"):
        NodeTrace.read(path)
