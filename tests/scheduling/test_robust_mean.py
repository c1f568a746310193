"""A mean that begins as a median and that one stall does not move."""

import pytest

from dspark.scheduling.robust_mean import FIRST_VALUES, RobustMean


def mean_of(*values: float) -> float:
    mean = RobustMean()
    for value in values:
        mean.observe(value)
    return mean.mean


def test_it_begins_as_a_median() -> None:
    assert mean_of() == 0
    assert mean_of(900.0, 2.0, 3.0) == 3.0


def test_later_one_very_long_value_counts_as_twice_the_mean() -> None:
    assert mean_of(*[2.0] * FIRST_VALUES, 1e6) == pytest.approx(2.0, rel=0.06)


def test_what_is_not_finite_is_passed_over() -> None:
    assert mean_of(2.0, float("nan"), float("inf")) == 2.0


def test_scaled_it_starts_from_less() -> None:
    mean = RobustMean()
    mean.observe(4.0)
    mean.scale(0.5)
    assert mean.mean == 2.0
    mean.observe(3.0)
    assert mean.mean == 2.0, "the lower middle of 2 and 3"
