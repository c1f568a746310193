"""What a simulated drafter proposes and what the target would accept of it. The target's token at a node does not depend on the tree
(DESIGN section 4), so both can be drawn together: whatever a planner then keeps, the verdict on it is fixed.

Three sources, all of them drawn from with replacement:

    ChanceTable   a table: the chance of a candidate by depth and rank, given its parent, and how far chances spread
    NodeTrace           verdicts on trees (deepspec/node_traces.py): scores as served, with all their faults
    DecodingTrace       rounds of chains (deepspec/traces.py), whole: positions of one round are not independent

Symbols: N nodes, K depth, W siblings.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dspark.deepspec.node_traces import NodeTrace
from dspark.deepspec.traces import DecodingTrace
from dspark.errors import ConfigError
from dspark.scheduling.drafting_plan import DraftLimits
from dspark.tree import ANCHOR, CandidateTree

Floats = NDArray[np.float64]

NONE = -1
"""As a rank: the target's token is not among the siblings."""


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """One session's candidates in one round, and the path that the target takes through them."""

    tree: CandidateTree
    accepted: tuple[int, ...]
    """Nodes that are accepted if they are verified, root first."""

    def accepted_of(self, kept: Sequence[int]) -> tuple[int, ...]:
        """Places in `kept` of the accepted nodes, root first, if just these are verified; with a node its parent is kept."""
        places = {node: place for place, node in enumerate(kept)}
        return tuple(places[node] for node in self.accepted if node in places)


class DraftSource(Protocol):
    """Where drafts come from."""

    def draw(self, limits: DraftLimits, rng: np.random.Generator) -> Draft:
        """One session's round. A source of chains draws chains, whatever width is asked for."""


class DraftBook:
    """Many drafts under the same limits, drawn beforehand: what a simulation reads from, again and again."""

    def __init__(self, source: DraftSource, limits: DraftLimits, size: int, seed: int) -> None:
        rng = np.random.default_rng((seed, limits.max_depth, limits.max_width, limits.max_nodes))
        self.drafts = [source.draw(limits, rng) for _ in range(size)]

    def pick(self, rng: np.random.Generator) -> Draft:
        """One of them."""
        return self.drafts[int(rng.integers(len(self.drafts)))]

    @property
    def mean_accepted(self) -> float:
        """tau - 1 if everything is verified."""
        return sum(len(draft.accepted) for draft in self.drafts) / len(self.drafts)


@dataclass(frozen=True, slots=True, eq=False)
class ChanceTable:
    """A table of chances, and calibrated scores around it."""

    conditional: Floats  # [K, W] chance that the candidate of this depth and rank is the target's token, given its parent is
    spread: float = 0.0
    """How much easy and hard places differ: the first sibling's chance is drawn from a beta distribution of the table's mean m and of
    variance spread * m * (1 - m), and the others share the rest as they do in the table. 0: every group is average."""

    def __post_init__(self) -> None:
        table = self.conditional
        if table.ndim != 2 or not table.size or not bool(np.all(table >= 0)) or not bool(np.all(table.sum(1) <= 1 + 1e-9)):
            raise ConfigError("conditional must be of shape [depth, rank], not negative, and siblings at most 1 together", "conditional")
        if not 0 <= self.spread < 1:
            raise ConfigError("spread must be in [0, 1)", "spread")

    @staticmethod
    def of_chain(conditional: ArrayLike, *, width: int = 1, sibling_share: float = 0.0, spread: float = 0.0) -> "ChanceTable":
        """A chain's table [K], with siblings that each take the same share of what those before them left."""
        first = np.asarray(conditional, np.float64)
        columns = [first]
        for _ in range(1, width):
            columns.append(sibling_share * (1.0 - np.sum(columns, axis=0)))
        return ChanceTable(np.stack(columns, axis=1), spread)

    def siblings(self, depth: int, rng: np.random.Generator) -> tuple[list[float], int]:
        """Scores [W] of one group given its parent, and the rank that is the target's."""
        scores: list[float] = self.conditional[depth - 1].tolist()
        first = scores[0]
        if self.spread and 0 < first < 1:
            concentration = 1 / self.spread - 1
            scores[0] = rng.beta(first * concentration, (1 - first) * concentration)
            left = (1 - scores[0]) / (1 - first)
            scores[1:] = [left * score for score in scores[1:]]
        return scores, _rank(rng.random(), scores)

    def draw(self, limits: DraftLimits, rng: np.random.Generator) -> Draft:
        """See DraftSource."""
        return _grow(self.siblings, len(self.conditional), limits, rng)


class NodeTraceSource:
    """Groups of siblings as they were recorded, put together to trees: depth by depth, each group drawn by itself."""

    def __init__(self, trace: NodeTrace) -> None:
        """Raises ConfigError for a trace in which some depth is missing."""
        self._groups: dict[int, list[tuple[list[float], int]]] = defaultdict(list)
        served = trace.served
        for verdicts in _groups_of(trace):
            accepted = np.flatnonzero(trace.accepted[verdicts])
            group = (served[verdicts].tolist(), int(accepted[0]) if len(accepted) else NONE)
            self._groups[int(trace.depth[verdicts[0]])].append(group)
        self._depth = max(self._groups, default=0)
        if set(self._groups) != set(range(1, self._depth + 1)) or not self._depth:
            raise ConfigError(f"the trace has verdicts at depths {sorted(self._groups)} only", "trace")

    def siblings(self, depth: int, rng: np.random.Generator) -> tuple[list[float], int]:
        """See ChanceTable.siblings."""
        groups = self._groups[depth]
        return groups[int(rng.integers(len(groups)))]

    def draw(self, limits: DraftLimits, rng: np.random.Generator) -> Draft:
        """See DraftSource."""
        return _grow(self.siblings, self._depth, limits, rng)


class ChainTraceSource:
    """Rounds as they were recorded. A round whose last verified position was accepted is cut there: the target said no more."""

    def __init__(self, trace: DecodingTrace) -> None:
        """Raises ConfigError for a trace without rounds or without scores."""
        settled = np.where(trace.num_accepted < trace.num_verified, trace.num_drafted, trace.num_verified)
        self._rounds = [
            (np.minimum.accumulate(np.clip(trace.score[start : start + length], 0, 1)), int(accepted))
            for start, length, accepted in zip(trace.offsets[:-1], settled, trace.num_accepted, strict=True)
        ]
        if not self._rounds or not np.isfinite(np.concatenate([scores for scores, _ in self._rounds])).all():
            raise ConfigError("the trace holds no rounds, or rounds without scores", "trace")

    def draw(self, limits: DraftLimits, rng: np.random.Generator) -> Draft:
        """See DraftSource."""
        scores, accepted = self._rounds[int(rng.integers(len(self._rounds)))]
        length = min(len(scores), limits.max_depth, limits.max_nodes)
        return Draft(CandidateTree.chain(list(range(length)), scores[:length].tolist()), tuple(range(min(accepted, length))))


Siblings = Callable[[int, np.random.Generator], tuple[list[float], int]]
"""(depth, generator) -> scores [W] given the parent, and the rank of the target's token among them or NONE."""


def _grow(siblings: Siblings, deepest: int, limits: DraftLimits, rng: np.random.Generator) -> Draft:
    """Best first, as drafters do: the likeliest candidate that is not in the tree yet, until it is full."""
    max_depth = min(deepest, limits.max_depth)
    frontier = _Frontier(siblings, limits.max_width, rng)
    parents: list[int] = []
    scores: list[float] = []
    accepted: list[int] = []
    if max_depth > 0:
        frontier.expand(ANCHOR, 0, 1.0, True)
    while frontier.candidates and len(parents) < limits.max_nodes:
        survival, parent, depth, on_path = frontier.pop()
        node = len(parents)
        parents.append(parent)
        scores.append(survival)
        if on_path:
            accepted.append(node)
        if depth < max_depth:
            frontier.expand(node, depth, survival, on_path)
    tree = CandidateTree(np.arange(len(parents), dtype=np.int32), np.asarray(parents, np.int32), np.asarray(scores, np.float32))
    return Draft(tree, tuple(accepted))


class _Frontier:
    """Candidates whose parents are in the tree already."""

    def __init__(self, siblings: Siblings, max_width: int, rng: np.random.Generator) -> None:
        self._siblings = siblings
        self._max_width = max_width
        self._rng = rng
        self._found = count()
        self.candidates: list[tuple[float, int, int, int, bool]] = []
        """-survival, order of discovery, parent, depth, whether the target comes by."""

    def expand(self, node: int, depth: int, survival: float, on_path: bool) -> None:
        """Add a node's children."""
        scores, right = self._siblings(depth + 1, self._rng)
        for rank, score in enumerate(scores[: self._max_width]):
            entry = (-survival * score, next(self._found), node, depth + 1, on_path and rank == right)
            heapq.heappush(self.candidates, entry)

    def pop(self) -> tuple[float, int, int, bool]:
        """The likeliest: survival, parent, depth, whether the target comes by."""
        negative, _, parent, depth, on_path = heapq.heappop(self.candidates)
        return -negative, parent, depth, on_path


def _rank(place: float, chances: list[float]) -> int:
    """Where a uniform number falls among these chances."""
    for rank, chance in enumerate(chances):
        place -= chance
        if place < 0:
            return rank
    return NONE


def _groups_of(trace: NodeTrace) -> list[NDArray[np.int64]]:
    """Verdicts of one group together, by rank. Of a round's path only one node has children, so round and depth name a group."""
    order = np.lexsort((trace.rank, trace.depth, trace.round))
    keys = np.stack((trace.round[order], trace.depth[order]))
    starts = np.flatnonzero(np.any(np.diff(keys, axis=1) != 0, axis=0)) + 1
    return [group for group in np.split(order, starts) if len(group)]
