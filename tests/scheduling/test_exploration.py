"""Exploring: a first purse, then a small share of the time, less of it where it goes on to lose."""

import pytest

from dspark.scheduling.exploration import FIRST_ROUNDS, LEAST_EARNING, MOST_LOST_ROUNDS, MOST_ROUNDS, SHARE, Exploration


def spent(price_rounds: float, lost_rounds: float) -> Exploration:
    """A purse whose first money is gone."""
    exploration = Exploration()
    while exploration.affords(price_rounds):
        exploration.explored(lost_rounds)
    return exploration


def pause(exploration: Exploration, price_rounds: float) -> int:
    """Rounds until the purse can pay again."""
    rounds = 0
    while not exploration.affords(price_rounds):
        exploration.round_passed()
        rounds += 1
    return rounds


def test_the_first_purse_is_spent_draft_by_draft_and_no_further() -> None:
    exploration, tries = Exploration(), 0
    while exploration.affords(2.0):
        exploration.explored(1.2)
        tries += 1
    assert tries == 12
    assert tries * 1.2 <= FIRST_ROUNDS


def test_after_it_exploring_costs_a_share_of_the_time() -> None:
    exploration = spent(2.0, 2.0)
    assert pause(exploration, 2.0) == pytest.approx(2.0 / SHARE, abs=1)


def test_pauses_grow_while_what_is_tried_goes_on_to_lose_and_end_with_what_wins() -> None:
    exploration, pauses = spent(2.0, 2.0), []
    for _ in range(6):
        pauses.append(pause(exploration, 2.0))
        exploration.explored(2.0)
    assert pauses[:4] == pytest.approx([2.0 / SHARE * factor for factor in (1, 2, 4, 8)], rel=0.01)
    assert pauses[-1] == pytest.approx(2.0 / SHARE / LEAST_EARNING, rel=0.01), "and not for ever"
    exploration.explored(-0.5)
    assert pause(exploration, 2.0) == pytest.approx((2.0 - 0.5) / SHARE, rel=0.02)


@pytest.mark.parametrize("lost_rounds", [1.0, 30.0])
def test_in_the_long_run_no_more_is_lost_than_the_share(lost_rounds: float) -> None:
    exploration, lost = Exploration(), 0.0
    rounds = 200_000
    for _ in range(rounds):
        if exploration.affords(lost_rounds):
            exploration.explored(lost_rounds)
            lost += min(lost_rounds, MOST_LOST_ROUNDS)
        else:
            exploration.round_passed()
    assert FIRST_ROUNDS / 2 < lost <= FIRST_ROUNDS + MOST_LOST_ROUNDS + SHARE * rounds


def test_a_long_pause_does_not_save_up_for_many_drafts() -> None:
    exploration = spent(2.0, 2.0)
    for _ in range(100_000):
        exploration.round_passed()
    assert exploration.purse_rounds == MOST_ROUNDS


def test_a_drafter_dearer_than_any_purse_is_tried_when_the_purse_is_full_and_one_bad_call_is_not_the_end() -> None:
    exploration = Exploration()
    assert exploration.affords(1000.0)
    exploration.explored(1000.0)
    assert not exploration.affords(1000.0)
    assert pause(exploration, 1000.0) == pytest.approx(MOST_ROUNDS / SHARE, abs=1)
    exploration.explored(1000.0)
    assert exploration.purse_rounds == pytest.approx(MOST_ROUNDS - MOST_LOST_ROUNDS)


def test_what_was_to_be_expected_is_paid_in_full_beside_what_a_stall_may_cost() -> None:
    """A drafter that has to be told long contexts first costs ten rounds, and that is no bad luck."""
    stalled, told = Exploration(), Exploration()
    stalled.explored(50.0)
    told.explored(10.0, expected_rounds=8.0)
    assert (FIRST_ROUNDS - stalled.purse_rounds, FIRST_ROUNDS - told.purse_rounds) == (MOST_LOST_ROUNDS, 10.0)
