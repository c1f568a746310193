"""The planner: never over budget, ancestors kept, and no selection expects more tokens."""

import itertools
import random

import numpy as np
import pytest

from dspark.messages import Plan
from dspark.scheduling.planner import plan
from dspark.tree import ANCHOR, CandidateTree
from dspark.types import SessionId

A, B, C = (SessionId(name) for name in "abc")


def honest_tree(draw: random.Random, num_nodes: int) -> CandidateTree:
    """Scores fall from parent to child, as survivals do; some are equal."""
    parents: list[int] = []
    scores: list[float] = []
    for node in range(num_nodes):
        parent = draw.randint(ANCHOR, node - 1)
        parents.append(parent)
        scores.append((1.0 if parent == ANCHOR else scores[parent]) * draw.choice((0.5, 0.9, 1.0, draw.random())))
    ids = np.arange(num_nodes, dtype=np.int32)
    return CandidateTree(ids, np.asarray(parents, np.int32), np.asarray(scores, np.float32))


def is_closed(tree: CandidateTree, kept: tuple[int, ...]) -> bool:
    return all(int(tree.parents[node]) in (*kept, ANCHOR) for node in kept)


def best_expectation(trees: dict[SessionId, CandidateTree], budget: int) -> float:
    """By trying every legal selection."""
    nodes = [(s, node) for s, tree in trees.items() for node in range(len(tree))]
    best = 0.0
    for size in range(min(budget, len(nodes)) + 1):
        for chosen in itertools.combinations(nodes, size):
            kept = {s: tuple(node for owner, node in chosen if owner == s) for s in trees}
            if all(is_closed(trees[s], kept[s]) for s in trees):
                best = max(best, sum(float(trees[s].scores[node]) for s, node in chosen))
    return len(trees) + best


def check_shape(trees: dict[SessionId, CandidateTree], result: Plan, max_rows: int) -> None:
    assert set(result.kept) == set(trees)
    assert result.batch_tokens == len(trees) + sum(len(nodes) for nodes in result.kept.values())
    assert result.batch_tokens <= max(max_rows, len(trees))
    for session_id, nodes in result.kept.items():
        assert nodes == sorted(set(nodes))
        trees[session_id].select(nodes)  # raises if a parent is missing


def test_what_fits_is_kept_whole() -> None:
    trees = {A: CandidateTree.chain([1, 2], [0.1, 0.01]), B: CandidateTree.empty()}
    assert plan(trees, 4).kept == {A: [0, 1], B: []}


def test_rows_go_to_the_likeliest_candidates_of_all_sessions_together() -> None:
    trees = {A: CandidateTree.chain([1, 2, 3], [0.9, 0.8, 0.7]), B: CandidateTree.chain([1, 2, 3], [0.5, 0.4, 0.3])}
    result = plan(trees, 6)
    assert result.kept == {A: [0, 1, 2], B: [0]}
    assert result.expected_tokens == pytest.approx(2 + 0.9 + 0.8 + 0.7 + 0.5)


def test_every_session_gets_its_anchor_even_beyond_the_budget() -> None:
    trees = {s: CandidateTree.chain([1], [0.9]) for s in (A, B, C)}
    result = plan(trees, 2)
    assert result.kept == {A: [], B: [], C: []}
    assert result.batch_tokens == 3


def test_no_sessions_make_an_empty_plan() -> None:
    assert plan({}, 8) == Plan({}, 0, 0.0)


def test_equal_scores_go_to_the_shallower_node() -> None:
    trees = {A: CandidateTree.chain([1, 2, 3], [0.5, 0.5, 0.5]), B: CandidateTree.chain([1, 2, 3], [0.5, 0.5, 0.5])}
    assert plan(trees, 4).kept == {A: [0], B: [0]}
    assert plan(trees, 6).kept == {A: [0, 1], B: [0, 1]}


def test_a_child_that_claims_more_than_its_parent_never_comes_without_it() -> None:
    lying = CandidateTree.chain([1, 2, 3], [0.1, 0.9, 1.0])
    trees = {A: lying, B: CandidateTree.chain([1, 2], [0.5, 0.2])}
    assert plan(trees, 4).kept == {A: [], B: [0, 1]}


@pytest.mark.parametrize("seed", range(30))
def test_no_selection_within_the_budget_expects_more_tokens(seed: int) -> None:
    draw = random.Random(seed)
    trees = {s: honest_tree(draw, draw.randint(0, 4)) for s in (A, B, C)}
    for max_rows in range(1, 17):
        result = plan(trees, max_rows)
        check_shape(trees, result, max_rows)
        assert result.expected_tokens == pytest.approx(best_expectation(trees, max(0, max_rows - 3)))


@pytest.mark.parametrize("seed", range(20))
def test_senseless_scores_still_make_a_legal_plan(seed: int) -> None:
    draw = random.Random(seed)
    trees = {}
    for session_id in (A, B, C):
        tree = honest_tree(draw, draw.randint(0, 20))
        scores = np.asarray([draw.uniform(-3, 9) for _ in range(len(tree))], np.float32)
        trees[session_id] = CandidateTree(tree.token_ids, tree.parents, scores)
    for max_rows in (1, 3, 5, 10, 30, 100):
        check_shape(trees, plan(trees, max_rows), max_rows)
