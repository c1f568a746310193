"""Whole trees as they were drafted, each with the path that the target took through it: what a simulation of this very drafter reads.

Recorded with all candidates verified. A smaller draft is cut out of a recorded one, because drafters grow their trees best first; so what
one round's candidates have to do with each other stays. Columns of one safetensors file.

Symbols: R rounds, n candidates of all rounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dspark.bench.simulator.acceptance import Draft
from dspark.deepspec.files import read_columns, write_columns
from dspark.errors import ConfigError
from dspark.scheduling.drafting_plan import DraftLimits
from dspark.tree import ANCHOR, CandidateTree

FORMAT = "dspark-tree-trace-1"
COLUMNS: dict[str, type[np.generic]] = {"size": np.int32, "parent": np.int32, "score": np.float32, "accepted": np.bool_}
"""size [R]; the others [n]. Parents count within their own tree."""


@dataclass(frozen=True, slots=True, eq=False)
class TreeTrace:
    """Rounds, in the order in which they ended. A round without a draft is not among them."""

    size: NDArray[np.int32]  # [R]
    parent: NDArray[np.int32]  # [n]
    score: NDArray[np.float32]  # [n] survival as it was served
    accepted: NDArray[np.bool_]  # [n]

    def __post_init__(self) -> None:
        total = int(self.size.sum())
        if (self.size < 1).any() or any(len(getattr(self, name)) != total for name in ("parent", "score", "accepted")):
            raise ConfigError("the columns do not hold one entry per candidate", "size")
        places = np.arange(total) - np.repeat(np.cumsum(self.size) - self.size, self.size)
        if not bool(np.all((self.parent >= ANCHOR) & (self.parent < places) & np.isfinite(self.score))):
            raise ConfigError("a parent must stand before its child, and scores must be finite", "parent")

    def __len__(self) -> int:
        return len(self.size)

    def rounds(self) -> list["RecordedTree"]:
        """One by one."""
        ends = np.cumsum(self.size)[:-1]
        columns = (np.split(column, ends) for column in (self.parent, self.score, self.accepted))
        return [RecordedTree.of(*parts) for parts in zip(*columns, strict=True)]

    def write(self, path: Path) -> None:
        """One safetensors file, whole or not at all."""
        write_columns(path, {name: getattr(self, name) for name in COLUMNS}, FORMAT)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ConfigError naming file and column."""
        columns = read_columns(path, COLUMNS, FORMAT, "trace of trees")
        try:
            return cls(**columns)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.message}", error.field) from error


class TreeRecorder:
    """Collects trees while decoding runs; `trace()` is what it has so far."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Any]] = {name: [] for name in COLUMNS}

    def __len__(self) -> int:
        return len(self._parts["size"])

    def add(self, tree: CandidateTree, accepted: Sequence[int]) -> None:
        """A round in which all of `tree` was verified; `accepted` are nodes. An empty tree is passed over."""
        if len(tree) == 0:
            return
        on_path = np.zeros(len(tree), bool)
        on_path[list(accepted)] = True
        for name, part in (("size", [len(tree)]), ("parent", tree.parents), ("score", tree.scores), ("accepted", on_path)):
            self._parts[name].append(part)

    def trace(self) -> TreeTrace:
        """Everything added so far."""
        columns = {name: np.concatenate([np.empty(0, COLUMNS[name]), *self._parts[name]]) for name in COLUMNS}
        return TreeTrace(**{name: column.astype(COLUMNS[name]) for name, column in columns.items()})


@dataclass(frozen=True, slots=True, eq=False)
class RecordedTree:
    """One round: N candidates."""

    parents: NDArray[np.int32]  # [N]
    scores: NDArray[np.float32]  # [N] never above the parent's
    accepted: NDArray[np.bool_]  # [N]
    depths: NDArray[np.int64]  # [N] 1 for children of the anchor
    widths: NDArray[np.int64]  # [N] the width that a draft must have to hold this candidate: best siblings first, all ancestors too

    @staticmethod
    def of(parents: NDArray[np.int32], scores: NDArray[np.float32], accepted: NDArray[np.bool_]) -> "RecordedTree":
        """With everything that cutting needs."""
        depths, widths, falling = np.ones(len(parents), np.int64), np.ones(len(parents), np.int64), scores.copy()
        for node, parent in enumerate(parents.tolist()):
            if parent != ANCHOR:
                falling[node] = min(falling[node], falling[parent])
                depths[node] = depths[parent] + 1
        num_children: dict[int, int] = {}
        for node in np.lexsort((np.arange(len(parents)), -falling, depths)).tolist():
            parent = int(parents[node])
            num_children[parent] = num_children.get(parent, 0) + 1
            widths[node] = max(num_children[parent], 1 if parent == ANCHOR else widths[parent])
        return RecordedTree(parents, falling, accepted, depths, widths)

    def cut(self, limits: DraftLimits) -> Draft:
        """The draft that these limits would have left of it: its best candidates, as many as they allow."""
        within = np.flatnonzero((self.depths <= limits.max_depth) & (self.widths <= limits.max_width))
        best = within[np.argsort(-self.scores[within], kind="stable")][: limits.max_nodes]
        kept = np.sort(best)  # of equal scores the parent stands first, so with a node its parent is kept
        places = np.full(len(self.parents) + 1, ANCHOR, np.int32)  # the last entry is the anchor's
        places[kept] = np.arange(len(kept))
        tree = CandidateTree(np.arange(len(kept), dtype=np.int32), places[self.parents[kept]], self.scores[kept])
        return Draft(tree, tuple(np.flatnonzero(self.accepted[kept]).tolist()))


class TreeTraceSource:
    """Implements acceptance.DraftSource: recorded rounds, drawn with replacement."""

    def __init__(self, trace: TreeTrace) -> None:
        """Raises ConfigError for a trace without rounds."""
        self._rounds = trace.rounds() if len(trace) else []
        if not self._rounds:
            raise ConfigError("the trace holds no rounds", "trace")

    def draw(self, limits: DraftLimits, rng: np.random.Generator) -> Draft:
        """See DraftSource."""
        return self._rounds[int(rng.integers(len(self._rounds)))].cut(limits)
