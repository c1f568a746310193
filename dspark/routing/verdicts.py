"""What one lane's verdicts on drafts teach: they correct the scores of later candidates, and tell what drafts are worth."""

import math
from collections.abc import Sequence

from dspark.routing.economy import Economy, regime_of
from dspark.routing.rounds import Verified, Waiting
from dspark.scheduling.acceptance_profile import FIRST_DRAFTS, MEMORY
from dspark.scheduling.correction import origins_of
from dspark.scheduling.tree_batch import TreeBatch
from dspark.session import Session
from dspark.tree import FloatArray

MAX_OBSERVED = 8
"""Of the rounds learned from together, those whose gains are read off; more would cost the event loop more than they tell."""
LEARN_ROUNDS = 16
"""Rounds of sessions that are learned from together: sixteen cost little more than one. The first drafts are learned from at once."""
MEMORY_STEPS = 64
"""Steps of the target whose drafts are remembered: what they are worth changes with the texts, a few tokens of each session with a step.
The luck of as many drafts as one session has in them would be too little for a decision on many."""
MOST_MEMORY = 256


class Verdicts:
    """Belongs to the books of one target; what is learned goes to the router's."""

    def __init__(self, economy: Economy) -> None:
        self._economy = economy
        self._to_learn: list[Verified] = []

    def learn_when_due(self, verified: Sequence[Verified]) -> bool:
        """True if something was learned that is worth a new decision at once."""
        drafted = [v for v in verified if v.session.drafter in self._economy.limits and not v.limits.skips]
        self._to_learn += drafted
        is_new = any(self._is_new(v) for v in drafted)
        if is_new or len(self._to_learn) >= LEARN_ROUNDS:
            learned, self._to_learn = self._to_learn, []
            self._learn(learned)
        return is_new

    def _is_new(self, verified: Verified) -> bool:
        """One of its regime's first drafts."""
        regime = regime_of(verified.session)
        return regime is not None and self._economy.profiles[regime[0]].num_drafts(*regime) < FIRST_DRAFTS

    def corrected_scores(self, waiting: Sequence[Waiting]) -> FloatArray:  # [n] of all trees, one after the other
        """As verdicts have corrected them."""
        drafted = [w for w in waiting if len(w.tree)]
        trees = [w.tree for w in drafted]
        names, greedy = _regimes([w.session for w in drafted])
        return self._economy.corrector.corrected_batch(TreeBatch.of(trees), names, greedy, origins_of(trees))

    def _learn(self, verified: Sequence[Verified]) -> None:
        drafted = [v for v in verified if len(v.drafted)]
        if drafted:
            trees = [v.drafted.select(v.kept) for v in drafted]
            batch = TreeBatch.of(trees)
            names, greedy = _regimes([v.session for v in drafted])
            accepted = batch.accepted_mask([v.accepted for v in drafted])
            self._economy.corrector.learn_batch(batch, names, greedy, accepted, origins_of(trees))
        observed = verified[:: math.ceil(len(verified) / MAX_OBSERVED)]
        memory = _memory(verified, len(observed))
        for one in observed:
            name, greedy_one = one.session.drafter, one.session.sampling.temperature == 0
            if name is not None:
                self._economy.profiles[name].observe(name, greedy_one, one.limits, one.drafted, one.kept, len(one.accepted), memory)


def _memory(verified: Sequence[Verified], num_observed: int) -> int:
    """Drafts to remember, of rounds of some sessions of which so many are observed."""
    num_sessions = len({one.session.session_id for one in verified})
    num_steps = len(verified) / num_sessions
    return min(MOST_MEMORY, max(MEMORY, round(MEMORY_STEPS * num_observed / num_steps)))


def _regimes(sessions: Sequence[Session]) -> tuple[list[str], list[bool]]:
    return [session.drafter or "" for session in sessions], [session.sampling.temperature == 0 for session in sessions]
