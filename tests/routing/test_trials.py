"""When all sessions begin to draft: easily at first, less so where they had to stop, and the longer ago the more easily again."""

import pytest

from dspark.routing.trials import (
    DOUBT,
    FIRST_DOUBT_STEPS,
    LASTING_STEPS,
    MOST_DOUBT_STEPS,
    MOST_FAILURES,
    RECOUPED_AGAIN_IN,
    RECOUPED_IN,
    Trials,
)

LITTLE = 1e-6


def asked(trials: Trials, step: int, num_sessions: int = 8, told_rounds: float = 0.0) -> float:
    """The least gain that is begun with, to a thousandth."""
    return next(gain / 1000 for gain in range(900, 3000) if trials.may_begin(gain / 1000 + LITTLE, told_rounds, step, num_sessions))


def tried(trials: Trials, step: int, steps: int = 8, num_sessions: int = 8) -> int:
    """Drafting that was stopped after so many steps; when that was."""
    trials.decided(True, step, num_sessions)
    trials.decided(False, step + steps, num_sessions)
    return step + steps


def test_what_is_not_expected_to_lose_is_tried() -> None:
    trials = Trials()
    assert asked(trials, 0) == 1.0
    assert not trials.is_under_way
    trials.decided(True, 10, 8)
    assert trials.is_under_way
    assert [trials.has_just_begun(step) for step in (10, 11, 12)] == [True, True, False]
    trials.decided(True, 20, 8)
    assert not trials.has_just_begun(20), "it went on"


def test_after_a_failure_more_is_asked_and_half_of_that_is_forgotten_in_time() -> None:
    trials = Trials()
    failed = tried(trials, 0)
    assert asked(trials, failed) == 1.0 + DOUBT
    assert asked(trials, failed + FIRST_DOUBT_STEPS) == pytest.approx(1.0 + DOUBT / 2, abs=0.001)


def test_telling_drafters_must_be_made_good_sooner_after_a_failure() -> None:
    trials = Trials()
    assert asked(trials, 0, told_rounds=12.0) == pytest.approx(1.0 + 12 / RECOUPED_IN, abs=0.001)
    failed = tried(trials, 0)
    assert asked(trials, failed, told_rounds=12.0) == pytest.approx(1.0 + DOUBT + 12 / RECOUPED_AGAIN_IN, abs=0.001)


def test_with_each_failure_more_is_asked_and_forgetting_takes_twice_as_long_up_to_bounds() -> None:
    trials, step = Trials(), 0
    half_lives = [FIRST_DOUBT_STEPS * 2**number for number in range(6)] + [MOST_DOUBT_STEPS]
    for number, half_life in enumerate(half_lives, 1):
        step = tried(trials, step)
        doubt = DOUBT * min(number, MOST_FAILURES)
        assert asked(trials, step) == pytest.approx(1.0 + doubt, abs=0.001)
        assert asked(trials, step + half_life) == pytest.approx(1.0 + doubt / 2, abs=0.001)


def test_drafting_that_lasted_and_ended_is_like_a_first_failure() -> None:
    trials = Trials()
    step = tried(trials, tried(trials, 0))
    step = tried(trials, step, steps=LASTING_STEPS)
    assert asked(trials, step + FIRST_DOUBT_STEPS) == pytest.approx(1.0 + DOUBT / 2, abs=0.001)


def test_a_failure_with_many_sessions_says_nothing_of_few_and_about_as_many_are_the_same() -> None:
    trials = Trials()
    failed = tried(trials, 0, num_sessions=64)
    assert asked(trials, failed, num_sessions=4) == 1.0
    assert asked(trials, failed, num_sessions=60) == 1.0 + DOUBT


def test_a_failure_counts_for_as_many_sessions_as_it_began_and_as_it_ended_with() -> None:
    """Else one that begins with 45 sessions and ends with 46 would be begun again at once, for ever."""
    trials = Trials()
    trials.decided(True, 0, 45)
    trials.decided(False, 40, 46)
    assert [asked(trials, 40, num_sessions=number) for number in (4, 45, 46)] == [1.0, 1.0 + DOUBT, 1.0 + DOUBT]


def test_that_all_sessions_have_gone_is_no_failure() -> None:
    trials = Trials()
    trials.decided(True, 0, 8)
    trials.nobody_left()
    assert not trials.is_under_way
    trials.decided(False, 10, 8)
    assert asked(trials, 10) == 1.0


def test_that_it_fails_with_many_sessions_is_not_held_against_the_few_that_it_began_with() -> None:
    """Bursts of load, again and again."""
    trials = Trials()
    for step in range(0, 1000, 100):
        trials.decided(True, step, 1)
        trials.decided(False, step + 50, 16)
    assert asked(trials, 1000, num_sessions=1) == 1.0
    assert asked(trials, 1000, num_sessions=16) > 1.0 + DOUBT
