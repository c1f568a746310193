"""Many trees as flat arrays, and what follows from their shape: depth, sibling rank, chance given the parent. Pure numpy.

Symbols: G trees, n nodes of all of them. Index n is the anchor of every tree. Steps along paths double: a path of length L takes
log2(L) of them, whatever the number of nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dspark.tree import ANCHOR, CandidateTree

Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_NODES = 2**22
"""Of one batch: what the sorting key has room for."""
SCORE_STEPS = 65535
"""Siblings whose scores differ by less than 1/65535 are taken in their order."""


@dataclass(frozen=True, eq=False)
class TreeBatch:
    """Trees one after the other; a parent's index counts over all of them."""

    sizes: Ints  # [G] nodes of each tree
    above: Ints  # [n + 1] flat index of the parent; n for roots and for n itself
    scores: Doubles  # [n] within 0..1

    @classmethod
    def of(cls, trees: Sequence[CandidateTree]) -> "TreeBatch":
        """What is not a number or below 0 counts as 0, what is above 1 as 1. Raises ValueError beyond MAX_NODES."""
        sizes = np.asarray([len(tree.token_ids) for tree in trees], np.int64)
        count = int(sizes.sum())
        if count > MAX_NODES:
            raise ValueError(f"{count} nodes in one batch of trees; at most {MAX_NODES} have room")
        above = np.full(count + 1, count, np.int64)
        scores = np.empty(count)
        if count:
            parents = np.concatenate([tree.parents for tree in trees])
            starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
            above[:-1] = np.where(parents == ANCHOR, count, parents + starts)
            scores[:] = np.fmin(np.fmax(np.concatenate([tree.scores for tree in trees]), 0.0), 1.0)
        return cls(sizes, above, scores)

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def owners(self) -> Ints:
        """[n] index of the tree."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @cached_property
    def is_root(self) -> NDArray[np.bool_]:
        """[n] child of an anchor."""
        return np.asarray(self.above[:-1] == len(self))

    @cached_property
    def depths(self) -> Ints:
        """[n] 1 for roots."""
        depths = np.ones(len(self) + 1, np.int64)
        depths[-1] = 0
        for jump in self._jumps:
            depths += depths[jump]
        return np.asarray(depths[:-1])

    @cached_property
    def ranks(self) -> Ints:
        """[n] among its siblings by score, 0 for the best; ties in the tree's order."""
        count = len(self)
        families = np.where(self.is_root, count + self.owners, self.above[:-1])
        # One integer holds all that decides: sorting plain integers is several times faster than an indirect sort.
        keys = families << 38
        keys |= ((1.0 - self.scores) * SCORE_STEPS).astype(np.int64) << 22
        keys |= np.arange(count)
        keys.sort()
        order, places = keys & (MAX_NODES - 1), np.arange(count)
        family = keys >> 38
        is_first = np.diff(family, prepend=-1) != 0
        ranks = np.empty(count, np.int64)
        ranks[order] = places - np.maximum.accumulate(np.where(is_first, places, 0))
        return ranks

    @cached_property
    def conditional(self) -> Doubles:
        """[n] score over the parent's: the chance of a node given its parent. 0 where the parent has none."""
        ceiling = np.append(self.scores, 1.0)[self.above[:-1]]
        ratio = np.divide(self.scores, ceiling, out=np.zeros(len(self)), where=ceiling > 0)
        return np.asarray(np.minimum(ratio, 1.0), np.float64)

    def survival(self, conditional: Doubles) -> Doubles:
        """[n] product of chances [n] along each path."""
        survival = np.append(conditional, 1.0)
        for jump in self._jumps:
            survival *= survival[jump]
        return np.asarray(survival[:-1])

    def accepted_mask(self, accepted_nodes: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
        """[n] from each tree's own indices of accepted nodes."""
        mask = np.zeros(len(self), bool)
        starts = (np.cumsum(self.sizes) - self.sizes).tolist()
        mask[[start + node for start, nodes in zip(starts, accepted_nodes, strict=True) for node in nodes]] = True
        return mask

    @cached_property
    def _jumps(self) -> list[Ints]:
        """[n + 1] ancestors 1, 2, 4, ... steps up, as long as any is a node."""
        jumps, jump = [], self.above
        while (jump[:-1] != len(self)).any():
            jumps.append(jump)
            jump = jump[jump]
        return jumps
