"""Selective verification: which candidates of which session are worth their rows in the target's next step. Pure; no torch,
no clock.

Every session gets its anchor row. For the rest the rule is the paper's (section on confidence-scheduled verification): with
S sessions and a set of kept candidates of survivals a_i, a round is expected to commit S + sum a_i tokens and lasts
step_ms[rows] + fixed_ms + draft_ms; choose the set of the highest rate. For any number of candidates the likeliest ones are
the best, so only prefixes of one sorted list are to be compared. All of them are: a measured curve is a staircase, and a
search that stops at the first drop never gets past a step. Of prefixes within NEAR_EQUAL of the best the shortest is taken.

Looking at all candidates before choosing is lossless here, because the target's token does not depend on the tree
(DESIGN section 4); the paper's scheduler, under rejection sampling, must not do it.

Per session a floor and a cap may bind, and a speed promise (promises.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from dspark.scheduling.costs import RoundCosts, fewest_near_best
from dspark.scheduling.forest import Forest, Ints, Ranked, SessionNeed
from dspark.scheduling.promises import Promises, keep_promises
from dspark.tree import CandidateTree
from dspark.types import SessionId


@dataclass(frozen=True, slots=True)
class Plan:
    """Planner -> lane: which nodes of which session are worth their place in the next step, and what that is expected to bring."""

    kept: dict[SessionId, list[int]] = field(default_factory=dict)
    batch_tokens: int = 0
    """Rows of the step: one per session and one per kept node."""
    expected_tokens: float = 0.0
    """Sum of 1 + kept survivals: what the step is expected to commit."""
    expected_ms: float = 0.0
    """Duration of the round, all costs included; 0 where no costs were given."""
    plain_tokens_per_second: float = 0.0
    """What the same sessions would make without any drafting, so without draft_ms too; 0 where no costs were given."""
    broken_promises: tuple[SessionId, ...] = ()
    """Sessions whose promised speed this round does not reach."""

    @property
    def tokens_per_second(self) -> float:
        """Expected rate of the round; 0 where no costs were given."""
        return 1e3 * self.expected_tokens / self.expected_ms if self.expected_ms else 0.0


def plan(
    needs: Forest | Mapping[SessionId, SessionNeed | CandidateTree],
    max_rows: int,
    costs: RoundCosts | None = None,
    *,
    others_ms: float = 0.0,
) -> Plan:
    """Keep the candidates that make the fastest round of at most `max_rows` rows, anchors included; anchors always go.

    Without costs (no curve yet) all that fit are kept, likeliest first, and promises are left aside. A bare tree is a
    session without wishes. Rows beyond the largest known step are not used for candidates. `others_ms`: the round of the sessions that
    go in a step of their own before these have their next; promised speeds are counted over both.
    """
    forest = needs if isinstance(needs, Forest) else Forest.of({s: _as_need(need) for s, need in needs.items()})
    if not len(forest):
        return Plan()
    ranked, num_floor = _within_limits(forest, forest.ranked())
    most_rows = max_rows if costs is None else min(max_rows, costs.max_rows)
    budget = max(0, min(most_rows - len(forest), len(ranked.nodes)))
    if costs is None:
        chosen = ranked.only(np.arange(budget))
        return Plan(forest.kept_lists(chosen.nodes), len(forest) + budget, len(forest) + float(chosen.survival.sum()))
    return _fastest(forest, ranked, num_floor, budget, costs, others_ms)


def _as_need(need: SessionNeed | CandidateTree) -> SessionNeed:
    return need if isinstance(need, SessionNeed) else SessionNeed(need)


def _within_limits(forest: Forest, ranked: Ranked) -> tuple[Ranked, int]:
    """The candidates that caps allow, those of the floors first, and how many these are; otherwise still likeliest first."""
    if not forest.has_limits:
        return ranked, 0
    caps = np.asarray([len(ranked.nodes) if need.max_nodes is None else need.max_nodes for need in forest.needs])
    floors = np.asarray([need.floor_nodes for need in forest.needs])
    ranks = ranked.ranks()
    allowed = ranks < caps[ranked.owners]
    in_floor = allowed & (ranks < floors[ranked.owners])
    order = np.concatenate([np.flatnonzero(in_floor), np.flatnonzero(allowed & ~in_floor)])
    return ranked.only(order), int(in_floor.sum())


def _fastest(forest: Forest, ranked: Ranked, num_floor: int, budget: int, costs: RoundCosts, others_ms: float) -> Plan:
    num_sessions, num_floor = len(forest), min(num_floor, budget)
    tokens = np.full(budget + 1, float(num_sessions))  # [budget + 1] by number of kept candidates
    tokens[1:] += np.cumsum(ranked.survival[:budget])
    steps_ms = costs.steps_ms(num_sessions, num_sessions + budget)
    rounds_ms = steps_ms + (costs.fixed_ms + costs.draft_ms)
    count = num_floor + fewest_near_best(tokens[num_floor:] / rounds_ms[num_floor:])
    chosen: Ints | slice = slice(count)
    broken: tuple[SessionId, ...] = ()
    if forest.has_promises:
        promises = Promises.of(forest.needs, ranked, num_floor, others_ms)
        chosen, broken_owners = keep_promises(promises, tokens, rounds_ms, count)
        broken = tuple(forest.session_ids[owner] for owner in broken_owners)
    nodes, survival = ranked.nodes[chosen], ranked.survival[chosen]
    return Plan(
        kept=forest.kept_lists(nodes),
        batch_tokens=num_sessions + len(nodes),
        expected_tokens=num_sessions + float(survival.sum()),
        expected_ms=float(rounds_ms[len(nodes)]),
        plain_tokens_per_second=1e3 * num_sessions / (float(steps_ms[0]) + costs.fixed_ms),
        broken_promises=broken,
    )
