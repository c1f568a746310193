"""Who explores for the others: when a session has a turn, keeps it, hands it on, and what it is paid with."""

import pytest

from dspark.routing.explorers import FEW_EXPLORERS, ToTry
from dspark.routing.turns import GIVEN_UP_STEPS, MOST_TRIES, WAITED_STEPS, Turns
from dspark.scheduling.exploration import FIRST_ROUNDS
from tests.routing.books import FLAT, UNLIKELY, Books, lives
from tests.routing.parts import LIMITS_OF_DRAFTER


def test_few_sessions_explore_for_many() -> None:
    books = Books((10.0, 0.1))
    sessions = [books.session(f"s{number}") for number in range(16)]
    assert sum(not books.target.draft_limits(session).skips for session in sessions) == FEW_EXPLORERS


def test_where_no_draft_came_in_time_the_same_session_explores_again() -> None:
    """The first round of a session finds no lease yet: it has learned nothing, and paid nothing; another session would have none either."""
    books = Books((10.0, 0.1))
    sessions = [books.session(f"s{number}") for number in range(8)]
    for _ in range(5):
        assert [not books.target.draft_limits(session).skips for session in sessions] == [True] * FEW_EXPLORERS + [False] * 4
        for session in sessions:
            books.plain_steps(session, 1)
        assert [books.target.explores(session) for session in sessions] == [True] * FEW_EXPLORERS + [False] * 4
    assert books.economy.explorations["default", True].purse_rounds == FIRST_ROUNDS
    books.step(sessions[0], UNLIKELY, draft_ms=5.0)
    assert not books.target.explores(sessions[0])


def test_a_session_that_never_drafts_hands_its_turn_to_explore_on() -> None:
    books = Books((10.0, 0.1))
    sessions = [books.session(f"s{number}") for number in range(8)]
    turns = []
    for _ in range(MOST_TRIES + 1):
        turns.append([not books.target.draft_limits(session).skips for session in sessions])
        for session in sessions:
            books.plain_steps(session, 1)
    assert turns[MOST_TRIES - 1] == [True] * FEW_EXPLORERS + [False] * 4
    assert turns[MOST_TRIES] == [False] * 4 + [True] * FEW_EXPLORERS


def test_a_session_that_was_given_up_may_explore_again_when_its_drafter_is_back() -> None:
    """Alone on its target, it would else decode plainly to its end."""
    books = Books(FLAT)
    session = books.session("a")
    for _ in range(MOST_TRIES):
        assert not books.target.draft_limits(session).skips, "it is asked to, and has no draft in time"
        books.plain_steps(session, 1)
    assert books.target.draft_limits(session).skips
    books.plain_steps(session, GIVEN_UP_STEPS)
    assert not books.target.draft_limits(session).skips


def test_exploring_is_paid_for_with_what_the_drafter_has_to_be_told_first() -> None:
    """Long contexts that nobody drafted for: 0.1 ms a token, where steps take 10 ms."""
    spent = []
    for told_ms in (0.0, 0.1):
        books = Books(FLAT)
        for num_news in (3, 100, 300):
            for _ in range(10):
                books.economy.draft_done("default", 1, 4, 7.0 + told_ms * (num_news - 3), num_news)
        session = books.session("a")
        session.output_ids += [4] * 97
        limits = books.target.draft_limits(session)
        assert not limits.skips
        books.step(session, UNLIKELY, 0, limits=limits, draft_ms=40.0)
        spent.append(FIRST_ROUNDS - books.economy.explorations["default", True].purse_rounds)
    assert spent[1] - spent[0] == pytest.approx(97 * 0.1 / 10.0, rel=0.2)


def test_turns_to_explore_are_for_the_next_round_and_not_kept_for_those_who_ask_again() -> None:
    """Turns are given by the number of a drafter's sessions; here all but one are of another kind of text, and do not ask."""
    books = Books(FLAT)
    session = books.session("a")
    for number in range(15):
        books.session(f"s{number}", greedy=False)
    drafted = lives(books, session, UNLIKELY, 0, 200, 7.0)
    assert sum(drafted) * 0.7 <= FIRST_ROUNDS + 2 * 0.7
    assert books.economy.explorations["default", True].purse_rounds > -1.0


def test_an_explorer_that_rests_does_not_end_exploring_for_the_others() -> None:
    books = Books((10.0, 0.1))
    resting, session = books.session("a"), books.session("b")
    assert not books.target.draft_limits(resting).skips, "it has a turn, and never comes back"
    books.plain_steps(session, WAITED_STEPS)
    assert sum(lives(books, session, UNLIKELY, 0, 100, 7.0)) > 0


def test_turns_end_when_the_last_session_of_their_kind_leaves() -> None:
    """Else whoever comes much later would draft for no reason."""
    turns, regime = Turns(), ("default", True)
    turns.ask(regime, ToTry(LIMITS_OF_DRAFTER, num_sessions=2), step=0)
    assert turns.take("a", regime, step=0) is not None
    turns.leave("a", step=1)
    turns.nobody_left(regime)
    assert turns.take("b", regime, step=1) is None
    assert not turns.is_busy(regime, step=1)
