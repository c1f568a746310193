"""Frontiers on made-up points."""

import pytest

from dspark.bench.load.frontier import Frontier, Reading, compare_frontiers, frontier_table
from dspark.bench.simulator.tally import OperatingPoint
from dspark.errors import ConfigError


def points(policy: str, *pairs: tuple[float, float]) -> list[OperatingPoint]:
    """From (per-user speed, throughput), one for each doubling of clients."""
    return [
        OperatingPoint(policy, 2.0**k, throughput, speed, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 10) for k, (speed, throughput) in enumerate(pairs)
    ]


PLAIN = points("plain", (100.0, 100.0), (80.0, 160.0), (50.0, 200.0), (26.0, 208.0))
PLANNED = points("planned", (180.0, 180.0), (120.0, 240.0), (75.0, 300.0), (30.0, 310.0))


def test_a_frontier_is_a_line_between_loads() -> None:
    frontier = Frontier.of(PLAIN)
    assert frontier.throughput_at(90.0) == Reading(130.0)
    assert frontier.speed_at(130.0) == Reading(90.0)
    assert frontier.throughput_at(100.0) == Reading(100.0)


def test_beyond_its_ends_it_says_so() -> None:
    frontier = Frontier.of(PLAIN)
    assert frontier.throughput_at(101.0).value == 0.0, "no user was ever so fast"
    assert frontier.speed_at(209.0).value == 0.0
    assert frontier.throughput_at(10.0) == Reading(208.0, is_least=True)
    assert frontier.speed_at(50.0) == Reading(100.0, is_least=True)
    assert str(Reading(0.0)) == "-"
    assert str(Reading(208.0, is_least=True)) == ">= 208.0"


def test_a_load_that_is_worse_on_both_counts_is_not_on_it() -> None:
    frontier = Frontier.of(points("fixed", (100.0, 100.0), (60.0, 120.0), (30.0, 90.0), (20.0, 125.0)))
    assert frontier.speeds.tolist() == [100.0, 60.0, 20.0]
    with pytest.raises(ConfigError):
        Frontier.of([])


def test_both_ratios_are_read_at_each_load_of_the_base() -> None:
    one, two, four, eight = compare_frontiers(PLAIN, PLANNED)
    assert one.throughput_ratio == pytest.approx((240 + 60 * 20 / 45) / 100.0), "planned at 100 tokens/s per user"
    assert one.other_speed.is_least
    assert one.speed_ratio == pytest.approx(1.8)
    assert four.speed_ratio == pytest.approx((180 - 60 * 20 / 60) / 50.0), "planned at 200 tokens/s in all"
    assert two.throughput_ratio == pytest.approx((240 + 60 * 40 / 45) / 160.0)
    assert eight.other_throughput == Reading(310.0, is_least=True)


def test_the_table_names_the_best_of_both() -> None:
    text = frontier_table(compare_frontiers(PLAIN, PLANNED), "plain", "planned")
    assert "up to 5.85 times that of plain (at 208 tokens/s)" in text, "152 over 26"
    assert "up to 2.67 times that of plain (at 100.0 tokens/s per user, which plain holds with 1 client(s))" in text
    assert "| >= 310.0 |" in text


def test_a_base_that_is_never_reached_has_no_ratio() -> None:
    text = frontier_table(compare_frontiers(PLAIN, points("slow", (10.0, 10.0))), "plain", "slow")
    assert "| - | - |" in text
