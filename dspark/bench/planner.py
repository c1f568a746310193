"""How long a plan takes, against the number of sessions: the planner runs each time a lane fires, while the target stands idle.

Every time is the best of many runs: what the planner costs, not what else the machine was doing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dspark.config import DrafterConfig
from dspark.deepspec.cards import markdown_table
from dspark.routing.economy import Economy
from dspark.routing.rounds import Waiting
from dspark.routing.target_economy import TargetEconomy
from dspark.scheduling.costs import RoundCosts
from dspark.scheduling.curve import ThroughputCurve
from dspark.scheduling.forest import Forest, SessionNeed
from dspark.scheduling.planner import plan
from dspark.session import Session
from dspark.tree import ANCHOR, CandidateTree
from dspark.types import SamplingParams, SessionId, StopRules

SESSIONS = (1, 4, 16, 64, 256)
NUM_NODES = 16
DRAFTER = "bench"
REPEATS = 300
SEED = 0
EASY_SHARE, HARD_SHARE = 0.5, 1.15
"""Promised speed as a share of what one session gets in a round without promises."""


@dataclass(frozen=True, slots=True)
class PlannerTimes:
    """Best times in ms at one number of sessions."""

    num_sessions: int
    num_kept: int
    plan_ms: float
    """The planner alone, from the forest to the plan."""
    routed_ms: float
    """All that the router does before a step: scores corrected by verdicts, forest, costs of the round and plan."""
    easy_promises_ms: float
    hard_promises_ms: float
    """Promises for all, some of which cannot be kept."""


def planner_times(
    sessions: Sequence[int] = SESSIONS, num_nodes: int = NUM_NODES, repeats: int = REPEATS, seed: int = SEED
) -> list[PlannerTimes]:
    """Random trees of honest scores on a staircase of a curve; the trees' depths are known, as after the check on arrival."""
    return [_times(num_sessions, num_nodes, repeats, np.random.default_rng(seed)) for num_sessions in sessions]


def planner_table(times: Sequence[PlannerTimes], title: str) -> str:
    """The times as a Markdown table."""
    curves = planner_curves(times)
    rows = [
        [str(one.num_sessions), str(one.num_kept), *(f"{curve[index]:.3f}" for curve in curves.values())] for index, one in enumerate(times)
    ]
    return f"{title}\n\n{markdown_table(['sessions', 'kept', *curves], rows)}"


def planner_title(num_nodes: int = NUM_NODES, repeats: int = REPEATS, seed: int = SEED) -> str:
    """What was timed."""
    return f"Planner, {num_nodes} candidates per session, best of {repeats} runs, ms (seed {seed})"


def planner_curves(times: Sequence[PlannerTimes]) -> dict[str, list[float]]:
    """What table and picture show: label -> ms at each number of sessions."""
    return {
        "plan": [one.plan_ms for one in times],
        "with all the router does before it": [one.routed_ms for one in times],
        "plan, light promises": [one.easy_promises_ms for one in times],
        "plan, some promises broken": [one.hard_promises_ms for one in times],
    }


def staircase_costs(max_rows: int) -> RoundCosts:
    """A curve as GPUs have it: flat within a tile of 64 rows, a jump after it."""
    rows = np.arange(max_rows + 1)
    return RoundCosts(10.0 + 0.02 * rows + 0.5 * (rows // 64), fixed_ms=2.0, draft_ms=3.0)


def random_tree(draw: np.random.Generator, num_nodes: int) -> CandidateTree:
    """Any shape; survival falls from parent to child."""
    parents = np.asarray([draw.integers(ANCHOR, node) if node else ANCHOR for node in range(num_nodes)], np.int32)
    survival = draw.random(num_nodes).astype(np.float32)
    for node, parent in enumerate(parents.tolist()):
        survival[node] *= 1.0 if parent == ANCHOR else survival[parent]
    tree = CandidateTree(np.arange(num_nodes, dtype=np.int32), parents, survival)
    _ = tree.depths  # computed once and kept with the tree
    return tree


def _times(num_sessions: int, num_nodes: int, repeats: int, draw: np.random.Generator) -> PlannerTimes:
    needs = {SessionId(f"session-{i}"): SessionNeed(random_tree(draw, num_nodes)) for i in range(num_sessions)}
    max_rows = num_sessions * (1 + num_nodes)
    costs = staircase_costs(max_rows)
    forest, usual = Forest.of(needs), plan(needs, max_rows, costs)
    share = usual.tokens_per_second / num_sessions
    easy, hard = (_promised(needs, factor * share) for factor in (EASY_SHARE, HARD_SHARE))
    return PlannerTimes(
        num_sessions,
        usual.batch_tokens - num_sessions,
        _best_ms(lambda: plan(forest, max_rows, costs), repeats),
        _best_ms(_router_plan(needs, max_rows, costs), repeats),
        _best_ms(lambda: plan(easy, max_rows, costs), repeats),
        _best_ms(lambda: plan(hard, max_rows, costs), max(1, repeats // 10)),
    )


def _router_plan(needs: dict[SessionId, SessionNeed], max_rows: int, costs: RoundCosts) -> Callable[[], object]:
    """One lane's books with sessions that live there, every tree of which has had a verdict."""
    economy = Economy({DRAFTER: DrafterConfig(kind="lookup")})
    curve = ThroughputCurve(np.arange(1, max_rows + 1), np.zeros(1, np.int64), costs.step_ms[np.newaxis, 1:])
    books = TargetEconomy(economy, curve, max_rows)
    waiting = [Waiting(Session(name, (1,), SamplingParams(), StopRules(1)), need.tree) for name, need in needs.items()]
    for one in waiting:
        one.session.drafter = DRAFTER
        books.enter(one.session)
        economy.corrector.learn(DRAFTER, False, one.tree, [])
    economy.draft_done(DRAFTER, len(waiting), 1, costs.draft_ms)
    return lambda: books.plan(waiting)


def _promised(needs: dict[SessionId, SessionNeed], tokens_per_second: float) -> Forest:
    return Forest.of({s: SessionNeed(need.tree, min_tokens_per_second=tokens_per_second) for s, need in needs.items()})


def _best_ms(run: Callable[[], object], repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return 1e3 * best
