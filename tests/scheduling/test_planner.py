"""The planner: never over budget, ancestors kept, and no selection expects more tokens, or more of them per second."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from dspark.scheduling.costs import NEAR_EQUAL, RoundCosts
from dspark.scheduling.forest import Forest, SessionNeed
from dspark.scheduling.planner import Plan, plan
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


def selections(trees: dict[SessionId, CandidateTree], budget: int) -> Iterator[dict[SessionId, tuple[int, ...]]]:
    """Every legal one."""
    nodes = [(s, node) for s, tree in trees.items() for node in range(len(tree))]
    for size in range(min(budget, len(nodes)) + 1):
        for chosen in itertools.combinations(nodes, size):
            kept = {s: tuple(node for owner, node in chosen if owner == s) for s in trees}
            if all(is_closed(trees[s], kept[s]) for s in trees):
                yield kept


def tokens_of(trees: dict[SessionId, CandidateTree], kept: dict[SessionId, tuple[int, ...]]) -> float:
    return len(trees) + sum(float(trees[s].scores[list(nodes)].sum()) for s, nodes in kept.items())


def best_expectation(trees: dict[SessionId, CandidateTree], budget: int) -> float:
    """By trying every legal selection."""
    return max(tokens_of(trees, kept) for kept in selections(trees, budget))


def round_ms(costs: RoundCosts, num_rows: int) -> float:
    return float(costs.step_ms[num_rows]) + costs.fixed_ms + costs.draft_ms


def jagged_costs(draw: random.Random, max_rows: int) -> RoundCosts:
    """Steps of any height, some downwards."""
    steps = np.asarray([draw.uniform(5, 6) + 3 * (rows // draw.randint(1, 4)) for rows in range(max_rows + 1)])
    return RoundCosts(steps, draw.uniform(0, 2), draw.choice((0.0, 3.0)))


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
    assert plan({}, 8, RoundCosts(np.ones(9))) == Plan({}, 0, 0.0)


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


@pytest.mark.parametrize("seed", range(30))
def test_no_legal_selection_is_expected_to_be_faster_on_any_curve(seed: int) -> None:
    draw = random.Random(seed)
    trees = {s: honest_tree(draw, draw.randint(0, 4)) for s in (A, B, C)}
    for max_rows in (3, 5, 9, 15):
        costs = jagged_costs(draw, max_rows)
        result = plan(trees, max_rows, costs)
        check_shape(trees, result, max_rows)
        kept = list(selections(trees, max_rows - 3))
        best = max(1e3 * tokens_of(trees, k) / round_ms(costs, 3 + sum(map(len, k.values()))) for k in kept)
        assert best * (1 - NEAR_EQUAL - 1e-6) <= result.tokens_per_second <= best * (1 + 1e-6)
        assert result.expected_ms == pytest.approx(round_ms(costs, result.batch_tokens))


def test_a_step_of_the_curve_is_climbed_where_it_pays_beyond() -> None:
    """The first candidate makes the round slower by more than it brings; the first four together do not."""
    costs = RoundCosts(np.asarray([0, 10, 19, 19, 19, 19, 50, 50], np.float64))
    tree = {A: CandidateTree.chain([1, 2, 3, 4, 5, 6], [0.8, 0.75, 0.7, 0.65, 0.6, 0.55])}
    assert 1.8 / 19 < 1 / 10
    result = plan(tree, 7, costs)
    assert result.kept == {A: [0, 1, 2, 3]}
    assert result.tokens_per_second > result.plain_tokens_per_second == pytest.approx(100)


def test_of_near_equal_plans_the_one_of_fewest_rows_is_taken() -> None:
    costs = RoundCosts(np.full(9, 10.0))
    assert plan({A: CandidateTree.chain([1, 2, 3], [0.5, 0.0005, 0.0004])}, 8, costs).kept == {A: [0]}
    assert plan({A: CandidateTree.chain([1, 2, 3], [0.5, 0.1, 0.0])}, 8, costs).kept == {A: [0, 1]}


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_is_never_below_plain_decoding_by_its_own_estimate(seed: int) -> None:
    draw = random.Random(seed)
    trees = {SessionId(str(i)): honest_tree(draw, draw.randint(0, 16)) for i in range(draw.randint(1, 40))}
    max_rows = 17 * len(trees)
    steps = jagged_costs(draw, max_rows)
    result = plan(trees, max_rows, RoundCosts(steps.step_ms, steps.fixed_ms))
    assert result.tokens_per_second >= result.plain_tokens_per_second
    with_drafting = plan(trees, max_rows, RoundCosts(steps.step_ms, steps.fixed_ms, 2.0))
    nothing_kept = 1e3 * len(trees) / (round_ms(steps, len(trees)) - steps.draft_ms + 2.0)
    assert with_drafting.plain_tokens_per_second == result.plain_tokens_per_second
    assert with_drafting.tokens_per_second >= nothing_kept - 1e-9


def test_a_steeper_curve_never_keeps_more() -> None:
    draw = random.Random(0)
    trees = {s: honest_tree(draw, 16) for s in (A, B, C)}
    rows = np.arange(52.0)
    sizes = [plan(trees, 51, RoundCosts(10 + slope * rows)).batch_tokens for slope in (0, 0.1, 0.3, 1, 3, 10, 100)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 10
    assert sizes[-1] < sizes[0]


def test_dearer_rounds_never_keep_fewer() -> None:
    draw = random.Random(1)
    trees = {s: honest_tree(draw, 16) for s in (A, B, C)}
    steps = 5 + np.arange(52.0)
    sizes = [plan(trees, 51, RoundCosts(steps, fixed_ms)).batch_tokens for fixed_ms in (0, 5, 20, 100, 1000)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_more_sessions_than_rows_still_get_their_anchors() -> None:
    trees = {s: CandidateTree.chain([1], [0.9]) for s in (A, B, C)}
    result = plan(trees, 2, RoundCosts(np.asarray([0.0, 10.0, 12.0])))
    assert result.kept == {A: [], B: [], C: []}
    assert result.expected_ms == pytest.approx(12.0 * 3 / 2)


def test_rows_beyond_the_known_curve_go_unused() -> None:
    assert plan({A: CandidateTree.chain([1, 2, 3], [1.0, 1.0, 1.0])}, 9, RoundCosts(np.ones(3))).batch_tokens == 2


def test_a_floor_is_kept_where_nothing_pays_and_takes_the_best() -> None:
    costs = RoundCosts(10.0 ** np.arange(10))
    asking, other = CandidateTree.chain([1, 2, 3], [0.9, 0.8, 0.7]), CandidateTree.chain([1], [0.99])
    needs = {A: SessionNeed(asking, floor_nodes=2), B: SessionNeed(other)}
    assert plan(needs, 9, costs).kept == {A: [0, 1], B: []}
    assert plan(needs, 9).kept == {A: [0, 1, 2], B: [0]}


def test_floors_come_before_likelier_candidates_but_not_before_the_budget() -> None:
    poor, rich = CandidateTree.chain([1, 2, 3], [0.3, 0.2, 0.1]), CandidateTree.chain([1, 2, 3], [0.9, 0.8, 0.7])
    needs = {A: SessionNeed(poor, floor_nodes=2), B: SessionNeed(rich)}
    for costs in (None, RoundCosts(np.full(10, 1.0))):
        assert plan(needs, 5, costs).kept == {A: [0, 1], B: [0]}
        assert plan(needs, 3, costs).kept == {A: [0], B: []}


def test_a_cap_keeps_the_best_with_their_ancestors() -> None:
    tree = CandidateTree(np.arange(4, dtype=np.int32), np.asarray([-1, -1, 1, 2], np.int32), np.asarray([0.3, 0.6, 0.5, 0.4], np.float32))
    for costs in (None, RoundCosts(np.full(10, 1.0))):
        assert plan({A: SessionNeed(tree, max_nodes=3), B: SessionNeed(tree)}, 10, costs).kept == {A: [1, 2, 3], B: [0, 1, 2, 3]}
        assert plan({A: SessionNeed(tree, max_nodes=0)}, 10, costs).kept == {A: []}
        assert plan({A: SessionNeed(tree, max_nodes=1, floor_nodes=3)}, 10, costs).kept == {A: [1]}


@pytest.mark.parametrize("seed", range(20))
def test_no_selection_within_floors_and_caps_is_faster(seed: int) -> None:
    draw = random.Random(seed)
    trees = {s: honest_tree(draw, draw.randint(0, 4)) for s in (A, B, C)}
    needs = {s: SessionNeed(tree, draw.randint(0, 2), draw.choice((None, 1, 2, 3))) for s, tree in trees.items()}
    costs = jagged_costs(draw, 15)
    result = plan(needs, 15, costs)
    check_shape(trees, result, 15)
    caps = {s: min(len(need.tree), len(need.tree) if need.max_nodes is None else need.max_nodes) for s, need in needs.items()}
    within = [k for k in selections(trees, 12) if all(min(needs[s].floor_nodes, caps[s]) <= len(k[s]) <= caps[s] for s in trees)]
    best = max(1e3 * tokens_of(trees, k) / round_ms(costs, 3 + sum(map(len, k.values()))) for k in within)
    assert all(min(needs[s].floor_nodes, caps[s]) <= len(nodes) <= caps[s] for s, nodes in result.kept.items())
    assert best * (1 - NEAR_EQUAL - 1e-6) <= result.tokens_per_second <= best * (1 + 1e-6)


def test_what_is_no_score_counts_as_zero_and_more_than_one_as_one() -> None:
    costs = RoundCosts(np.full(10, 1.0))
    lying = {A: CandidateTree.chain([1], [float("nan")]), B: CandidateTree.chain([1, 2], [float("inf"), 7.0])}
    assert plan(lying, 9).expected_tokens == pytest.approx(2 + 1 + 1)
    assert plan(lying, 9, costs).kept == {A: [], B: [0, 1]}
    assert plan({A: CandidateTree.chain([1, 2], [-3.0, 0.9])}, 9, costs).kept == {A: []}


@pytest.mark.parametrize("seed", range(20))
def test_lying_scores_never_take_a_node_without_its_parent(seed: int) -> None:
    draw = random.Random(seed)
    needs = {}
    for session_id in (A, B, C):
        tree = honest_tree(draw, draw.randint(0, 20))
        lies = [draw.choice((float("nan"), float("inf"), -1.0, 0.0, -0.0, draw.random(), 3.0)) for _ in range(len(tree))]
        tree = CandidateTree(tree.token_ids, tree.parents, np.asarray(lies, np.float32))
        needs[session_id] = SessionNeed(tree, draw.randint(0, 3), draw.choice((None, 4)), draw.choice((None, 60.0)), draw.randint(0, 1))
    for max_rows in (3, 5, 10, 30, 63):
        check_shape({s: need.tree for s, need in needs.items()}, plan(needs, max_rows, jagged_costs(draw, max_rows)), max_rows)


def test_other_scores_than_the_trees_own_may_be_planned_by() -> None:
    draw = random.Random(4)
    needs = {SessionId(str(i)): SessionNeed(honest_tree(draw, draw.randint(0, 30)), max_nodes=draw.choice((None, 5))) for i in range(40)}
    scores = [np.asarray([draw.random() for _ in range(len(need.tree))], np.float32) for need in needs.values()]
    rescored = {
        s: replace(need, tree=CandidateTree(need.tree.token_ids, need.tree.parents, own))
        for (s, need), own in zip(needs.items(), scores, strict=True)
    }
    costs = RoundCosts(10 + 0.2 * np.arange(301.0))
    assert plan(Forest.of(needs, np.concatenate(scores)), 300, costs) == plan(rescored, 300, costs) != plan(needs, 300, costs)
