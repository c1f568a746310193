"""The books of one lane to a target whose steps cost known times, for tests."""

import numpy as np

from dspark.config import DrafterConfig
from dspark.routing.economy import Economy, regime_of
from dspark.routing.rounds import Verified, Waiting
from dspark.routing.target_economy import TargetEconomy
from dspark.routing.verdicts import LEARN_ROUNDS, MAX_OBSERVED
from dspark.scheduling.acceptance_profile import FIRST_DRAFTS
from dspark.scheduling.curve import ThroughputCurve
from dspark.scheduling.drafting_plan import SKIP, DraftLimits
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
LEARNED = LEARN_ROUNDS * FIRST_DRAFTS // MAX_OBSERVED
"""Rounds until drafts are well known."""


def curve_of(base_ms: float, row_ms: float) -> ThroughputCurve:
    rows = 2 ** np.arange(MAX_ROWS.bit_length())  # 1 to MAX_ROWS: what is learned of one need not hold for all
    return ThroughputCurve(rows, np.asarray([0]), base_ms + row_ms * rows[None, :].astype(np.float64))


class Books:
    """The books of one lane to a target of a known curve, and sessions that live there."""

    def __init__(
        self,
        shape: tuple[float, float] | None = FLAT,
        *,
        planned: bool = True,
        max_rows: int = MAX_ROWS,
        overlap: float = 1.0,
        config: DrafterConfig = DRAFTER,
    ) -> None:
        self.shape = shape
        self.economy = Economy({"default": config}, planned=planned, overlap=overlap)
        curve = None if shape is None else curve_of(*shape)
        self.target = TargetEconomy(self.economy, curve, max_rows)

    def session(
        self, name: str, drafter: str | None = "default", greedy: bool = True, tokens_per_second: float | None = None
    ) -> Session:
        session = session_named(name, sampling=GREEDY if greedy else NOISY)
        session.drafter, session.min_tokens_per_second = drafter, tokens_per_second
        self.target.enter(session)
        return session

    def decided(self, session: Session) -> DraftLimits:
        """The decision itself, without what is drafted to explore and after steps that are left plain to be measured."""
        regime = regime_of(session)
        assert regime is not None
        self.target.draft_limits(session)
        while self.target._decisions.measures_plain:
            self.plain_steps(session, 1)
        return self.target._decisions._limits_of(regime, self.target.costs(), self.target._sharing(session.drafter))

    def drafts_cost(self, draft_ms: float) -> None:
        for sessions in (1, 2, 3, 4):
            for depth in (1, 2, 3, 4):
                self.economy.draft_done("default", sessions, depth, draft_ms)

    def step(
        self,
        session: Session,
        tree: CandidateTree,
        accepted: int = 0,
        kept: list[int] | None = None,
        limits: DraftLimits = LIMITS_OF_DRAFTER,
        draft_ms: float = 0.0,
        between_ms: float | None = None,
    ) -> None:
        """A step as the curve says, of one session with `kept` candidates, all by default."""
        kept = list(range(len(tree))) if kept is None else kept
        verified = Verified(session, limits, tree, kept, tuple(range(accepted)), draft_ms)
        base_ms, row_ms = self.shape or FLAT
        step_ms = base_ms + row_ms * (1 + len(kept))
        self.target.step_done(1 + len(kept), step_ms, step_ms, [verified], between_ms)

    def plain_steps(self, session: Session, count: int) -> None:
        for _ in range(count):
            self.step(session, CandidateTree.empty(), limits=SKIP)

    def kept(self, *waiting: tuple[Session, CandidateTree]) -> list[list[int]]:
        plan = self.target.plan([Waiting(session, tree) for session, tree in waiting])
        return [plan.kept[session.session_id] for session, _ in waiting]


def known(books: Books, session: Session, tree: CandidateTree, accepted: tuple[int, ...]) -> None:
    """The session's drafts are learned until they are well known."""
    for number in range(LEARNED):
        books.step(session, tree, accepted[number % len(accepted)])


def lives(books: Books, session: Session, tree: CandidateTree, accepted: int, rounds: int, draft_ms: float) -> list[bool]:
    """Which of the session's rounds are drafted, when what is drafted comes true like this."""
    drafted = []
    for _ in range(rounds):
        limits = books.target.draft_limits(session)
        drafted.append(not limits.skips)
        if limits.skips:
            books.plain_steps(session, 1)
        else:
            books.economy.draft_done("default", 1, limits.max_depth, draft_ms)
            kept = list(range(min(len(tree), limits.max_nodes)))
            books.step(session, tree, min(accepted, len(kept)), kept, limits, draft_ms)
    return drafted
