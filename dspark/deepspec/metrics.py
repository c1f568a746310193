"""Statistics of drafting: acceptance with bootstrap intervals, and how well survival estimates are calibrated. Pure; numpy only.

Symbols: G sessions, R rounds, K draft positions, n observations, B bins. Knows neither models nor files.

Two rules stand behind it. Rounds of one session resemble each other, so intervals come from drawing whole sessions, not rounds
(cluster bootstrap, percentile). The expected calibration error is never zero on finite data: `ece_floor` is what a perfectly
calibrated estimate would show on the same observations, and an ECE near it cannot be improved.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dspark.errors import ConfigError

Doubles = NDArray[np.float64]
Binning = Literal["equal_width", "equal_mass"]

NUM_BINS = 15
DEFAULT_BINNING: Binning = "equal_width"
"""The field's usual one. Equal mass (bins of as many observations each) is reported beside it: empty and crowded bins do not sway it."""
NUM_RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True, eq=False)
class AcceptanceCounts:
    """Sums per session, from which every acceptance figure follows; counts of further sessions can be merged in."""

    session: NDArray[np.int64]  # [G] growing
    rounds_count: Doubles  # [G]
    drafted_sum: Doubles  # [G]
    verified_sum: Doubles  # [G]
    accepted_sum: Doubles  # [G]
    verified_count: Doubles  # [G, K] rounds that verified this position
    reached_count: Doubles  # [G, K] of those, rounds that accepted all before it
    accepted_count: Doubles  # [G, K] of those, rounds that accepted it

    @property
    def depth(self) -> int:
        """K"""
        return int(self.verified_count.shape[1])

    def merge(self, other: "AcceptanceCounts") -> "AcceptanceCounts":
        """Counts of both; sessions that are in both are added up."""
        session, group = np.unique(np.concatenate([self.session, other.session]), return_inverse=True)
        depth = max(self.depth, other.depth)
        flat = [np.concatenate([getattr(c, name) for c in (self, other)]) for name in _SESSION_SUMS]
        deep = [np.concatenate([_widen(getattr(c, name), depth) for c in (self, other)]) for name in _POSITION_SUMS]
        return AcceptanceCounts(session.astype(np.int64), *(_sum_by(group, values, len(session)) for values in (*flat, *deep)))


_SESSION_SUMS = ("rounds_count", "drafted_sum", "verified_sum", "accepted_sum")
_POSITION_SUMS = ("verified_count", "reached_count", "accepted_count")


def count_acceptance(session: ArrayLike, num_drafted: ArrayLike, num_verified: ArrayLike, num_accepted: ArrayLike) -> AcceptanceCounts:
    """From one number per round [R]. A position counts only where it was verified: on others the target gave no verdict."""
    ids, group = np.unique(np.asarray(session), return_inverse=True)
    drafted, verified, accepted = (np.asarray(values, np.int64) for values in (num_drafted, num_verified, num_accepted))
    position = np.arange(int(verified.max(initial=0)))  # [K]
    was_verified = position < verified[:, None]  # [R, K]
    reached = was_verified & (position <= accepted[:, None])
    columns = (np.ones(len(group)), drafted, verified, accepted, was_verified, reached, position < accepted[:, None])
    return AcceptanceCounts(ids.astype(np.int64), *(_sum_by(group, column, len(ids)) for column in columns))


@dataclass(frozen=True, slots=True)
class AcceptanceSummary:
    """What a drafter achieved, over all sessions."""

    tau: Interval
    """Committed tokens per round, bonus included."""
    acceptance: tuple[Interval, ...]  # [K]
    """Share of rounds in which the position, and so all before it, was accepted."""
    conditional_acceptance: tuple[Interval, ...]  # [<= K]
    """The same given that all before it were accepted; ends at the last position ever reached."""
    drafted_per_round: float
    verified_per_round: float
    accepted_per_round: float
    num_rounds: int


def summarise_acceptance(counts: AcceptanceCounts, seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> AcceptanceSummary:
    """Point values and intervals. With a single session the interval is all that is possible: it says nothing about others."""
    if not counts.rounds_count.sum():
        raise ConfigError("no rounds to summarise: the trace is empty")
    weights = resample_weights(len(counts.session), seed, num_resamples)
    accepted = _ratio_interval(counts.accepted_sum, counts.rounds_count, weights, 0.0, float(counts.depth))
    deep = [
        [_ratio_interval(counts.accepted_count[:, k], below[:, k], weights, 0.0, 1.0) for k in range(counts.depth) if below[:, k].any()]
        for below in (counts.verified_count, counts.reached_count)
    ]
    num_rounds = counts.rounds_count.sum()
    return AcceptanceSummary(
        Interval(1.0 + accepted.value, 1.0 + accepted.low, 1.0 + accepted.high),
        tuple(deep[0]),
        tuple(deep[1]),
        float(counts.drafted_sum.sum() / num_rounds),
        float(counts.verified_sum.sum() / num_rounds),
        float(counts.accepted_sum.sum() / num_rounds),
        int(num_rounds),
    )


def tau_difference(first: AcceptanceCounts, second: AcceptanceCounts, seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> Interval:
    """tau of `first` minus tau of `second` on the same sessions, drawn in pairs: tighter than two separate intervals."""
    if not np.array_equal(first.session, second.session):
        raise ConfigError("a paired comparison needs the same sessions on both sides")
    weights = resample_weights(len(first.session), seed, num_resamples)
    taus = [_ratios(counts.accepted_sum, counts.rounds_count, weights) for counts in (first, second)]
    value = first.accepted_sum.sum() / first.rounds_count.sum() - second.accepted_sum.sum() / second.rounds_count.sum()
    if len(first.session) < 2:
        return Interval(float(value), -float(second.depth), float(first.depth))
    low, high = np.quantile(taus[0] - taus[1], _tails())
    return Interval(float(value), float(low), float(high))


def resample_weights(num_sessions: int, seed: int, num_resamples: int = NUM_RESAMPLES) -> Doubles:  # [resamples, G]
    """How often each session is drawn in each bootstrap sample."""
    draws = np.random.default_rng(seed).multinomial(num_sessions, np.full(num_sessions, 1.0 / num_sessions), size=num_resamples)
    return draws.astype(np.float64)


@dataclass(frozen=True, slots=True)
class ReliabilityBins:
    """Predictions grouped by size; bins with the same edges can be merged."""

    edges: tuple[float, ...]  # [B + 1]
    count: tuple[int, ...]  # [B]
    predicted_sum: tuple[float, ...]  # [B]
    outcome_sum: tuple[float, ...]  # [B]

    def merge(self, other: "ReliabilityBins") -> "ReliabilityBins":
        """Both sets of observations. Raises ConfigError where the edges differ."""
        if self.edges != other.edges:
            raise ConfigError("reliability bins with different edges cannot be merged")
        sums = [_add(getattr(self, name), getattr(other, name)) for name in ("predicted_sum", "outcome_sum")]
        counts = tuple(a + b for a, b in zip(self.count, other.count, strict=True))
        return ReliabilityBins(self.edges, counts, *sums)


def bin_edges(predicted: ArrayLike, binning: Binning = DEFAULT_BINNING, num_bins: int = NUM_BINS) -> Doubles:  # [B + 1]
    """From 0 to 1. Equal-mass edges are quantiles; ties make fewer bins."""
    if binning == "equal_width":
        return np.linspace(0.0, 1.0, num_bins + 1)
    inner = np.quantile(np.asarray(predicted, np.float64), np.linspace(0.0, 1.0, num_bins + 1)[1:-1])
    return np.unique(np.concatenate([[0.0], inner, [1.0]]))


def reliability_bins(predicted: ArrayLike, outcome: ArrayLike, edges: ArrayLike) -> ReliabilityBins:
    """A prediction on an inner edge belongs to the bin above it."""
    values, truth, borders = np.asarray(predicted, np.float64), np.asarray(outcome, np.float64), np.asarray(edges, np.float64)
    size = len(borders) - 1
    index = np.clip(np.searchsorted(borders, values, side="right") - 1, 0, size - 1)  # [n]
    count, predicted_sum, outcome_sum = (np.bincount(index, weight, size) for weight in (None, values, truth))
    return ReliabilityBins(
        tuple(borders.tolist()), tuple(count.astype(int).tolist()), tuple(predicted_sum.tolist()), tuple(outcome_sum.tolist())
    )


def expected_calibration_error(bins: ReliabilityBins) -> float:
    """Mean over observations of |mean prediction - share of acceptances| in their bin."""
    distance = np.abs(np.asarray(bins.predicted_sum) - np.asarray(bins.outcome_sum)).sum()
    return float(distance / max(1, sum(bins.count)))


def ece_floor(bins: ReliabilityBins) -> float:
    """About the ECE that perfectly calibrated predictions would show here, from the spread of a share over so few observations."""
    count = np.asarray(bins.count, np.float64)
    mean = np.asarray(bins.predicted_sum) / np.maximum(count, 1)
    variance = count * np.clip(mean * (1 - mean), 0.0, None)  # of the bin's outcome_sum
    return float(np.sqrt(2.0 / np.pi * variance).sum() / max(1.0, count.sum()))


def area_under_curve(predicted: ArrayLike, outcome: ArrayLike) -> float | None:
    """Chance that an accepted observation was rated above a rejected one, ties counting half; None without both kinds."""
    values, accepted = np.asarray(predicted, np.float64), np.asarray(outcome, bool)
    num_accepted, num_rejected = int(accepted.sum()), int((~accepted).sum())
    if not num_accepted or not num_rejected:
        return None
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    rank = np.cumsum(sizes) - (sizes - 1) / 2.0  # of each distinct value; ties share their mean rank
    wins = rank[group][accepted].sum() - num_accepted * (num_accepted + 1) / 2.0
    return float(wins / (num_accepted * num_rejected))


def brier_score(predicted: ArrayLike, outcome: ArrayLike) -> float:
    """Mean squared distance between prediction and outcome."""
    return float(np.mean((np.asarray(predicted, np.float64) - np.asarray(outcome, np.float64)) ** 2))


@dataclass(frozen=True, slots=True)
class CalibrationScores:
    """How far estimates of survival can be believed."""

    count: int
    ece: float
    """Equal-width bins, the default."""
    ece_equal_mass: float
    ece_floor: float
    """See `ece_floor`: of the equal-width bins."""
    auc: float | None
    brier: float
    bins: ReliabilityBins
    """Equal width."""


def score_calibration(predicted: ArrayLike, outcome: ArrayLike, num_bins: int = NUM_BINS) -> CalibrationScores:
    """All of it for n predictions and their outcomes. Raises ConfigError for none."""
    values, truth = np.asarray(predicted, np.float64), np.asarray(outcome, bool)
    if not len(values):
        raise ConfigError("no observations to score a calibration on")
    wide = reliability_bins(values, truth, bin_edges(values, "equal_width", num_bins))
    massive = reliability_bins(values, truth, bin_edges(values, "equal_mass", num_bins))
    return CalibrationScores(
        len(values),
        expected_calibration_error(wide),
        expected_calibration_error(massive),
        ece_floor(wide),
        area_under_curve(values, truth),
        brier_score(values, truth),
        wide,
    )


def _ratio_interval(above: Doubles, below: Doubles, weights: Doubles, lowest: float, highest: float) -> Interval:
    """Ratio of sums over sessions [G]."""
    value = float(above.sum() / below.sum())
    if len(above) < 2:
        return Interval(value, lowest, highest)
    low, high = np.quantile(_ratios(above, below, weights), _tails())
    return Interval(value, min(float(low), value), max(float(high), value))


def _ratios(above: Doubles, below: Doubles, weights: Doubles) -> Doubles:  # [resamples that drew anything]
    tops, bottoms = weights @ above, weights @ below
    return np.asarray(tops[bottoms > 0] / bottoms[bottoms > 0])


def _tails() -> Sequence[float]:
    return ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


def _sum_by(group: NDArray[np.int64], values: ArrayLike, size: int) -> Doubles:  # [G] or [G, K]
    column = np.asarray(values, np.float64)
    out = np.zeros((size, *column.shape[1:]))
    np.add.at(out, group, column)
    return out


def _widen(matrix: Doubles, depth: int) -> Doubles:
    return np.pad(matrix, ((0, 0), (0, depth - matrix.shape[1])))


def _add(first: Sequence[float], second: Sequence[float]) -> tuple[float, ...]:
    return tuple(a + b for a, b in zip(first, second, strict=True))
