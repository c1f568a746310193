"""What one router knows of costs and gains, and the decisions that follow: how much to draft, which candidates to verify, whether
to wait for drafts in flight, whether a drafter pays at all. The rules are scheduling/'s; here they meet measured numbers.

`Economy` is the router's, shared by all its targets: drafters, their costs, their gains. A `TargetEconomy` belongs to the lane of
one target replica: its curve, its sessions. Nothing here can change a token (DESIGN section 4).

Symbols: D depth and N nodes that a drafter's configuration allows.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dspark.config import DrafterConfig
from dspark.routing.admission import TargetLoad, promise_of
from dspark.scheduling.acceptance_profile import AcceptanceProfile
from dspark.scheduling.correction import SurvivalCorrector
from dspark.scheduling.costs import Floats, RoundCosts
from dspark.scheduling.curve import ThroughputCurve
from dspark.scheduling.draft_cost import DraftCost
from dspark.scheduling.drafting_plan import SKIP, DraftLimits, DraftOutlook, plan_drafts
from dspark.scheduling.forest import SessionNeed
from dspark.scheduling.online_curve import OnlineCurve
from dspark.scheduling.paying import Paying
from dspark.scheduling.planner import Plan, plan
from dspark.scheduling.tree_batch import TreeBatch
from dspark.scheduling.waves import WaveCosts, should_wait
from dspark.session import Session
from dspark.tree import CandidateTree
from dspark.types import SessionId

MAX_OBSERVED = 8
"""Of the rounds learned from together, those whose gains are read off; more would cost the event loop more than they tell."""
KEPT_GAIN = 0.05
DECISION_STEPS = 4
"""Steps that a decision on how much to draft stands: it changes slowly, and making it costs as much as planning."""
EXPLORED_ROUNDS = 4
"""Rounds of sessions that are drafted in full when it is time to look what that brings; all sessions at once would cost a whole step."""
LEARN_ROUNDS = 16
"""Rounds of sessions that are learned from together: sixteen cost little more than one."""
Regime = tuple[str, bool]
"""A drafter's name, and whether the text is greedy."""


def limits_of(config: DrafterConfig) -> DraftLimits:
    """What the configuration allows."""
    if min(config.max_depth, config.max_nodes) == 0:
        return SKIP
    return DraftLimits(config.max_depth, config.max_width, config.max_nodes)


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """One session's round, ready to be planned."""

    session: Session
    tree: CandidateTree
    draft_ms: float = 0.0
    """How long its draft took, waiting included."""


@dataclass(frozen=True, slots=True, eq=False)
class Verified:
    """One session's round after its verdict."""

    session: Session
    limits: DraftLimits
    drafted: CandidateTree
    kept: list[int]
    accepted: tuple[int, ...]
    """Nodes of the selected tree."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How one drafter does, for whoever publishes it."""

    speed_ratio: float
    """Measured speed of its sessions over that of plain decoding as the target's curve predicts it; NaN before the first round."""
    drafts: bool
    """False while it is switched off because it does not pay."""
    served_ece: float
    """Expected calibration error of the drafter's own estimates."""
    corrected_ece: float
    """The same after verdicts have corrected them."""
    drift: float
    """Mean distance between the two."""


class Economy:
    """The books of one router."""

    def __init__(self, configs: Mapping[str, DrafterConfig], *, planned: bool = True, overlap: float = 1.0) -> None:
        """`planned` False drafts and verifies what the configuration allows, always: the fixed setting that benchmarks compare with.

        `overlap`: how far drafting and verifying hide each other, 1 on separate devices, 0 on one core (scheduling/waves.py).
        """
        self.planned = planned
        self.overlap = overlap
        self.limits = {name: limits_of(config) for name, config in configs.items()}
        self.profiles = {name: AcceptanceProfile(limits) for name, limits in self.limits.items()}
        self.draft_costs = {name: DraftCost() for name in configs}
        self.corrector = SurvivalCorrector()
        self.paying = Paying()

    def draft_done(self, drafter: str, num_sessions: int, depth: int, draft_ms: float) -> None:
        """One call of a drafter, as long as the router waited for it."""
        self.draft_costs[drafter].observe(num_sessions, depth, draft_ms)

    def draft_ms(self, drafter: str, num_sessions: int) -> Floats | None:  # [D + 1]
        """Expected time of a call by depth; 0 at depth 0, which makes none. None before the first call."""
        cost = self.draft_costs[drafter]
        depths = range(1, self.limits[drafter].max_depth + 1)
        times = [cost.ms(num_sessions, depth) for depth in depths]
        known = [ms for ms in times if ms is not None]
        return np.asarray([0.0, *known]) if len(known) == len(times) else None

    def round_done(self, session: Session, committed: int, round_ms: float, plain_tokens_per_second: float) -> None:
        """A session's round against what plain decoding would have made; 0 where that is not known."""
        if session.drafter is not None and plain_tokens_per_second > 0 and round_ms > 0:
            self.paying.round_done(session.drafter, committed, round_ms, plain_tokens_per_second)


    def standings(self) -> dict[str, Standing]:
        """Every drafter, by name."""
        found = {}
        for name in self.limits:
            correction = self.corrector.metrics(name)
            found[name] = Standing(
                self.paying.ratio(name), self.paying.may_draft(name), correction.served_ece, correction.corrected_ece, correction.drift
            )
        return found


class TargetEconomy:
    """The books of one lane."""

    def __init__(self, economy: Economy, curve: ThroughputCurve | None, max_rows: int) -> None:
        """`curve` is what the replica measured when it started; without one, real steps will have to do."""
        self._economy = economy
        self._max_rows = max_rows
        self.curve = OnlineCurve(curve)
        self._sessions: dict[SessionId, Session] = {}
        self._decided: dict[Regime, DraftLimits] = {}
        """For a few steps: all sessions of a regime are told the same."""
        self._off: set[str] = set()
        """Drafters that were found switched off when that was decided."""
        self._to_explore: Counter[Regime] = Counter()
        """Rounds that are still to be drafted in full."""
        self._steps_decided = 0
        self._to_learn: list[Verified] = []
        self._table: Floats | None = None
        self._mean_kept = 0.0
        """Candidates verified per session and round."""

    @property
    def num_sessions(self) -> int:
        """Sessions that live on this target."""
        return len(self._sessions)

    def enter(self, session: Session) -> None:
        """A session came to this target."""
        self._sessions[session.session_id] = session
        self._decide_anew()

    def leave(self, session: Session) -> None:
        """A session is over."""
        self._sessions.pop(session.session_id, None)
        self._decide_anew()

    def costs(self, draft_ms: float = 0.0) -> RoundCosts | None:
        """Of a round at the sessions' present length; None while nothing is known of the target."""
        if self._table is None:
            lengths = [session.base_length for session in self._sessions.values()]
            self._table = self.curve.table(self._max_rows, float(np.mean(lengths)) if lengths else 0.0)
        if self._table is None:
            return None
        return RoundCosts(self._table, self.curve.round_overhead_ms, draft_ms)

    def draft_limits(self, session: Session) -> DraftLimits:
        """How much to draft for a session's coming round."""
        assert session.drafter is not None, "only sessions with a drafter ask"
        regime = (session.drafter, session.sampling.temperature == 0)
        if regime not in self._decided:
            self._decided[regime] = self._decide(*regime)
        if self._to_explore[regime] > 0:
            self._to_explore[regime] -= 1
            return self._economy.limits[session.drafter]
        return self._decided[regime]

    def plan(self, waiting: Sequence[Waiting]) -> Plan:
        """Which candidates go to the target in the step that is about to begin."""
        if not any(len(w.tree) for w in waiting):  # plain decoding shall not pay for what it does not use
            return Plan({w.session.session_id: [] for w in waiting}, len(waiting), float(len(waiting)))
        trees = self._corrected(waiting)
        needs = {w.session.session_id: _need(w.session, tree) for w, tree in zip(waiting, trees, strict=True)}
        if not self._economy.planned:
            return plan(needs, self._max_rows)
        return plan(needs, self._max_rows, self.costs(float(np.mean([w.draft_ms for w in waiting]))))

    def plain_tokens_per_second(self) -> float:
        """What each session would make if all of them decoded plainly; 0 while nothing is known."""
        costs = self.costs()
        if costs is None or not self._sessions:
            return 0.0
        return 1e3 / (costs.step_of(self.num_sessions) + costs.fixed_ms)

    def load(self, tau: Callable[[Session], float]) -> TargetLoad | None:
        """What speed promises are judged by; `tau` tells what a session commits per round. None while nothing is known of the target."""
        costs, drafter = self.costs(), self._main_drafter()
        if costs is None:
            return None
        draft_ms = self._economy.draft_ms(drafter, self.num_sessions) if drafter else None
        promises = (promise_of(session, tau(session)) for session in self._sessions.values())
        return TargetLoad(
            self.num_sessions,
            tuple(promise for promise in promises if promise is not None),
            costs.step_ms,
            costs.fixed_ms,
            1.0 + self._mean_kept,
            0.0 if draft_ms is None else float(draft_ms[-1]),
        )

    def wait_ms(self, num_ready: int, drafting_ms: Sequence[float]) -> float:
        """How long the free target should wait for the drafts that have been on their way for `drafting_ms`; 0: go."""
        costs, drafter = self.costs(), self._main_drafter()
        if not (self._economy.planned and drafting_ms and drafter and costs):
            return 0.0
        expected = self._economy.draft_ms(drafter, self.num_sessions)
        if expected is None:
            return 0.0
        remaining_ms = float(expected[-1]) - min(drafting_ms)
        by_sessions = np.full(self.num_sessions + 1, expected[-1])  # the rule reads it for no other number
        shape = WaveCosts(costs, by_sessions, self._mean_kept, 1.0, overlap=self._economy.overlap)
        if remaining_ms <= 0 or not should_wait(num_ready, len(drafting_ms), remaining_ms, shape):
            return 0.0
        return remaining_ms

    def _main_drafter(self) -> str | None:
        """Of most sessions."""
        names = Counter(session.drafter for session in self._sessions.values() if session.drafter in self._economy.limits)
        return names.most_common(1)[0][0] if names else None

    def step_done(self, rows: int, verify_ms: float, round_ms: float, verified: Sequence[Verified]) -> None:
        """A step with its verdicts; `round_ms` from submit to report."""
        lengths = [v.session.base_length for v in verified]
        if lengths:
            self.curve.observe(rows, float(np.mean(lengths)), verify_ms)
            self.curve.observe_round(round_ms, verify_ms)
            mean = float(np.mean([len(v.kept) for v in verified]))
            self._mean_kept += KEPT_GAIN * (mean - self._mean_kept)
        self._table = None
        for drafter in self._off:
            self._economy.paying.round_skipped(drafter)
        self._steps_decided += 1
        if self._steps_decided >= DECISION_STEPS:
            self._decide_anew()
        self._to_learn += [v for v in verified if v.session.drafter in self._economy.limits and not v.limits.skips]
        if len(self._to_learn) >= LEARN_ROUNDS:
            learned, self._to_learn = self._to_learn, []
            self._learn(learned)

    def _decide_anew(self) -> None:
        self._decided.clear()
        self._off.clear()
        self._steps_decided = 0

    def _decide(self, drafter: str, greedy: bool) -> DraftLimits:
        economy = self._economy
        most, costs = economy.limits[drafter], self.costs()
        if not economy.planned or most.skips:
            return most
        if not economy.paying.may_draft(drafter):
            self._off.add(drafter)
            return SKIP
        profile = economy.profiles[drafter]
        if profile.next_round(drafter, greedy):
            self._to_explore[drafter, greedy] = EXPLORED_ROUNDS
        draft_ms = economy.draft_ms(drafter, max(1, self.num_sessions))
        if costs is None or draft_ms is None:
            return most
        gains = profile.gains(drafter, greedy)
        return plan_drafts(DraftOutlook(max(1, self.num_sessions), gains, draft_ms, costs, most))

    def _corrected(self, waiting: Sequence[Waiting]) -> list[CandidateTree]:
        """The trees with scores as verdicts have corrected them."""
        drafted = [w for w in waiting if len(w.tree) and w.session.drafter is not None]
        if not drafted:
            return [w.tree for w in waiting]
        batch = TreeBatch.of([w.tree for w in drafted])
        names, greedy = _regimes([w.session for w in drafted])
        scores = batch.split(self._economy.corrector.corrected_batch(batch, names, greedy))
        made = {id(w): CandidateTree(w.tree.token_ids, w.tree.parents, own) for w, own in zip(drafted, scores, strict=True)}
        return [made.get(id(w), w.tree) for w in waiting]

    def _learn(self, verified: Sequence[Verified]) -> None:
        drafted = [v for v in verified if len(v.drafted)]
        if drafted:
            batch = TreeBatch.of([v.drafted.select(v.kept) for v in drafted])
            names, greedy = _regimes([v.session for v in drafted])
            self._economy.corrector.learn_batch(batch, names, greedy, batch.accepted_mask([v.accepted for v in drafted]))
        for one in verified[:: math.ceil(len(verified) / MAX_OBSERVED)]:
            name, greedy_one = one.session.drafter, one.session.sampling.temperature == 0
            if name is not None:
                self._economy.profiles[name].observe(name, greedy_one, one.limits, one.drafted, one.kept, len(one.accepted))


def _need(session: Session, tree: CandidateTree) -> SessionNeed:
    """A lower `priority` of a request goes first, a higher one of the planner."""
    return SessionNeed(
        tree, max_nodes=session.max_nodes, min_tokens_per_second=session.min_tokens_per_second, priority=-session.priority
    )


def _regimes(sessions: Sequence[Session]) -> tuple[list[str], list[bool]]:
    return [session.drafter or "" for session in sessions], [session.sampling.temperature == 0 for session in sessions]
