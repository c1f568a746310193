"""Many trees at once give what each of them gives alone."""

import numpy as np
import pytest

from dspark.scheduling.tree_batch import TreeBatch
from dspark.tree import ANCHOR, CandidateTree
from tests.scheduling.forests import random_forest


def joined(parts: list[list[float]]) -> list[float]:
    return [value for part in parts for value in part]


def test_depths_are_those_of_each_tree() -> None:
    trees = [*random_forest(0), CandidateTree.chain(list(range(70)))]
    assert TreeBatch.of(trees).depths.tolist() == joined([tree.depths.tolist() for tree in trees])


def test_ranks_count_better_siblings_and_equal_earlier_ones() -> None:
    trees = random_forest(1)
    trees.append(CandidateTree(np.arange(4, dtype=np.int32), np.full(4, ANCHOR, np.int32), np.array([0.2, 0.5, 0.2, 0.5], np.float32)))
    expected = [
        [
            sum(
                (-tree.scores[other], other) < (-tree.scores[node], node)
                for other in range(len(tree))
                if tree.parents[other] == tree.parents[node]
            )
            for node in range(len(tree))
        ]
        for tree in trees
    ]
    ranks = TreeBatch.of(trees).ranks.tolist()
    assert ranks == joined(expected)
    assert ranks[-4:] == [2, 0, 3, 1]


def test_the_product_of_chances_given_the_parent_is_the_score() -> None:
    trees = random_forest(2)
    batch = TreeBatch.of(trees)
    assert batch.survival(batch.conditional) == pytest.approx(joined([tree.scores.tolist() for tree in trees]), abs=1e-7)


def test_lying_scores_become_chances_all_the_same() -> None:
    parents = np.array([ANCHOR, 0, ANCHOR, 2, ANCHOR, 4], np.int32)
    scores = np.array([np.nan, 0.5, 0.5, 0.7, 7.0, -1.0], np.float32)
    assert TreeBatch.of([CandidateTree(np.arange(6, dtype=np.int32), parents, scores)]).conditional.tolist() == [0, 0, 0.5, 1, 1, 0]


def test_accepted_nodes_are_marked_in_their_own_tree() -> None:
    batch = TreeBatch.of([CandidateTree.chain([5, 6]), CandidateTree.empty(), CandidateTree.chain([7, 8, 9])])
    assert batch.accepted_mask([[0], [], [0, 1]]).tolist() == [True, False, True, True, False]
    assert batch.owners.tolist() == [0, 0, 2, 2, 2]


@pytest.mark.parametrize("trees", [[], [CandidateTree.empty()] * 3])
def test_no_nodes_are_legal(trees: list[CandidateTree]) -> None:
    batch = TreeBatch.of(trees)
    for values in (batch.depths, batch.ranks, batch.conditional, batch.survival(batch.conditional)):
        assert values.shape == (0,)
