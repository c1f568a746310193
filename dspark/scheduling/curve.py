"""What one step of the target costs, by the rows of its batch and the context behind them. Jagged on purpose. Pure; no torch, no clock.

The paper looks up SPS(B), steps per second at B rows, in a table profiled once at start-up (its section on confidence-scheduled
verification); here it is the time of a step, which adds up with the other costs of a round. There is no default curve: without
measurements there is none, and whoever plans has to know. verifying/profile.py measures, curve_file.py keeps, online_curve.py
corrects it from real steps.

Symbols: M measured row counts, C measured contexts, n row counts asked for.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dspark.errors import InvalidMessage

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_POINTS = 4096
"""Rows times contexts of one curve."""
MAX_STEP_MS = 1e7
MAX_ROWS = 2**20
MAX_CONTEXT_TOKENS = 2**24
ROWS_PER_SESSION = 8
LEAST_SESSIONS = 8
SLOT_ROWS = 4.0
"""To read a cached token's keys and values costs about as much as to attend to it with so many rows (runtime/grouping.py)."""
JUMP_SLOPE = 3.0
JUMP_RISE = 0.1


@dataclass(frozen=True, eq=False)
class ThroughputCurve:
    """Measured times of steps. Between contexts they are read off a line, between rows off a line or a stair (`staircase`)."""

    rows: Ints  # [M] ascending: anchors and candidates of all sessions
    context_tokens: Ints  # [C] ascending: cached tokens of the session that a row belongs to, on average over the rows
    step_ms: Floats  # [C, M] never falling along either axis

    @staticmethod
    def from_samples(samples: Mapping[tuple[int, int], Sequence[float]]) -> "ThroughputCurve":
        """The curve behind raw measurements: (rows, context_tokens) -> times in ms. A point's time is the median of its samples.

        Then `isotonic` along rows and along contexts: a single odd point is outvoted by its neighbours, a true jump stays. Row counts
        that were not measured at every context are left out. Raises ValueError if nothing is left.
        """
        contexts = sorted({context for _, context in samples})
        rows = [count for count in sorted({count for count, _ in samples}) if all((count, context) in samples for context in contexts)]
        if not rows:
            raise ValueError("no row count was measured at every context")
        medians = np.asarray([[statistics.median(samples[count, context]) for count in rows] for context in contexts])
        # The second pass cannot undo the first: pooling keeps the order of two columns that were in order everywhere.
        monotone = np.apply_along_axis(isotonic, 0, np.apply_along_axis(isotonic, 1, medians))
        return ThroughputCurve(np.asarray(rows), np.asarray(contexts), monotone)

    def contexts_of(self, num_sessions: int, context_tokens: float) -> Floats:
        """[M] contexts at which the sessions that were measured have as much to read and to attend to as so many real ones: 32 plain
        sessions read four times what the eight with four rows each did that stand for 32 rows in the curve."""
        measured = sessions_measured(self.rows)
        return np.asarray(context_tokens * (SLOT_ROWS * num_sessions + self.rows) / (SLOT_ROWS * measured + self.rows))

    def step_ms_of(self, rows: ArrayLike, context_tokens: ArrayLike) -> Floats:
        """[n] for rows [n] >= 0. No rows cost nothing. Beyond the last measured row count the time goes on rising (`staircase`)."""
        return staircase(self.rows, self.at_context(context_tokens), rows, self.jumps)

    def table(self, max_rows: int, context_tokens: float) -> Floats:
        """[max_rows + 1] time of a step by its rows, in ms; entry 0 is 0."""
        return self.step_ms_of(np.arange(max_rows + 1), context_tokens)

    @cached_property
    def jumps(self) -> Ints:
        """Indices of the points that are the last of a stair: on average over contexts, because stairs come from kernels."""
        return find_jumps(self.rows, self.step_ms.mean(axis=0))

    def at_context(self, context_tokens: ArrayLike) -> Floats:
        """[M] times at the measured row counts, at one context or [M] one for each. Below the first context it is the first's; beyond the
        last the last line goes on."""
        if len(self.context_tokens) == 1:
            only: Floats = self.step_ms[0]
            return only
        asked = np.maximum(np.broadcast_to(np.asarray(context_tokens, np.float64), self.rows.shape), self.context_tokens[0])
        lower = np.minimum(np.searchsorted(self.context_tokens, asked, side="right") - 1, len(self.context_tokens) - 2)  # [M]
        low, high = self.context_tokens[lower], self.context_tokens[lower + 1]
        places = np.arange(len(self.rows))
        low_ms, high_ms = self.step_ms[lower, places], self.step_ms[lower + 1, places]
        return isotonic(low_ms + (asked - low) / (high - low) * (high_ms - low_ms))

    def check(self) -> None:
        """Raise InvalidMessage, naming the field, unless it is a curve; run on each one that comes from elsewhere."""
        _check_axis("rows", self.rows, 1, MAX_ROWS)
        _check_axis("context_tokens", self.context_tokens, 0, MAX_CONTEXT_TOKENS)
        shape = (len(self.context_tokens), len(self.rows))
        if shape[0] * shape[1] > MAX_POINTS:
            raise InvalidMessage(f"rows and context_tokens make more than {MAX_POINTS} points", "rows")
        if self.step_ms.shape != shape:
            raise InvalidMessage(f"step_ms must have the shape {list(shape)}", "step_ms")
        if not bool(np.all((self.step_ms > 0) & (self.step_ms <= MAX_STEP_MS))):  # false for NaN too
            raise InvalidMessage(f"step_ms must be above 0 and at most {MAX_STEP_MS:g}", "step_ms")
        if np.any(np.diff(self.step_ms, axis=1) < 0) or np.any(np.diff(self.step_ms, axis=0) < 0):
            raise InvalidMessage("step_ms must never fall with rows or context", "step_ms")


def sessions_measured(rows: ArrayLike) -> Ints:
    """[n] sessions over which so many rows [n] are spread when a curve is measured, as far as the cache has room for them."""
    asked = np.asarray(rows, np.int64)
    return np.maximum(np.minimum(asked, LEAST_SESSIONS), -(-asked // ROWS_PER_SESSION))


def rows_to_measure(max_rows: int) -> list[int]:
    """Where a curve is measured: every count up to 8, then three more in each octave, from 64 on two; and `max_rows` itself."""
    counts = {*range(1, 9), max_rows}
    octave = 8
    while octave < max_rows:
        counts.update(octave * quarters // 4 for quarters in ((5, 6, 8) if octave < 64 else (6, 8)))
        octave *= 2
    return sorted(count for count in counts if count <= max_rows)


def staircase(points: Ints, step_ms: Floats, rows: ArrayLike, jumps: Ints) -> Floats:
    """[n] times for rows [n] >= 0, from times [M] at the measured row counts `points` [M]; `jumps` as `find_jumps` gives them.

    A line between neighbours, except across a jump: there the next stair begins at once, because tiles of matrix kernels end at the
    round numbers that were measured, so that one row more pays for a whole tile. Beyond the last point the slope of the last doubling
    goes on; of a single point, cost in proportion to rows. No rows cost nothing.
    """
    asked = np.asarray(rows, np.float64)
    beyond = np.maximum(asked - points[-1], 0.0) * _last_slope(points, step_ms)
    times: Floats = np.interp(asked, points, step_ms) + beyond
    for lower in jumps.tolist():
        times[(asked > points[lower]) & (asked <= points[lower + 1])] = step_ms[lower + 1]
    times[asked <= 0] = 0.0
    return times


def isotonic(values: Floats) -> Floats:
    """[k] the never falling sequence nearest to `values` [k] in the sum of absolute differences (pool adjacent violators).

    Pools take their lower median, not the mean: one outlier among its neighbours disappears instead of lifting them, and since a busy
    machine only ever makes times longer, of two it is the shorter one that counts. A sequence that never falls comes back as it is.
    """
    if bool(np.all(values[1:] >= values[:-1])):
        return values
    pools: list[tuple[float, list[float]]] = []  # lower median, and what it is of
    for value in values.tolist():
        median, pool = value, [value]
        while pools and pools[-1][0] > median:
            pool = pools.pop()[1] + pool
            median = statistics.median_low(pool)
        pools.append((median, pool))
    return np.repeat([median for median, _ in pools], [len(pool) for _, pool in pools])


def find_jumps(points: Ints, step_ms: Floats) -> Ints:
    """Indices of points [M] after which the time [M] jumps: by a tenth and more, three times steeper than before it and after it.

    Neighbouring row counts have nothing between them, and at an end of the curve a jump looks like an elbow: neither counts.
    """
    if len(points) < 4:
        return np.empty(0, np.int64)
    gaps, rises = np.diff(points), np.diff(step_ms)
    slopes = rises / gaps
    quiet = JUMP_SLOPE * np.maximum(slopes[:-2], slopes[2:])
    return 1 + np.flatnonzero((gaps[1:-1] > 1) & (rises[1:-1] >= JUMP_RISE * step_ms[1:-2]) & (slopes[1:-1] >= quiet))


def _last_slope(points: Ints, step_ms: Floats) -> float:
    """ms per row, over the last doubling of rows: two neighbours may stand on the same stair, and would make more rows free."""
    if len(points) == 1:
        return float(step_ms[0] / points[0])
    first = max(0, int(np.searchsorted(points, points[-1] / 2, side="right")) - 1)
    return float((step_ms[-1] - step_ms[first]) / (points[-1] - points[first]))


def _check_axis(name: str, values: NDArray[np.integer[Any]], low: int, high: int) -> None:
    if values.ndim != 1 or len(values) == 0 or not np.issubdtype(values.dtype, np.integer):
        raise InvalidMessage(f"{name} must be a list of integers with anything in it", name)
    if int(values[0]) < low or int(values[-1]) > high or bool(np.any(values[1:] <= values[:-1])):
        raise InvalidMessage(f"{name} must be ascending within {low}..{high}", name)
