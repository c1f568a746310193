"""Round costs: refused where they make no sense, and carried on beyond the largest known step."""

import numpy as np
import pytest

from dspark.scheduling.costs import NEAR_EQUAL, RoundCosts, fewest_near_best


@pytest.mark.parametrize("steps", [[], [1.0], [[0.0, 1.0]], [0.0, 0.0], [0.0, -1.0], [0.0, np.nan], [0.0, 1.0, np.inf]])
def test_a_curve_that_cannot_be_is_refused(steps: list[float]) -> None:
    with pytest.raises(ValueError, match="step_ms"):
        RoundCosts(np.asarray(steps))


@pytest.mark.parametrize(("fixed_ms", "draft_ms"), [(-1.0, 0.0), (0.0, -1.0), (np.nan, 0.0), (0.0, np.inf)])
def test_other_costs_are_finite_and_not_negative(fixed_ms: float, draft_ms: float) -> None:
    with pytest.raises(ValueError, match="fixed_ms and draft_ms"):
        RoundCosts(np.ones(3), fixed_ms, draft_ms)


def test_steps_beyond_the_curve_cost_their_share_of_the_largest() -> None:
    costs = RoundCosts(np.asarray([np.nan, 10.0, 12.0]))
    assert costs.max_rows == 2
    assert costs.steps_ms(1, 4).tolist() == [10.0, 12.0, 18.0, 24.0]
    assert (costs.step_of(0.2), costs.step_of(1.5), costs.step_of(4)) == (10.0, 12.0, 24.0)


def test_the_first_of_the_near_best_is_found_wherever_the_best_is() -> None:
    assert fewest_near_best(np.asarray([1.0, 0.5, 2.0, 1.9])) == 2
    assert fewest_near_best(np.asarray([1.0, 2.0 * (1 - 0.5 * NEAR_EQUAL), 2.0])) == 1
    assert fewest_near_best(np.asarray([3.0])) == 0


def test_a_step_of_fewer_sessions_lacks_what_the_others_add() -> None:
    costs = RoundCosts(np.asarray([0.0, 21.0, 22.0, 23.0, 24.0]), num_sessions=4, session_ms=4.0)
    assert costs.of_sessions(2).step_of(4) == pytest.approx(24.0 - 8.0)
    assert costs.of_sessions(2).of_sessions(1).step_of(1) == pytest.approx(21.0 - 12.0)
    assert costs.of_sessions(4) is costs
    assert costs.of_sessions(9) is costs
    assert RoundCosts(costs.step_ms, num_sessions=4, session_ms=100.0).of_sessions(1).step_of(1) > 0


@pytest.mark.parametrize("rows", [1, 2.5, 4, 9])
@pytest.mark.parametrize("num_sessions", [1, 3, 4, 7])
def test_a_step_of_some_of_the_sessions_is_that_of_the_costs_of_so_many(rows: float, num_sessions: int) -> None:
    costs = RoundCosts(np.asarray([0.0, 21.0, 22.0, 23.0, 24.0]), num_sessions=4, session_ms=4.0)
    assert costs.step_of(rows, num_sessions) == pytest.approx(costs.of_sessions(num_sessions).step_of(rows))
