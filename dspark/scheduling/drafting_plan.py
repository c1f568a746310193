"""How much to draft in the coming round: how deep, how many candidates, or nothing. Pure; no torch, no clock.

Drafting that will not be verified is waste, and so is drafting that costs more time than it saves. With S sessions that
share the round, K of which are drafted for, gains[d, n] accepted tokens expected of a session that is drafted to depth d and gets
its best n candidates verified, the round's rate is

    (S + K gains[d, n]) / (step_ms[S + K n] + fixed_ms + draft_ms[d] + K max(0, n - d) side_node_ms)

and the speed of a session that is drafted for (1 + gains[d, n]) / (the same). Every depth and every number of rows are tried, depth 0
(no draft) among them; of near-equal rates the shallower draft and then the fewer rows win. Between whole numbers of candidates per
session gains are interpolated. Drafting more than is verified in the mean, min(N, SPREAD n), is tried too: the planner then chooses across
sessions, the sure ones get more, and gains grow by SPREAD_GAIN; that pays where side candidates are cheap. A width is hardly ever chosen:
drafters spend their nodes on the likeliest candidates wherever they are. But as many nodes as levels are a chain where looking for
branches, which costs about half a side candidate per level, would take more of the round than BRANCHING_GAIN.

Sessions may also go in two halves, the drafts of one hidden behind the verification of the other (waves.py): then S is the half,
and draft_ms what is left to be seen of drafting.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspark.scheduling.costs import Floats, RoundCosts, fewest_near_best

SPREAD = 1.5
"""Candidates drafted per candidate that is expected to be verified, for the planner to choose from."""
SPREAD_GAIN = 0.03
"""Of the accepted tokens, that choosing across many sessions adds: 3 to 5 % for 3 to 7 candidates of 16 sessions (docs/measurements.md)."""

BRANCHING_GAIN = 0.03
"""Of a round's tokens, that as many candidates as levels bring where they may branch: 0 to 0.06 by temperature (docs/measurements.md)."""


@dataclass(frozen=True, slots=True)
class DraftLimits:
    """What a drafter may propose to one session."""

    max_depth: int
    """0 proposes nothing; a drafter that is asked for it only reads what is new."""
    max_width: int
    """Children of one node."""
    max_nodes: int

    @property
    def num_side_nodes(self) -> int:
        """Candidates beyond a chain of that depth."""
        return max(0, self.max_nodes - self.max_depth)

    @property
    def skips(self) -> bool:
        """True if nothing is to be drafted."""
        return self.max_depth == 0


SKIP = DraftLimits(0, 0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class DraftOutlook:
    """What is known before a round is drafted. D, N: the deepest and the largest draft that the configuration allows."""

    num_sessions: int
    """That will share the round: S."""
    num_drafting: int
    """Of these, the ones that would be drafted for, all by one drafter: K, at least 1."""
    gains: Floats  # [D + 1, N + 1] expected accepted tokens of a session by depth drafted and candidates verified; 0 in row and column 0
    draft_ms: Floats  # [D + 1] by depth, for num_drafting together; index 0 is what rounds without drafts pay to it: nothing, so far
    costs: RoundCosts
    """Of the target; its own draft_ms is not read."""
    most: DraftLimits
    """What the configuration allows: depth D, N nodes."""
    side_node_ms: float = 0.0
    """What a call takes longer for each candidate beyond a chain of its session's depth."""


@dataclass(frozen=True, slots=True)
class DraftChoice:
    """Limits for every session that is drafted for, and what they are expected to bring."""

    limits: DraftLimits
    nodes_per_session: float
    """Candidates verified, of those that are drafted for."""
    tau: float
    """Tokens that one of them commits in the round."""
    gain: float
    """Rate over that of a plain round of the same sessions."""


def best_draft(outlook: DraftOutlook) -> DraftChoice:
    """The draft of the highest expected rate; SKIP where plain decoding is expected to be as fast."""
    tried = _tried(outlook)
    return _choice(outlook, tried, fewest_near_best(tried.rates.ravel()))


def promised_draft(outlook: DraftOutlook, tokens_per_second: float) -> DraftChoice:
    """The draft of the highest expected rate among those that give a session the promised speed; where none does, the one that gives
    it the highest speed."""
    tried = _tried(outlook)
    rates, tau = tried.rates, tried.tau
    others = outlook.num_sessions - outlook.num_drafting
    speeds = rates * tau / (others + outlook.num_drafting * tau)  # [D + 1, B + 1] of a session that is drafted for
    kept = speeds >= tokens_per_second
    return _choice(outlook, tried, fewest_near_best((np.where(kept, rates, 0.0) if kept.any() else speeds).ravel()))


def expected_rates(outlook: DraftOutlook) -> Floats:  # [D + 1, B + 1]
    """Tokens per second by depth and by candidates verified in the round; B as many as there are rows and candidates for."""
    return _tried(outlook).rates


@dataclass(frozen=True, slots=True, eq=False)
class _Tried:
    """Every draft, by depth and by candidates verified in the round."""

    rates: Floats  # [D + 1, B + 1]
    tau: Floats  # [D + 1, B + 1]
    spreads: NDArray[np.bool_]  # [D + 1, B + 1] where more are drafted than verified


def _choice(outlook: DraftOutlook, tried: _Tried, index: int) -> DraftChoice:
    """`index` into the flat rates."""
    rates = tried.rates
    depth, num_rows = divmod(index, rates.shape[1])
    if depth == 0 or num_rows == 0:
        return DraftChoice(SKIP, 0.0, 1.0, 1.0)
    nodes = num_rows / outlook.num_drafting
    drafted = nodes * (SPREAD if tried.spreads[depth, num_rows] else 1.0)
    max_nodes = min(outlook.most.max_nodes, max(depth, math.ceil(drafted)))
    tau = float(tried.tau[depth, num_rows])
    round_ms = 1e3 * (outlook.num_sessions + outlook.num_drafting * (tau - 1.0)) / float(rates[depth, num_rows])
    limits = DraftLimits(min(depth, max_nodes), _width(outlook, depth, max_nodes, round_ms), max_nodes)
    return DraftChoice(limits, nodes, tau, float(rates[depth, num_rows] / rates[0, 0]))


def _width(outlook: DraftOutlook, depth: int, max_nodes: int, round_ms: float) -> int:
    branches_ms = outlook.side_node_ms * outlook.num_drafting * depth / 2
    is_chain = max_nodes <= depth and branches_ms > BRANCHING_GAIN * round_ms
    return 1 if is_chain else min(outlook.most.max_width, max_nodes)


def _tried(outlook: DraftOutlook) -> _Tried:
    num_sessions, num_drafting, costs = outlook.num_sessions, outlook.num_drafting, outlook.costs
    most_nodes = outlook.gains.shape[1] - 1
    budget = max(0, min(costs.max_rows - num_sessions, num_drafting * most_nodes))
    per_session = np.arange(budget + 1) / num_drafting
    low = np.floor(per_session).astype(np.int64)
    high = np.minimum(low + 1, most_nodes)
    gains = outlook.gains[:, low] + (per_session - low) * (outlook.gains[:, high] - outlook.gains[:, low])
    steps_ms = costs.steps_ms(num_sessions, num_sessions + budget)
    chains_ms = steps_ms + costs.fixed_ms + outlook.draft_ms[:, np.newaxis]  # [D + 1, B + 1]
    drafted = np.minimum(most_nodes, SPREAD * per_session)
    spread_gains = _spread_gains(gains, per_session, drafted, num_drafting)
    rates = _rates(outlook, gains, chains_ms, per_session)
    spread_rates = _rates(outlook, spread_gains, chains_ms, drafted)
    spreads = spread_rates > rates
    return _Tried(np.where(spreads, spread_rates, rates), 1.0 + np.where(spreads, spread_gains, gains), spreads)


def _spread_gains(gains: Floats, per_session: Floats, drafted: Floats, num_drafting: int) -> Floats:  # [D + 1, B + 1]
    """With `drafted` [B + 1] candidates of each for the planner to choose `per_session` [B + 1] from in the mean."""
    surplus = (drafted - per_session) / np.maximum((SPREAD - 1.0) * per_session, 1e-9)  # [B + 1] 0..1: none where there is no room
    most = np.minimum(per_session, np.arange(len(gains))[:, np.newaxis])
    return np.minimum(gains * (1.0 + SPREAD_GAIN * (1.0 - 1.0 / num_drafting) * surplus), most)


def _rates(outlook: DraftOutlook, gains: Floats, chains_ms: Floats, drafted: Floats) -> Floats:  # [D + 1, B + 1]
    """Of rounds that take `chains_ms` [D + 1, B + 1] with chains, where `drafted` [B + 1] candidates are drafted of each session."""
    num_sessions, num_drafting = outlook.num_sessions, outlook.num_drafting
    side_nodes = num_drafting * np.maximum(0.0, drafted - np.arange(len(gains))[:, np.newaxis])
    side_nodes[0] = 0.0  # where nothing is drafted
    return np.asarray(1e3 * (num_sessions + num_drafting * gains) / (chains_ms + outlook.side_node_ms * side_nodes))
