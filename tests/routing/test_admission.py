"""Admission where speeds are promised, on a target whose steps cost a round number of milliseconds."""

import numpy as np
import pytest

from dspark.errors import SpeedUnavailable
from dspark.routing.admission import SpeedPromise, TargetLoad, check_promises, promise_of, tokens_per_second
from dspark.session import Session
from dspark.types import SamplingParams, SessionId, StopRules

#: A stair: 1 and 2 rows 10 ms, 3 and 4 rows 20 ms, 5 to 8 rows 40 ms.
STAIR_MS = np.array([0.0, 10.0, 10.0, 20.0, 20.0, 40.0, 40.0, 40.0, 40.0])


def load_of(num_sessions: int, *promises: SpeedPromise, fixed_ms: float = 0.0, rows_per_session: float = 1.0) -> TargetLoad:
    return TargetLoad(num_sessions, promises, STAIR_MS, fixed_ms, rows_per_session)


def is_refused(load: TargetLoad | None, wanted: SpeedPromise | None = None) -> bool:
    try:
        check_promises(load, wanted)
    except SpeedUnavailable:
        return True
    return False


def test_a_session_that_promises_nothing_to_nobody_is_never_refused() -> None:
    assert not any(is_refused(load_of(n)) for n in range(40))


def test_nothing_is_refused_of_a_target_that_nobody_has_measured() -> None:
    assert not is_refused(None, SpeedPromise(1e4))


def test_a_running_promise_is_guarded_against_the_session_that_would_break_it() -> None:
    assert [n for n in range(1, 9) if is_refused(load_of(n, SpeedPromise(100.0)))] == [2]
    assert [n for n in range(1, 9) if is_refused(load_of(n, SpeedPromise(50.0)))] == [4]


def test_a_promise_of_its_own_is_refused_wherever_it_would_not_be_kept() -> None:
    assert [n for n in range(9) if not is_refused(load_of(n), SpeedPromise(100.0))] == [0, 1]
    assert [n for n in range(9) if not is_refused(load_of(n), SpeedPromise(50.0))] == [0, 1, 2, 3]


def test_a_promise_that_is_broken_already_stops_nobody() -> None:
    assert is_refused(load_of(4, SpeedPromise(50.0)))
    assert not is_refused(load_of(5, SpeedPromise(50.0)))


def test_one_promise_of_many_is_enough_to_refuse() -> None:
    assert not is_refused(load_of(2, SpeedPromise(20.0), SpeedPromise(50.0)))
    assert is_refused(load_of(2, SpeedPromise(20.0), SpeedPromise(50.1), SpeedPromise(50.0)))


def test_a_speed_out_of_reach_is_refused_on_an_idle_target_and_the_reach_is_told() -> None:
    with pytest.raises(SpeedUnavailable, match=r"min_tokens_per_second is 101, but even alone a session reaches about 100"):
        check_promises(load_of(0), SpeedPromise(101.0))
    with pytest.raises(SpeedUnavailable, match=r"is 100, but beside those that run now a session reaches about 50; try again"):
        check_promises(load_of(2), SpeedPromise(100.0))


def test_a_speed_that_is_just_reached_is_kept() -> None:
    check_promises(load_of(1), SpeedPromise(100.0))
    check_promises(load_of(3, SpeedPromise(50.0)), SpeedPromise(50.0))


def test_the_drafters_measured_gain_counts_for_its_own_session_only() -> None:
    assert is_refused(load_of(2, SpeedPromise(100.0)))
    assert not is_refused(load_of(2, SpeedPromise(100.0, tau=2.0)))
    assert is_refused(load_of(2, SpeedPromise(100.0, tau=2.0)), SpeedPromise(100.0))
    assert not is_refused(load_of(2, SpeedPromise(100.0, tau=2.0)), SpeedPromise(100.0, tau=2.0))


def test_what_a_round_costs_beside_the_step_counts() -> None:
    assert not is_refused(load_of(0, fixed_ms=2.0), SpeedPromise(80.0))
    assert is_refused(load_of(0, fixed_ms=3.0), SpeedPromise(80.0))


def test_the_candidates_rows_are_paid_for_but_never_make_it_slower_than_plain() -> None:
    alone = load_of(0, rows_per_session=4.0)
    assert tokens_per_second(alone, 1, 3.0) == 150.0, "3 tokens in a step of 4 rows"
    assert tokens_per_second(alone, 1, 1.5) == 100.0, "1.5 tokens in 20 ms lose against 1 in 10 ms"
    assert tokens_per_second(load_of(0, rows_per_session=1.2), 2, 2.0) == 100.0, "2.4 rows are 3"


def test_a_drafted_round_waits_for_its_drafts_and_a_plain_one_does_not() -> None:
    alone = TargetLoad(0, (), STAIR_MS, rows_per_session=4.0, draft_ms=5.0)
    assert tokens_per_second(alone, 1, 3.0) == 120.0, "3 tokens in 5 and 20 ms"
    assert tokens_per_second(alone, 1, 2.4) == 100.0


def test_more_rows_than_a_step_holds_take_several() -> None:
    speeds = [tokens_per_second(load_of(0), n, 1.0) for n in (8, 9, 16, 17, 19)]
    assert speeds == [1e3 / 40, 1e3 / 50, 1e3 / 80, 1e3 / 90, 1e3 / 100]


def test_what_is_admitted_leaves_every_promise_kept_that_was_kept() -> None:
    """Over random loads of seed 0: the same question, answered by counting speeds before and after."""
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(500):
        table = np.concatenate([[0.0], np.cumsum(rng.choice([0.0, 0.5, 4.0], 12)) + 5.0])
        promises = tuple(SpeedPromise(float(s), float(t)) for s, t in rng.uniform((20.0, 1.0), (200.0, 3.0), (rng.integers(0, 5), 2)))
        load = TargetLoad(int(rng.integers(len(promises), 14)), promises, table, float(rng.uniform(0, 5)))
        wanted = SpeedPromise(float(rng.uniform(10.0, 200.0)), 1.0) if rng.random() < 0.5 else None
        kept = [p for p in promises if tokens_per_second(load, load.num_sessions, p.tau) >= p.min_tokens_per_second]
        mine = [] if wanted is None else [wanted]
        after = [tokens_per_second(load, load.num_sessions + 1, p.tau) >= p.min_tokens_per_second for p in kept + mine]
        assert is_refused(load, wanted) == (not all(after))
        outcomes.append(all(after))
    assert 50 < sum(outcomes) < 450, "both answers occur"


@pytest.mark.parametrize(("speed", "drafter", "expected"), [(None, "code", None), (30.0, "code", 2.5), (30.0, None, 1.0)])
def test_a_sessions_promise_counts_its_drafters_gain(speed: float | None, drafter: str | None, expected: float | None) -> None:
    session = Session(SessionId("s"), (1,), SamplingParams(), StopRules(5), drafter=drafter, min_tokens_per_second=speed)
    promise = promise_of(session, tau=2.5)
    assert (promise and promise.tau) == expected
    assert promise is None or promise.min_tokens_per_second == 30.0
