"""CandidateTree: its arrays, its selections, and what `check` refuses."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from dspark.errors import InvalidMessage
from dspark.tree import ANCHOR, CandidateTree


def tree_of(token_ids: list[int], parents: list[int], scores: list[float]) -> CandidateTree:
    return CandidateTree(np.asarray(token_ids, np.int32), np.asarray(parents, np.int32), np.asarray(scores, np.float32))


# anchor
# ├── 17 (0)
# │   ├── 9 (2)
# │   │   └── 5 (4)
# │   └── 3 (3)
# └── 4 (1)
TREE = tree_of([17, 4, 9, 3, 5], [-1, -1, 0, 0, 2], [0.8, 0.1, 0.5, 0.2, 0.4])
ORIGINS = np.asarray([0, 1, 0, 1, 1], np.uint8)


def origins_of(trees: list[CandidateTree]) -> list[list[int] | None]:
    return [None if tree.origins is None else tree.origins.tolist() for tree in trees]


def test_depths_count_the_edges_from_the_anchor() -> None:
    assert TREE.depths.tolist() == [1, 1, 2, 2, 3]


def test_a_path_goes_from_the_root_to_the_node() -> None:
    assert TREE.path(4) == [0, 2, 4]
    assert TREE.path(ANCHOR) == []


def test_a_chain_is_a_tree_of_width_one() -> None:
    chain = CandidateTree.chain([3, 1, 2], [0.9, 0.5, 0.1])
    assert chain.is_chain
    assert not TREE.is_chain
    assert chain.parents.tolist() == [-1, 0, 1]
    assert chain.depths.tolist() == [1, 2, 3]


def test_a_tree_of_no_nodes_is_legal() -> None:
    empty = CandidateTree.empty()
    empty.check(vocab_size=5, max_nodes=0)
    assert len(empty) == 0
    assert empty.is_chain
    assert empty.select([]) is empty


def test_a_selection_keeps_tokens_scores_and_the_shape_between_its_nodes() -> None:
    part = TREE.select([0, 2, 4])
    assert part.token_ids.tolist() == [17, 9, 5]
    assert part.parents.tolist() == [-1, 0, 1]
    assert part.scores.tolist() == TREE.scores[[0, 2, 4]].tolist()
    assert part.is_chain


def test_selecting_everything_gives_the_tree_itself() -> None:
    assert TREE.select([0, 1, 2, 3, 4]) is TREE


def test_a_selection_keeps_the_origins_of_its_nodes() -> None:
    assert origins_of([replace(TREE, origins=ORIGINS).select([0, 2, 4])]) == [[0, 0, 1]]
    assert TREE.select([0, 2]).origins is None


def test_a_selection_without_a_parent_is_refused() -> None:
    with pytest.raises(ValueError, match="node 2 is not kept"):
        TREE.select([0, 4])


def test_a_good_tree_passes_the_check() -> None:
    TREE.check(vocab_size=18, max_nodes=5)
    replace(TREE, origins=ORIGINS).check(vocab_size=18, max_nodes=5)


BAD = {
    "too many nodes": (TREE, 18, 4),
    "an id above the vocabulary": (TREE, 17, 9),
    "a negative id": (tree_of([-1], [-1], [1.0]), 18, 9),
    "a parent that comes later": (tree_of([1, 2], [1, -1], [1.0, 1.0]), 18, 9),
    "a node that is its own parent": (tree_of([1], [0], [1.0]), 18, 9),
    "a parent below the anchor": (tree_of([1], [-2], [1.0]), 18, 9),
    "a score that is not a number": (tree_of([1], [-1], [float("nan")]), 18, 9),
    "an infinite score": (tree_of([1], [-1], [float("inf")]), 18, 9),
    "arrays of different lengths": (tree_of([1, 2], [-1], [1.0, 1.0]), 18, 9),
    "origins of another length": (replace(TREE, origins=ORIGINS[:4]), 18, 9),
    "origins of a wrong type": (replace(TREE, origins=ORIGINS.astype(np.int64)), 18, 9),
    "a wrong type": (CandidateTree(np.asarray([1]), np.asarray([-1], np.int32), np.ones(1, np.float32)), 18, 9),
    "two dimensions": (CandidateTree(np.ones((1, 1), np.int32), np.asarray([-1], np.int32), np.ones(1, np.float32)), 18, 9),
}


@pytest.mark.parametrize(("tree", "vocab_size", "max_nodes"), BAD.values(), ids=BAD.keys())
def test_the_check_refuses(tree: CandidateTree, vocab_size: int, max_nodes: int) -> None:
    with pytest.raises(InvalidMessage, match="tree") as caught:
        tree.check(vocab_size, max_nodes)
    assert caught.value.field is not None


def paths_of(tree: CandidateTree) -> dict[tuple[int, ...], float]:
    """Path of tokens -> score."""
    return {tuple(tree.token_ids[tree.path(node)].tolist()): float(tree.scores[node]) for node in range(len(tree))}


@pytest.mark.parametrize("seed", range(5))
def test_a_merged_tree_has_the_paths_of_all_and_at_every_node_the_best_chance_given_its_parent(seed: int) -> None:
    draw = random.Random(seed)
    trees = []
    for _ in range(3):
        size = draw.randint(0, 9)
        parents = [draw.randint(ANCHOR, node - 1) for node in range(size)]
        tokens: list[int] = []
        for node, parent in enumerate(parents):  # siblings differ
            taken = {tokens[other] for other in range(node) if parents[other] == parent}
            tokens.append(draw.choice([token for token in range(12) if token not in taken]))
        scores = [draw.choice([0.0, draw.random()]) for _ in range(size)]  # some claim more than their parents, or nothing
        trees.append(CandidateTree(np.asarray(tokens, np.int32), np.asarray(parents, np.int32), np.asarray(scores, np.float32)))
    chances: dict[tuple[int, ...], float] = {}
    proposers: dict[tuple[int, ...], int] = {}
    for number, tree in enumerate(trees):
        own = paths_of(tree)
        for path, score in own.items():
            above = own.get(path[:-1], 1.0)
            chances[path] = max(chances.get(path, 0.0), min(1.0, score / above) if above else 0.0)
            proposers[path] = proposers.get(path, 0) + 2**number
    merged = CandidateTree.merged(trees)
    merged.check(12, 64)
    expected = {path: math.prod(chances[path[:length]] for length in range(1, len(path) + 1)) for path in chances}
    assert paths_of(merged) == pytest.approx(expected)
    assert len(merged) == len(expected)
    assert {path: origin + 1 for path, origin in origins_by_path(merged).items()} == proposers


def origins_by_path(tree: CandidateTree) -> dict[tuple[int, ...], int]:
    """Path of tokens -> origin."""
    origins = np.zeros(len(tree), np.uint8) if tree.origins is None else tree.origins
    return {tuple(tree.token_ids[tree.path(node)].tolist()): int(origins[node]) for node in range(len(tree))}


def test_what_two_trees_agree_on_is_an_origin_of_its_own() -> None:
    merged = CandidateTree.merged([CandidateTree.chain([5, 6], [0.5, 0.25]), CandidateTree.chain([5, 7], [0.5, 0.5])])
    assert origins_by_path(merged) == {(5,): 2, (5, 6): 0, (5, 7): 1}


def test_what_one_tree_says_of_a_child_holds_below_a_parent_that_another_is_surer_of() -> None:
    """The block is right about "6" in half of the cases where it is right about "5"; lookup has seen "5" often."""
    merged = CandidateTree.merged([CandidateTree.chain([5, 6], [0.4, 0.2]), CandidateTree.chain([5, 7], [0.8, 0.6])])
    assert paths_of(merged) == pytest.approx({(5,): 0.8, (5, 6): 0.4, (5, 7): 0.6})


def test_a_merged_tree_whose_nodes_are_all_the_first_trees_needs_no_origins() -> None:
    assert origins_of([CandidateTree.merged(trees) for trees in ([TREE], [TREE, CandidateTree.empty()])]) == [None] * 2
    assert origins_of([CandidateTree.merged([CandidateTree.empty(), TREE])]) == [[1] * 5]
