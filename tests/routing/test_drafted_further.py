"""Drafts that go further than is thought best: now and then, within what is allowed, and not where a speed was promised."""

from dspark.routing.decisions import DECISION_STEPS, FURTHER_EVERY
from dspark.scheduling.drafting_plan import SKIP
from dspark.tree import CandidateTree
from tests.routing.books import FLAT, LIKELY, Books, known
from tests.routing.parts import DRAFTER, LIMITS_OF_DRAFTER


def test_now_and_then_a_step_drafts_one_candidate_more_and_one_deeper_than_is_best() -> None:
    books = Books((5.0, 6.0))
    books.drafts_cost(0.1)
    session = books.session("a")
    known(books, session, LIKELY, (4, 3, 3, 1))
    best = books.decided(session)
    assert 0 < best.max_depth < LIMITS_OF_DRAFTER.max_depth
    asked = []
    for _ in range(2 * FURTHER_EVERY * DECISION_STEPS):
        limits = books.target.draft_limits(session)
        asked.append(limits)
        kept = list(range(0 if limits.skips else best.max_nodes))
        tree = CandidateTree.empty() if limits.skips else LIKELY
        books.step(session, tree, len(kept), kept, limits)
    further = [limits for limits in asked if limits.max_depth == best.max_depth + 1]
    assert DECISION_STEPS <= len(further) <= 3 * DECISION_STEPS
    assert {limits.max_nodes for limits in further} == {best.max_nodes + 1}


def test_what_is_drafted_further_stays_within_what_the_configuration_allows_and_what_can_be_drafted() -> None:
    few = {"max_depth": 4, "max_nodes": 2, "max_width": 1}
    books = Books(FLAT, config=DRAFTER.model_copy(update=few))
    books.drafts_cost(0.1)
    session = books.session("a")
    known(books, session, CandidateTree.chain([1, 2], [0.9, 0.8]), (2,))
    asked = set()
    for _ in range(4 * FURTHER_EVERY * DECISION_STEPS):
        limits = books.target.draft_limits(session)
        asked.add(limits)
        books.step(session, CandidateTree.empty() if limits.skips else CandidateTree.chain([1, 2], [0.9, 0.8]), 0, limits=limits)
    assert all(limits.max_depth <= limits.max_nodes <= 2 for limits in asked)


def test_nothing_is_drafted_further_where_a_speed_was_promised() -> None:
    books = Books((5.0, 6.0))
    books.drafts_cost(0.1)
    session = books.session("a", tokens_per_second=1.0)
    known(books, session, LIKELY, (4, 3, 3, 1))
    best = books.decided(session)
    for _ in range(2 * FURTHER_EVERY * DECISION_STEPS):
        limits = books.target.draft_limits(session)
        assert limits.max_depth <= best.max_depth
        books.step(session, CandidateTree.empty(), limits=SKIP)
