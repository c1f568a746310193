"""The books of one target: which candidates are verified, what is learned from verdicts, what a step and plain decoding cost."""

import pytest

from dspark.routing.economy import DraftedRound
from dspark.routing.rounds import Verified, Waiting
from dspark.scheduling.drafting_plan import SKIP
from dspark.scheduling.paying import MIN_ROUNDS
from dspark.session import Session
from dspark.tree import CandidateTree
from tests.routing.books import FLAT, LIKELY, STEEP, UNLIKELY, Books
from tests.routing.parts import LIMITS_OF_DRAFTER


def test_a_flat_target_verifies_all_candidates_and_a_steep_one_those_that_pay() -> None:
    counts = []
    for shape in (FLAT, (5.0, 2.0), (5.0, 4.0), STEEP):
        books = Books(shape)
        (kept,) = books.kept((books.session("a"), LIKELY))
        counts.append(len(kept))
    assert counts[0] == 4
    assert counts[-1] == 0, "0.9 tokens for 10 ms lose against 1 for 10"
    assert counts == sorted(counts, reverse=True)
    assert 0 < counts[2] < 4


def test_a_draft_that_this_round_has_waited_for_makes_candidates_worth_more_rows() -> None:
    """What is spent is spent: the longer the round has been already, the less a row adds to it."""
    kept = {}
    for draft_ms in (0.0, 40.0):
        books = Books((5.0, 4.0))
        session = books.session("a")
        kept[draft_ms] = len(books.target.plan([Waiting(session, LIKELY, draft_ms)]).kept[session.session_id])
    assert kept[0.0] < kept[40.0] == 4


def liar(books: Books, rounds: int = 200) -> Session:
    """A session whose drafter says 0.9 of every step and is always wrong."""
    session = books.session("liar")
    tree = CandidateTree.chain([1, 2], [0.9, 0.81])
    for _ in range(rounds):
        books.step(session, tree)
    return session


def test_what_verdicts_have_corrected_is_what_is_planned_by() -> None:
    books = Books((5.0, 2.0))
    session = books.session("a")
    tree = CandidateTree.chain([1, 2], [0.9, 0.81])
    assert books.kept((session, tree)) == [[0, 1]]
    liar(books)
    assert books.kept((session, tree)) == [[]]
    assert tree.scores.tolist() == pytest.approx([0.9, 0.81]), "the tree itself is left as it was"


def test_of_a_merged_tree_each_drafters_candidates_are_planned_by_what_its_own_were_worth() -> None:
    """The main drafter's candidate is always right, lookup's never, and both say 0.5."""
    books = Books((5.0, 2.0))
    session = books.session("a")
    pair = CandidateTree.merged([CandidateTree.chain([1], [0.5]), CandidateTree.chain([2], [0.5])])
    assert books.kept((session, pair)) == [[0, 1]]
    for _ in range(200):
        books.step(session, pair, accepted=1)
    assert books.kept((session, pair)) == [[0]]
    only_lookups = pair.select([1])
    assert books.kept((session, only_lookups)) == [[]], "best of its siblings or not, it is lookup's"
    assert books.kept((session, CandidateTree.chain([2], [0.5]))) == [[0]]


def test_verdicts_are_learned_against_what_the_drafter_said_not_against_what_was_made_of_it() -> None:
    """Learned from its own corrections, the corrector would soon find them right, and the drafter with them."""
    books = Books((5.0, 2.0))
    liar(books)
    standing = books.economy.standings()["default"]
    assert standing.served_ece == pytest.approx(0.9, abs=0.01)
    assert standing.corrected_ece < 0.4
    assert standing.drift > 0.5


def test_candidates_that_were_not_verified_are_no_verdicts() -> None:
    books = Books()
    session = books.session("a")
    for _ in range(50):
        books.step(session, LIKELY, kept=[])
    assert books.economy.corrector.metrics("default").verdicts == 0


@pytest.mark.parametrize(("max_nodes", "expected"), [(None, 4), (3, 3), (1, 1), (0, 0)])
@pytest.mark.parametrize("planned", [True, False])
def test_a_sessions_own_cap_binds_in_every_mode(max_nodes: int | None, expected: int, planned: bool) -> None:
    books = Books(planned=planned)
    capped, free = books.session("a"), books.session("b")
    capped.max_nodes = max_nodes
    assert [len(kept) for kept in books.kept((capped, LIKELY), (free, LIKELY))] == [expected, 4]


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_promises_that_cannot_both_be_kept_the_lower_priority_number_goes_first(first: int) -> None:
    """Steps of 10 ms, rows for two candidates: each session would need both of them for its 180 tokens per second."""
    books = Books(FLAT, max_rows=4)
    sessions = [books.session("a"), books.session("b")]
    for session in sessions:
        session.min_tokens_per_second = 180.0
    sessions[first].priority = -1
    tree = CandidateTree.chain([1, 2], [0.5, 0.4])
    assert [len(kept) for kept in books.kept(*((session, tree) for session in sessions))] == ([2, 0] if first == 0 else [0, 2])


def test_the_fixed_mode_too_keeps_within_the_targets_rows() -> None:
    books = Books(planned=False, max_rows=5)
    assert books.kept((books.session("a"), LIKELY), (books.session("b"), UNLIKELY)) == [[0, 1, 2], []]


def test_plain_sessions_are_not_planned_for() -> None:
    """An unplanned step has no expected time: nothing was looked up."""
    books = Books()
    sessions = [books.session(name, drafter=None) for name in "ab"]
    waiting = [Waiting(session, CandidateTree.empty()) for session in sessions]
    plain = books.target.plan(waiting)
    assert (plain.kept, plain.batch_tokens, plain.expected_tokens, plain.expected_ms) == ({"a": [], "b": []}, 2, 2.0, 0.0)
    mixed = books.target.plan([*waiting, Waiting(books.session("c"), LIKELY)])
    assert mixed.kept == {"a": [], "b": [], "c": [0, 1, 2, 3]}
    assert mixed.expected_ms == pytest.approx(10.0)


def test_a_plain_step_is_that_of_all_sessions_with_one_row_each_and_of_the_prompts_that_are_read() -> None:
    books = Books((5.0, 1.0))
    assert books.target.plain_step_ms() == 0
    for name in "abcde":
        books.session(name)
    assert books.target.plain_step_ms() == pytest.approx(10.0)
    assert books.target.plain_step_ms(num_reading=2, prompt_rows=7) == pytest.approx(15.0)
    assert books.target.plain_step_ms(num_reading=5, prompt_rows=7) == 0
    assert Books(None).target.plain_step_ms() == 0


def test_without_a_profile_real_steps_will_have_to_do() -> None:
    books = Books(None)
    session = books.session("a")
    assert books.target.costs() is None
    assert books.kept((session, LIKELY)) == [[0, 1, 2, 3]]
    for rows in (1, 2, 3, 4, 5) * 5:
        tree = CandidateTree.chain(list(range(rows - 1)))
        verified = Verified(session, LIMITS_OF_DRAFTER, tree, list(range(rows - 1)), ())
        books.target.step_done(rows, 10.0 * rows, 10.0 * rows, [verified])
    costs = books.target.costs()
    assert costs is not None
    assert costs.step_of(3) == pytest.approx(30.0)


def test_what_promises_are_judged_by_is_what_the_books_hold() -> None:
    books = Books((5.0, 1.0))
    books.drafts_cost(7.0)
    plain, promised = books.session("p", drafter=None), books.session("a")
    promised.min_tokens_per_second = 50.0
    for _ in range(200):
        books.step(promised, LIKELY, accepted=4)
    load = books.target.load(lambda session: 2.5)
    assert load is not None
    assert (load.num_sessions, [(p.min_tokens_per_second, p.tau) for p in load.promises]) == (2, [(50.0, 2.5)])
    assert load.step_ms[3] == pytest.approx(8.0)
    assert load.rows_per_session == pytest.approx(5.0, abs=0.01)
    assert load.draft_ms == pytest.approx(7.0, rel=0.01)
    books.target.leave(promised)
    alone = books.target.load(lambda session: 2.5)
    assert alone is not None
    assert (alone.num_sessions, alone.promises, alone.draft_ms) == (1, (), 0.0)
    assert plain.drafter is None
    assert Books(None).target.load(lambda session: 1.0) is None


def test_what_lies_around_a_step_is_learned_where_no_session_was_with_a_drafter() -> None:
    """Else the step may have waited for that drafter, on the same processor: here for 30 ms. One that rests, or reads, is no hindrance."""
    books = Books(FLAT)
    ready, other, _ = (books.session(name) for name in ("a", "b", "c"))
    verified = [Verified(ready, SKIP, CandidateTree.empty(), [], ())]
    assert not books.target.draft_limits(other).skips
    for round_ms, expected_ms in ((40.0, 0.0), (12.0, 2.0)):
        for _ in range(20):
            books.target.plan([Waiting(ready, CandidateTree.empty())])
            books.target.step_done(1, 10.0, round_ms, verified)
        assert books.target.curve.round_overhead_ms == pytest.approx(expected_ms)
        books.target.leave(other)


def test_what_lies_around_a_step_is_not_learned_beside_prompts() -> None:
    """A hand-in may come just after a chunk of a prompt went, and waits for all of it."""
    books = Books(FLAT)
    ready, _ = (books.session(name) for name in ("a", "b"))
    verified = [Verified(ready, SKIP, CandidateTree.empty(), [], ())]
    for rows, round_ms in ((1, 10.5), (64, 40.0), (1, 40.0), (1, 10.5)):
        books.target.plan([Waiting(ready, CandidateTree.empty())])
        books.target.step_done(rows, 10.0, round_ms, verified)
    assert books.target.curve.round_overhead_ms == pytest.approx(0.5)


def test_sessions_that_draft_in_one_step_make_one_round_of_their_drafters_account() -> None:
    books = Books(FLAT)
    sessions = [books.session(name) for name in "abcd"]
    drafted = [Verified(session, LIMITS_OF_DRAFTER, LIKELY, [0], (0,)) for session in sessions[:2]]
    books.target.step_done(6, 10.0, 10.0, [*drafted, *(Verified(s, SKIP, CandidateTree.empty(), [], ()) for s in sessions[2:])])
    assert [books.target.num_drafted(session) for session in sessions] == [2, 2, 2, 2]
    for _ in range(MIN_ROUNDS):
        assert books.economy.paying.pays(("default", True))
        for session in sessions[:2]:
            books.economy.round_done(DraftedRound(session, 1, 10.0, 105.0, num_drafted=2))
    assert not books.economy.paying.pays(("default", True)), "two drafted in each of so many steps, and lost a twentieth"


def test_what_the_router_itself_takes_is_part_of_every_round_and_what_drafts_add_of_what_they_cost() -> None:
    """Steps of 10 ms and calls of 5; between two steps the router takes 1 ms, and 3 more for drafts."""
    books = Books(FLAT)
    books.drafts_cost(5.0)
    session = books.session("a")
    for _ in range(50):
        books.step(session, CandidateTree.empty(), limits=SKIP, between_ms=1.0)
        books.economy.draft_done("default", 1, 4, 5.0)
        books.step(session, LIKELY, between_ms=9.0)
    costs, draft_ms = books.target.costs(), books.economy.draft_ms("default", 1)
    assert costs is not None
    assert draft_ms is not None
    assert costs.round_of(1) == pytest.approx(11.0, rel=0.02)
    assert draft_ms[0] == 0
    assert draft_ms[4] == pytest.approx(8.0, rel=0.02)


def test_a_stall_between_two_steps_is_no_work_of_the_routers() -> None:
    books = Books(FLAT)
    session = books.session("a")
    for between_ms in (1.0, 1.0, 1.0, 5000.0):
        books.step(session, CandidateTree.empty(), limits=SKIP, between_ms=between_ms)
    assert books.economy.router_work.plain_ms(1) < 1.2


def test_where_not_all_sessions_share_two_steps_in_a_row_nothing_is_learned_of_the_router() -> None:
    """Somebody else's step, draft or prompt may lie between them."""
    books = Books(FLAT)
    sessions = [books.session(name) for name in "ab"]
    for number in range(20):
        books.step(sessions[number % 2], CandidateTree.empty(), limits=SKIP, between_ms=7.0)
    assert books.economy.router_work.plain_ms(2) == 0
    books.target.leave(sessions[1])
    books.step(sessions[0], CandidateTree.empty(), limits=SKIP, between_ms=7.0)
    assert books.economy.router_work.plain_ms(1) == 0
    books.step(sessions[0], CandidateTree.empty(), limits=SKIP, between_ms=2.0)
    assert books.economy.router_work.plain_ms(1) == 2.0


def test_a_draft_that_had_a_whole_context_to_read_teaches_nothing_of_the_next_ones() -> None:
    books = Books(FLAT)
    session = books.session("a")
    books.plain_steps(session, 1)
    session.output_ids += [1] * 100
    books.step(session, LIKELY, between_ms=50.0)
    assert books.economy.router_work.drafted_ms("default", 1) == 0
