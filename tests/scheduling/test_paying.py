"""Is it paying: measured against predicted speed, off after enough evidence, tried again after growing pauses."""

import math
import random

import pytest

from dspark.scheduling.paying import (
    CLEAR_ROUNDS,
    FIRST_PAUSE_ROUNDS,
    MAX_PAUSE_ROUNDS,
    MIN_ROUNDS,
    OFF_BELOW,
    ON_FROM,
    PROBE_ROUNDS,
    Paying,
    PayState,
)


def feed(paying: Paying, ratio: float, rounds: int, drafter: str = "block") -> None:
    """Rounds of 20 ms with 10 tokens each; plain decoding would have made 10 / ratio."""
    for _ in range(rounds):
        paying.round_done(drafter, 10, 20.0, 1e3 * 10 / ratio / 20.0)


def pause(paying: Paying) -> int:
    """Rounds until it may be tried again."""
    rounds = 0
    while not paying.may_draft("block"):
        paying.round_skipped("block")
        rounds += 1
    return rounds


def test_an_unknown_drafter_may_draft_and_has_no_ratio() -> None:
    paying = Paying()
    assert paying.may_draft("block")
    assert paying.pays("block")
    assert math.isnan(paying.ratio("block"))


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.7])
def test_the_ratio_is_measured_over_plain_speed(ratio: float) -> None:
    paying = Paying()
    feed(paying, ratio, 10)
    assert paying.ratio("block") == pytest.approx(ratio)


def noisy(paying: Paying, ratio: float, rounds: int, seed: int = 0) -> int:
    """Rounds of 20 ms that commit 1 to 7 tokens, 4 on average, until it is switched off, and `rounds` at most."""
    draw = random.Random(seed)
    for count in range(rounds):
        if not paying.may_draft("block"):
            return count
        paying.round_done("block", draw.randint(1, 7), 20.0, 1e3 * 4 / ratio / 20.0)
    return rounds


def test_a_losing_drafter_is_switched_off_as_soon_as_the_loss_is_clear_and_no_sooner() -> None:
    paying = Paying()
    feed(paying, 0.8, CLEAR_ROUNDS - 1)
    assert paying.may_draft("block")
    feed(paying, 0.8, 1)
    assert not paying.may_draft("block")
    assert not paying.pays("block")
    assert paying.ratio("block") == pytest.approx(0.8)


def test_the_smaller_the_loss_the_more_rounds_it_takes_to_be_clear() -> None:
    """Seeds 0..19; a round's tokens have a standard deviation of 2, so their mean over 8 rounds one of 0.7."""
    rounds = [sum(noisy(Paying(), ratio, 10 * MIN_ROUNDS, seed) for seed in range(20)) / 20 for ratio in (0.4, 0.6, 0.8)]
    assert rounds[0] < 1.5 * CLEAR_ROUNDS
    assert rounds == sorted(rounds)
    assert rounds[-1] < 2 * MIN_ROUNDS


def test_bad_luck_at_the_start_switches_few_paying_drafters_off() -> None:
    """Seeds 0..99, gains of 20 percent. False alarms of the looks at 8 to 49 rounds and of the ratio after them stay below 5 percent."""
    assert sum(noisy(Paying(), 1.2, 2 * MIN_ROUNDS, seed) < 2 * MIN_ROUNDS for seed in range(100)) < 5


def test_rounds_drafted_to_explore_show_in_the_ratio_and_switch_nothing() -> None:
    paying = Paying()
    for _ in range(2 * MIN_ROUNDS):
        paying.round_done("block", 10, 20.0, 1e3, explored=True)
    assert paying.ratio("block") == pytest.approx(0.5)
    assert paying.pays("block")


def test_several_accounts_have_a_ratio_together() -> None:
    paying = Paying()
    feed(paying, 0.5, 5, "sampled")
    feed(paying, 1.0, 5, "greedy")
    assert paying.ratio("sampled", "greedy", "unknown") == pytest.approx(2 / 3)


def test_a_drafter_at_break_even_is_left_alone() -> None:
    paying = Paying()
    feed(paying, (OFF_BELOW + 1) / 2, 1000)
    assert paying.state("block") is PayState.PAYING


def test_a_good_past_does_not_hide_a_bad_present() -> None:
    paying = Paying()
    feed(paying, 1.5, 5000)
    feed(paying, 0.7, 300)
    assert not paying.may_draft("block")


def test_pauses_grow_while_probes_fail_and_end_at_a_most() -> None:
    paying = Paying()
    feed(paying, 0.8, MIN_ROUNDS)
    pauses = []
    for _ in range(9):
        pauses.append(pause(paying))
        assert paying.state("block") is PayState.PROBING
        feed(paying, 0.99, PROBE_ROUNDS)
    assert pauses[:3] == [FIRST_PAUSE_ROUNDS, 2 * FIRST_PAUSE_ROUNDS, 4 * FIRST_PAUSE_ROUNDS]
    assert pauses[-1] == MAX_PAUSE_ROUNDS


def test_a_probe_at_break_even_does_not_bring_it_back_but_a_gain_does() -> None:
    paying = Paying()
    feed(paying, 0.8, MIN_ROUNDS)
    pause(paying)
    feed(paying, (1 + ON_FROM) / 2, PROBE_ROUNDS)
    assert not paying.may_draft("block")
    pause(paying)
    assert not paying.pays("block")
    feed(paying, 1.2, PROBE_ROUNDS)
    assert paying.pays("block")
    feed(paying, 0.8, MIN_ROUNDS)
    assert pause(paying) == FIRST_PAUSE_ROUNDS


def test_one_stall_of_the_machine_switches_nothing_off() -> None:
    paying = Paying()
    feed(paying, 1.1, 60)
    paying.round_done("block", 10, 5_000.0, 1e3 * 10 / 1.1 / 20.0)
    feed(paying, 1.1, 60)
    assert paying.pays("block")


def test_noise_around_a_gain_of_ten_percent_switches_nothing_off() -> None:
    """Seed 0; round times vary by 20 %, so the ratio over 50 rounds has a standard error near 0.03: four from the threshold."""
    paying, draw = Paying(), random.Random(0)
    for _ in range(3000):
        paying.round_done("block", 10, 20.0 * draw.gauss(1.0, 0.2), 1e3 * 10 / 1.1 / 20.0)
    assert paying.pays("block")


def test_drafters_have_accounts_of_their_own() -> None:
    paying = Paying()
    feed(paying, 0.5, MIN_ROUNDS, "lookup")
    feed(paying, 1.5, MIN_ROUNDS, "block")
    assert not paying.may_draft("lookup")
    assert paying.may_draft("block")


def test_late_drafts_of_a_drafter_that_is_off_and_skips_of_one_that_is_on_count_for_nothing() -> None:
    paying = Paying()
    feed(paying, 0.8, MIN_ROUNDS)
    feed(paying, 9.0, 100)
    assert not paying.may_draft("block")
    assert paying.ratio("block") == pytest.approx(0.8)
    paying.round_skipped("lookup")
    assert paying.pays("lookup")


@pytest.mark.parametrize(("round_ms", "plain"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (float("nan"), 1.0)])
def test_a_round_without_a_time_or_a_curve_is_refused(round_ms: float, plain: float) -> None:
    with pytest.raises(ValueError, match="cannot be judged"):
        Paying().round_done("block", 1, round_ms, plain)


def test_sessions_that_share_a_step_say_of_it_what_one_would() -> None:
    """Of 64 sessions in one slow step there are 64 rounds, all of them slow, and that is one piece of evidence."""
    paying = Paying()
    for round_number in range(MIN_ROUNDS):
        assert paying.pays("block"), round_number
        for _ in range(64):
            paying.round_done("block", 10, 20.0, 1e3 * 10 / 0.95 / 20.0, share=1 / 64)
    assert not paying.may_draft("block")
    assert paying.ratio("block") == pytest.approx(0.95)


def test_a_ratio_remembers_as_many_rounds_of_many_sessions_as_of_one() -> None:
    alone, together = Paying(), Paying()
    for ratio in [2.0] * 30 + [1.0] * 30:
        feed(alone, ratio, 1)
        for _ in range(8):
            together.round_done("block", 10, 20.0, 1e3 * 10 / ratio / 20.0, share=1 / 8)
    assert together.ratio("block") == pytest.approx(alone.ratio("block"), rel=0.01)
