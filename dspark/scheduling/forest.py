"""All trees that wait for one step of the target, as flat arrays: what the planner reads.

Symbols: S sessions, n candidates of all of them. Sessions lie one after the other in the order they came, a session's
candidates in their tree's order. Pure numpy; no torch, no clock.

Scores are a drafter's word, so they are made safe here: what is not a number or below 0 counts as 0, what is above 1 as 1,
and a child that claims more than its parent gets its parent's. A lying drafter so costs speed only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dspark.tree import ANCHOR, CandidateTree, FloatArray, IntArray
from dspark.types import SessionId

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MAX_CANDIDATES = 2**24
"""Of one step: what the sorting key has room for."""
MAX_SORTED_DEPTH = 255
"""Deeper candidates of the same survival are no longer told apart by depth."""
ONE_AS_BITS = 0x3F800000
"""Bits of the float32 1.0. Between 0 and 1 the order of floats is the order of their bits."""


@dataclass(frozen=True, slots=True)
class SessionNeed:
    """One session's candidates, and what it asks of the plan."""

    tree: CandidateTree
    floor_nodes: int = 0
    """Its best so many candidates are kept even where they do not pay."""
    max_nodes: int | None = None
    """At most so many are kept, the floor included."""
    min_tokens_per_second: float | None = None
    """A speed promise."""
    priority: int = 0
    """Where not all promises can be kept, those of higher priority are."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """The candidates of a forest, likeliest first; ties by depth, then by order. Every prefix holds its ancestors."""

    nodes: Ints  # [n] index into the forest's flat arrays
    owners: Ints  # [n] index of the session
    survival: Floats  # [n] safe scores, never rising

    def only(self, where: Ints | NDArray[np.bool_]) -> "Ranked":
        """These entries of it."""
        return Ranked(self.nodes[where], self.owners[where], self.survival[where])

    def ranks(self) -> Ints:  # [n]
        """Each candidate's place within its own session: 0 is the session's best."""
        size = len(self.nodes)
        grouped = np.sort(self.owners * size + np.arange(size))  # by session, likeliest first within it
        owners, places = np.divmod(grouped, max(1, size))
        ranks = np.empty(size, np.int64)
        ranks[places] = np.arange(size) - np.searchsorted(owners, owners)
        return ranks


@dataclass(frozen=True, eq=False)
class Forest:
    """Belongs to one plan."""

    session_ids: list[SessionId]
    needs: list[SessionNeed]
    _counts: list[int]
    """Candidates of each session."""
    _scores: FloatArray  # [n]
    _parents: IntArray  # [n] within the session's own tree
    _depths: IntArray  # [n]

    @classmethod
    def of(cls, needs: Mapping[SessionId, SessionNeed], scores: FloatArray | None = None) -> "Forest":
        """`scores` [n], session by session, instead of those that the trees have."""
        trees = [need.tree for need in needs.values()] or [CandidateTree.empty()]
        return cls(
            list(needs),
            list(needs.values()),
            [len(need.tree.token_ids) for need in needs.values()],
            np.concatenate([tree.scores for tree in trees]) if scores is None else scores,
            np.concatenate([tree.parents for tree in trees]),
            np.concatenate([tree.depths for tree in trees]),
        )

    def __len__(self) -> int:
        return len(self.session_ids)

    @cached_property
    def has_limits(self) -> bool:
        """True if some session has a floor or a cap."""
        return any(need.floor_nodes or need.max_nodes is not None for need in self.needs)

    @cached_property
    def has_promises(self) -> bool:
        """True if some session has a speed promise."""
        return any(need.min_tokens_per_second for need in self.needs)

    @property
    def depth(self) -> int:
        """Of the deepest candidate; 0 without any."""
        return int(self._depths.max(initial=0))

    def ranked(self) -> Ranked:
        """All candidates, likeliest first. Raises ValueError beyond MAX_CANDIDATES."""
        if len(self._scores) > MAX_CANDIDATES:
            raise ValueError(f"{len(self._scores)} candidates in one step; at most {MAX_CANDIDATES} can be planned")
        owners = np.repeat(np.arange(len(self)), self._counts)
        survival = self._survival(owners)
        # One integer holds all that decides: sorting plain integers is several times faster than an indirect sort of floats.
        keys = (ONE_AS_BITS - survival.view(np.int32)).astype(np.int64) << 32
        keys |= np.minimum(self._depths, MAX_SORTED_DEPTH).astype(np.int64) << 24
        keys |= np.arange(len(self._scores))
        keys.sort()
        keys &= MAX_CANDIDATES - 1
        return Ranked(keys, owners[keys], survival[keys].astype(np.float64))

    def kept_lists(self, nodes: Ints) -> dict[SessionId, list[int]]:
        """Indices into each session's tree, rising, of the chosen flat indices (distinct, in any order)."""
        chosen = np.zeros(len(self._scores), np.bool_)
        chosen[nodes] = True
        flat = np.flatnonzero(chosen)
        starts = self._starts()
        cuts = np.searchsorted(flat, starts)
        sizes = np.diff(cuts)
        local = (flat - np.repeat(starts[:-1], sizes)).tolist()
        bounds = cuts.tolist()
        return {s: local[a:b] for s, a, b in zip(self.session_ids, bounds, bounds[1:], strict=False)}

    def _starts(self) -> Ints:  # [S + 1]
        starts = np.zeros(len(self) + 1, np.int64)
        np.cumsum(self._counts, out=starts[1:])
        return starts

    def _survival(self, owners: Ints) -> FloatArray:  # [n]
        parents = self._parents
        survival = np.fmin(np.fmax(self._scores, np.float32(0)), np.float32(1)) + np.float32(0)  # turns -0 into 0
        above = np.where(parents == ANCHOR, np.arange(len(self._scores)), parents + self._starts()[owners])  # roots look at themselves
        while np.any(lies := survival > (ceiling := survival[above])):
            survival = np.where(lies, ceiling, survival)
        return survival
