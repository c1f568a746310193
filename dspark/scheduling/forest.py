"""All trees that wait for one step of the target, as flat arrays: what the planner reads.

Symbols: S sessions, n candidates of all of them. Sessions lie one after the other in the order they came, a session's
candidates in their tree's order. Pure numpy; no torch, no clock.

Scores are a drafter's word, so they are made safe here: what is not a number or below 0 counts as 0, what is above 1 as 1,
and a child that claims more than its parent gets its parent's. A lying drafter so costs speed only.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspark.tree import ANCHOR, CandidateTree, FloatArray
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


class Forest:
    """Grows while the target is busy: one `add` per session that becomes ready, so that little is left to do when the lane fires.

    Belongs to one lane. `Forest.of` builds one at once.
    """

    def __init__(self) -> None:
        self.session_ids: list[SessionId] = []
        self.needs: list[SessionNeed] = []
        self.has_limits = False
        """True if some session has, or had, a floor or a cap."""
        self.has_promises = False
        """True if some session has, or had, a speed promise."""
        self._counts: list[int] = []
        self._size = 0
        self._scores = np.empty(256, np.float32)
        self._parents = np.empty(256, np.int32)
        self._depths = np.empty(256, np.int32)

    @classmethod
    def of(cls, needs: Mapping[SessionId, SessionNeed]) -> "Forest":
        """All at once."""
        forest = cls()
        forest.session_ids, forest.needs = list(needs), list(needs.values())
        forest.has_limits = any(need.floor_nodes or need.max_nodes is not None for need in forest.needs)
        forest.has_promises = any(need.min_tokens_per_second for need in forest.needs)
        trees = [need.tree for need in forest.needs]
        forest._counts = [len(tree.token_ids) for tree in trees]
        forest._size = sum(forest._counts)
        if trees:
            forest._scores = np.concatenate([tree.scores for tree in trees])
            forest._parents = np.concatenate([tree.parents for tree in trees])
            forest._depths = np.concatenate([tree.depths for tree in trees])
        return forest

    def __len__(self) -> int:
        return len(self.session_ids)

    def add(self, session_id: SessionId, need: SessionNeed) -> None:
        """One more session, which is not in it yet."""
        tree, start = need.tree, self._size
        self._size += len(tree)
        self._make_room()
        for flat, own in ((self._scores, tree.scores), (self._parents, tree.parents), (self._depths, tree.depths)):
            flat[start : self._size] = own
        self.session_ids.append(session_id)
        self.needs.append(need)
        self._counts.append(len(tree))
        self.has_limits |= need.floor_nodes > 0 or need.max_nodes is not None
        self.has_promises |= bool(need.min_tokens_per_second)

    def remove(self, session_id: SessionId) -> None:
        """A session that stopped waiting. Raises ValueError if it is not in."""
        index = self.session_ids.index(session_id)
        start = sum(self._counts[:index])
        stop = start + self._counts[index]
        for flat in (self._scores, self._parents, self._depths):
            flat[start : self._size - (stop - start)] = flat[stop : self._size].copy()
        self._size -= stop - start
        for column in (self.session_ids, self.needs, self._counts):
            del column[index]

    def ranked(self) -> Ranked:
        """All candidates, likeliest first. Raises ValueError beyond MAX_CANDIDATES."""
        if self._size > MAX_CANDIDATES:
            raise ValueError(f"{self._size} candidates in one step; at most {MAX_CANDIDATES} can be planned")
        owners = np.repeat(np.arange(len(self)), self._counts)
        survival = self._survival(owners)
        # One integer holds all that decides: sorting plain integers is several times faster than an indirect sort of floats.
        keys = (ONE_AS_BITS - survival.view(np.int32)).astype(np.int64) << 32
        keys |= np.minimum(self._depths[: self._size], MAX_SORTED_DEPTH).astype(np.int64) << 24
        keys |= np.arange(self._size)
        keys.sort()
        keys &= MAX_CANDIDATES - 1
        return Ranked(keys, owners[keys], survival[keys].astype(np.float64))

    def kept_lists(self, nodes: Ints) -> dict[SessionId, list[int]]:
        """Indices into each session's tree, rising, of the chosen flat indices (distinct, in any order)."""
        chosen = np.zeros(self._size, np.bool_)
        chosen[nodes] = True
        flat = np.flatnonzero(chosen)
        starts = self._starts()
        cuts = np.searchsorted(flat, starts)
        sizes = np.diff(cuts)
        local = (flat - np.repeat(starts[:-1], sizes)).tolist()
        bounds = cuts.tolist()
        return {s: local[a:b] for s, a, b in zip(self.session_ids, bounds, bounds[1:], strict=False)}

    def _make_room(self) -> None:
        if self._size > len(self._scores):
            self._scores = np.resize(self._scores, 2 * self._size)
            self._parents = np.resize(self._parents, 2 * self._size)
            self._depths = np.resize(self._depths, 2 * self._size)

    def _starts(self) -> Ints:  # [S + 1]
        starts = np.zeros(len(self) + 1, np.int64)
        np.cumsum(self._counts, out=starts[1:])
        return starts

    def _survival(self, owners: Ints) -> FloatArray:  # [n]
        parents = self._parents[: self._size]
        survival = np.fmin(np.fmax(self._scores[: self._size], np.float32(0)), np.float32(1)) + np.float32(0)  # turns -0 into 0
        above = np.where(parents == ANCHOR, np.arange(self._size), parents + self._starts()[owners])  # roots look at themselves
        while np.any(lies := survival > (ceiling := survival[above])):
            survival = np.where(lies, ceiling, survival)
        return survival
