"""The throughput curve as it is now: corrected by what real steps took, or built from them alone where nobody profiled the target.

A step in service costs more than the bare forward that was profiled. Most of it goes by sessions, whatever they have verified (their
noise, their walk, their taps, caches of their own to read), so that plain steps tell what steps with candidates will cost: one term is
added, so much per session. What is left, a slower machine above all, is a factor that all late steps share, and each row count's own
distance from it. Robust: one step may move little, however odd it was. Forgetful: evidence decays with every step, and a distance without
evidence goes back to its neighbours' and to none.

No clock: "lately" is counted in steps. Symbols: M row counts of the profile, n = max_rows + 1.
"""

import math
import statistics
from collections import deque

import numpy as np

from dspark.scheduling.curve import Floats, Ints, ThroughputCurve, find_jumps, isotonic, sessions_measured, staircase
from dspark.scheduling.robust_mean import RobustMean

STEP_DECAY = 0.999
"""Of all evidence, with every step: half of it is forgotten after about 700 steps."""
LATE_GAIN = 0.1
"""Of what a step differs from the factor that late steps share: what changes of a sudden is the machine, and that for all of them."""
OWN_DECAY = 0.99
"""Of a row count's evidence, with every step of about that size: it remembers about 100."""
SESSION_DECAY = 0.98
"""Of what a session adds to a step, with every step that it is learned of."""
MANY_MORE = 1.5
"""Times as many sessions, or as few, where that is learned nearly from the beginning, and a plain step is to be measured anew."""
MOST_SESSIONS_BEYOND = 2.0
"""Of the sessions that it was learned of: more of them are not taken to add more until they are seen."""
MAX_SURPRISE = 1.5
"""A step counts as at most half as long again as was expected, or two thirds of it."""
PRIOR_WEIGHT = 2.0
"""Steps that what is known from elsewhere counts for."""
OWN_PRIOR_WEIGHT = 1.0
"""The same of what a row count's own distance leans on: a plain step in thirty must be enough to know them by."""
LEAST_WEIGHT = 0.05
"""In steps, of a row count that was not seen."""
NEIGHBOUR_REACH = 0.35
"""Octaves of rows over which evidence of a neighbour falls to 1/e."""

MIN_ROW_COUNTS = 3
KEPT_STEPS = 25
EXACT_ROWS = 8


class OnlineCurve:
    """One target replica's curve as one router sees it. Owner: the lane to that replica."""

    def __init__(self, profile: ThroughputCurve | None = None) -> None:
        """`profile` is what the replica measured at its start; None: steps will have to do."""
        self._own = _OwnCurve()
        self._corrections = None if profile is None else _Corrections(profile)
        self._overhead = RobustMean()

    def observe(self, rows: int, context_tokens: float, step_ms: float, num_sessions: int | None = None) -> None:
        """A step of the target (`StepReport.batch_rows`, `verify_ms`); `context_tokens` as in ThroughputCurve. No rows, no news.
        `num_sessions` shared it; None: as many as when the curve was measured."""
        if rows < 1 or not 0.0 < step_ms < math.inf:
            return
        if self._corrections is None:
            self._own.observe(rows, step_ms)
        else:
            self._corrections.observe(rows, context_tokens, step_ms, num_sessions)

    def observe_round(self, round_ms: float, verify_ms: float) -> None:
        """How long the lane waited from submit to report, and what the target says that its step took."""
        self._overhead.observe(max(0.0, round_ms - verify_ms))

    @property
    def session_ms(self) -> float:
        """What each session adds to a step, as learned; part of `table`. 0 without a profile."""
        return 0.0 if self._corrections is None else self._corrections.session_ms

    @property
    def round_overhead_ms(self) -> float:
        """What a round costs beside the step: wire, queue, bookkeeping. 0 until a round was seen."""
        return self._overhead.mean

    def table(self, max_rows: int, context_tokens: float, num_sessions: int | None = None) -> Floats | None:
        """[n] time of a step by its rows, in ms, never falling; entry 0 is 0. None while nothing is known. `num_sessions` as in `observe`.

        Without a profile that is until steps of three clearly different row counts were seen.
        """
        if self._corrections is None:
            return self._own.table(max_rows)
        return self._corrections.table(max_rows, context_tokens, num_sessions)


class _Corrections:
    """What a session adds, and log(real / expected with that): a factor that all late steps share, for the machine's mood, and for each row
    count its own distance from it, which lasts: plain steps and steps with candidates are of different row counts, seen at different
    times, and must be compared as if they were of one time. What is known of one row count counts a little for its neighbours.
    """

    def __init__(self, profile: ThroughputCurve) -> None:
        self._profile = profile
        octaves = np.log2(profile.rows)
        reach = np.exp(-np.abs(octaves[:, None] - octaves[None, :]) / NEIGHBOUR_REACH)
        self._reach: Floats = reach - np.eye(len(octaves))  # [M, M] nothing of oneself
        self._octaves: Floats = octaves  # [M]
        self._distance_sums = np.zeros(len(octaves))  # [M] decayed: log of real over what was expected without this distance
        self._weights = np.zeros(len(octaves))  # [M] steps in it
        self._distances = np.zeros(len(octaves))  # [M]
        self._late_log = 0.0
        """Of the factor that late steps share."""
        self._num_steps = 0
        self._knows_plain = False
        self._added = (0.0, 0.0)
        """Faded sums over steps: ms beyond the profile times sessions, and sessions squared, both over the profiled ms squared."""
        self._usual_sessions = _DecayedMean(SESSION_DECAY)
        """Of these steps."""

    def observe(self, rows: int, context_tokens: float, step_ms: float, num_sessions: int | None) -> None:
        profiled_ms = float(self._profile.step_ms_of([rows], self._contexts(context_tokens, num_sessions))[0])
        sessions = int(sessions_measured(rows)) if num_sessions is None else num_sessions
        nearest = int(np.argmin(np.abs(self._octaves - math.log2(rows))))
        distance = float(self._distances[nearest])
        expected_ms = self._shared_ms(profiled_ms, sessions) * math.exp(distance)
        seen_ms = min(max(step_ms, expected_ms / MAX_SURPRISE), expected_ms * MAX_SURPRISE)
        # One after the other, the later from what the earlier leave: nothing must be learned twice.
        self._learn_added(seen_ms - profiled_ms, rows, sessions, profiled_ms)
        self._num_steps += 1
        beside_it = math.log(seen_ms / self._shared_ms(profiled_ms, sessions)) - distance
        self._late_log += max(LATE_GAIN, 1.0 / (self._num_steps + PRIOR_WEIGHT)) * beside_it
        self._distance_sums *= STEP_DECAY
        self._weights *= STEP_DECAY
        left = math.log(seen_ms / self._shared_ms(profiled_ms, sessions))
        self._distance_sums[nearest] = OWN_DECAY * self._distance_sums[nearest] + left
        self._weights[nearest] = OWN_DECAY * self._weights[nearest] + 1.0
        self._distances = self._estimate()

    def table(self, max_rows: int, context_tokens: float, num_sessions: int | None) -> Floats:
        """[n] as in OnlineCurve. The stairs are the profile's."""
        sessions = sessions_measured(self._profile.rows) if num_sessions is None else num_sessions
        profiled_ms = self._profile.at_context(self._contexts(context_tokens, num_sessions))
        times = (profiled_ms + self._added_ms(sessions)) * np.exp(self._late_log + self._distances)
        times = self._never_falling(times, 1 if num_sessions is None else num_sessions)
        return staircase(self._profile.rows, times, np.arange(max_rows + 1), self._profile.jumps)

    def _never_falling(self, times: Floats, num_sessions: int) -> Floats:
        """[M] of steps that so many sessions share. Those of fewer rows were without some of them, and often slow for the reason why: they
        must not tell what whole steps take, which are learned of where they are nearest."""
        whole = int(np.argmin(np.abs(self._octaves - math.log2(num_sessions))))
        weights = self._weights + LEAST_WEIGHT
        above = _pooled_means(times[whole:], weights[whole:])
        return np.concatenate((_pooled_means(np.minimum(times[:whole], above[0]), weights[:whole]), above))

    def _learn_added(self, added_ms: float, rows: int, num_sessions: int, profiled_ms: float) -> None:
        """Of plain steps once there are any: others may take longer for other reasons, as behind drafting that emptied the caches of a CPU.

        Least squares of relative errors: a long step of few sessions, that carries the prompts of many, says little of what one adds. It
        takes a slower machine for sessions that add more; what that was worth is soon forgotten where their number has changed.
        """
        is_plain = rows == num_sessions
        if self._knows_plain and not is_plain:
            return
        weight = (num_sessions / profiled_ms) ** 2
        usual = self._usual_sessions.mean_over(num_sessions)
        is_new = is_plain and not self._knows_plain
        if is_new or not usual / MANY_MORE <= num_sessions <= usual * MANY_MORE or not self._added[1]:
            added_so_far_ms = self.session_ms * min(usual, num_sessions)  # by all together: it may have been of the step
            self._added = (PRIOR_WEIGHT * weight * added_so_far_ms / num_sessions, PRIOR_WEIGHT * weight)
            self._usual_sessions = _DecayedMean(SESSION_DECAY)
        self._knows_plain |= is_plain
        self._usual_sessions.add(num_sessions)
        self._added = (
            SESSION_DECAY * self._added[0] + added_ms * num_sessions / profiled_ms**2,
            SESSION_DECAY * self._added[1] + weight,
        )

    @property
    def session_ms(self) -> float:
        """Added by each session. A target that is faster than it was when it was profiled is so by a factor."""
        return max(0.0, self._added[0] / self._added[1]) if self._added[1] else 0.0

    def _added_ms(self, num_sessions: int | Ints) -> Floats:
        """By so many together."""
        return self.session_ms * self._sessions_that_add(num_sessions)

    def _shared_ms(self, profiled_ms: float, num_sessions: int) -> float:
        """Expected of such a step without its row count's own distance."""
        return (profiled_ms + float(self._added_ms(num_sessions))) * math.exp(self._late_log)

    def _sessions_that_add(self, num_sessions: int | Ints) -> Floats:
        """Part of what is added may be of the step, not of sessions: of more sessions it is not taken for more than twice what was seen."""
        most = MOST_SESSIONS_BEYOND * max(1.0, self._usual_sessions.mean_over(1.0))
        return np.asarray(np.minimum(num_sessions, most), np.float64)

    def _contexts(self, context_tokens: float, num_sessions: int | None) -> float | Floats:
        return context_tokens if num_sessions is None else self._profile.contexts_of(num_sessions, context_tokens)

    def _estimate(self) -> Floats:
        """[M] own evidence, over that of the neighbours, over none: as far as all others."""
        near = self._reach @ self._distance_sums / (self._reach @ self._weights + PRIOR_WEIGHT)
        estimate: Floats = (self._distance_sums + OWN_PRIOR_WEIGHT * near) / (self._weights + OWN_PRIOR_WEIGHT)
        return estimate


class _OwnCurve:
    """Medians of the last steps, by row count: exact for few rows, four buckets an octave for more."""

    def __init__(self) -> None:
        self._steps: dict[int, deque[tuple[int, float]]] = {}
        self._medians: dict[int, tuple[int, float]] = {}

    def observe(self, rows: int, step_ms: float) -> None:
        bucket = rows if rows <= EXACT_ROWS else EXACT_ROWS + math.ceil(4 * math.log2(rows / EXACT_ROWS))
        steps = self._steps.setdefault(bucket, deque(maxlen=KEPT_STEPS))
        steps.append((rows, step_ms))
        self._medians[bucket] = (statistics.median_low(r for r, _ in steps), statistics.median(ms for _, ms in steps))

    def table(self, max_rows: int) -> Floats | None:
        """[n] whatever the context; None until there are enough row counts to see a slope."""
        if len(self._medians) < MIN_ROW_COUNTS:
            return None
        rows, step_ms = zip(*sorted(self._medians.values()), strict=True)
        points: Ints = np.asarray(rows)
        times = isotonic(np.asarray(step_ms, np.float64))
        return staircase(points, times, np.arange(max_rows + 1), find_jumps(points, times))


def _pooled_means(values: Floats, weights: Floats) -> Floats:
    """[M] the never falling sequence nearest to `values` in weighted squares: what was seen overrules what was inferred."""
    if bool(np.all(values[1:] >= values[:-1])):
        return values
    pools: list[tuple[float, float, int]] = []  # mean, weight, length
    for mean, weight in zip(values.tolist(), weights.tolist(), strict=True):
        length = 1
        while pools and pools[-1][0] > mean:
            other_mean, other_weight, other_length = pools.pop()
            mean = (mean * weight + other_mean * other_weight) / (weight + other_weight)
            weight, length = weight + other_weight, length + other_length
        pools.append((mean, weight, length))
    return np.repeat([mean for mean, _, _ in pools], [length for _, _, length in pools])


class _DecayedMean:
    """Of the last 1 / (1 - decay) values or so."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._sum = 0.0
        self._weight = 0.0

    def add(self, value: float) -> None:
        self._sum = self._decay * self._sum + value
        self._weight = self._decay * self._weight + 1.0

    def mean_over(self, prior: float) -> float:
        """With the prior counting for PRIOR_WEIGHT values."""
        return (self._sum + PRIOR_WEIGHT * prior) / (self._weight + PRIOR_WEIGHT)
