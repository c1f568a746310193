"""Who decides in a simulated router: what is drafted for a session's next round, and which candidates go to the target.

    plain        nothing is drafted
    fixed3       chains of three, all of them verified, whatever the load
    tree         the whole tree that the drafter may draft, all of it verified
    planned      this project: planner.py chooses the candidates, drafting_plan.py how much to draft, by what acceptance_profile.py learns,
                 and waves.py when they go

A policy sees costs, counts, scores and verdicts; never what the target would have said.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dspark.bench.simulator.costs import DraftCosts, RouterCosts
from dspark.errors import ConfigError
from dspark.scheduling.acceptance_profile import AcceptanceProfile
from dspark.scheduling.costs import RoundCosts
from dspark.scheduling.curve import Floats
from dspark.scheduling.drafting_plan import SKIP, DraftLimits, DraftOutlook, expected_rates, plan_drafts
from dspark.scheduling.planner import plan
from dspark.scheduling.waves import Wave, WaveCosts, choose_wave, should_wait
from dspark.tree import CandidateTree
from dspark.types import SessionId

Kept = Mapping[SessionId, list[int]]
Trees = Mapping[SessionId, CandidateTree]
POLICIES = "plain, fixedN (N a number of positions), tree, planned"
LEARN_EVERY = 4
"""Rounds: every fourth verdict is learnt from, as a busy router would."""
NUM_EXPLORERS = 4
"""Sessions that draft in full where a round is to find out what that brings: at full load all of them would cost more than they tell."""
MEMORY = 200
"""Verdicts that the means for waves remember, about."""


@dataclass(frozen=True, slots=True, eq=False)
class Situation:
    """What is known at one target when something is decided there."""

    num_sessions: int
    """Open on this target."""
    step_ms: Floats  # [max_rows + 1] at the present context; index 0 is not read
    draft: DraftCosts
    router: RouterCosts
    one_processor: bool
    drafters_share: float
    """Sessions that one drafter serves, per session of this target."""

    @property
    def max_rows(self) -> int:
        """Of one step."""
        return len(self.step_ms) - 1

    def round_costs(self, num_sessions: int, draft_ms: float = 0.0) -> RoundCosts:
        """Of a round of so many of them."""
        return RoundCosts(self.step_ms, self.router.ms(num_sessions), draft_ms)

    def draft_ms(self, num_together: int, depth: float) -> float:
        """A drafting call for so many of this target's sessions, with what the drafter does for other targets meanwhile."""
        return self.draft.ms(max(1, round(num_together * self.drafters_share)), depth)

    def visible_draft_ms(self, num_together: int, depth: float) -> float:
        """What drafting for so many sessions adds to their round. On a processor of its own, a drafter works while the other sessions
        are verified: then it is what exceeds their step."""
        others = 0 if self.one_processor else self.num_sessions - num_together
        hidden_ms = float(self.step_ms[min(others, self.max_rows)]) if others > 0 else 0.0
        return max(0.0, self.draft_ms(num_together, depth) - hidden_ms)


class Policy(Protocol):
    """One way to serve."""

    @property
    def name(self) -> str:
        """In tables and plots."""

    def draft_limits(self, situation: Situation, place: int) -> DraftLimits:
        """What to draft for a session that begins a round. `place` counts the sessions of its target that begin at the same moment, under
        the same situation."""

    def num_to_fire(self, num_ready: int, num_drafting: int, remaining_ms: float, situation: Situation) -> int:
        """The target is idle: how many of the ready sessions go now. 0 waits for the drafts in flight, if there are any."""

    def select(self, trees: Trees, situation: Situation) -> Kept:
        """Nodes to verify, of every session that goes."""

    def learn(self, limits: DraftLimits, drafted: CandidateTree, kept: Sequence[int], num_accepted: int) -> None:
        """The verdict on one session's round; SKIP and an empty tree where nothing was drafted."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same draft, always all of it: as servers without a scheduler do. Candidates that no step has room for are left out."""

    name: str
    limits: DraftLimits

    def draft_limits(self, situation: Situation, place: int) -> DraftLimits:
        """See Policy."""
        return self.limits

    def num_to_fire(self, num_ready: int, num_drafting: int, remaining_ms: float, situation: Situation) -> int:
        """All that is ready: natural batching."""
        return num_ready

    def select(self, trees: Trees, situation: Situation) -> Kept:
        """See Policy."""
        return plan(trees, situation.max_rows).kept

    def learn(self, limits: DraftLimits, drafted: CandidateTree, kept: Sequence[int], num_accepted: int) -> None:
        """Never."""


class Planned:
    """This project's own rules, put together as routing/economy.py does but for two things that it may still learn: sessions may go in two
    alternating halves, and only NUM_EXPLORERS of them try out what full drafts would bring.
    """

    name = "planned"

    def __init__(self, most: DraftLimits) -> None:
        """`most` is what the drafter may draft."""
        self._most = most
        self._profile = AcceptanceProfile(most)
        self._num_verdicts = 0
        self._limits, self._explores = SKIP, False
        """Of the rounds that began last."""
        self._depth, self._nodes, self._tau = 0.0, 0.0, 1.0
        """Means of late rounds."""

    def draft_limits(self, situation: Situation, place: int) -> DraftLimits:
        """See Policy."""
        if place == 0:
            self._limits = self._best_limits(situation)
            self._explores = self._profile.next_round(self.name, False)
        return self._most if self._explores and place < NUM_EXPLORERS else self._limits

    def num_to_fire(self, num_ready: int, num_drafting: int, remaining_ms: float, situation: Situation) -> int:
        """See Policy."""
        drafts_ms = [situation.draft_ms(n, self._depth) for n in range(situation.num_sessions + 1)]
        overlap = 0.0 if situation.one_processor else 1.0
        costs = WaveCosts(situation.round_costs(num_ready), np.asarray(drafts_ms), self._nodes, self._tau, overlap=overlap)
        if num_drafting and should_wait(num_ready, num_drafting, remaining_ms, costs):
            return 0
        half = -(-situation.num_sessions // 2)
        splits = not self._limits.skips and num_ready > half and choose_wave(situation.num_sessions, costs).wave is Wave.TWO
        return half if splits else num_ready

    def select(self, trees: Trees, situation: Situation) -> Kept:
        """See Policy."""
        depth = max((int(tree.depths.max()) for tree in trees.values() if len(tree)), default=0)
        draft_ms = situation.visible_draft_ms(len(trees), depth) if depth else 0.0
        return plan(trees, situation.max_rows, situation.round_costs(len(trees), draft_ms)).kept

    def learn(self, limits: DraftLimits, drafted: CandidateTree, kept: Sequence[int], num_accepted: int) -> None:
        """See Policy."""
        if not limits.skips:
            if self._num_verdicts % LEARN_EVERY == 0:
                self._profile.observe(self.name, False, limits, drafted, kept, num_accepted)
            self._num_verdicts += 1
        self._depth += (limits.max_depth - self._depth) / MEMORY
        self._nodes += (len(kept) - self._nodes) / MEMORY
        self._tau += (1 + num_accepted - self._tau) / MEMORY

    def _best_limits(self, situation: Situation) -> DraftLimits:
        """By the better of two outlooks: all sessions in one round, or, where drafting can hide behind the verification of others, half of
        them at a time."""
        outlooks = [self._outlook(situation, situation.num_sessions)]
        if situation.num_sessions > 1 and not situation.one_processor:
            outlooks.append(self._outlook(situation, situation.num_sessions // 2))
        return plan_drafts(max(outlooks, key=lambda outlook: float(expected_rates(outlook).max())))

    def _outlook(self, situation: Situation, num_together: int) -> DraftOutlook:
        depths = range(1, self._most.max_depth + 1)
        return DraftOutlook(
            num_sessions=num_together,
            gains=self._profile.gains(self.name, False),
            draft_ms=np.asarray([0.0, *(situation.visible_draft_ms(num_together, depth) for depth in depths)]),
            costs=situation.round_costs(num_together),
            most=self._most,
        )


def policy_named(name: str, most: DraftLimits) -> Policy:
    """`most` is what the drafter may draft. Raises ConfigError for a word that is no policy."""
    if name == "plain":
        return Fixed(name, SKIP)
    if name == "tree":
        return Fixed(name, most)
    if name == "planned":
        return Planned(most)
    if fixed := re.fullmatch(r"fixed([1-9]\d?)", name):
        return Fixed(name, DraftLimits(int(fixed[1]), 1, int(fixed[1])))
    raise ConfigError(f"{name!r} is no policy; there are {POLICIES}", "policies")
