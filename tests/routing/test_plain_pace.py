"""The yardstick for drafted rounds: what plain decoding would have made in the meantime."""

import pytest

from dspark.routing.plain_pace import REMEMBERED_STEPS, PlainPace


def test_nothing_is_known_before_two_steps_have_ended() -> None:
    pace = PlainPace()
    assert pace.per_second(0.0) == 0
    pace.step_done(1.0, 10.0)
    assert pace.per_second(0.5) == 0, "when the first step began is not known"
    pace.step_done(1.02, 10.0)
    assert pace.per_second(1.0) == pytest.approx(100.0)


def test_a_round_over_several_steps_is_judged_by_each_of_them_as_long_as_it_lasted() -> None:
    pace = PlainPace()
    pace.step_done(0.0, 10.0)
    pace.step_done(0.030, 10.0)
    pace.step_done(0.040, 5.0)
    assert pace.per_second(0.0) == pytest.approx((3 + 2) / 0.040)
    assert pace.per_second(0.020) == pytest.approx((1 + 2) / 0.020), "a step that had begun counts by what is left of it"
    assert pace.per_second(0.035) == pytest.approx(200.0)


def test_a_step_that_reads_prompts_slows_plain_decoding_down_as_well() -> None:
    pace = PlainPace()
    pace.step_done(0.0, 10.0)
    pace.step_done(0.6, 590.0)
    assert pace.per_second(0.0) == pytest.approx(1 / 0.59)


def test_a_step_of_unknown_cost_tells_nothing_and_old_steps_are_forgotten() -> None:
    pace = PlainPace()
    pace.step_done(0.0, 10.0)
    pace.step_done(0.01, 0.0)
    assert pace.per_second(0.0) == 0
    for step in range(1, 100):
        pace.step_done(0.02 * step, 20.0)
    assert pace.per_second(0.0) == pytest.approx(50.0)
    assert len(pace._steps) == REMEMBERED_STEPS
