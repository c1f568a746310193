"""What is drafted to find out what that brings, at an expected loss, and by how many sessions: a few of them, or all at once. A call for
all takes longer and tells more; whichever tells more for what it costs is tried, as far as the purse (scheduling/exploration.py) pays.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from dspark.routing.economy import Economy, Regime
from dspark.scheduling.drafting_plan import DraftChoice, DraftLimits, DraftOutlook, best_draft

FEW_EXPLORERS = 4
"""Sessions that try at the same time, where not all do."""
WORTH_FINDING_OUT = 1.05
"""Hoped speed over plain that is explored for."""


@dataclass(frozen=True, slots=True)
class ToTry:
    """Once, by each of so many sessions."""

    limits: DraftLimits
    num_sessions: int
    price_rounds: float = 0.0
    """What is lost by it if it brings what is most expected, in plain rounds."""


def first_try(limits: DraftLimits, num_drafting: int) -> ToTry:
    """Before the first draft, when nobody knows what it costs."""
    return ToTry(limits, min(num_drafting, FEW_EXPLORERS))


def worth_trying(
    economy: Economy, regime: Regime, outlook: DraftOutlook, expected: DraftChoice | None, told_ms: Callable[[int], float]
) -> ToTry | None:
    """What would be drafted if drafts were as good and as cheap as they may still be; or else what is `expected` to pay, where that is not
    known well yet. None where neither is worth it. `told_ms`: what telling so many sessions' drafters takes."""
    cheap_ms = economy.hoped_draft_ms(regime, outlook.num_drafting)
    tried = best_draft(replace(outlook, draft_ms=cheap_ms, gains=economy.profiles[regime[0]].hopeful(*regime)))
    if tried.gain < WORTH_FINDING_OUT:
        if expected is None or expected.gain < WORTH_FINDING_OUT:
            return None
        tried = expected
    counts = (min(outlook.num_drafting, FEW_EXPLORERS), outlook.num_drafting)
    prices = {count: _price_rounds(economy, regime, outlook, tried, count, told_ms(count)) for count in counts}
    payable = [count for count in prices if prices[count] <= economy.explorations[regime].purse_rounds] or [counts[0]]
    best = min(payable, key=lambda count: (prices[count] / count, -count))
    return ToTry(tried.limits, best, prices[best])


def _price_rounds(
    economy: Economy, regime: Regime, outlook: DraftOutlook, tried: DraftChoice, count: int, told_ms: float
) -> float:
    limits, costs, num_sessions = tried.limits, outlook.costs, outlook.num_sessions
    draft_ms = float(economy.believed_draft_ms(regime, count)[limits.max_depth])
    added_ms = draft_ms + economy.side_ms(regime[0], count * limits.num_side_nodes) + told_ms
    nodes = round(tried.nodes_per_session)
    won = count * float(outlook.gains[limits.max_depth, nodes]) / num_sessions
    return max(0.0, (costs.round_of(num_sessions + count * nodes) + added_ms) / costs.round_of(num_sessions) - 1.0 - won)
