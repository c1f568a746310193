"""FeatureFeed: every position once and in order, whatever is late, lost or started again."""

import random

import numpy as np
import pytest

from dspark.messages import NO_FEATURES, ContextFeatures
from dspark.routing.feed import FeatureFeed

WIDTH = 3
ROW_BYTES = WIDTH * 2


def rows(start: int, stop: int, projected: bool = True, width: int = WIDTH) -> ContextFeatures:
    """Each row holds its position."""
    return ContextFeatures(start, np.repeat(np.arange(start, stop, dtype=np.uint16)[:, None], width, 1), projected)


def positions(part: ContextFeatures | None) -> list[int]:
    assert part is not None
    assert (part.values == part.values[:, :1]).all()
    found: list[int] = part.values[:, 0].tolist()
    assert part.start == found[0]
    return found


def test_a_new_feed_wants_everything_and_holds_nothing() -> None:
    feed = FeatureFeed()
    assert (feed.wanted_from(7), feed.stop, feed.num_rows) == (0, 0, 0)
    assert feed.next_part(1000) is None


def test_rows_are_held_until_they_are_acknowledged() -> None:
    feed = FeatureFeed()
    assert feed.add(rows(0, 5)) == 5
    assert feed.add(rows(5, 7)) == 2
    assert (feed.wanted_from(8), feed.num_rows) == (7, 7)
    for _ in range(2):
        assert positions(feed.next_part(1000)) == list(range(7))
    feed.acknowledged(6)
    assert positions(feed.next_part(1000)) == [6]
    feed.acknowledged(7)
    assert feed.next_part(1000) is None
    assert (feed.stop, feed.num_rows, feed.wanted_from(8)) == (7, 0, 7)


def test_nothing_is_wanted_where_a_round_brings_nothing_new() -> None:
    feed = FeatureFeed()
    feed.add(rows(0, 5))
    assert feed.wanted_from(6) == 5
    assert feed.wanted_from(5) == NO_FEATURES


def test_rows_that_are_known_are_left_out_and_so_are_rows_after_a_gap() -> None:
    feed = FeatureFeed()
    assert feed.add(rows(1, 4)) == 0
    assert feed.add(rows(0, 4)) == 4
    assert feed.add(rows(0, 3)) == 0
    assert feed.add(rows(2, 6)) == 2
    assert feed.add(rows(7, 9)) == 0
    assert positions(feed.next_part(1000)) == list(range(6))


@pytest.mark.parametrize(("max_bytes", "expected"), [(1, 1), (ROW_BYTES, 1), (3 * ROW_BYTES + 1, 3), (7 * ROW_BYTES, 7), (10_000, 9)])
def test_a_part_is_as_large_as_it_may_be_but_never_empty(max_bytes: int, expected: int) -> None:
    feed = FeatureFeed()
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        feed.add(rows(start, stop))
    assert positions(feed.next_part(max_bytes)) == list(range(expected))


def test_rows_of_two_forms_are_never_in_one_part() -> None:
    feed = FeatureFeed()
    feed.add(rows(0, 2, projected=False, width=6))
    feed.add(rows(2, 4))
    feed.add(rows(4, 5))
    first = feed.next_part(1000)
    assert first is not None
    assert (first.projected, positions(first)) == (False, [0, 1])
    feed.acknowledged(2)
    assert positions(feed.next_part(1000)) == [2, 3, 4]


def test_a_restarted_drafter_wants_everything_again() -> None:
    feed = FeatureFeed()
    feed.add(rows(0, 5))
    feed.acknowledged(5)
    feed.add(rows(5, 7))
    feed.restart()
    assert (feed.wanted_from(8), feed.num_rows) == (0, 0)


def test_rows_that_no_drafter_has_seen_serve_the_next_one() -> None:
    feed = FeatureFeed()
    feed.add(rows(0, 5))
    feed.restart()
    assert positions(feed.next_part(1000)) == list(range(5))
    assert feed.wanted_from(6) == 5


def test_what_was_never_held_cannot_be_acknowledged() -> None:
    feed = FeatureFeed()
    feed.add(rows(0, 5))
    feed.acknowledged(99)
    assert feed.stop == 5
    feed.acknowledged(2)
    assert feed.stop == 5


@pytest.mark.parametrize("seed", range(20))
def test_a_drafter_that_is_fed_has_every_position_in_order(seed: int) -> None:
    """Answers get lost, targets leave features out, drafters start again; what arrived is always a run from 0 without a gap."""
    draw = random.Random(seed)
    feed, arrived, base = FeatureFeed(), list[int](), 6
    for _ in range(300):
        start = feed.wanted_from(base)
        base += draw.randint(1, 4)
        if start != NO_FEATURES and draw.random() < 0.8:
            feed.add(rows(start, base - 1))
        part = feed.next_part(draw.choice((ROW_BYTES, 4 * ROW_BYTES, 10_000)))
        if part is not None:
            assert part.start <= len(arrived)
            arrived[part.start :] = positions(part)
            if draw.random() < 0.7:
                feed.acknowledged(part.stop)
        if draw.random() < 0.03:
            arrived.clear()
            feed.restart()
        assert arrived == list(range(len(arrived)))
    for _ in range(400):
        if feed.stop < base - 1:
            feed.add(rows(feed.stop, base - 1))
        part = feed.next_part(4 * ROW_BYTES)
        if part is not None:
            arrived[part.start :] = positions(part)
            feed.acknowledged(part.stop)
    assert arrived == list(range(base - 1))
