"""Sequential Temperature Scaling, fitted from decoding traces: half of the sessions choose the temperatures, the other half judge.

Symbols: R rounds, K draft positions, T_k temperature of position k. Knows traces and statistics, no model.
Method: the paper's section on the confidence head. From left to right, T_k is the temperature that minimises the expected
calibration error of the running product up to k against "the first k + 1 positions were accepted"; earlier T stay fixed.
A round counts for position k where k was verified: elsewhere the target gave no verdict.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dspark.deepspec.files import write_atomically
from dspark.deepspec.metrics import (
    DEFAULT_BINNING,
    NUM_BINS,
    Binning,
    bin_edges,
    expected_calibration_error,
    reliability_bins,
    score_calibration,
)
from dspark.deepspec.results import PositionCalibration
from dspark.deepspec.traces import DecodingTrace
from dspark.errors import ConfigError
from dspark.scheduling.calibration import CALIBRATION_FILE, DEFAULT_BOUNDS, Calibration, Estimator, TemperatureFit, sigmoid

Doubles = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How temperatures are searched."""

    bounds: tuple[float, float] = DEFAULT_BOUNDS
    grid_points: int = 41
    """Even in log T over the bounds; each refinement searches as many between the neighbours of the best."""
    refinements: int = 2
    min_observations: int = 200
    """A position with fewer keeps the T of the one before."""
    binning: Binning = DEFAULT_BINNING
    num_bins: int = NUM_BINS
    seed: int = 0
    """Of the split into halves."""


@dataclass(frozen=True, slots=True)
class FitResult:
    """A calibration, and what it does to sessions it has not seen."""

    calibration: Calibration
    positions: tuple[PositionCalibration, ...]
    """By sampling temperature, then position; positions that the held-out half never verified are absent."""
    notes: tuple[str, ...]
    """What could not be fitted, as sentences for the report."""


def fit_temperatures(trace: DecodingTrace, options: FitOptions | None = None) -> FitResult:
    """Fit each sampling temperature of the trace by itself. Raises ConfigError where nothing can be fitted."""
    options = options or FitOptions()
    if not trace.has_confidence:
        raise ConfigError(
            "the trace holds no confidence logits: a drafter without confidence head cannot be calibrated", "confidence_logit"
        )
    for_fit = first_half(trace.session, options.seed)
    fits, counts, notes = [], {}, []
    for temperature in trace.temperatures:
        fit, observations = _fit_one(trace.select(for_fit).at_temperature(temperature), temperature, options)
        notes += _notes(fit, observations, options)
        if any(fit.fitted):
            fits.append(fit)
            counts[temperature] = observations
    if not fits:
        raise ConfigError(f"no position has {options.min_observations} observations: decode more prompts. {' '.join(notes)}")
    calibration = Calibration(tuple(fits), options.bounds)
    return FitResult(calibration, calibration_table(trace.select(~for_fit), calibration, counts), tuple(notes))


def calibration_table(
    trace: DecodingTrace, calibration: Calibration, fit_observations: dict[float, list[int]] | None = None
) -> tuple[PositionCalibration, ...]:
    """The drafter's own survival estimates against calibrated ones, position by position, on the sessions of this trace."""
    rows = []
    for temperature in trace.temperatures:
        part = trace.at_temperature(temperature)
        counts = (fit_observations or {}).get(temperature, [])
        rows += _table_of(part, temperature, calibration, counts)
    return tuple(rows)


def observations(trace: DecodingTrace, position: int) -> Mask:  # [R]
    """Rounds in which the survival of `position` was estimated and decided."""
    if position >= trace.depth:
        return np.zeros(len(trace), bool)
    known = np.isfinite(trace.padded("confidence_logit")[:, : position + 1]).all(axis=1)
    return known & (trace.num_verified > position)


def first_half(session: NDArray[np.int32], seed: int) -> Mask:  # [n] for sessions [n]
    """Whole sessions: a prompt that helps to fit must not help to judge, at whatever sampling temperature it was decoded."""
    sessions = np.unique(session)
    if len(sessions) < 2:
        raise ConfigError(f"the trace holds {len(sessions)} session(s); fitting on one half and judging on the other needs two", "session")
    shuffled = np.random.default_rng(seed).permutation(sessions)
    return np.isin(session, shuffled[: (len(sessions) + 1) // 2])


def write_calibration(folder: Path, estimator: Estimator) -> Path:
    """calibration.json beside the checkpoint's weights, whole or not at all."""
    path = folder / CALIBRATION_FILE
    write_atomically(path, estimator.to_json().encode())
    return path


def _fit_one(trace: DecodingTrace, temperature: float, options: FitOptions) -> tuple[TemperatureFit, list[int]]:
    """All positions of one sampling temperature, and how many rounds each was fitted on."""
    logits = trace.padded("confidence_logit").astype(np.float64)  # [R, K]
    running = np.ones(len(trace))  # [R] survival up to the position before
    temperatures, fitted, counts = [], [], []
    chosen = 1.0
    for position in range(trace.depth):
        rows = observations(trace, position)
        counts.append(int(rows.sum()))
        fitted.append(counts[-1] >= options.min_observations)
        if fitted[-1]:
            chosen = _best_temperature(running[rows], logits[rows, position], trace.num_accepted[rows] > position, options)
        temperatures.append(chosen)
        running = running * sigmoid(logits[:, position] / chosen)
    return TemperatureFit(temperature, tuple(temperatures) or (1.0,), tuple(fitted) or (False,)), counts


def _best_temperature(running: Doubles, logits: Doubles, survived: Mask, options: FitOptions) -> float:
    """The T of least error; of equal ones, that nearest to 1."""

    def badness(log_t: float) -> tuple[float, float]:
        predicted = running * sigmoid(logits / np.exp(log_t))
        bins = reliability_bins(predicted, survived, bin_edges(predicted, options.binning, options.num_bins))
        return round(expected_calibration_error(bins), 9), abs(log_t)

    low, high = np.log(options.bounds)
    best = 0.0
    for _ in range(1 + options.refinements):
        grid = np.linspace(low, high, options.grid_points).tolist()
        best = min([best, *grid], key=badness)
        step = (high - low) / (options.grid_points - 1)
        low, high = max(best - step, np.log(options.bounds[0])), min(best + step, np.log(options.bounds[1]))
    return float(np.clip(np.exp(best), *options.bounds))


def _notes(fit: TemperatureFit, counts: list[int], options: FitOptions) -> list[str]:
    """One sentence for all positions of this sampling temperature that were not fitted."""
    missing = [f"position {k} ({counts[k]} observations)" for k, fitted in enumerate(fit.fitted) if k < len(counts) and not fitted]
    label = f"Sampling temperature {fit.sampling_temperature:g}"
    if not any(fit.fitted):
        return [f"{label}: no position has the {options.min_observations} observations a fit needs; the nearest fitted temperature serves."]
    least = f"fewer than {options.min_observations}"
    return [f"{label}: {', '.join(missing)} had {least} and took the T of the position before."] if missing else []


def _table_of(trace: DecodingTrace, temperature: float, calibration: Calibration, counts: list[int]) -> list[PositionCalibration]:
    logits = trace.padded("confidence_logit")  # [R, K]
    before = Calibration.identity().survival(logits, temperature)
    after = calibration.survival(logits, temperature)
    scales, fit = calibration.temperatures(temperature, trace.depth), calibration.nearest(temperature)
    rows = []
    for position in range(trace.depth):
        kept = observations(trace, position)
        if not kept.any():
            continue
        survived = trace.num_accepted[kept] > position
        scores = [score_calibration(estimate[kept, position], survived) for estimate in (before, after)]
        fitted = fit.sampling_temperature == temperature and position < len(fit.fitted) and fit.fitted[position]
        count = counts[position] if position < len(counts) else 0
        rows.append(PositionCalibration(temperature, position, float(scales[position]), fitted, count, scores[0], scores[1]))
    return rows
