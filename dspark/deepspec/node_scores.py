"""How good estimates of a candidate's chance are, given that its parent was accepted: records for a report. Pure; numpy only.

Symbols: n verdicts. Records are plain, so that whoever holds them can store them as JSON (see results.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dspark.deepspec.metrics import CalibrationScores, score_calibration
from dspark.deepspec.node_traces import Mask, NodeTrace
from dspark.errors import ConfigError

CLIP = 1e-4
"""An estimate of 0 or 1 that fails would make any log-loss infinite."""


@dataclass(frozen=True, slots=True)
class GroupScores:
    """Verdicts of one depth, or of one rank."""

    group: int
    """Depth from 1, or rank from 0."""
    log_loss: float
    scores: CalibrationScores


@dataclass(frozen=True, slots=True)
class NodeScores:
    """One estimator at one sampling temperature."""

    estimator: str
    sampling_temperature: float | None
    """None: all of them together."""
    log_loss: float
    """Mean of -log of the chance that was given to what happened."""
    scores: CalibrationScores
    """ECE with its floor, AUC, Brier."""
    by_depth: tuple[GroupScores, ...]
    by_rank: tuple[GroupScores, ...]


def log_loss(predicted: ArrayLike, outcome: ArrayLike) -> float:
    """Natural logarithm, estimates cut to CLIP..1-CLIP. Raises ConfigError for no observations."""
    values, truth = np.asarray(predicted, np.float64), np.asarray(outcome, bool)
    if not len(values):
        raise ConfigError("no observations to score a calibration on")
    chance = np.clip(np.where(truth, values, 1.0 - values), CLIP, 1.0 - CLIP)
    return float(-np.log(chance).mean())


def score_nodes(trace: NodeTrace, estimates: Mapping[str, ArrayLike]) -> tuple[NodeScores, ...]:
    """Every estimator [n] on all verdicts of the trace, then at each sampling temperature where there are several."""
    groups: list[tuple[float | None, Mask]] = [(None, np.ones(len(trace), bool))]
    if len(trace.temperatures) > 1:
        groups += [(t, np.abs(trace.temperature - t) < 1e-4) for t in trace.temperatures]
    return tuple(
        _scores(name, temperature, trace.select(rows), np.asarray(values)[rows])
        for temperature, rows in groups
        for name, values in estimates.items()
    )


def _scores(name: str, temperature: float | None, trace: NodeTrace, predicted: NDArray[np.floating]) -> NodeScores:
    return NodeScores(
        name,
        temperature,
        log_loss(predicted, trace.accepted),
        score_calibration(predicted, trace.accepted),
        _groups(trace.depth, predicted, trace.accepted),
        _groups(trace.rank, predicted, trace.accepted),
    )


def _groups(group: NDArray[np.int32], predicted: NDArray[np.floating], accepted: Mask) -> tuple[GroupScores, ...]:
    members = [(int(value), group == value) for value in np.unique(group)]
    return tuple(
        GroupScores(value, log_loss(predicted[rows], accepted[rows]), score_calibration(predicted[rows], accepted[rows]))
        for value, rows in members
    )
