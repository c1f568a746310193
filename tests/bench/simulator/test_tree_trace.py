"""Recorded trees: what is written comes back, and smaller drafts are cut out of larger ones."""

from pathlib import Path

import numpy as np
import pytest

from dspark.bench.simulator.tree_trace import TreeRecorder, TreeTrace, TreeTraceSource
from dspark.errors import ConfigError
from dspark.scheduling.drafting_plan import SKIP, DraftLimits
from dspark.tree import CandidateTree

#: anchor -> 0 (.8) -> 2 (.6) -> 4 (.5); anchor -> 1 (.15); 0 -> 3 (.1)
TREE = CandidateTree(
    np.arange(5, dtype=np.int32), np.asarray([-1, -1, 0, 0, 2], np.int32), np.asarray([0.8, 0.15, 0.6, 0.1, 0.5], np.float32)
)


def recorded(*accepted: tuple[int, ...]) -> TreeTrace:
    recorder = TreeRecorder()
    for nodes in accepted:
        recorder.add(TREE, nodes)
    recorder.add(CandidateTree.empty(), ())
    return recorder.trace()


def test_a_trace_comes_back_from_its_file(tmp_path: Path) -> None:
    trace = recorded((0, 2), ())
    trace.write(tmp_path / "trees.safetensors")
    again = TreeTrace.read(tmp_path / "trees.safetensors")
    assert len(again) == 2, "rounds without a draft are left out"
    assert np.array_equal(again.parent, trace.parent)
    assert np.array_equal(again.accepted, trace.accepted)


def test_a_file_that_is_no_trace_of_trees_is_named(tmp_path: Path) -> None:
    (tmp_path / "junk").write_text("junk")
    with pytest.raises(ConfigError, match="junk"):
        TreeTrace.read(tmp_path / "junk")
    with pytest.raises(ConfigError, match="parent"):
        TreeTrace(np.asarray([1], np.int32), np.asarray([0], np.int32), np.asarray([0.5], np.float32), np.asarray([True]))
    with pytest.raises(ConfigError, match="one entry per candidate"):
        TreeTrace(np.asarray([2], np.int32), np.asarray([-1], np.int32), np.asarray([0.5], np.float32), np.asarray([True]))
    with pytest.raises(ConfigError, match="no rounds"):
        TreeTraceSource(TreeRecorder().trace())


@pytest.mark.parametrize(
    ("limits", "parents", "accepted"),
    [
        (DraftLimits(7, 4, 16), [-1, -1, 0, 0, 2], (0, 2, 4)),
        (DraftLimits(7, 4, 3), [-1, 0, 1], (0, 1, 2)),
        (DraftLimits(7, 1, 7), [-1, 0, 1], (0, 1, 2)),
        (DraftLimits(2, 2, 16), [-1, -1, 0, 0], (0, 2)),
        (DraftLimits(1, 1, 1), [-1], (0,)),
        (SKIP, [], ()),
    ],
)
def test_smaller_limits_leave_the_best_candidates(limits: DraftLimits, parents: list[int], accepted: tuple[int, ...]) -> None:
    draft = TreeTraceSource(recorded((0, 2, 4))).draw(limits, np.random.default_rng(0))
    assert draft.tree.parents.tolist() == parents
    assert draft.accepted == accepted


def test_a_child_of_a_lesser_sibling_needs_as_wide_a_draft_as_its_parent() -> None:
    """anchor -> 0 (.3), 1 (.6); 1 -> 2 (.2); 0 -> 3 (.25): the better root is written second."""
    tree = CandidateTree(np.arange(4, dtype=np.int32), np.asarray([-1, -1, 1, 0], np.int32), np.asarray([0.3, 0.6, 0.2, 0.25], np.float32))
    recorder = TreeRecorder()
    recorder.add(tree, (1, 2))
    draft = TreeTraceSource(recorder.trace()).draw(DraftLimits(7, 1, 7), np.random.default_rng(0))
    assert draft.tree.parents.tolist() == [-1, 0]
    assert draft.accepted == (0, 1)


def test_survival_that_rises_along_a_path_is_cut_to_the_parents() -> None:
    recorder = TreeRecorder()
    recorder.add(CandidateTree.chain([1, 2], [0.3, 0.9]), ())
    draft = TreeTraceSource(recorder.trace()).draw(DraftLimits(7, 1, 1), np.random.default_rng(0))
    assert draft.tree.scores.tolist() == pytest.approx([0.3]), "with a node its parent is kept"
