"""What may be asked for, and when a turn or a whole measurement is over."""

import pytest

from dspark.bench.load.plan import MIN_STEPS, LoadPlan, Patience
from dspark.errors import ConfigError


def test_a_turn_lasts_its_seconds_and_a_few_steps_at_least() -> None:
    plan = LoadPlan(seconds=4.0)
    assert not plan.is_over(3.9, 1000.0, 100)
    assert plan.is_over(4.0, 0.0, MIN_STEPS)
    assert not plan.is_over(60.0, 1000.0, MIN_STEPS - 1), "one long step says little"


def test_with_tokens_every_client_gets_its_share_however_long_it_takes() -> None:
    plan = LoadPlan(seconds=4.0, tokens=32)
    assert not plan.is_over(100.0, 31.0, 50)
    assert plan.is_over(0.1, 32.0, 50)


def test_loads_grow_and_none_is_measured_twice() -> None:
    assert LoadPlan(clients=(16, 1, 4, 4)).ordered_clients == (1, 4, 16)


@pytest.mark.parametrize(
    "wrong", [{"clients": ()}, {"clients": (0, 1)}, {"seconds": 0.0}, {"tokens": 0}, {"turns": 0}, {"warmup_turns": -1}]
)
def test_a_plan_that_measures_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        LoadPlan(**wrong)  # type: ignore[arg-type]


def test_patience_ends_by_the_clock_or_when_somebody_asks() -> None:
    now = 100.0
    limited, asked = Patience(10.0, lambda: now), Patience(None, lambda: now)
    assert not limited.over
    assert not asked.over
    now = 110.0
    assert limited.over
    asked.stop()
    assert asked.over
