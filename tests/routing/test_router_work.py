"""What the router takes between two steps: near what was seen it is a mean, elsewhere what is hoped."""

import pytest

from dspark.routing.router_work import RouterWork

DRAFTER = "block"


def work_of(*rounds: tuple[int, float]) -> RouterWork:
    """Sessions and ms of plain rounds."""
    work = RouterWork()
    for num_sessions, between_ms in rounds:
        work.plain_round(num_sessions, between_ms)
    return work


def test_nothing_is_taken_before_a_round_was_seen() -> None:
    assert RouterWork().plain_ms(8) == 0
    assert RouterWork().drafted_ms(DRAFTER, 8) == 0


def test_what_was_seen_is_believed_from_the_first_round_on_and_followed() -> None:
    work = work_of((8, 2.0))
    assert work.plain_ms(8) == 2.0
    for _ in range(60):
        work.plain_round(8, 3.0)
    assert work.plain_ms(8) == pytest.approx(3.0, rel=0.01)


@pytest.mark.parametrize(("num_sessions", "expected_ms"), [(1, 0.25), (2, 0.5), (8, 2.0), (20, 5.0), (32, 8.0), (64, 8.0)])
def test_between_known_numbers_it_is_on_a_line_fewer_take_their_share_and_more_no_more(num_sessions: int, expected_ms: float) -> None:
    assert work_of((8, 2.0), (32, 8.0)).plain_ms(num_sessions) == pytest.approx(expected_ms)


@pytest.mark.parametrize("num_before", [2, 30])
def test_one_stall_moves_little(num_before: int) -> None:
    work = work_of(*[(8, 2.0)] * num_before, (8, 5000.0))
    assert work.plain_ms(8) < 2.5


def test_a_stall_in_the_first_round_of_all_is_forgotten_with_the_next() -> None:
    assert work_of((8, 5000.0), (8, 2.0)).plain_ms(8) == 2.0


def test_of_a_drafted_round_it_is_what_drafts_add() -> None:
    work = work_of((8, 2.0))
    work.drafted_round(DRAFTER, 8, 8, 5.0)
    assert work.drafted_ms(DRAFTER, 8) == pytest.approx(3.0)
    assert work.drafted_ms("other", 8) == 0


def test_a_drafted_round_that_is_shorter_than_a_plain_one_is_taken_to_be_tells_of_that() -> None:
    work = work_of(*[(8, 6.0)] * 10)
    for _ in range(60):
        work.drafted_round(DRAFTER, 8, 8, 2.0)
    assert work.plain_ms(8) == pytest.approx(2.0, rel=0.05)
    assert work.drafted_ms(DRAFTER, 8) == pytest.approx(0.0, abs=0.1)


def test_what_drafts_add_fades_while_nothing_is_drafted() -> None:
    """Else a bad hour would be held against them for ever: only drafting tells what it takes."""
    work = RouterWork()
    work.drafted_round(DRAFTER, 8, 8, 40.0)
    for _ in range(2000):
        work.round_skipped(DRAFTER)
    assert work.drafted_ms(DRAFTER, 8) < 6.0
