"""Speed promises: plans that keep `min_tokens_per_second` for the sessions that were promised it. Pure; no torch, no clock.

A session's speed is (1 + its kept survivals) / round time; where sessions go in halves, both halves' rounds count. The round time
depends on the number of kept candidates k alone, so for a given k everything follows exactly:
1. Each promised session needs its best m candidates, the fewest that reach its speed at this round time (m rises with k).
2. Promises are granted by priority, cheapest first, while their candidates fit into k. Floors come before all.
3. What is left of k goes to the sessions whose promise is broken, by survival / promised speed: that lowers the sum of their
   relative shortfalls fastest. Then to the likeliest candidates of all.
Over k the best plan is the one that keeps most promises (of the highest priority first), then falls short least, then is
fastest. With all promises kept this is: most throughput among the plans that keep them.

Search: what k could bring at best is known beforehand: the promises that would be kept, and the shortfall left, if every
session had all its candidates; and the rate of the likeliest k, promises forgotten. Values of k are tried in falling order
of this outlook, until none is left that could beat the best so far (in rate by NEAR_EQUAL at least); with light promises
that is the first. All k are looked at where there are at most MAX_TRIES; of more, the best rates of MAX_TRIES ranges, and
then the result may miss the optimum by what k varies within a range.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspark.scheduling.costs import NEAR_EQUAL
from dspark.scheduling.forest import Floats, Ints, Ranked, SessionNeed

MAX_TRIES = 32
ROUNDING = 1e-6
"""A promise missed by less, relatively, is kept: scores are float32."""

Bools = NDArray[np.bool_]
Value = tuple[float, ...]
"""Of a plan, the larger the better: promises kept by priority, minus the shortfall, tokens per millisecond."""


@dataclass(frozen=True, slots=True, eq=False)
class Promises:
    """What was promised, beside the candidates that could keep it. S sessions, n candidates."""

    ranked: Ranked
    """Floors first, then likeliest first."""
    num_floor: int
    tokens_before: Floats  # [n] what a candidate's session commits without it: 1 + the survivals of its better ones
    most_tokens: Floats  # [S] what a session commits with all its candidates
    by_relief: Ints  # [n] positions by falling survival / promised speed; those of sessions without a promise come last
    speeds: Floats  # [S] promised tokens per millisecond; 0 without a promise
    levels: Ints  # [S] 0 is the highest priority, 1 the next, ...
    others_ms: float
    """Until a session's next round may begin, beside this round: where sessions go in halves, the round of the others."""

    @classmethod
    def of(cls, needs: Sequence[SessionNeed], ranked: Ranked, num_floor: int, others_ms: float = 0.0) -> "Promises":
        """From needs [S] in the forest's order."""
        grouped = np.argsort(ranked.owners, kind="stable")
        gains = np.cumsum(ranked.survival[grouped]) - ranked.survival[grouped]
        owners = ranked.owners[grouped]
        tokens_before = np.empty(len(grouped))
        tokens_before[grouped] = 1.0 + gains - gains[np.searchsorted(owners, owners)]
        speeds = np.asarray([need.min_tokens_per_second or 0.0 for need in needs]) / 1e3
        relief = ranked.survival / np.where(speeds > 0, speeds, np.inf)[ranked.owners]
        levels = np.unique([-need.priority for need in needs], return_inverse=True)[1]
        most_tokens = _tokens(ranked, np.ones(len(ranked.nodes), np.bool_), len(needs))
        return cls(ranked, num_floor, tokens_before, most_tokens, np.argsort(-relief, kind="stable"), speeds, levels, others_ms)


@dataclass(frozen=True, slots=True, eq=False)
class _Try:
    chosen: Ints  # [k] positions in the ranked order
    broken: Ints  # indices of sessions
    value: Value


def keep_promises(promises: Promises, tokens: Floats, rounds_ms: Floats, unbound: int) -> tuple[Ints, list[int]]:
    """Positions of the chosen candidates in the ranked order, and the sessions whose promise is broken.

    tokens and rounds_ms: [budget + 1] by number of kept candidates, promises forgotten; `unbound` is the best of these numbers.
    """
    counts = _counts_to_try(tokens / rounds_ms, promises.num_floor, unbound)
    outlooks = _outlooks(promises, rounds_ms[counts], (1.0 - NEAR_EQUAL) * tokens[counts] / rounds_ms[counts])
    best = _try(promises, unbound, float(rounds_ms[unbound]))
    for outlook, count in sorted(zip(outlooks, counts.tolist(), strict=True), reverse=True):
        if outlook <= best.value:
            break
        tried = _try(promises, count, float(rounds_ms[count]))
        if tried.value > best.value:
            best = tried
    return best.chosen, best.broken.tolist()


def _counts_to_try(rates: Floats, num_floor: int, unbound: int) -> Ints:
    """Numbers of candidates, the floors' at least; the unbound optimum is tried anyway."""
    counts = np.arange(num_floor, len(rates))
    if len(counts) > MAX_TRIES:
        ranges = np.array_split(counts, MAX_TRIES)
        counts = np.asarray([num_floor, *(part[rates[part].argmax()] for part in ranges)])
    return np.unique(counts[counts != unbound])


def _outlooks(promises: Promises, rounds_ms: Floats, rates: Floats) -> list[Value]:
    """What each round of the given durations and rates, both [c], could be worth at best."""
    wanted = promises.speeds * (promises.others_ms + rounds_ms[:, np.newaxis]) * (1.0 - ROUNDING)  # [c, S]
    short = _shortfall(wanted, promises.most_tokens)
    return [
        (*_kept_by_priority(promises, row == 0), -float(row.sum()), rate) for row, rate in zip(short, rates.tolist(), strict=True)
    ]


def _shortfall(wanted: Floats, tokens: Floats) -> Floats:
    """Share of the wanted tokens that is missing; every round commits one at least."""
    return np.asarray(np.maximum(0.0, wanted - tokens) / np.maximum(wanted, 1.0))


def _try(promises: Promises, count: int, round_ms: float) -> _Try:
    """The best plan of `count` candidates."""
    ranked, wanted = promises.ranked, promises.speeds * (promises.others_ms + round_ms) * (1.0 - ROUNDING)
    size, num_sessions = len(ranked.nodes), len(promises.speeds)
    taken = np.arange(size) < promises.num_floor
    needed = ~taken & (promises.tokens_before < wanted[ranked.owners])
    num_needed = np.bincount(ranked.owners[needed], minlength=num_sessions)
    granted = _granted(promises, promises.most_tokens >= wanted, num_needed, count - promises.num_floor)
    taken |= needed & granted[ranked.owners]
    poor = (promises.speeds > 0) & ~granted
    if poor.any():
        helps = needed & poor[ranked.owners]
        _give(taken, promises.by_relief[helps[promises.by_relief]], count)
    _give(taken, np.flatnonzero(~taken), count)
    committed = _tokens(ranked, taken, num_sessions)
    short = _shortfall(wanted, committed)
    value = (*_kept_by_priority(promises, short == 0), -float(short.sum()), float(committed.sum()) / round_ms)
    return _Try(np.flatnonzero(taken), np.flatnonzero(short > 0), value)


def _tokens(ranked: Ranked, where: Bools, num_sessions: int) -> Floats:  # [S]
    return np.asarray(1.0 + np.bincount(ranked.owners[where], ranked.survival[where], num_sessions), np.float64)


def _granted(promises: Promises, reachable: Bools, needed: Ints, room: int) -> Bools:  # [S]
    """By priority, cheapest first, while there is room."""
    granted: Bools = (promises.speeds > 0) & reachable
    if int(needed[granted].sum()) <= room:
        return granted
    asking = np.flatnonzero(granted)
    granted = np.zeros(len(reachable), np.bool_)
    for session in asking[np.lexsort((needed[asking], promises.levels[asking]))].tolist():
        if needed[session] <= room:
            granted[session] = True
            room -= int(needed[session])
    return granted


def _give(taken: Bools, positions: Ints, count: int) -> None:
    """Take from the front of `positions` until `count` are taken."""
    taken[positions[: max(0, count - int(taken.sum()))]] = True


def _kept_by_priority(promises: Promises, kept: Bools) -> tuple[float, ...]:
    """Number of kept promises, highest priority first."""
    counts = np.bincount(promises.levels[kept & (promises.speeds > 0)], minlength=int(promises.levels.max()) + 1)
    return tuple(counts.tolist())
