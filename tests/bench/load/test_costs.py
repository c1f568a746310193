"""Costs put together from windows: what went in comes out."""

import json

import numpy as np
import pytest

from dspark.bench.load.costs import MeasuredCosts, measured_costs, non_negative_fit, slowness, target_costs, usual_probe_ms
from dspark.bench.load.window import StepSample, Window
from dspark.bench.simulator.costs import curve_of

PROFILE = curve_of([1, 4, 16, 64], [2.0, 4.0, 10.0, 34.0])
KV_US = 5.0
FACTOR = 1.5


def step_sample(rows: int, sessions: int, context: int) -> StepSample:
    """A step of this target: the profile's, half as long again, and the reading of the cache."""
    return rows, sessions, sessions * context, FACTOR * float(PROFILE.step_ms_of([rows], 0)[0]) + KV_US * sessions * context / 1e3


STEPS = [
    step_sample(rows, sessions, context) for rows in (1, 4, 16) for sessions in (1, 4, 16) for context in (100, 300) if sessions <= rows
]


def window(clients: int, steps: int = 100, draft_calls: int = 0, pace: float = 1.0) -> tuple[int, Window]:
    """Rounds cost 1 ms and 0.25 ms a session, drafting calls 3 ms and 2 ms more that nobody sees."""
    router_ms = steps * (1.0 + 0.25 * clients)
    draft_ms, hidden_ms = 3.0 * draft_calls, 2.0 * draft_calls
    seconds = pace * (router_ms + draft_ms + hidden_ms + 10.0 * steps) / 1e3
    made = Window(seconds=seconds, steps=steps, verify_ms=pace * 10.0 * steps, draft_ms=pace * draft_ms, draft_calls=draft_calls)
    made.step_samples = [(*sizes, pace * ms) for *sizes, ms in STEPS]
    made.draft_samples = [(clients, 3, pace * 3.0)] * draft_calls
    made.probe_ms = 4.0 * pace
    return clients, made


def test_steps_give_the_profile_its_factor_and_cached_tokens_their_price() -> None:
    found = target_costs(PROFILE, STEPS)
    assert found.kv_us_per_token == pytest.approx(KV_US, rel=1e-6)
    np.testing.assert_allclose(found.curve.step_ms[0], FACTOR * PROFILE.step_ms[0], rtol=1e-6)
    assert found.step_ms(16, 0.0, 4800.0) == pytest.approx(step_sample(16, 16, 300)[3], rel=1e-6)


def test_without_steps_the_profile_stands() -> None:
    assert target_costs(PROFILE, []).curve is PROFILE


def test_a_round_costs_what_plain_turns_leave_over_and_drafts_what_is_left_beyond() -> None:
    windows = [window(clients) for clients in (1, 4, 16)] + [window(clients, draft_calls=50) for clients in (1, 4, 16)]
    costs = measured_costs(PROFILE, 512, windows, reads_features=True)
    assert costs.router.ms(4) == pytest.approx(2.0, rel=1e-6)
    assert costs.draft.ms(4, 3) == pytest.approx(5.0, rel=1e-6)
    setup = costs.setup("a pair")
    assert (setup.label, setup.one_processor, setup.plain_first_round, setup.max_rows) == ("a pair", True, True, 512)


def test_a_machine_that_was_slow_for_a_while_changes_nothing() -> None:
    """Half of the windows took twice as long, and the probe says so."""
    steady = [window(clients) for clients in (1, 4, 16, 1, 4)]
    costs = measured_costs(PROFILE, 512, [*steady, window(4, pace=2.0), window(16, pace=2.0)], reads_features=False)
    assert costs.router.ms(4) == pytest.approx(2.0, rel=1e-6)
    np.testing.assert_allclose(costs.target.curve.step_ms[0], FACTOR * PROFILE.step_ms[0], rtol=1e-6)


def test_where_nothing_was_probed_the_machine_was_steady() -> None:
    assert usual_probe_ms([Window(), Window()]) is None
    assert slowness(Window(), 3.0) == slowness(Window(probe_ms=6.0), None) == 1.0
    assert slowness(Window(probe_ms=6.0), 3.0) == 2.0


def test_costs_come_back_from_their_record() -> None:
    costs = measured_costs(PROFILE, 512, [window(4), window(4, draft_calls=10)], reads_features=True)
    again = MeasuredCosts.from_record(json.loads(json.dumps(costs.record())))
    assert (again.draft, again.router, again.max_rows, again.reads_features) == (costs.draft, costs.router, 512, True)
    np.testing.assert_allclose(again.target.curve.step_ms, costs.target.curve.step_ms, atol=1e-3)
    assert costs.record()["overlap"] == 0.0


def test_a_fit_has_no_negative_weight() -> None:
    terms = np.asarray([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert non_negative_fit(terms, np.asarray([3.0, 5.0, 7.0])) == pytest.approx([1.0, 2.0])
    falling = non_negative_fit(terms, np.asarray([7.0, 5.0, 3.0]))
    assert falling[1] == 0.0
    assert falling[0] > 0
    assert non_negative_fit(np.empty((0, 2)), np.empty(0)) == [0.0, 0.0]
