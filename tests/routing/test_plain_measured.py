"""Steps that are left plain though drafts pay, so that what drafts are judged by is measured: few, but whenever it is needed."""

import itertools

from dspark.routing.plain_steps import LEAST_PLAIN_EVERY, PLAIN_LOSS, PLAIN_STEPS
from dspark.scheduling.drafting_plan import SKIP
from dspark.tree import CandidateTree
from tests.routing.books import FLAT, LIKELY, STEEP, Books, known, lives


def test_what_pays_is_drafted_from_the_first_round_to_the_last_but_for_one_in_many() -> None:
    """Those are left plain to be measured: two in a row and no more; more of them at first, and the tokens they lose are few."""
    books = Books(FLAT)
    drafted = lives(books, books.session("a"), LIKELY, 3, 3000, 5.0)
    assert all(drafted[:LEAST_PLAIN_EVERY])
    plain = [number for number, was_drafted in enumerate(drafted) if not was_drafted]
    assert 3 <= len(plain) <= 3000 * 2 * PLAIN_LOSS + 4 * PLAIN_STEPS
    assert [after - before for before, after in itertools.pairwise(plain)][::PLAIN_STEPS] == [1] * (len(plain) // PLAIN_STEPS)
    assert min(after - before for before, after in itertools.pairwise(plain[::PLAIN_STEPS])) > LEAST_PLAIN_EVERY


def test_a_plain_step_now_and_then_tells_when_only_steps_with_candidates_have_become_slow() -> None:
    """A step of one row takes 10 ms as before, but one of two rows 20: nothing but a plain step can tell."""
    books = Books(FLAT)
    session = books.session("a")
    assert sum(lives(books, session, LIKELY, 1, 300, 5.0)) > 290
    books.shape = STEEP
    assert sum(lives(books, session, LIKELY, 1, 600, 5.0)[-200:]) < 100


def test_sessions_that_never_go_together_are_not_measured_for_ever() -> None:
    """Steps of a half take half of what all would: that is no surprise, and no measurement of a plain step of all."""
    books = Books(FLAT)
    sessions = [books.session(f"s{number}") for number in range(2)]
    books.drafts_cost(1.0)
    drafted = 0
    for number in range(400):
        books.shape = (5.0, 0.0)
        session = sessions[number % 2]
        limits = books.target.draft_limits(session)
        drafted += not limits.skips
        tree = CandidateTree.empty() if limits.skips else LIKELY
        books.step(session, tree, 0 if limits.skips else 3, limits=limits)
    assert drafted >= 400 - 4 * PLAIN_STEPS, "pauses grow"


def test_one_session_that_does_not_draft_does_not_keep_plain_steps_from_being_measured() -> None:
    books = Books(FLAT)
    books.drafts_cost(1.0)
    greedy, sampled = books.session("a"), books.session("b", greedy=False)
    known(books, greedy, LIKELY, (4,))
    plain = 0
    for _ in range(400):
        limits = books.target.draft_limits(greedy)
        plain += limits.skips
        books.target.draft_limits(sampled)
        books.step(greedy, CandidateTree.empty() if limits.skips else LIKELY, 0 if limits.skips else 3, limits=limits)
    assert 2 <= plain <= PLAIN_STEPS * (400 / LEAST_PLAIN_EVERY + 1)


def test_a_session_that_enters_while_a_plain_step_is_measured_takes_its_place_at_a_drafter() -> None:
    books = Books(FLAT)
    session = books.session("a")
    lives(books, session, LIKELY, 3, 20, 1.0)
    while not books.target._decisions.measures_plain:
        lives(books, session, LIKELY, 3, 1, 1.0)
    assert books.target.will_draft(books.session("b"))
    assert books.target.draft_limits(session) == SKIP


def test_a_plain_step_right_behind_drafts_teaches_nothing_of_plain_decoding() -> None:
    books = Books(FLAT)
    session = books.session("a")
    books.plain_steps(session, 50)
    before = books.target.curve.table(8, 64.0, 1)
    assert before is not None
    books.step(session, LIKELY, 3)
    between = books.target.curve.table(8, 64.0, 1)
    books.shape = (10.0 * FLAT[0], FLAT[1])
    books.plain_steps(session, 1)
    after = books.target.curve.table(8, 64.0, 1)
    assert between is not None
    assert after is not None
    assert after[1] == between[1]
    books.plain_steps(session, 1)
    learned = books.target.curve.table(8, 64.0, 1)
    assert learned is not None
    assert learned[1] > 1.02 * after[1]
