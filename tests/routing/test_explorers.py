"""What is tried at a loss: only where it could be worth it, and by few or all, whichever tells more for what it costs and can be paid."""

import pytest

from dspark.routing.explorers import FEW_EXPLORERS, WORTH_FINDING_OUT, ToTry, first_try, worth_trying
from dspark.scheduling.drafting_plan import DraftOutlook
from dspark.scheduling.exploration import FIRST_ROUNDS
from tests.routing.books import FLAT, Books
from tests.routing.parts import LIMITS_OF_DRAFTER

REGIME = ("default", True)
STEP_MS = FLAT[0]


def outlook_of(books: Books, num_sessions: int) -> DraftOutlook:
    for number in range(num_sessions):
        books.session(f"s{number}")
    outlook = books.target._decisions._outlook(REGIME, books.target.costs(), books.target._sharing("default"))  # type: ignore[arg-type]
    assert outlook is not None
    return outlook


def tried(books: Books, num_sessions: int, told_ms: float = 0.0) -> ToTry | None:
    """`told_ms`: to tell one session's drafter."""
    return worth_trying(books.economy, REGIME, outlook_of(books, num_sessions), None, lambda count: told_ms * count)


def drafter_of(fixed_ms: float, session_ms: float = 0.0) -> Books:
    """A target of flat steps, and calls that are well known for one to sixteen sessions."""
    books = Books(FLAT)
    for _ in range(20):
        for count in (1, 4, 16):
            for depth in (1, 4):
                books.economy.draft_done("default", count, depth, fixed_ms + session_ms * count)
    return books


def test_before_the_first_draft_few_try_all_that_is_allowed() -> None:
    assert first_try(LIMITS_OF_DRAFTER, 16) == ToTry(LIMITS_OF_DRAFTER, FEW_EXPLORERS)
    assert first_try(LIMITS_OF_DRAFTER, 2) == ToTry(LIMITS_OF_DRAFTER, 2)


@pytest.mark.parametrize(("perfect_gain", "is_tried"), [(WORTH_FINDING_OUT + 0.03, True), (WORTH_FINDING_OUT - 0.03, False)])
def test_only_what_would_win_clearly_if_it_were_perfect_is_tried(perfect_gain: float, is_tried: bool) -> None:
    """Of four candidates four accepted: five tokens in a step and a call."""
    books = drafter_of(5 * STEP_MS / perfect_gain - STEP_MS)
    assert (tried(books, 1) is not None) is is_tried


def test_all_try_at_once_where_each_costs_no_more_for_it_and_few_where_the_purse_is_too_small_for_all() -> None:
    found = [tried(drafter_of(fixed_ms, session_ms), 16) for fixed_ms, session_ms in ((10.0, 0.1), (0.0, 1.0))]
    assert [one and one.num_sessions for one in found] == [16, 16], "per session it costs no more"
    dear = tried(drafter_of(10.0, 0.1), 16, told_ms=2.0 * FIRST_ROUNDS * STEP_MS / 16)
    assert dear is not None
    assert dear.num_sessions == FEW_EXPLORERS, "for all it is more than there is in the purse"


def test_the_price_is_all_that_the_step_takes_longer() -> None:
    """Nothing is known of what is accepted: the call, with what each has to be told, against steps of 10 ms."""
    found = tried(drafter_of(6.0, 0.25), 16, told_ms=0.5)
    assert found is not None
    assert found.num_sessions == 16
    assert found.price_rounds == pytest.approx((6.0 + 16 * (0.25 + 0.5)) / STEP_MS, rel=0.02)
