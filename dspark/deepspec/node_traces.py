"""Traces of candidates: every verdict that real decoding of trees leaves, one by one, for fitting and judging estimators.

Symbols: n verdicts. A candidate has a verdict if it was verified and its parent was accepted; of others the target said nothing.
Columns of one safetensors file. Knows neither models nor estimators. Traces of whole rounds, of chains: traces.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dspark.deepspec.files import read_columns, write_columns
from dspark.errors import ConfigError
from dspark.scheduling.signals import NodeSignals
from dspark.tree import ANCHOR, CandidateTree

FORMAT = "dspark-node-trace-1"

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class NodeTrace:
    """One entry per verdict."""

    session: Ints  # [n]
    """Which prompt: verdicts of one session are not independent, so they are split and resampled together."""
    round: Ints  # [n]
    """Counted over the whole recording: siblings share it, and at most one of them is accepted."""
    depth: Ints  # [n] 1 for children of the anchor
    rank: Ints  # [n] as in NodeSignals, and so are the next three
    gap: Floats  # [n]
    log_draft_prob: Floats  # [n]
    confidence_logit: Floats  # [n] NaN without a confidence head
    temperature: Floats  # [n] sampling temperature; 0 is greedy
    score: Floats  # [n]
    """Survival as it was served."""
    parent_score: Floats  # [n] the same of the parent; 1 for children of the anchor
    accepted: Mask  # [n]

    def __post_init__(self) -> None:
        for name in COLUMNS:
            if getattr(self, name).shape != self.session.shape:
                raise ConfigError(f"trace column {name!r} has shape {getattr(self, name).shape}, not {self.session.shape}", name)
        if not (np.isfinite(self.temperature).all() and (self.temperature >= 0).all()):
            raise ConfigError("trace column 'temperature' holds a negative or non-finite value", "temperature")
        for name, least in (("depth", 1), ("rank", 0)):
            if (getattr(self, name) < least).any():
                raise ConfigError(f"trace column {name!r} holds a value below {least}", name)

    def __len__(self) -> int:
        return len(self.session)

    @property
    def signals(self) -> NodeSignals:
        """What an estimator is given."""
        return NodeSignals(self.depth, self.rank, self.gap, self.log_draft_prob, self.confidence_logit, self.temperature)

    @property
    def served(self) -> Floats:
        """[n] chance given the parent, as it was served: survival over the parent's; 0 where the parent was given none."""
        known = self.parent_score > 0
        ratio = np.divide(self.score, self.parent_score, out=np.zeros_like(self.score), where=known)
        return np.clip(ratio, 0.0, 1.0).astype(np.float32)

    @property
    def has_confidence(self) -> bool:
        """Whether any candidate came with a confidence logit."""
        return bool(np.isfinite(self.confidence_logit).any())

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Sampling temperatures that occur, in growing order, rounded to what a person wrote."""
        return tuple(sorted({round(float(t), 4) for t in np.unique(self.temperature)}))

    def select(self, verdicts: Mask) -> Self:
        """Those where the mask [n] holds."""
        return type(self)(**{name: getattr(self, name)[verdicts] for name in COLUMNS})

    @classmethod
    def concatenate(cls, traces: Sequence["NodeTrace"]) -> Self:
        """One after the other. Equal session numbers stay one session; rounds are kept apart."""
        columns = {name: np.concatenate([np.empty(0, COLUMNS[name]), *(getattr(t, name) for t in traces)]) for name in COLUMNS}
        sizes = [int(trace.round.max(initial=-1)) + 1 for trace in traces]
        shifts = np.cumsum([0, *sizes[:-1]], dtype=np.int32)[: len(traces)]
        columns["round"] = (columns["round"] + np.repeat(shifts, [len(t) for t in traces])).astype(np.int32)
        return cls(**columns)

    def write(self, path: Path) -> None:
        """One safetensors file, whole or not at all."""
        write_columns(path, {name: getattr(self, name) for name in COLUMNS}, FORMAT)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ConfigError naming file and column."""
        columns = read_columns(path, COLUMNS, FORMAT, "trace of candidates")
        try:
            return cls(**columns)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.message}", error.field) from error


_TYPES: dict[str, type[np.generic]] = {"session": np.int32, "round": np.int32, "depth": np.int32, "rank": np.int32, "accepted": np.bool_}
COLUMNS: dict[str, type[np.generic]] = {field.name: _TYPES.get(field.name, np.float32) for field in fields(NodeTrace)}
"""Column -> type of its entries."""

#: Column -> where a NodeSignals has it.
_SIGNALS = {
    "depth": "depths",
    "rank": "ranks",
    "gap": "gaps",
    "log_draft_prob": "log_draft_probs",
    "confidence_logit": "confidence_logits",
}


class NodeTraceRecorder:
    """Collects verdicts while decoding runs; `trace()` is what it has so far."""

    def __init__(self) -> None:
        self._parts: dict[str, list[NDArray[Any]]] = {name: [np.empty(0, dtype)] for name, dtype in COLUMNS.items()}
        self.num_rounds = 0
        """Added so far, those without any verdict included."""

    def add(
        self,
        session: int,
        temperature: float,
        tree: CandidateTree,
        signals: NodeSignals,
        selected: list[int] | None,
        accepted_nodes: Sequence[int],
    ) -> None:
        """One round: the tree [N] as drafted, its signals [N] in the same order, and the nodes that were verified (None: all).

        `accepted_nodes` counts in the selected tree, as `VerifyResult.accepted` does. Raises ConfigError where the signals are not
        one per node.
        """
        if len(signals) != len(tree):
            raise ConfigError(f"{len(signals)} signals for a tree of {len(tree)} nodes", "signals")
        verified = np.arange(len(tree)) if selected is None else np.asarray(selected, np.int64)
        accepted = np.zeros(len(tree), bool)
        accepted[verified[list(accepted_nodes)]] = True
        parents = tree.parents[verified]
        known = verified[(parents == ANCHOR) | accepted[parents]]
        self._append(session, temperature, tree, signals, known, accepted[known])
        self.num_rounds += 1

    def trace(self) -> NodeTrace:
        """Everything added so far."""
        return NodeTrace(**{name: np.concatenate(parts).astype(COLUMNS[name]) for name, parts in self._parts.items()})

    def _append(
        self, session: int, temperature: float, tree: CandidateTree, signals: NodeSignals, nodes: NDArray[np.int64], accepted: Mask
    ) -> None:
        parents = tree.parents[nodes]
        columns: dict[str, NDArray[Any]] = {name: getattr(signals, where)[nodes] for name, where in _SIGNALS.items()}
        columns |= {"score": tree.scores[nodes], "accepted": accepted}
        columns["parent_score"] = np.where(parents == ANCHOR, np.float32(1.0), tree.scores[parents])
        for name, value in (("session", session), ("round", self.num_rounds), ("temperature", temperature)):
            columns[name] = np.full(len(nodes), value)
        for name, column in columns.items():
            self._parts[name].append(column)
