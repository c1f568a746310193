"""Decoding traces: what real decoding leaves for calibration and for judging a drafter. Columns of one safetensors file.

Symbols: R rounds, P drafted positions of all rounds together, K deepest draft. A trace is of chains: position k of a round is
the k-th drafted token, counted from 0. Round r owns `offsets[r]:offsets[r + 1]` of the P arrays.
Knows neither models nor estimators. A later column (tree drafts: rank, parent) is a new optional tensor and a new FORMAT.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dspark.deepspec.files import read_columns, write_columns
from dspark.errors import ConfigError

FORMAT = "dspark-decoding-trace-1"
SHARD_PATTERN = "trace-*.safetensors"

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Mask = NDArray[np.bool_]

ROUND_COLUMNS: dict[str, type[np.generic]] = {
    "session": np.int32,
    "temperature": np.float32,
    "num_drafted": np.int32,
    "num_verified": np.int32,
    "num_accepted": np.int32,
}
POSITION_COLUMNS = ("confidence_logit", "score", "gap", "log_draft_prob")


@dataclass(frozen=True, slots=True)
class ConditionalOutcomes:
    """The verdicts on one position: only of rounds that verified it and accepted all before it."""

    rounds: NDArray[np.int64]  # [n]
    indices: NDArray[np.int64]  # [n] into the position columns
    accepted: Mask  # [n]


@dataclass(frozen=True, slots=True, eq=False)
class DecodingTrace:
    """One entry per round of one session, and one per drafted position."""

    session: Ints  # [R]
    """Which prompt: rounds of one session are not independent, so they are split and resampled together."""
    temperature: Floats  # [R]
    """Sampling temperature."""
    num_drafted: Ints  # [R]
    num_verified: Ints  # [R]
    """At most num_drafted: what the planner kept. Beyond it the target gave no verdict."""
    num_accepted: Ints  # [R]
    """The target's verdict, before a session's end cuts the block."""
    confidence_logit: Floats  # [P]
    """NaN where the drafter has no confidence head."""
    score: Floats  # [P]
    """Survival as it was served."""
    gap: Floats  # [P]
    """Noised log draft_probs of the drafted token minus that of its best sibling; NaN if unknown."""
    log_draft_prob: Floats  # [P]

    def __post_init__(self) -> None:
        for name, shape in self._shapes().items():
            if getattr(self, name).shape != shape:
                raise ConfigError(f"trace column {name!r} has shape {getattr(self, name).shape}, not {shape}", name)
        if not (_ordered(0, self.num_accepted) and _ordered(self.num_accepted, self.num_verified)):
            raise ConfigError("trace column 'num_accepted' is below 0 or above num_verified", "num_accepted")
        if not _ordered(self.num_verified, self.num_drafted):
            raise ConfigError("trace column 'num_verified' is above num_drafted", "num_verified")
        if not (np.isfinite(self.temperature).all() and _ordered(0, self.temperature)):
            raise ConfigError("trace column 'temperature' holds a negative or non-finite value", "temperature")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        rounds, positions = len(self.num_drafted), int(self.num_drafted.clip(min=0).sum())
        return {name: (rounds if name in ROUND_COLUMNS else positions,) for name in _COLUMNS}

    def __len__(self) -> int:
        return len(self.session)

    @property
    def offsets(self) -> NDArray[np.int64]:  # [R + 1]
        """Where each round's positions begin, and where the last ends."""
        return np.concatenate([[0], np.cumsum(self.num_drafted, dtype=np.int64)])

    @property
    def depth(self) -> int:
        """K"""
        return int(self.num_drafted.max(initial=0))

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Sampling temperatures that occur, in growing order, rounded to what a person wrote."""
        return tuple(sorted({round(float(t), 4) for t in np.unique(self.temperature)}))

    @property
    def has_confidence(self) -> bool:
        """Whether any drafted position came with a confidence logit."""
        return bool(np.isfinite(self.confidence_logit).any())

    def verified_mask(self) -> Mask:  # [R, K]
        """Positions on which the target gave its verdict."""
        return np.arange(self.depth) < self.num_verified[:, None]

    def accepted_mask(self) -> Mask:  # [R, K]
        """Positions accepted, with all before them."""
        return np.arange(self.depth) < self.num_accepted[:, None]

    def reached_mask(self) -> Mask:  # [R, K]
        """Positions verified after all before them were accepted: those that count for conditional acceptance."""
        return self.verified_mask() & (np.arange(self.depth) <= self.num_accepted[:, None])

    def padded(self, column: str) -> Floats:  # [R, K]
        """A position column as a matrix; NaN where nothing was drafted."""
        matrix = np.full((len(self), self.depth), np.nan, np.float32)
        matrix[np.arange(self.depth) < self.num_drafted[:, None]] = getattr(self, column)
        return matrix

    def conditional_outcomes(self, position: int) -> ConditionalOutcomes:
        """Verdicts on `position` given that all before it were accepted."""
        rounds = np.flatnonzero((self.num_verified > position) & (self.num_accepted >= position))
        return ConditionalOutcomes(rounds, self.offsets[rounds] + position, self.num_accepted[rounds] > position)

    def select(self, rounds: Mask) -> "DecodingTrace":
        """The rounds where the mask [R] holds."""
        positions = np.repeat(rounds, self.num_drafted)  # [P]
        columns = {name: getattr(self, name)[rounds] for name in ROUND_COLUMNS}
        return DecodingTrace(**columns, **{name: getattr(self, name)[positions] for name in POSITION_COLUMNS})

    def at_temperature(self, temperature: float) -> "DecodingTrace":
        """The rounds sampled at one of `temperatures`."""
        return self.select(np.abs(self.temperature - temperature) < 1e-4)

    @classmethod
    def concatenate(cls, traces: Sequence["DecodingTrace"], renumber: bool = False) -> "DecodingTrace":
        """One after the other. Equal session numbers stay one session, unless `renumber` keeps the traces' sessions apart."""
        shifts = _session_shifts(traces) if renumber else [0] * len(traces)
        columns = {name: np.concatenate([_empty(name), *(getattr(t, name) for t in traces)]) for name in _COLUMNS}
        shift = np.repeat(np.asarray(shifts, np.int32), [len(t) for t in traces])
        return cls(**(columns | {"session": (columns["session"] + shift).astype(np.int32)}))

    def write(self, path: Path) -> None:
        """One safetensors file, whole or not at all."""
        write_columns(path, {name: getattr(self, name) for name in _COLUMNS}, FORMAT)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ConfigError naming file and column."""
        columns = read_columns(path, {name: ROUND_COLUMNS.get(name, np.float32) for name in _COLUMNS}, FORMAT, "decoding trace")
        try:
            return cls(**columns)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.message}", error.field) from error


_COLUMNS = tuple(field.name for field in fields(DecodingTrace))


class TraceRecorder:
    """Collects rounds while decoding runs; `trace()` is what it has so far."""

    def __init__(self) -> None:
        self._rounds: list[tuple[int, float, int, int, int]] = []
        self._positions: dict[str, list[Floats]] = {name: [] for name in POSITION_COLUMNS}

    def __len__(self) -> int:
        return len(self._rounds)

    def add(
        self,
        session: int,
        temperature: float,
        num_accepted: int,
        score: ArrayLike,
        confidence_logit: ArrayLike | None = None,
        gap: ArrayLike | None = None,
        log_draft_prob: ArrayLike | None = None,
        num_verified: int | None = None,
    ) -> None:
        """One round. `score` has one value per drafted position; None is unknown, and all were verified unless said otherwise."""
        given = {"score": score, "confidence_logit": confidence_logit, "gap": gap, "log_draft_prob": log_draft_prob}
        num_drafted = len(np.asarray(score, np.float32).reshape(-1))
        for name, values in given.items():
            column = np.full(num_drafted, np.nan, np.float32) if values is None else np.asarray(values, np.float32).reshape(-1)
            if len(column) != num_drafted:
                raise ConfigError(f"trace column {name!r}: {len(column)} values for {num_drafted} drafted positions", name)
            self._positions[name].append(column)
        verified = num_drafted if num_verified is None else num_verified
        self._rounds.append((session, temperature, num_drafted, verified, num_accepted))

    def trace(self) -> DecodingTrace:
        """Everything added so far."""
        rounds = np.asarray(self._rounds, np.float64).reshape(-1, len(ROUND_COLUMNS))
        columns: dict[str, Any] = {name: rounds[:, i].astype(dtype) for i, (name, dtype) in enumerate(ROUND_COLUMNS.items())}
        columns |= {name: np.concatenate([_empty(name), *parts]) for name, parts in self._positions.items()}
        return DecodingTrace(**columns)


def read_traces(path: Path) -> DecodingTrace:
    """A trace file, or all shards of a folder in the order of their names. Raises ConfigError where there is none."""
    if not path.is_dir():
        return DecodingTrace.read(path)
    shards = sorted(path.glob(SHARD_PATTERN))
    if not shards:
        raise ConfigError(f"{path}: holds no decoding trace ({SHARD_PATTERN})")
    return DecodingTrace.concatenate([DecodingTrace.read(shard) for shard in shards])


def _ordered(low: ArrayLike, high: ArrayLike) -> bool:
    return bool(np.all(np.asarray(low) <= np.asarray(high)))


def _empty(name: str) -> NDArray[Any]:
    return np.empty(0, ROUND_COLUMNS.get(name, np.float32))


def _session_shifts(traces: Sequence[DecodingTrace]) -> list[int]:
    """What to add to each trace's session numbers so that no two traces share one."""
    shifts, following = [], 0
    for trace in traces:
        shifts.append(following - int(trace.session.min(initial=0)))
        following = shifts[-1] + int(trace.session.max(initial=-1)) + 1
    return shifts
