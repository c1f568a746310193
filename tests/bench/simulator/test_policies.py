"""What the simulated router decides: the fixed ways always the same, this project's by cost."""

import numpy as np
import pytest

from dspark.bench.simulator.costs import DraftCosts, RouterCosts
from dspark.bench.simulator.policies import Planned, Policy, Situation, policy_named
from dspark.errors import ConfigError
from dspark.scheduling.drafting_plan import SKIP, DraftLimits
from dspark.tree import CandidateTree
from dspark.types import SessionId

MOST = DraftLimits(4, 1, 4)
CHAIN = CandidateTree.chain([1, 2, 3, 4], [0.9, 0.8, 0.7, 0.6])
ROWS = np.arange(129, dtype=np.float64)
FREE_ROWS, DEAR_ROWS = np.full(129, 10.0), 0.1 + ROWS


def situation(step_ms: np.ndarray, num_sessions: int = 8, one_processor: bool = True, draft_ms: float = 1.0) -> Situation:
    return Situation(num_sessions, step_ms, DraftCosts(fixed_ms=draft_ms), RouterCosts(), one_processor, drafters_share=1.0)


def trees(count: int = 8) -> dict[SessionId, CandidateTree]:
    return {SessionId(str(i)): CHAIN for i in range(count)}


def taught(policy: Policy, rounds: int = 200) -> Policy:
    for _ in range(rounds):
        policy.learn(MOST, CHAIN, [0, 1, 2, 3], 3)
    return policy


def test_fixed_policies_draft_and_verify_the_same_whatever_it_costs() -> None:
    for policy, limits, num_kept in (("plain", SKIP, 0), ("fixed3", DraftLimits(3, 1, 3), 4), ("tree", MOST, 4)):
        chosen = policy_named(policy, MOST)
        for step_ms in (FREE_ROWS, DEAR_ROWS):
            assert chosen.draft_limits(situation(step_ms), 0) == limits
            sent = trees() if num_kept else dict.fromkeys(trees(), CandidateTree.empty())
            assert {len(kept) for kept in chosen.select(sent, situation(step_ms)).values()} == {num_kept}
        assert chosen.num_to_fire(3, 2, 1.0, situation(FREE_ROWS)) == 3


def test_planned_verifies_all_where_rows_are_free_and_nothing_where_they_cost_more_than_they_bring() -> None:
    policy = Planned(MOST)
    assert {len(kept) for kept in policy.select(trees(), situation(FREE_ROWS)).values()} == {4}
    assert {len(kept) for kept in policy.select(trees(), situation(DEAR_ROWS, draft_ms=0.0)).values()} == {0}


def test_planned_learns_whether_drafting_pays() -> None:
    policy = taught(Planned(MOST))
    assert policy.draft_limits(situation(FREE_ROWS), 0).max_depth == 4
    policy.draft_limits(situation(DEAR_ROWS), 0)
    assert policy.draft_limits(situation(DEAR_ROWS), 9) == SKIP


def test_only_a_few_sessions_explore() -> None:
    policy = taught(Planned(MOST))
    explored = [[policy.draft_limits(situation(DEAR_ROWS), place) == MOST for place in range(8)] for _ in range(120)]
    assert {sum(flags) for flags in explored} == {0, 4}
    assert 1 <= sum(any(flags) for flags in explored) <= 5


def test_drafting_hides_behind_the_verification_of_others_only_on_a_processor_of_its_own() -> None:
    assert situation(FREE_ROWS, draft_ms=12.0).visible_draft_ms(4, 2) == 12.0
    apart = situation(FREE_ROWS, one_processor=False, draft_ms=12.0)
    assert apart.visible_draft_ms(4, 2) == 2.0
    assert apart.visible_draft_ms(8, 2) == 12.0, "nobody is left to be verified meanwhile"


def test_planned_waits_for_a_draft_that_ends_soon_and_not_for_a_long_one() -> None:
    policy = taught(Planned(MOST))
    assert policy.num_to_fire(4, 4, 0.1, situation(FREE_ROWS)) == 0
    assert policy.num_to_fire(7, 1, 200.0, situation(FREE_ROWS)) == 7


def test_planned_sends_half_where_the_other_half_can_draft_meanwhile() -> None:
    policy = taught(Planned(MOST), 2000)
    dear = situation(10.0 + 0.5 * ROWS, one_processor=False, draft_ms=20.0)
    policy.draft_limits(dear, 0)
    assert policy.num_to_fire(8, 0, 0.0, dear) == 4
    assert policy.num_to_fire(8, 0, 0.0, situation(FREE_ROWS)) == 8


@pytest.mark.parametrize("name", ["fixed", "fixed0", "best", ""])
def test_a_word_that_is_no_policy_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="plain, fixedN"):
        policy_named(name, MOST)
