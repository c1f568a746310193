"""How much is drafted: what pays, or a little to find out, or nothing; never much for nothing."""


import pytest

from dspark.routing.decisions import (
    DECISION_STEPS,
    IDLE_DECISION_STEPS,
)
from dspark.routing.economy import DraftedRound, regime_of
from dspark.routing.plain_steps import PLAIN_LOSS
from dspark.routing.trials import DOUBT
from dspark.scheduling.acceptance_profile import FIRST_DRAFTS
from dspark.scheduling.drafting_plan import SKIP
from dspark.scheduling.exploration import FIRST_ROUNDS, SHARE
from dspark.scheduling.paying import CLEAR_ROUNDS, FIRST_PAUSE_ROUNDS, MIN_ROUNDS, PROBE_ROUNDS
from dspark.session import Session
from dspark.tree import CandidateTree
from tests.routing.books import FLAT, LEARNED, LIKELY, STEEP, UNLIKELY, Books, known, lives
from tests.routing.parts import LIMITS_OF_DRAFTER


def test_a_steep_target_has_less_drafted() -> None:
    depths = []
    for shape in (FLAT, (5.0, 6.0), STEEP):
        books = Books(shape)
        session = books.session("a")
        assert books.target.draft_limits(session) == LIMITS_OF_DRAFTER, "the first draft is drafted in full"
        books.drafts_cost(0.1)
        known(books, session, LIKELY, (4, 3, 3, 1))  # as many as the scores say, about
        depths.append(books.decided(session).max_depth)
    assert depths[0] == 4
    assert 0 < depths[1] < 4
    assert depths[2] == 0


def test_a_slow_drafter_is_left_alone_where_it_costs_more_than_it_brings() -> None:
    depths = []
    for draft_ms in (0.1, 1000.0):
        books = Books(FLAT)
        books.drafts_cost(draft_ms)
        session = books.session("a")
        known(books, session, LIKELY, (4,))
        depths.append(books.decided(session).max_depth)
    assert depths == [4, 0]


def test_limits_are_decided_every_few_steps_and_apart_for_greedy_and_sampled_text() -> None:
    books = Books((5.0, 6.0))
    books.drafts_cost(0.1)
    greedy, other, sampled = books.session("a"), books.session("b"), books.session("c", greedy=False)
    for _ in range(2 * LEARNED):  # of which each regime learns a half
        books.step(greedy, LIKELY, accepted=4)
        books.step(sampled, UNLIKELY)
    limits = books.decided(greedy)
    books.target._decisions._plain_steps._due += 10 * LEARNED  # no measurement in between
    assert not limits.skips
    assert books.target.draft_limits(other) is limits
    assert books.decided(sampled) == SKIP
    books.step(greedy, LIKELY, accepted=4)
    assert books.target.draft_limits(greedy) is limits
    for _ in range(DECISION_STEPS):
        books.step(greedy, LIKELY, accepted=4)
    assert books.decided(greedy) is not limits


@pytest.mark.parametrize("draft_ms", [7.0, 20.0, 60.0])
def test_drafts_that_lose_are_tried_a_few_times_and_then_hardly_ever(draft_ms: float) -> None:
    """Steps of 10 ms; drafts of which nothing is ever accepted lose all that they take."""
    books = Books(FLAT)
    drafted = lives(books, books.session("a"), UNLIKELY, 0, 4000, draft_ms)
    lost_rounds = sum(drafted) * draft_ms / 10.0
    assert drafted[0]
    assert 1 <= sum(drafted[:100]) <= FIRST_ROUNDS / (draft_ms / 10.0) + 2
    assert lost_rounds <= FIRST_ROUNDS + 2 * draft_ms / 10.0 + SHARE * 4000


def test_where_even_perfect_drafts_cannot_win_one_is_enough_to_know() -> None:
    """A draft of a second for four tokens, on steps of 10 ms."""
    books = Books(FLAT)
    drafted = lives(books, books.session("a"), LIKELY, 4, 500, 1000.0)
    assert drafted == [True] + [False] * 499


@pytest.mark.parametrize(("told_ms", "begins"), [(0.01, True), (20.0, False)])
def test_what_drafters_have_missed_must_be_worth_telling(told_ms: float, begins: bool) -> None:
    """Drafts win a fifth; 100 tokens of context were not told, and cost a tenth of a round or two hundred."""
    books = Books(FLAT)
    session = books.session("a")
    for number in range(40):
        num_news = 3 + 97 * (number % 2)
        books.economy.draft_done("default", 1, 4, 17.0 + told_ms * (num_news - 3), num_news)
    for number in range(4 * LEARNED):
        books.step(session, LIKELY, (2, 1, 2, 2)[number % 4])
    session.output_ids += [1] * 100
    books.plain_steps(session, 1)
    assert books.decided(session).skips is not begins


def test_the_first_step_of_drafting_that_begins_anew_is_not_held_against_drafts_and_the_next_ones_are() -> None:
    """In the first, drafters are told all that they missed; a session that comes later has to be told its prompt like any other."""
    books = Books(FLAT)
    session = books.session("a")
    books.drafts_cost(1.0)
    known(books, session, LIKELY, (4, 3, 3, 1))
    assert not books.decided(session).skips
    assert books.target.explores(session)
    for _ in range(2):
        books.step(session, LIKELY, 3)
        assert not books.decided(session).skips
    assert not books.target.explores(session)
    assert not books.target.explores(books.session("b"))


def test_a_slow_first_call_is_not_the_end_of_a_drafter_that_pays() -> None:
    """It has to load what later ones find loaded: 200 ms where the others take 5."""
    books = Books(FLAT)
    session = books.session("a")
    lives(books, session, LIKELY, 3, 1, 200.0)
    assert sum(lives(books, session, LIKELY, 3, 100, 5.0)) > 90


def test_a_drafter_that_has_become_good_is_found_out() -> None:
    books = Books(FLAT)
    session = books.session("a")
    assert sum(lives(books, session, UNLIKELY, 0, 4000, 7.0)[-2000:]) <= 8
    assert sum(lives(books, session, LIKELY, 4, 20_000, 7.0)[-1000:]) >= 1000 * (1.0 - 2 * PLAIN_LOSS)


def test_sessions_go_in_halves_only_where_they_draft() -> None:
    """Few drafts were seen, and in two waves a little more than plain decoding is expected of them: too little to be believed yet."""
    books = Books((10.0, 0.2))
    sessions = [books.session(f"s{number}") for number in range(8)]
    for count in (2, 4, 8):
        for depth in (1, 2, 3, 4):
            books.economy.draft_done("default", count, depth, 2.0 * count)
    for count in (FIRST_DRAFTS - 1, LEARNED):
        for number in range(count):
            books.step(sessions[0], CandidateTree.chain([1, 2, 3, 4], [0.7, 0.5, 0.3, 0.2]), (3, 2, 1, 0)[number % 4])
        skips = books.decided(sessions[0]).skips
        assert skips is (count < FIRST_DRAFTS)
        assert books.target.most_to_fire() == (None if skips else 4)


def test_what_sessions_learned_serves_those_that_come_after_them() -> None:
    books = Books(FLAT)
    first = books.session("a")
    before = lives(books, first, UNLIKELY, 0, 100, 7.0)
    books.target.leave(first)
    after = lives(books, books.session("b"), UNLIKELY, 0, 100, 7.0)
    assert sum(after) <= 1 < sum(before)


def test_a_session_takes_a_place_at_a_drafter_at_once_unless_nothing_is_to_be_drafted() -> None:
    books = Books(FLAT)
    first = books.session("a")
    assert books.target.will_draft(first), "nothing is known"
    lives(books, first, UNLIKELY, 0, 100, 7.0)
    assert not books.target.will_draft(books.session("b"))
    assert not books.target.will_draft(books.session("c", drafter=None))
    assert Books(None).target.will_draft(first), "nobody knows what a step costs"
    fixed = Books(STEEP, planned=False)
    assert fixed.target.will_draft(fixed.session("a"))


def off(books: Books, session: Session) -> None:
    """By the scores a draft pays; by the clock it does not."""
    books.drafts_cost(0.1)
    known(books, session, LIKELY, (3,))
    for _ in range(CLEAR_ROUNDS):
        books.economy.round_done(DraftedRound(session, 1, 20.0, 100.0))
    books.plain_steps(session, DECISION_STEPS)


def test_sessions_that_ask_in_the_same_step_do_not_end_a_pause_sooner() -> None:
    books = Books()
    session = books.session("a")
    off(books, session)
    for _ in range(2 * FIRST_PAUSE_ROUNDS):
        assert books.target.draft_limits(session) == SKIP


def test_a_drafter_that_does_not_pay_by_the_clock_is_switched_off_and_probed_again() -> None:
    """A round of 20 ms in which plain decoding makes 2 tokens; decisions stand for some steps, so a change shows a little later."""
    books = Books()
    session = books.session("a")
    off(books, session)
    pause = 0
    while books.target.draft_limits(session).skips:
        books.plain_steps(session, 1)
        pause += 1
    assert pause + DECISION_STEPS - FIRST_PAUSE_ROUNDS in range(IDLE_DECISION_STEPS + 1)
    for _ in range(PROBE_ROUNDS):
        assert not books.target.draft_limits(session).skips
        books.economy.round_done(DraftedRound(session, 4, 20.0, 100.0))
        books.step(session, LIKELY, accepted=3)
    assert books.economy.paying.pays(("default", True))
    assert not books.target.draft_limits(session).skips


def test_what_loses_on_sampled_text_goes_on_on_greedy_text() -> None:
    books = Books()
    greedy, sampled = books.session("a"), books.session("b", greedy=False)
    known(books, greedy, LIKELY, (3,))
    off(books, sampled)
    assert books.target.draft_limits(sampled).skips
    assert not books.target.draft_limits(greedy).skips


def test_the_fixed_mode_drafts_and_verifies_all_whatever_it_costs() -> None:
    books = Books(STEEP, planned=False)
    books.drafts_cost(1000.0)
    session = books.session("a")
    for _ in range(2 * MIN_ROUNDS):
        books.economy.round_done(DraftedRound(session, 1, 20.0, 100.0))
        books.step(session, UNLIKELY)
    assert books.kept((session, UNLIKELY)) == [[0, 1, 2, 3]]
    assert books.target.draft_limits(session) == LIMITS_OF_DRAFTER


def test_a_plain_session_beside_many_is_no_draft_of_its_own() -> None:
    """Nine sessions have no drafter: the call is for one, and what it wins is one session's."""
    books = Books((10.0, 0.05))
    for number in range(9):
        books.session(f"plain-{number}", drafter=None)
    session = books.session("a")
    for sessions in (1, 10):
        for depth in (1, 2, 3, 4):
            books.economy.draft_done("default", sessions, depth, 0.1 * sessions)
    known(books, session, LIKELY, (4, 3, 3, 1))
    assert not books.decided(session).skips, "0.1 ms for one session's draft"
    for depth in (1, 2, 3, 4):
        for _ in range(50):
            books.economy.draft_done("default", 1, depth, 9.0)
    known(books, session, LIKELY, (4, 3, 3, 1))
    assert books.decided(session).skips, "ten sessions would wait 9 ms for what one of them wins"


def test_what_was_promised_is_drafted_for_where_the_others_are_not() -> None:
    """Steps take 10 ms, drafts 8 ms for each session: what three would win is less than 24 ms, what one wins more than its 8."""
    books = Books(FLAT)
    for sessions in (1, 2, 3):
        for depth in (1, 2, 3, 4):
            books.economy.draft_done("default", sessions, depth, 8.0 * sessions)
    usual, modest, promised = books.session("a"), books.session("b", tokens_per_second=90.0), books.session("c", tokens_per_second=110.0)
    known(books, usual, CandidateTree.chain([1, 2, 3, 4], [0.5, 0.3, 0.2, 0.1]), (1, 2, 0, 1))
    assert books.decided(usual).skips
    assert books.target.draft_limits(usual).skips
    assert books.target.draft_limits(modest).skips, "plain decoding gives it 100"
    assert not books.target.draft_limits(promised).skips
    assert books.target.will_draft(promised)


def test_drafting_begins_where_it_is_expected_to_win_and_not_again_at_once_where_it_had_to_be_stopped() -> None:
    """Between the last draft that is worth trying and the first that is not, those that were stopped."""
    found = []
    for draft_ms in range(8, 40):
        books = Books(FLAT)
        session = books.session("a")
        books.drafts_cost(float(draft_ms))
        known(books, session, LIKELY, (4, 3, 3, 1))
        regime = regime_of(session)
        assert regime is not None
        decisions = books.target._decisions
        begins = not books.decided(session).skips
        gain = decisions._gains[regime]
        decisions._trials[regime].decided(False, decisions._all_steps, 1)
        decisions._forget()
        begins_again = not books.decided(session).skips
        assert begins == (gain > 1.0)
        assert begins_again == (gain >= 1.0 + DOUBT)
        found.append((begins, begins_again))
    assert set(found) == {(True, True), (True, False), (False, False)}


def test_where_all_sessions_of_a_kind_have_gone_their_drafting_is_over() -> None:
    """Else plain steps would be measured for it, and the next ones would go on where these had to begin."""
    books = Books(FLAT)
    greedy = books.session("a")
    books.drafts_cost(1.0)
    known(books, greedy, LIKELY, (4, 3, 3, 1))
    assert not books.decided(greedy).skips
    assert books.target._decisions.drafts(("default", True))
    books.target.leave(greedy)
    assert not books.target._decisions.drafts(("default", True))
    again = books.session("b")
    assert not books.decided(again).skips
    assert books.target.explores(again), "its drafting begins anew"
