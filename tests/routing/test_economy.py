"""The economy of a router, on a target whose steps cost known times: how much is drafted, verified and waited for, and by whose word."""

import math

import numpy as np
import pytest

from dspark.config import DrafterConfig
from dspark.routing.economy import (
    DECISION_STEPS,
    EXPLORED_ROUNDS,
    LEARN_ROUNDS,
    MAX_OBSERVED,
    Economy,
    Standing,
    TargetEconomy,
    Verified,
    Waiting,
    limits_of,
)
from dspark.scheduling.acceptance_profile import FIRST_DRAFTS
from dspark.scheduling.curve import ThroughputCurve
from dspark.scheduling.drafting_plan import SKIP, DraftLimits
from dspark.scheduling.paying import FIRST_PAUSE_ROUNDS, MIN_ROUNDS, PROBE_ROUNDS
from dspark.session import Session
from dspark.tree import CandidateTree
from tests.routing.parts import DRAFTER, GREEDY, LIMITS_OF_DRAFTER, NOISY, session_named

MAX_ROWS = 64
CONTEXT = 3
SCORES = [0.9, 0.8, 0.6, 0.4]
LIKELY = CandidateTree.chain([1, 2, 3, 4], SCORES)
UNLIKELY = CandidateTree.chain([1, 2, 3, 4], [0.1, 0.04, 0.02, 0.01])
FLAT, STEEP = (10.0, 0.0), (0.0, 10.0)
"""A step's (base_ms, row_ms): on a flat target candidates are free, on a steep one each costs as much as an anchor."""
FIRST_ROUNDS = LEARN_ROUNDS * FIRST_DRAFTS // MAX_OBSERVED
"""Until the first drafts have been learned from."""


def curve_of(base_ms: float, row_ms: float) -> ThroughputCurve:
    rows = np.asarray([1, MAX_ROWS])
    return ThroughputCurve(rows, np.asarray([0]), base_ms + row_ms * rows[None, :].astype(np.float64))


class Books:
    """The books of one lane to a target of a known curve, and sessions that live there."""

    def __init__(self, shape: tuple[float, float] | None = FLAT, *, planned: bool = True, max_rows: int = MAX_ROWS) -> None:
        self.shape = shape
        self.economy = Economy({"default": DRAFTER}, planned=planned)
        curve = None if shape is None else curve_of(*shape)
        self.target = TargetEconomy(self.economy, curve, max_rows)

    def session(self, name: str, drafter: str | None = "default", greedy: bool = True) -> Session:
        session = session_named(name, sampling=GREEDY if greedy else NOISY)
        session.drafter = drafter
        self.target.enter(session)
        return session

    def decided(self, session: Session) -> DraftLimits:
        """The decision itself, after what is drafted in full to look around."""
        for _ in range(EXPLORED_ROUNDS):
            self.target.draft_limits(session)
        return self.target.draft_limits(session)

    def drafts_cost(self, draft_ms: float) -> None:
        for sessions in (1, 2, 3, 4):
            for depth in (1, 2, 3, 4):
                self.economy.draft_done("default", sessions, depth, draft_ms)

    def step(self, session: Session, tree: CandidateTree, accepted: int = 0, kept: list[int] | None = None) -> None:
        """A step as the curve says, of one session with `kept` candidates, all by default."""
        kept = list(range(len(tree))) if kept is None else kept
        verified = Verified(session, LIMITS_OF_DRAFTER, tree, kept, tuple(range(accepted)))
        base_ms, row_ms = self.shape or FLAT
        step_ms = base_ms + row_ms * (1 + len(kept))
        self.target.step_done(1 + len(kept), step_ms, step_ms, [verified])

    def kept(self, *waiting: tuple[Session, CandidateTree]) -> list[list[int]]:
        plan = self.target.plan([Waiting(session, tree) for session, tree in waiting])
        return [plan.kept[session.session_id] for session, _ in waiting]


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


def test_a_steep_target_has_less_drafted() -> None:
    depths = []
    for shape in (FLAT, (5.0, 6.0), STEEP):
        books = Books(shape)
        books.drafts_cost(0.1)
        session = books.session("a")
        assert books.target.draft_limits(session) == LIMITS_OF_DRAFTER, "the first drafts are drafted in full, to learn"
        for accepted in (4, 3, 3, 1) * (FIRST_ROUNDS // 4 + 1):  # as many as the scores say, about
            books.step(session, LIKELY, accepted)
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
        for _ in range(FIRST_ROUNDS):
            books.step(session, LIKELY, accepted=4)
        depths.append(books.decided(session).max_depth)
    assert depths == [4, 0]


def test_limits_are_decided_every_few_steps_and_apart_for_greedy_and_sampled_text() -> None:
    books = Books((5.0, 6.0))
    books.drafts_cost(0.1)
    greedy, other, sampled = books.session("a"), books.session("b"), books.session("c", greedy=False)
    for _ in range(2 * FIRST_ROUNDS):  # of which each regime learns a half
        books.step(greedy, LIKELY, accepted=4)
        books.step(sampled, UNLIKELY)
    limits = books.decided(greedy)
    assert not limits.skips
    assert books.target.draft_limits(other) is limits
    assert books.decided(sampled) == SKIP
    books.step(greedy, LIKELY, accepted=4)
    assert books.target.draft_limits(greedy) is limits
    for _ in range(DECISION_STEPS):
        books.step(greedy, LIKELY, accepted=4)
    assert books.decided(greedy) is not limits


def test_sessions_that_ask_in_the_same_step_do_not_end_a_pause_sooner() -> None:
    books = Books()
    session = books.session("a")
    for _ in range(MIN_ROUNDS):
        books.economy.round_done(session, 1, 20.0, 100.0)
    for _ in range(2 * FIRST_PAUSE_ROUNDS):
        assert books.target.draft_limits(session) == SKIP


def rounds_until(books: Books, session: Session, skips: bool, tree: CandidateTree, committed: int) -> int:
    """Rounds until the decision is another."""
    for count in range(10 * FIRST_PAUSE_ROUNDS):
        if books.target.draft_limits(session).skips == skips:
            return count
        if len(tree):
            books.economy.round_done(session, committed, 20.0, 100.0)
        books.step(session, tree, accepted=committed - 1)
    raise AssertionError("nothing changed")


def test_a_drafter_that_does_not_pay_is_switched_off_and_probed_again() -> None:
    """A round of 20 ms in which plain decoding makes 2 tokens; decisions stand for a few steps, so a change shows a little later."""
    books = Books()
    session = books.session("a")
    late = range(DECISION_STEPS + 1)
    assert rounds_until(books, session, True, LIKELY, committed=1) - MIN_ROUNDS in late
    assert rounds_until(books, session, False, CandidateTree.empty(), committed=1) - FIRST_PAUSE_ROUNDS in late
    for _ in range(PROBE_ROUNDS):
        assert not books.target.draft_limits(session).skips
        books.economy.round_done(session, 4, 20.0, 100.0)
        books.step(session, LIKELY, accepted=3)
    assert books.economy.paying.pays("default")
    assert not books.target.draft_limits(session).skips


def test_rounds_that_cannot_be_judged_do_not_judge_a_drafter() -> None:
    books = Books()
    plain, drafted = books.session("p", drafter=None), books.session("a")
    for _ in range(2 * MIN_ROUNDS):
        books.economy.round_done(plain, 1, 20.0, 100.0)
        books.economy.round_done(drafted, 1, 20.0, 0.0)
        books.economy.round_done(drafted, 1, 0.0, 100.0)
    assert math.isnan(books.economy.standings()["default"].speed_ratio)


def test_nothing_is_waited_for_where_nothing_is_on_its_way_or_known() -> None:
    books = Books((30.0, 0.0))
    assert books.target.wait_ms(1, [1.0]) == 0, "there is no session"
    for name in "abcd":
        books.session(name)
    assert books.target.wait_ms(1, [1.0]) == 0, "nobody knows what a draft costs"
    books.drafts_cost(5.0)
    assert books.target.wait_ms(1, []) == 0
    assert books.target.wait_ms(1, [1.0, 1.0, 1.0]) > 0
    unknown = Books(None)
    unknown.session("a")
    unknown.drafts_cost(5.0)
    assert unknown.target.wait_ms(1, [1.0]) == 0, "nobody knows what a step costs"


def test_the_target_waits_for_what_is_left_of_a_draft_where_steps_are_dear_and_rows_are_not() -> None:
    flat, steep = Books((30.0, 0.0)), Books(STEEP)
    for books in (flat, steep):
        books.drafts_cost(5.0)
        for name in "abcd":
            books.session(name)
    assert flat.target.wait_ms(1, [4.0, 3.0, 2.0]) == pytest.approx(3.0, rel=0.01), "the last to start is the last to come"
    assert steep.target.wait_ms(1, [4.0, 3.0, 2.0]) == 0, "each row costs the same now and later"
    assert flat.target.wait_ms(1, [5.5, 6.0, 9.0]) == 0, "what is late may hang"


def test_a_lone_straggler_is_not_waited_for_by_many() -> None:
    books = Books((30.0, 0.0))
    books.drafts_cost(25.0)
    for number in range(16):
        books.session(f"s{number}")
    assert books.target.wait_ms(15, [0.0]) == 0
    assert books.target.wait_ms(1, [20.0] * 15) > 0


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


def test_the_fixed_mode_drafts_and_verifies_all_whatever_it_costs() -> None:
    books = Books(STEEP, planned=False)
    books.drafts_cost(1000.0)
    session = books.session("a")
    for _ in range(2 * MIN_ROUNDS):
        books.economy.round_done(session, 1, 20.0, 100.0)
        books.step(session, UNLIKELY)
    assert books.kept((session, UNLIKELY)) == [[0, 1, 2, 3]]
    assert books.target.draft_limits(session) == LIMITS_OF_DRAFTER
    assert books.target.wait_ms(1, [0.0]) == 0


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


def test_plain_speed_is_that_of_all_sessions_with_one_row_each() -> None:
    books = Books((5.0, 1.0))
    assert books.target.plain_tokens_per_second() == 0
    for name in "abcde":
        books.session(name)
    assert books.target.plain_tokens_per_second() == pytest.approx(100.0)
    assert Books(None).target.plain_tokens_per_second() == 0


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


def test_standings_tell_how_every_drafter_does() -> None:
    economy = Economy({"good": DRAFTER, "poor": DRAFTER, "idle": DRAFTER})
    for name, committed in (("good", 4), ("poor", 1)):
        session = session_named(name)
        session.drafter = name
        for _ in range(MIN_ROUNDS - 1):
            economy.round_done(session, committed, 20.0, 100.0)
    standings = economy.standings()
    assert standings["good"].speed_ratio == pytest.approx(2.0)
    assert standings["poor"].speed_ratio == pytest.approx(0.5)
    assert math.isnan(standings["idle"].speed_ratio)
    assert all(standing.drafts for standing in standings.values())
    economy.round_done(session, 1, 20.0, 100.0)
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
