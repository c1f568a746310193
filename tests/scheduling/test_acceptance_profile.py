"""What drafts have been worth: learnt from scores and verdicts, forgotten with time, tried again where it was given up."""

import random

import numpy as np
import pytest

from dspark.scheduling.acceptance_profile import DOUBT_ROUNDS, MEMORY, AcceptanceProfile
from dspark.scheduling.drafting_plan import DraftLimits
from dspark.tree import CandidateTree

MOST = DraftLimits(4, 3, 6)
CHAIN = CandidateTree.chain([1, 2, 3, 4], [0.8, 0.4, 0.2, 0.1])
ALL = [0, 1, 2, 3]


def accepted_by(draw: random.Random, conditional: list[float]) -> int:
    count = 0
    while count < len(conditional) and draw.random() < conditional[count]:
        count += 1
    return count


def fed(conditional: list[float], rounds: int, tree: CandidateTree = CHAIN, seed: int = 0) -> AcceptanceProfile:
    """A profile of a target that accepts each position with the given chance."""
    profile, draw = AcceptanceProfile(MOST), random.Random(seed)
    for _ in range(rounds):
        profile.observe("block", False, MOST, tree, ALL, accepted_by(draw, conditional))
    return profile


def test_an_unknown_drafter_promises_nothing() -> None:
    profile = AcceptanceProfile(MOST)
    assert profile.gains("block", True).shape == (5, 7)
    assert not profile.gains("block", True).any()
    assert profile.tokens_by_nodes("block", True).tolist() == [1.0] * 7


def test_true_scores_are_learnt_as_they_are() -> None:
    """600 rounds of seed 0, the last 32 or so remembered, and a prior: each correction has a standard error below 0.15."""
    profile = fed([0.8, 0.5, 0.5, 0.5], 600)
    assert profile.corrections("block", False) == pytest.approx(1.0, abs=0.4)
    assert profile.survival_by_depth("block", False) == pytest.approx([0.8, 0.4, 0.2, 0.1], rel=0.4)
    assert profile.tokens_by_nodes("block", False)[4:] == pytest.approx([2.5] * 3, rel=0.2)


def test_verdicts_correct_scores_that_claim_too_much() -> None:
    profile = fed([0.0] * 4, 300)
    assert profile.corrections("block", False)[0] == pytest.approx(0.25)
    assert profile.survival_by_depth("block", False)[0] < 0.3
    assert fed([1.0] * 4, 300).survival_by_depth("block", False)[1] == pytest.approx(1.0, abs=0.2)


def test_gains_are_the_best_candidates_within_depth_and_number() -> None:
    tree = CandidateTree(np.arange(4, dtype=np.int32), np.asarray([-1, -1, 0, 2], np.int32), np.asarray([0.6, 0.3, 0.5, 0.4], np.float32))
    profile = AcceptanceProfile(MOST)
    profile.observe("block", False, MOST, tree, [], 0)
    gains = profile.gains("block", False)
    assert gains[1] == pytest.approx([0, 0.6, 0.9, 0.9, 0.9, 0.9, 0.9])
    assert gains[2] == pytest.approx([0, 0.6, 1.1, 1.4, 1.4, 1.4, 1.4])
    assert gains[4] == pytest.approx([0, 0.6, 1.1, 1.5, 1.8, 1.8, 1.8])


def test_a_choice_among_the_drafted_does_not_colour_what_they_are_worth() -> None:
    """Only the first candidate is ever verified; the estimate of the others still comes from their scores."""
    profile = AcceptanceProfile(MOST)
    for count in range(200):
        profile.observe("block", False, MOST, CHAIN, [0], int(count % 5 != 0))
    assert profile.survival_by_depth("block", False) == pytest.approx([0.8, 0.4, 0.2, 0.1], rel=0.05)


def test_drafters_and_kinds_of_text_are_kept_apart() -> None:
    profile = fed([0.8, 0.5, 0.5, 0.5], 50)
    assert not profile.gains("block", True).any()
    assert not profile.gains("lookup", False).any()


def test_old_drafts_fade() -> None:
    profile = fed([1.0] * 4, 300)
    for _ in range(5 * MEMORY):
        profile.observe("block", False, MOST, CandidateTree.empty(), [], 0)
    assert profile.tokens_by_nodes("block", False)[-1] < 1.05


def test_how_many_are_to_be_remembered_may_change_from_draft_to_draft() -> None:
    """Sessions come and go, and with them what their drafts are limited to."""
    profile, draw = AcceptanceProfile(MOST), np.random.default_rng(3)
    for _ in range(600):
        depth = int(draw.integers(1, MOST.max_depth + 1))
        limits = DraftLimits(depth, MOST.max_width, int(draw.integers(depth, MOST.max_nodes + 1)))
        memory = int(draw.choice((MEMORY, 4 * MEMORY, 8 * MEMORY)))
        drafted = CandidateTree.chain(list(range(depth)), [0.8**level for level in range(1, depth + 1)])
        profile.observe("block", False, limits, drafted, list(range(depth)), int(draw.integers(0, depth + 1)), memory)
        seen = profile._record("block", False).seen
        assert (np.diff(seen, axis=0) <= 1e-9).all()
        assert (np.diff(seen, axis=1) <= 1e-9).all()


def test_what_narrow_limits_did_not_try_keeps_what_it_added() -> None:
    """Texts become easier while chains of two are drafted: a third and a fourth candidate add to that what they did before."""
    profile = AcceptanceProfile(MOST)
    for _ in range(MEMORY):
        profile.observe("block", False, MOST, CHAIN, [], 0)
    before = profile.gains("block", False)
    for _ in range(5 * MEMORY):
        profile.observe("block", False, DraftLimits(2, 1, 2), CandidateTree.chain([1, 2], [0.9, 0.8]), [], 0)
    after = profile.gains("block", False)
    assert after[2, 2] == pytest.approx(1.7, abs=0.01)
    assert np.diff(after[:, 4])[2:] == pytest.approx(np.diff(before[:, 4])[2:])
    assert after[2, 2:] == pytest.approx(after[2, 2])


def test_what_is_seldom_tried_is_judged_by_what_it_adds_not_by_the_luck_of_its_draft() -> None:
    """Easy and hard texts by turns; the one draft in a hundred that goes a level deeper is of an easy one."""
    profile = AcceptanceProfile(MOST)
    for number in range(200):
        scores = [0.9, 0.8] if number % 2 else [0.3, 0.2]
        profile.observe("block", False, DraftLimits(2, 1, 2), CandidateTree.chain([1, 2], scores), [], 0)
    before = profile.gains("block", False)
    profile.observe("block", False, DraftLimits(3, 1, 3), CandidateTree.chain([1, 2, 3], [0.9, 0.8, 0.2]), [], 0)
    after = profile.gains("block", False)
    assert after[3, 3] - after[2, 2] == pytest.approx(0.2)
    assert after[2, 2] - before[2, 2] < 0.05


def test_the_depth_that_narrow_limits_did_not_try_keeps_its_chance() -> None:
    profile = fed([0.8, 0.5, 0.5, 0.5], 100)
    before = profile.survival_by_depth("block", False)
    for _ in range(100):
        profile.observe("block", False, DraftLimits(1, 1, 1), CandidateTree.chain([1], [0.8]), [0], 1)
    after = profile.survival_by_depth("block", False)
    assert after[1:] == pytest.approx(before[1:])
    assert after[0] > before[0]


@pytest.mark.parametrize("seed", range(10))
def test_gains_never_fall_and_stay_possible_whatever_scores_say(seed: int) -> None:
    draw = random.Random(seed)
    profile = AcceptanceProfile(MOST)
    for _ in range(40):
        size = draw.randint(0, 12)
        parents = np.asarray([draw.randint(-1, node - 1) for node in range(size)], np.int32)
        scores = np.asarray([draw.choice((float("nan"), -1.0, 9.0, draw.random())) for _ in range(size)], np.float32)
        tree = CandidateTree(np.arange(size, dtype=np.int32), parents, scores)
        limits = DraftLimits(draw.randint(1, 9), 3, draw.randint(1, 9))
        profile.observe("x", True, limits, tree, draw.sample(range(size), size // 2), draw.randint(0, size // 2))
    gains = profile.gains("x", True)
    assert np.all(np.diff(gains, axis=0) >= 0)
    assert np.all(np.diff(gains, axis=1) >= 0)
    assert np.all(gains <= np.minimum(np.arange(5)[:, np.newaxis], np.arange(7)) + 1e-9)


def test_hope_begins_with_drafts_accepted_whole_and_gives_way_to_what_is_seen() -> None:
    profile = AcceptanceProfile(MOST)
    assert profile.hopeful("block", False)[4, 6] == 4.0
    assert profile.hopeful("block", False)[2, 1] == 1.0
    hopes = []
    for _ in range(MEMORY):
        profile.observe("block", False, MOST, CHAIN, ALL, 1)
        hopes.append(float(profile.hopeful("block", False)[4, 4]))
    gain = float(profile.gains("block", False)[4, 4])
    assert hopes == sorted(hopes, reverse=True)
    assert hopes[-1] == pytest.approx(gain + (4.0 - gain) / (1 + MEMORY))
    assert profile.num_drafts("block", False) == MEMORY


def test_hope_comes_back_with_the_rounds_in_which_nothing_was_drafted() -> None:
    profile = fed([0.0] * 4, MEMORY)
    before = float(profile.hopeful("block", False)[4, 4])
    for _ in range(3 * DOUBT_ROUNDS):
        profile.round_skipped("block", False)
    after = float(profile.hopeful("block", False)[4, 4])
    assert profile.freshness("block", False) == pytest.approx(1 / 8)
    assert after > before + 0.3
    profile.observe("block", False, MOST, CHAIN, ALL, 0)
    assert profile.freshness("block", False) == 1.0
    assert float(profile.hopeful("block", False)[4, 4]) < after


def test_where_nothing_was_tried_hope_is_whole() -> None:
    profile = AcceptanceProfile(MOST)
    for _ in range(MEMORY):
        profile.observe("block", False, DraftLimits(2, 1, 2), CandidateTree.chain([1, 2], [0.1, 0.01]), [0, 1], 0)
    hopes = profile.hopeful("block", False)
    assert hopes[2, 2] < 0.3
    assert hopes[4, 4] == 4.0
