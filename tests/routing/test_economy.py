"""The economy of a router: what it tells of its drafters."""

import math

import pytest

from dspark.config import DrafterConfig
from dspark.routing.economy import DraftedRound, Economy, Standing, limits_of
from dspark.routing.target_economy import TargetEconomy
from dspark.scheduling.drafting_plan import SKIP, DraftLimits
from dspark.scheduling.paying import CLEAR_ROUNDS, MIN_ROUNDS
from tests.routing.books import FLAT, MAX_ROWS, Books, curve_of
from tests.routing.parts import DRAFTER, LIMITS_OF_DRAFTER, session_named


def test_rounds_that_cannot_be_judged_do_not_judge_a_drafter() -> None:
    books = Books()
    plain, drafted = books.session("p", drafter=None), books.session("a")
    for _ in range(2 * MIN_ROUNDS):
        books.economy.round_done(DraftedRound(plain, 1, 20.0, 100.0))
        books.economy.round_done(DraftedRound(drafted, 1, 20.0, 0.0))
        books.economy.round_done(DraftedRound(drafted, 1, 0.0, 100.0))
    assert math.isnan(books.economy.standings()["default"].speed_ratio)


def test_standings_tell_how_every_drafter_does() -> None:
    economy = Economy({"good": DRAFTER, "poor": DRAFTER, "idle": DRAFTER})
    for name, committed in (("good", 4), ("poor", 1)):
        session = session_named(name)
        session.drafter = name
        for _ in range(CLEAR_ROUNDS - 1):
            economy.round_done(DraftedRound(session, committed, 20.0, 100.0))
    standings = economy.standings()
    assert standings["good"].speed_ratio == pytest.approx(2.0)
    assert standings["poor"].speed_ratio == pytest.approx(0.5)
    assert math.isnan(standings["idle"].speed_ratio)
    assert all(standing.drafts for standing in standings.values())
    economy.decided(("poor", True), SKIP, None)
    economy.decided(("good", True), SKIP, None)
    economy.decided(("good", False), LIMITS_OF_DRAFTER, None)
    assert {name: standing.drafts for name, standing in economy.standings().items()} == {"good": True, "poor": False, "idle": True}
    idle = standings["idle"]
    assert Standing(0.0, True, idle.served_ece, idle.corrected_ece, idle.drift) == Standing(0.0, True, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("nothing", [{"max_depth": 0}, {"max_nodes": 0}])
def test_a_configuration_that_allows_nothing_skips(nothing: dict[str, int]) -> None:
    config = DrafterConfig(**nothing)  # type: ignore[arg-type]
    assert limits_of(config) == SKIP
    assert limits_of(DRAFTER) == DraftLimits(4, 1, 8)
    target = TargetEconomy(Economy({"default": config}), curve_of(*FLAT), MAX_ROWS)
    session = session_named("a")
    session.drafter = "default"
    assert target.draft_limits(session) == SKIP


def test_what_a_call_may_take_is_hoped_to_be_less_than_the_first_ones_took_and_no_more_for_more_sessions() -> None:
    """One call may take eight times as long as later ones, and five a quarter longer."""
    books, hoped = Books(FLAT), []
    for number in range(1, 6):
        books.economy.draft_done("default", 1, 4, 80.0)
        if number in (1, 5):
            hoped.append(float(books.economy.hoped_draft_ms(("default", True), 1)[4]))
    assert hoped == pytest.approx([10.0, 80.0 * 25 / 32], rel=1e-3)
    assert books.economy.hoped_draft_ms(("default", True), 16) == pytest.approx(books.economy.hoped_draft_ms(("default", True), 1))
    for _ in range(50):
        books.economy.draft_done("default", 4, 4, 110.0)
    believed, most_seen = (books.economy.believed_draft_ms(("default", True), count)[4] for count in (16, 4))
    assert believed > most_seen
