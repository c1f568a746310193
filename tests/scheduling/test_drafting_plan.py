"""How much to draft: as deep as pays, never when plain decoding is as fast, and always within what is configured."""

from dataclasses import replace

import numpy as np
import pytest

from dspark.scheduling.costs import Floats, RoundCosts
from dspark.scheduling.drafting_plan import (
    SKIP,
    SPREAD_GAIN,
    DraftLimits,
    DraftOutlook,
    best_draft,
    expected_rates,
    promised_draft,
)

MOST = DraftLimits(4, 3, 8)


def chain_gains(survivals: list[float], num_nodes: int) -> Floats:  # [D + 1, N + 1]
    """A chain drafted to depth d has d candidates; more nodes bring nothing."""
    sums = np.concatenate([[0.0], np.cumsum(np.cumprod(survivals))])
    depths, nodes = np.arange(len(sums))[:, np.newaxis], np.arange(num_nodes + 1)
    return sums[np.minimum(depths, nodes)]


def outlook(
    survivals: list[float],
    draft_ms: list[float],
    *,
    sessions: int = 1,
    drafting: int | None = None,
    row_ms: float = 0.0,
    max_rows: int = 64,
) -> DraftOutlook:
    costs = RoundCosts(10 + row_ms * np.arange(max_rows + 1.0), fixed_ms=1.0)
    return DraftOutlook(sessions, drafting or sessions, chain_gains(survivals, MOST.max_nodes), np.asarray(draft_ms), costs, MOST)


def test_free_drafts_are_made_in_full_depth() -> None:
    assert best_draft(outlook([0.9] * 4, [0.0] * 5)).limits.max_depth == 4


def test_a_drafter_that_costs_more_than_it_brings_is_skipped() -> None:
    assert best_draft(outlook([0.2] * 4, [0.0, 5, 6, 7, 8])).limits == SKIP
    assert best_draft(outlook([0.0] * 4, [0.0] * 5)).limits == SKIP
    assert SKIP.skips
    assert not MOST.skips


def test_depth_stops_where_a_further_position_costs_more_than_it_brings() -> None:
    """The fourth position is worth 0.1 tokens and costs 3 ms of a round of 17."""
    chosen = best_draft(outlook([0.9, 0.9, 0.9, 0.1], [0.0, 1, 2, 3, 9])).limits
    assert chosen.max_depth == 3


def test_keeping_a_drafter_fresh_counts_for_neither_side() -> None:
    assert best_draft(outlook([0.2] * 4, [4.0] * 5)).limits.max_depth > 0
    assert best_draft(outlook([0.2] * 4, [0.0, 4, 4, 4, 4])).limits == SKIP


def test_what_will_not_be_verified_is_not_drafted() -> None:
    """At high load rows cost; the later candidates would be drafted for nothing."""
    quiet = best_draft(outlook([0.8, 0.6, 0.5, 0.4], [0.0, 0.1, 0.2, 0.3, 0.4], row_ms=0.5)).limits
    busy = best_draft(outlook([0.8, 0.6, 0.5, 0.4], [0.0, 0.1, 0.2, 0.3, 0.4], row_ms=0.5, sessions=16, max_rows=512)).limits
    assert quiet.max_nodes > busy.max_nodes > 0


def test_a_tree_that_costs_more_to_draft_than_its_side_nodes_bring_is_no_tree() -> None:
    """Candidates beyond a chain of four bring a tenth of a token each, of a round of 11 ms."""
    gains = chain_gains([0.9] * 4, MOST.max_nodes)
    gains[4, 5:] += 0.1 * np.arange(1, 5)
    free = replace(outlook([0.9] * 4, [0.0] * 5), gains=gains)
    assert best_draft(free).limits.max_nodes == 8
    assert best_draft(replace(free, side_node_ms=1.0)).limits.max_nodes < 8


def test_more_is_drafted_than_verified_where_the_planner_has_sessions_to_choose_across_and_it_costs_little() -> None:
    """Two candidates pay, each of which costs 1 ms to verify."""
    o = outlook([0.9, 0.7, 0.1, 0.1], [0.0] * 5, sessions=8, row_ms=0.25)
    o = replace(o, draft_ms=np.asarray([0.0, 0.0, 0.0, 50.0, 50.0]))
    assert best_draft(o).limits == DraftLimits(2, 3, 3)
    assert best_draft(replace(o, side_node_ms=1.0)).limits == DraftLimits(2, 1, 2), "and where looking for branches is dear, a chain"
    assert best_draft(replace(o, num_sessions=1, num_drafting=1)).limits == DraftLimits(2, 2, 2), "alone there is nothing to choose"


@pytest.mark.parametrize("sessions", [64, 65, 100])
def test_no_rows_left_for_candidates_means_no_draft(sessions: int) -> None:
    assert best_draft(outlook([0.9] * 4, [0.0] * 5, sessions=sessions)).limits == SKIP


def test_rates_are_tokens_over_time_and_between_whole_candidates_interpolated() -> None:
    """What is chosen across the two sessions adds half of what it adds across many."""
    o = outlook([0.5, 0.5, 0.5, 0.5], [0.0, 2, 2, 2, 2], sessions=2, row_ms=1.0)
    more = 1 + SPREAD_GAIN / 2
    rates = expected_rates(o)
    assert rates.shape == (5, 2 * 8 + 1)
    assert rates[0, 0] == pytest.approx(1e3 * 2 / (12 + 1))
    assert rates[4, 2] == pytest.approx(1e3 * 2 * (1 + 0.5 * more) / (14 + 1 + 2))
    assert rates[4, 3] == pytest.approx(1e3 * 2 * (1 + 0.625 * more) / (15 + 1 + 2))


@pytest.mark.parametrize("seed", range(30))
def test_the_chosen_depth_is_never_slower_than_plain_and_limits_hold(seed: int) -> None:
    draw = np.random.default_rng(seed)
    steps = 5 + np.cumsum(draw.random(65) * draw.choice([0.1, 1.0]) * (draw.random(65) < 0.2))
    gains = chain_gains(draw.random(4).tolist(), MOST.max_nodes)
    draft_ms = np.concatenate([[0.0], np.cumsum(draw.random(4) * 3)])
    num_sessions = int(draw.integers(1, 20))
    o = DraftOutlook(num_sessions, int(draw.integers(1, num_sessions + 1)), gains, draft_ms, RoundCosts(steps, 1.0), MOST)
    chosen, rates = best_draft(o).limits, expected_rates(o)
    assert 0 <= chosen.max_depth <= 4
    assert chosen.max_depth <= chosen.max_nodes <= 8
    assert chosen.max_width <= 3
    assert rates[chosen.max_depth].max() >= rates[0, 0]
    assert rates[chosen.max_depth].max() >= 0.998 * rates.max()


def test_the_best_draft_tells_what_it_is_expected_to_bring() -> None:
    o = outlook([0.9, 0.9, 0.9, 0.1], [0.0, 1, 2, 3, 9])
    choice = best_draft(o)
    assert choice.limits.max_depth == 3
    assert choice.tau == pytest.approx(1.0 + o.gains[choice.limits.max_depth, round(choice.nodes_per_session)])
    skipped = best_draft(outlook([0.0] * 4, [0.0, 5, 6, 7, 8]))
    assert (skipped.limits, skipped.nodes_per_session, skipped.tau, skipped.gain) == (SKIP, 0.0, 1.0, 1.0)
    rates = expected_rates(o)
    assert choice.gain == pytest.approx(rates.max() / rates[0, 0], rel=2e-3)


def test_what_few_sessions_win_must_pay_for_all_that_wait() -> None:
    """A draft of 8 ms for one of ten sessions holds up all of them."""
    draft_ms = [0.0, 8, 8, 8, 8]
    assert best_draft(outlook([0.9] * 4, draft_ms, sessions=10, drafting=10)).limits.max_depth == 4
    assert best_draft(outlook([0.9] * 4, draft_ms, sessions=10, drafting=1)).limits == SKIP
    choice = best_draft(outlook([0.9] * 4, [0.0, 1, 1, 1, 1], sessions=10, drafting=2, row_ms=0.1))
    assert choice.tau == pytest.approx(1 + sum(0.9**depth for depth in range(1, 5)) * (1 + SPREAD_GAIN / 2))
    assert choice.gain == pytest.approx((8 + 2 * choice.tau) / 10 * 12.0 / (12.0 + 1 + 0.8))


def test_rows_are_there_for_the_candidates_of_those_that_draft() -> None:
    assert expected_rates(outlook([0.5] * 4, [0.0] * 5, sessions=10, drafting=2)).shape == (5, 2 * 8 + 1)


def test_a_promise_is_kept_by_the_fastest_draft_that_keeps_it() -> None:
    """Drafting loses for all together, but two sessions were promised more than plain decoding gives them."""
    o = outlook([0.9] * 4, [0.0, 4, 6, 8, 10], sessions=10, drafting=2)
    plain = 1e3 / 11
    assert best_draft(o).limits == SKIP
    assert promised_draft(o, plain).limits == SKIP
    assert [promised_draft(o, speed).limits.max_depth for speed in (120.0, 170.0, 200.0)] == [2, 3, 4], "159 at depth 2, 181 at 3, 195 at 4"
    assert promised_draft(o, 1e4).limits.max_depth == 4, "what cannot be kept is kept as far as can be"
