"""How much to draft in the coming round: how deep, how many candidates, or nothing. Pure; no torch, no clock.

Drafting that will not be verified is waste, and so is drafting that costs more time than it saves. With S sessions that
share the round, gains[d, n] accepted tokens expected of a session that is drafted to depth d and gets its best n candidates
verified, the round's rate is

    S (1 + gains[d, n]) / (step_ms[S (1 + n)] + fixed_ms + draft_ms[d])

Every depth and every number of rows are tried, depth 0 (no draft) among them; of near-equal rates the shallower draft and
then the fewer rows win. Between whole numbers of candidates per session gains are interpolated.

Sessions may also go in two halves, the drafts of one hidden behind the verification of the other (waves.py): then S is the half,
and draft_ms what is left to be seen of drafting.
"""

import math
from dataclasses import dataclass

import numpy as np

from dspark.scheduling.costs import Floats, RoundCosts, fewest_near_best

SPREAD = 1.5
"""Candidates drafted per candidate that is expected to be verified: the planner chooses across sessions; some get more than the mean."""


@dataclass(frozen=True, slots=True)
class DraftLimits:
    """What a drafter may propose to one session."""

    max_depth: int
    """0 proposes nothing and only keeps the drafter's state fresh."""
    max_width: int
    """Children of one node."""
    max_nodes: int

    @property
    def skips(self) -> bool:
        """True if nothing is to be drafted."""
        return self.max_depth == 0


SKIP = DraftLimits(0, 0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class DraftOutlook:
    """What is known before a round is drafted. D, N: the deepest and the largest draft that the configuration allows."""

    num_sessions: int
    """That will share the round."""
    gains: Floats  # [D + 1, N + 1] expected accepted tokens of a session by depth drafted and candidates verified; 0 in row and column 0
    draft_ms: Floats  # [D + 1] by depth, for num_sessions together; index 0 is what keeping the drafter fresh costs
    costs: RoundCosts
    """Of the target; its own draft_ms is not read."""
    most: DraftLimits
    """What the configuration allows: depth D, N nodes."""


@dataclass(frozen=True, slots=True)
class DraftChoice:
    """Limits for every session of the round, and what they are expected to bring."""

    limits: DraftLimits
    nodes_per_session: float
    """Candidates verified."""
    tau: float
    """Tokens committed by a session in the round."""
    gain: float
    """Rate over that of a plain round of the same sessions."""


def best_draft(outlook: DraftOutlook) -> DraftChoice:
    """The draft of the highest expected rate; SKIP where plain decoding is expected to be as fast."""
    rates = expected_rates(outlook)
    depth, num_rows = divmod(fewest_near_best(rates.ravel()), rates.shape[1])
    if depth == 0 or num_rows == 0:
        return DraftChoice(SKIP, 0.0, 1.0, 1.0)
    nodes = num_rows / outlook.num_sessions
    max_nodes = min(outlook.most.max_nodes, max(depth, math.ceil(SPREAD * nodes)))
    limits = DraftLimits(min(depth, max_nodes), min(outlook.most.max_width, max_nodes), max_nodes)
    round_ms = outlook.costs.step_of(outlook.num_sessions + num_rows) + outlook.costs.fixed_ms + float(outlook.draft_ms[depth])
    rate = float(rates[depth, num_rows])
    return DraftChoice(limits, nodes, rate * round_ms / 1e3 / outlook.num_sessions, rate / float(rates[0, 0]))


def expected_rates(outlook: DraftOutlook) -> Floats:  # [D + 1, B + 1]
    """Tokens per second by depth and by candidates verified in the round; B as many as there are rows and candidates for."""
    num_sessions, costs = outlook.num_sessions, outlook.costs
    most_nodes = outlook.gains.shape[1] - 1
    budget = max(0, min(costs.max_rows - num_sessions, num_sessions * most_nodes))
    per_session = np.arange(budget + 1) / num_sessions
    low = np.floor(per_session).astype(np.int64)
    high = np.minimum(low + 1, most_nodes)
    gains = outlook.gains[:, low] + (per_session - low) * (outlook.gains[:, high] - outlook.gains[:, low])
    steps_ms = costs.steps_ms(num_sessions, num_sessions + budget)
    rounds_ms = steps_ms[np.newaxis, :] + costs.fixed_ms + outlook.draft_ms[:, np.newaxis]
    return np.asarray(1e3 * num_sessions * (1.0 + gains) / rounds_ms)
