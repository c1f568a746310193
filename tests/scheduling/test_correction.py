"""Online correction finds how a drafter lies from verdicts alone, cell by cell, and forgets it when the lie ends."""

from dataclasses import astuple, replace

import numpy as np
import pytest

from dspark.scheduling.correction import SMALLEST, CorrectionMetrics, SurvivalCorrector, origins_of
from dspark.scheduling.tree_batch import TreeBatch
from dspark.tree import ANCHOR, CandidateTree
from tests.scheduling.forests import random_forest

FLAT = CandidateTree(np.arange(4, dtype=np.int32), np.array([ANCHOR, ANCHOR, 0, 2], np.int32), np.array([0.8, 0.5, 0.4, 0.1], np.float32))
"""Chances given the parent: 0.8, 0.5, 0.5, 0.25."""


def teach(corrector: SurvivalCorrector, chance: float, rounds: int, seed: int = 0, served: float = 0.8, greedy: bool = False) -> None:
    """Single candidates, served as `served` and accepted with `chance`; ten sessions at once."""
    trees = TreeBatch.of([CandidateTree.chain([1], [served])] * 10)
    for agreed in np.random.default_rng(seed).random((rounds // 10, 10)) < chance:
        corrector.learn_batch(trees, ["a"] * 10, [greedy] * 10, agreed)


def root(corrector: SurvivalCorrector, served: float = 0.8, greedy: bool = False, drafter: str = "a") -> float:
    return float(corrector.corrected(drafter, greedy, CandidateTree.chain([1], [served]))[0])


def test_without_verdicts_what_was_served_is_left() -> None:
    for tree in (FLAT, CandidateTree.chain([1, 2, 3], [1.0, 1.0, 0.0]), *random_forest(0)):
        corrected = SurvivalCorrector().corrected("a", False, tree)
        assert corrected.dtype == np.float32
        assert corrected == pytest.approx(tree.scores, abs=4 * SMALLEST)


@pytest.mark.parametrize("served", [0.05, 0.8, 1.0])
def test_what_was_served_moves_to_the_share_that_was_accepted(served: float) -> None:
    """Seed fixed. The share among 1500 has a standard deviation below 0.013: 0.05 away is 3.8 of them, the prior's 2 % included."""
    corrector = SurvivalCorrector(half_life_rounds=1e9)
    teach(corrector, 0.4, 1500, served=served)
    assert root(corrector, served) == pytest.approx(0.4, abs=0.05)


def test_a_prior_of_w_verdicts_holds_against_few_of_them() -> None:
    """Both levels lean on what was served with 30 verdicts: 10 rejections pull 0.8 down to 0.8 * (30 / 40)^2 = 0.45."""
    corrector = SurvivalCorrector()
    for _ in range(10):
        corrector.learn("a", False, CandidateTree.chain([1], [0.8]), [])
    assert root(corrector) == pytest.approx(0.45, abs=0.02)


def test_survival_never_rises_along_a_path_whatever_was_learned() -> None:
    corrector, draw = SurvivalCorrector(), np.random.default_rng(1)
    for tree in random_forest(1, 300):
        corrector.learn("a", False, tree, _any_path(draw, tree))
    for tree in random_forest(2, 100):
        corrected = corrector.corrected("a", False, tree)
        above = np.append(corrected, np.float32(1.0))[tree.parents]
        assert np.all(corrected <= above)
        assert np.all(corrected >= 0)


def test_only_nodes_whose_parent_was_accepted_teach() -> None:
    """Node 0 is rejected, so nothing is learned of 2 and 3, whose chance would be in other cells."""
    corrector = SurvivalCorrector()
    for _ in range(200):
        corrector.learn("a", False, FLAT, [])
    assert corrector.metrics("a").verdicts == pytest.approx(sum(2 * 0.5 ** (k / 2000) for k in range(200)))
    served = TreeBatch.of([FLAT]).conditional
    moved = TreeBatch.of([CandidateTree(FLAT.token_ids, FLAT.parents, corrector.corrected("a", False, FLAT))]).conditional
    assert moved[2:] == pytest.approx(served[2:], rel=1e-4)
    assert np.all(moved[:2] < 0.3 * served[:2])


def test_regimes_and_drafters_are_kept_apart() -> None:
    corrector = SurvivalCorrector()
    teach(corrector, 0.1, 300)
    assert root(corrector) < 0.3
    assert root(corrector, greedy=True) == pytest.approx(0.8, abs=1e-3)
    assert root(corrector, drafter="b") == pytest.approx(0.8, abs=1e-3)


def test_a_cell_without_verdicts_of_its_own_leans_on_its_depth() -> None:
    """What was learned of candidates served as 0.8 pulls those served as 0.4 down too, but not those deeper in the tree."""
    corrector = SurvivalCorrector()
    teach(corrector, 0.1, 300)
    assert root(corrector, 0.4) < 0.15
    chain = corrector.corrected("a", False, CandidateTree.chain([1, 2], [1.0, 0.8]))
    assert chain[1] / chain[0] == pytest.approx(0.8, abs=0.01)


def test_siblings_of_other_ranks_are_corrected_apart() -> None:
    """Seed fixed. Both are served as 0.5; the first is accepted in 7 of 10 rounds, the second in 2 of them."""
    pair = CandidateTree(np.array([1, 2], np.int32), np.full(2, ANCHOR, np.int32), np.array([0.5, 0.5], np.float32))
    corrector, draw = SurvivalCorrector(half_life_rounds=1e9), np.random.default_rng(3)
    for value in draw.random(2000):
        corrector.learn("a", False, pair, [0] if value < 0.7 else [1] if value < 0.9 else [])
    assert corrector.corrected("a", False, pair) == pytest.approx([0.7, 0.2], abs=0.05)


def test_old_verdicts_fade_with_rounds() -> None:
    """Seed fixed. After five half-lives of the new truth a thirty-second of the old verdicts is left."""
    corrector = SurvivalCorrector(half_life_rounds=200)
    teach(corrector, 0.1, 1000)
    assert root(corrector) < 0.25
    teach(corrector, 0.9, 1000, seed=1)
    assert root(corrector) == pytest.approx(0.87, abs=0.07)
    assert corrector.metrics("a").verdicts < 1.1 * 200 / np.log(2)


def test_many_trees_at_once_are_corrected_as_one_by_one() -> None:
    corrector, trees, draw = SurvivalCorrector(), random_forest(4), np.random.default_rng(4)
    drafters, greedy = draw.choice(["a", "b"], len(trees)).tolist(), (draw.random(len(trees)) < 0.5).tolist()
    for tree, drafter, regime in zip(random_forest(5), drafters, greedy, strict=True):
        corrector.learn(drafter, regime, tree, _any_path(draw, tree))
    batch = TreeBatch.of(trees)
    alone = [corrector.corrected(d, g, tree) for tree, d, g in zip(trees, drafters, greedy, strict=True)]
    assert np.array_equal(np.concatenate(alone), corrector.corrected_batch(batch, drafters, greedy))


def test_many_trees_at_once_teach_what_they_teach_one_by_one() -> None:
    """Without fading, whose steps differ: a batch fades once, by all its rounds."""
    one, many = SurvivalCorrector(half_life_rounds=1e12), SurvivalCorrector(half_life_rounds=1e12)
    trees, draw = random_forest(6, 100), np.random.default_rng(6)
    paths = [_any_path(draw, tree) for tree in trees]
    for tree, path in zip(trees, paths, strict=True):
        one.learn("a", False, tree, path)
    batch = TreeBatch.of(trees)
    many.learn_batch(batch, ["a"] * 100, [False] * 100, batch.accepted_mask(paths))
    for tree in random_forest(7):
        assert np.allclose(one.corrected("a", False, tree), many.corrected("a", False, tree), atol=1e-6)
    assert one.metrics("a").verdicts == pytest.approx(many.metrics("a").verdicts)


MERGED = replace(FLAT, origins=np.array([0, 1, 0, 1], np.uint8))
SECOND = replace(CandidateTree.chain([1], [0.8]), origins=np.ones(1, np.uint8))


def test_origins_are_told_only_where_something_was_merged() -> None:
    assert origins_of([]) is None
    assert origins_of([FLAT, CandidateTree.empty()]) is None
    told = origins_of([FLAT, MERGED, CandidateTree.empty()])
    assert told is not None
    assert told.tolist() == [0, 0, 0, 0, 0, 1, 0, 1]


def test_what_two_origins_of_one_drafter_say_is_corrected_apart() -> None:
    """The same claim is mostly right in one's mouth and mostly wrong in the other's; what was learned before the first merge stays."""
    corrector, plain = SurvivalCorrector(), CandidateTree.chain([1], [0.8])
    teach(corrector, 1.0, 300)
    before = root(corrector)
    for _ in range(300):
        corrector.learn("a", False, SECOND, [])
    assert root(corrector) == pytest.approx(before, abs=0.01)
    assert before > 0.95
    assert corrector.corrected("a", False, SECOND)[0] < 0.1
    assert corrector.corrected("b", False, SECOND)[0] == pytest.approx(0.8, abs=1e-3)
    batch = TreeBatch.of([plain, SECOND])
    both = corrector.corrected_batch(batch, ["a", "a"], [False, False], origins_of([plain, SECOND]))
    assert both.tolist() == [root(corrector), corrector.corrected("a", False, SECOND)[0]]


def test_within_one_tree_each_node_is_corrected_by_its_own_origin() -> None:
    """Seed fixed. Nodes 0 and 1 are siblings; the first is accepted in 8 of 10 rounds, as it says, the second, which says 0.5, in none."""
    corrector, draw = SurvivalCorrector(half_life_rounds=1e9), np.random.default_rng(8)
    tree = MERGED.select([0, 1])
    for agreed in draw.random(1000) < 0.8:
        corrector.learn("a", False, tree, [0] if agreed else [])
    assert corrector.corrected("a", False, tree) == pytest.approx([0.8, 0.0], abs=0.05)
    own = corrector.corrected("a", False, replace(tree, origins=np.array([1, 1], np.uint8)))
    assert own[0] < 0.3, "never said by the second origin, so it leans on what that is worth at this depth"


def test_metrics_are_those_of_a_drafters_origins_together() -> None:
    """Seed fixed. What was served is judged as if nothing were told apart; what was corrected is nearer to the truth for being so."""
    apart, together = SurvivalCorrector(), SurvivalCorrector()
    for agreed in np.random.default_rng(9).random(2000) < 0.5:
        for corrector, tree in ((apart, SECOND), (together, replace(SECOND, origins=None))):
            corrector.learn("a", False, CandidateTree.chain([1], [0.8]), [0])
            corrector.learn("a", False, tree, [0] if agreed else [])
    told, untold = apart.metrics("a"), together.metrics("a")
    assert (told.verdicts, told.served_ece) == pytest.approx((untold.verdicts, untold.served_ece))
    assert told.drift == pytest.approx(0.25, abs=0.04), "half of the verdicts moved by 0.2, half by 0.3"
    assert untold.drift < 0.1, "0.8 is about right for the two of them"
    assert apart.metrics("b") == CorrectionMetrics(0.0, 0.0, 0.0, 0.0)


def test_a_drafter_that_is_not_merged_learns_beside_one_that_is_as_if_alone() -> None:
    alone, beside = SurvivalCorrector(), SurvivalCorrector()
    draw = np.random.default_rng(10)
    for tree in random_forest(10, 200):
        path = _any_path(draw, tree)
        alone.learn("a", False, tree, path)
        beside.learn("b", False, replace(tree, origins=draw.integers(0, 3, len(tree)).astype(np.uint8)), path)
        beside.learn("a", False, tree, path)
    assert astuple(beside.metrics("a")) == pytest.approx(astuple(alone.metrics("a")))
    for tree in random_forest(11, 50):
        assert np.array_equal(beside.corrected("a", False, tree), alone.corrected("a", False, tree))


def test_metrics_show_the_lie_and_that_it_was_mended() -> None:
    """Seed fixed. Served 0.9, true 0.5: the served error tends to 0.4, and what was corrected to what 5000 verdicts leave."""
    corrector = SurvivalCorrector(half_life_rounds=1000)
    teach(corrector, 0.5, 5000, served=0.9)
    found = corrector.metrics("a")
    assert found.served_ece == pytest.approx(0.4, abs=0.05)
    assert found.corrected_ece < 0.1
    assert found.drift == pytest.approx(0.4, abs=0.05)


def test_an_honest_drafter_is_left_about_alone() -> None:
    """Seed fixed. The spread of a share among the 1443 verdicts that count is 0.011: 0.04 is over 3 of them."""
    corrector = SurvivalCorrector(half_life_rounds=1000)
    teach(corrector, 0.8, 5000)
    assert root(corrector) == pytest.approx(0.8, abs=0.04)
    assert corrector.metrics("a").served_ece < 0.04


def test_a_drafter_never_met_has_metrics_of_zero() -> None:
    corrector = SurvivalCorrector()
    corrector.corrected("a", False, CandidateTree.empty())
    assert corrector.metrics("a") == corrector.metrics("b")
    assert corrector.metrics("b").verdicts == 0.0


def _any_path(draw: np.random.Generator, tree: CandidateTree) -> list[int]:
    if not len(tree):
        return []
    path = tree.path(int(draw.integers(len(tree))))
    return path[: int(draw.integers(len(path) + 1))]
