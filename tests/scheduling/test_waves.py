"""Waves: each way wins where its formula says, the simple one in doubt, and waiting only where it pays."""

from dataclasses import replace

import numpy as np
import pytest

from dspark.scheduling.costs import RoundCosts
from dspark.scheduling.waves import Wave, WaveCosts, choose_wave, cycles_ms, draft_ahead_ms, should_wait, visible_draft_ms


def measured(
    step_ms: float,
    row_ms: float,
    draft_ms: float,
    session_ms: float = 0.0,
    *,
    overlap: float = 1.0,
    fixed_ms: float = 0.0,
) -> WaveCosts:
    """A step of `step_ms` and `row_ms` per row; a draft of `draft_ms` and `session_ms` per session. Three candidates, tau 2."""
    sizes = np.arange(65.0)
    steps = RoundCosts(step_ms + row_ms * np.arange(257.0), fixed_ms)
    return WaveCosts(steps, draft_ms + session_ms * sizes, 3.0, 2.0, overlap)


def test_cycle_lengths_are_those_of_the_formulas() -> None:
    costs = measured(10.0, 1.0, 5.0, 1.0, fixed_ms=2.0)
    cycles = cycles_ms(4, costs)
    assert cycles[Wave.ONE] == pytest.approx(9 + 2 + 26)
    assert cycles[Wave.TWO] == pytest.approx(max(2 * 18, 2 * 7, 7 + 2 + 18))
    assert draft_ahead_ms(4, costs, guess_rate=0.5) == pytest.approx(2 + 26 + (1 - 0.5**4) * 7)


def test_on_shared_processors_nothing_is_hidden() -> None:
    costs = measured(10.0, 1.0, 5.0, 1.0, overlap=0.0, fixed_ms=2.0)
    cycles = cycles_ms(4, costs)
    assert cycles[Wave.TWO] == pytest.approx(2 * (7 + 2 + 18))
    assert draft_ahead_ms(4, costs, guess_rate=0.5) == pytest.approx(2 + 26 + 9 + (1 - 0.5**4) * 7)
    assert choose_wave(4, costs).wave is Wave.ONE


def test_where_a_step_costs_by_rows_two_waves_hide_the_drafting() -> None:
    choice = choose_wave(16, measured(0.5, 1.0, 2.0, 2.0))
    assert choice.wave is Wave.TWO
    assert choice.tokens_per_second[Wave.TWO] > choice.tokens_per_second[Wave.ONE]


def test_where_half_a_batch_costs_as_much_as_a_whole_one_there_is_one_wave() -> None:
    assert choose_wave(16, measured(30.0, 0.0, 5.0)).wave is Wave.ONE


def test_one_session_has_no_two_waves() -> None:
    choice = choose_wave(1, measured(10.0, 0.0, 8.0))
    assert (choice.wave, list(choice.tokens_per_second), choice.gain_of_two) == (Wave.ONE, [Wave.ONE], 1.0)


def test_each_way_is_judged_by_what_it_would_draft() -> None:
    """Two waves that hide a better draft may win where the same draft would not."""
    plain, better = measured(10.0, 0.0, 4.0), measured(10.0, 0.0, 4.0)
    assert choose_wave(16, plain).wave is Wave.ONE
    better = replace(better, tau=5.0)
    assert choose_wave(16, plain, better).wave is Wave.TWO
    assert choose_wave(16, plain, better).gain_of_two == pytest.approx(5.0 / 2.0 * 14.0 / 20.0)


def test_what_drafting_adds_to_a_half_is_what_the_others_step_does_not_hide() -> None:
    draft_ms = np.asarray([0.0, 5.0, 12.0])
    assert visible_draft_ms(draft_ms, 8.0, 1.0).tolist() == [0.0, 0.0, 4.0]
    assert visible_draft_ms(draft_ms, 8.0, 0.5).tolist() == [0.0, 2.5, 8.0]
    assert visible_draft_ms(draft_ms, 8.0, 0.0).tolist() == draft_ms.tolist()


def test_the_more_sessions_the_less_drafting_ahead_could_bring() -> None:
    """All guesses have to be right."""
    costs = measured(30.0, 0.0, 10.0)
    gains = [cycles_ms(s, costs)[Wave.ONE] / draft_ahead_ms(s, costs, guess_rate=0.8) for s in (1, 2, 4, 16)]
    assert gains == sorted(gains, reverse=True)
    assert draft_ahead_ms(1, costs, guess_rate=0.0) == pytest.approx(cycles_ms(1, costs)[Wave.ONE])


def test_a_gain_too_small_to_measure_changes_nothing() -> None:
    """Two waves would gain 1 %."""
    choice = choose_wave(16, measured(0.0001, 1.0, 0.65))
    assert 1.0 < choice.tokens_per_second[Wave.TWO] / choice.tokens_per_second[Wave.ONE] < 1.02
    assert choice.wave is Wave.ONE


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_never_slower_than_one_wave(seed: int) -> None:
    draw = np.random.default_rng(seed)
    costs = measured(*draw.uniform(0.1, 20, 4), overlap=draw.random(), fixed_ms=draw.uniform(0, 5))
    choice = choose_wave(int(draw.integers(1, 100)), costs)
    assert choice.tokens_per_second[choice.wave] >= choice.tokens_per_second[Wave.ONE]
    assert all(np.isfinite(rate) and rate > 0 for rate in choice.tokens_per_second.values())


def test_nothing_ready_waits_and_nothing_drafting_does_not() -> None:
    costs = measured(10.0, 1.0, 5.0)
    assert should_wait(0, 3, 100.0, costs)
    assert not should_wait(3, 0, 0.0, costs)


def test_drafts_that_are_nearly_there_are_waited_for_where_a_step_costs_the_same_for_more() -> None:
    costs = measured(20.0, 0.1, 5.0)
    assert should_wait(4, 4, 1.0, costs)
    assert not should_wait(4, 4, 19.0, costs)


def test_one_straggler_does_not_hold_up_many() -> None:
    costs = measured(20.0, 0.1, 5.0)
    assert not should_wait(32, 1, 3.0, costs)
    assert should_wait(1, 32, 3.0, costs)


def test_where_a_step_costs_by_rows_there_is_no_reason_to_wait() -> None:
    assert not should_wait(4, 4, 1.0, measured(0.01, 5.0, 5.0))


def test_once_waiting_does_not_pay_it_never_does_for_longer() -> None:
    costs = measured(20.0, 0.5, 5.0, fixed_ms=1.0)
    answers = [should_wait(6, 6, float(ms), costs) for ms in range(40)]
    assert answers == sorted(answers, reverse=True)
    assert answers[0]
    assert not answers[-1]


def test_sharing_processors_makes_waiting_for_drafts_more_worthwhile() -> None:
    apart, shared = measured(20.0, 0.1, 5.0), measured(20.0, 0.1, 5.0, overlap=0.0)
    assert sum(should_wait(6, 6, float(ms), shared) for ms in range(40)) > sum(should_wait(6, 6, float(ms), apart) for ms in range(40))
