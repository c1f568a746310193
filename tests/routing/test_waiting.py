"""Whether a free target waits for drafts on their way, and whether its sessions go together or in two halves by turns."""

import math

import numpy as np
import pytest

from dspark.routing.rounds import InFlight, Waiting
from dspark.routing.target_economy import TargetEconomy
from dspark.scheduling.curve import ThroughputCurve
from dspark.session import Session
from dspark.tree import CandidateTree
from tests.routing.books import FLAT, LIKELY, STEEP, Books


def flights(*since_ms: float, depth: int = 4) -> list[InFlight]:
    """Drafts on their way for so long."""
    return [InFlight(since, depth) for since in since_ms]


def test_nothing_is_waited_for_where_nothing_is_on_its_way_or_known() -> None:
    books = Books((30.0, 0.0))
    assert books.target.wait_ms(1, flights(1.0)) == 0, "there is no session"
    for name in "abcd":
        books.session(name)
    assert books.target.wait_ms(1, flights(1.0)) == 0, "nobody knows what a draft costs"
    books.drafts_cost(5.0)
    assert books.target.wait_ms(1, []) == 0
    assert books.target.wait_ms(1, flights(1.0, 1.0, 1.0)) > 0
    unknown = Books(None)
    unknown.session("a")
    unknown.drafts_cost(5.0)
    assert unknown.target.wait_ms(1, flights(1.0)) == 0, "nobody knows what a step costs"


@pytest.mark.parametrize("planned", [True, False], ids=["planned", "fixed"])
def test_the_target_waits_for_what_is_left_of_a_draft_where_steps_are_dear_and_rows_are_not(planned: bool) -> None:
    """In the fixed mode too: it says how much is drafted and verified, not when."""
    flat, steep = Books((30.0, 0.0), planned=planned), Books(STEEP, planned=planned)
    for books in (flat, steep):
        books.drafts_cost(5.0)
        for name in "abcd":
            books.session(name)
    assert flat.target.wait_ms(1, flights(4.0, 3.0, 2.0)) == pytest.approx(3.0, rel=0.01), "the last to start is the last to come"
    assert steep.target.wait_ms(1, flights(4.0, 3.0, 2.0)) == 0, "each row costs the same now and later"
    assert flat.target.wait_ms(1, flights(5.5, 6.0, 9.0)) == 0, "what is late may hang"


def test_a_lone_straggler_is_not_waited_for_by_many() -> None:
    books = Books((30.0, 0.0))
    books.drafts_cost(25.0)
    for number in range(16):
        books.session(f"s{number}")
    assert books.target.wait_ms(15, flights(0.0)) == 0
    assert books.target.wait_ms(1, flights(*[20.0] * 15)) > 0


def test_a_shallow_draft_is_waited_for_as_long_as_a_shallow_draft_takes() -> None:
    books = Books((30.0, 0.0))
    for sessions in (1, 2, 3):
        for depth in (1, 2, 3, 4):
            books.economy.draft_done("default", sessions, depth, 2.0 * depth)
    for name in "ab":
        books.session(name)
    assert books.target.wait_ms(1, flights(0.0, depth=1)) == pytest.approx(2.0, rel=0.05)
    assert books.target.wait_ms(1, flights(0.0, depth=4)) == pytest.approx(8.0, rel=0.05)


def crowd(
    shape: tuple[float, float], draft_ms: float, *, overlap: float = 1.0, curve: ThroughputCurve | None = None, accepted: int = 3
) -> tuple[Books, list[Session]]:
    """16 sessions whose drafter is good and known; it takes so long for a half or for all of them."""
    books = Books(shape, overlap=overlap)
    if curve is not None:
        books.target = TargetEconomy(books.economy, curve, 80)
    sessions = [books.session(f"s{number}") for number in range(16)]
    for count in (1, 8, 16) * 3:
        for depth in (1, 2, 3, 4):
            books.economy.draft_done("default", count, depth, draft_ms)
    for _ in range(40):
        books.step(sessions[0], LIKELY, accepted)
    books.target.draft_limits(sessions[0])
    return books, sessions


def test_where_steps_cost_by_rows_and_drafts_can_be_hidden_sessions_go_in_two_halves() -> None:
    books, sessions = crowd((20.0, 2.0), 25.0)
    assert books.target.most_to_fire() == 8
    standing = books.economy.standings()["default"]
    assert (standing.waves, standing.gain_of_two_waves > 1.02) == (2.0, True)
    assert books.target.wait_ms(8, flights(*[1.0] * 8)) == 0, "the other half is on its way, and that is as it should be"
    for session in sessions[1:]:
        books.target.leave(session)
    books.target.draft_limits(sessions[0])
    assert books.target.most_to_fire() is None, "one session is no two waves"


def test_in_two_waves_a_promised_speed_counts_over_both() -> None:
    """A half's step takes 40 ms or so: what its sessions commit in it has to do for the other half's step too."""
    books, sessions = crowd((20.0, 2.0), 25.0)
    half = books.target.most_to_fire()
    assert half is not None
    sessions[0].min_tokens_per_second = 16.0
    waiting = [Waiting(session, CandidateTree.chain([1, 2, 3], [0.3, 0.09, 0.03])) for session in sessions]
    assert books.target.plan(waiting).broken_promises == ()
    assert books.target.plan(waiting[:half]).broken_promises == (sessions[0].session_id,)


@pytest.mark.parametrize("overlap", [0.0, 1.0])
def test_what_can_be_hidden_is_drafted_where_together_it_would_not_pay(overlap: float) -> None:
    """A step takes 40 ms up to 40 rows and 80 beyond; a draft of 60 ms costs as much as it brings, unless 40 of them are hidden."""
    stairs = ThroughputCurve(np.asarray([1, 40, 41, 80]), np.asarray([0]), np.asarray([[40.0, 40.0, 80.0, 80.0]]))
    books, sessions = crowd((40.0, 0.0), 60.0, overlap=overlap, curve=stairs, accepted=2)
    assert books.decided(sessions[0]).skips == (overlap == 0.0)
    assert books.target.most_to_fire() == (8 if overlap else None)


def test_where_half_a_batch_costs_as_much_as_a_whole_one_all_go_together_and_halves_are_merged() -> None:
    books, _ = crowd((40.0, 0.0), 10.0)
    standing = books.economy.standings()["default"]
    assert (standing.waves, standing.gain_of_two_waves < 0.98) == (1.0, True)
    assert books.target.most_to_fire() is None
    assert books.target.wait_ms(8, flights(*[0.5] * 8)) > 0
    dear, _ = crowd((10.0, 0.0), 20.0)
    assert dear.target.wait_ms(8, flights(*[5.0] * 8)) == pytest.approx(15.0, rel=0.05), "longer than a step, but once and for all"
    assert dear.target.wait_ms(15, flights(5.0)) == 0, "not for one by many"


def test_on_one_core_there_is_no_choice_of_waves() -> None:
    books, _ = crowd((20.0, 2.0), 25.0, overlap=0.0)
    standing = books.economy.standings()["default"]
    assert math.isnan(standing.waves)
    assert math.isnan(standing.gain_of_two_waves)
    assert books.target.most_to_fire() is None


def test_waits_are_counted() -> None:
    books = Books(FLAT)
    books.target.waited()
    books.session("a")
    books.target.waited()
    assert books.economy.standings()["default"].waits == 1
