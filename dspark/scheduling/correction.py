"""Online correction of served survival by verdicts, for any drafter: one without calibration, one that drifted, one that lies.

Verdicts are counted in cells: (drafter, origin, greedy or sampled, depth bucket, sibling rank, bin of the served chance given the
parent). A cell shifts the odds of what was served, so that its mean becomes the share that was accepted. A cell that has seen little
leans on all of its depth, and that on what was served. Counts fade, so what a drafter did long ago does not bind it.

An origin tells who proposed a node of a merged tree: lookup's scores err in other ways than those of the drafter that it is merged
with, and where both propose the same they are right more often than either says.

Symbols: G trees, n nodes, X drafters, R origins (1 until a tree is merged). Pure numpy; no clock: time is counted in rounds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspark.scheduling.tree_batch import Doubles, Ints, TreeBatch
from dspark.tree import CandidateTree, FloatArray

Mask = NDArray[np.bool_]

PRIOR_WEIGHT = 30.0
HALF_LIFE_ROUNDS = 2000.0
SMALLEST = 1e-4
"""Served chances count as within SMALLEST..1-SMALLEST: nothing could correct the odds of a 0 or a 1."""
DEPTH_BUCKETS = np.array([0, 0, 1, 2, 2, 3, 3, 3, 3, 4], np.int64)
"""Depth -> bucket: 1, 2, 3-4, 5-8, 9 and more."""
NUM_DEPTHS = 5
NUM_RANKS = 4
"""The last one holds all further siblings."""
BIN_EDGES = np.array([0.02, 0.06, 0.15, 0.3, 0.5, 0.7, 0.85, 0.94, 0.98])
"""Of the served chance; finer where odds change faster."""
BIN_CENTRES = np.array([0.01, 0.04, 0.1, 0.22, 0.4, 0.6, 0.78, 0.9, 0.96, 0.99])
NUM_BINS = len(BIN_CENTRES)
SHAPE = (2, NUM_DEPTHS, NUM_RANKS, NUM_BINS)
NUM_CELLS = 2 * NUM_DEPTHS * NUM_RANKS * NUM_BINS
NUM_ECE_BINS = 15


@dataclass(frozen=True, slots=True)
class CorrectionMetrics:
    """How a drafter's chances, given the parent, met the verdicts of late. 0 without verdicts."""

    verdicts: float
    """Faded count."""
    served_ece: float
    """Expected calibration error of what the drafter said."""
    corrected_ece: float
    """The same of what the corrector made of it, before it learned the verdict."""
    drift: float
    """Mean distance between corrected and served chances, weighted by verdicts."""


class SurvivalCorrector:
    """Belongs to one router."""

    def __init__(self, half_life_rounds: float = HALF_LIFE_ROUNDS, prior_weight: float = PRIOR_WEIGHT) -> None:
        """A verdict counts half after so many further rounds (of single sessions) with its drafter; `prior_weight` is in verdicts."""
        self._half_life_rounds = half_life_rounds
        self._prior_weight = prior_weight
        self._drafters: dict[str, int] = {}
        self._cells = np.zeros((3, 0, 1, NUM_CELLS))  # verdicts, sum of served chances, accepted; by drafter, origin and cell
        self._judged = np.zeros((2, 3, 0, NUM_ECE_BINS))  # served and corrected; as above, in bins of equal width, by drafter alone
        self._odds_ratios: Doubles | None = None  # [X * R * NUM_CELLS]; None: to be made anew

    def corrected(self, drafter: str, greedy: bool, tree: CandidateTree) -> FloatArray:
        """[N] survival of the tree's nodes, never rising along a path. Without verdicts what was served, to SMALLEST per step."""
        return self.corrected_batch(TreeBatch.of([tree]), [drafter], [greedy], origins_of([tree]))

    def learn(self, drafter: str, greedy: bool, tree: CandidateTree, accepted_nodes: Sequence[int]) -> None:
        """One round: the tree as verified, with the scores as SERVED, not corrected ones, and what the target accepted of it."""
        trees = TreeBatch.of([tree])
        self.learn_batch(trees, [drafter], [greedy], trees.accepted_mask([accepted_nodes]), origins_of([tree]))

    def corrected_batch(self, trees: TreeBatch, drafters: Sequence[str], greedy: Sequence[bool], origins: Ints | None = None) -> FloatArray:
        """[n] of many trees at once; one drafter and one regime for each tree [G], one origin for each node [n] (see origins_of)."""
        served = _served(trees)
        chances = self._shifted(served, self._cells_of(trees, served, drafters, greedy, origins))
        return trees.survival(chances).astype(np.float32)

    def learn_batch(
        self, trees: TreeBatch, drafters: Sequence[str], greedy: Sequence[bool], accepted: Mask, origins: Ints | None = None
    ) -> None:
        """As `learn`, with accepted nodes as a mask [n]. Nodes whose parent was not accepted teach nothing."""
        served = _served(trees)
        cells = self._cells_of(trees, served, drafters, greedy, origins)
        known = np.append(accepted, True)[trees.above[:-1]]
        cells, served, truth = cells[known], served[known], accepted[known].astype(np.float64)
        corrected = self._shifted(served, cells)
        self._fade(trees, drafters)
        self._cells += _sums(cells, served, truth, self._cells.shape)
        for judged, chances in zip(self._judged, (served, corrected), strict=True):
            bins = cells // (self._num_origins * NUM_CELLS) * NUM_ECE_BINS + (chances * NUM_ECE_BINS).astype(np.int64)
            judged += _sums(bins, chances, truth, judged.shape)
        self._odds_ratios = None

    def metrics(self, drafter: str) -> CorrectionMetrics:
        """For whoever publishes them, of all origins together; a drafter never met has zeros."""
        index = self._drafters.get(drafter)
        if index is None or not (verdicts := float(self._cells[0, index].sum())):
            return CorrectionMetrics(0.0, 0.0, 0.0, 0.0)
        errors = np.abs(self._judged[:, 1, index] - self._judged[:, 2, index]).sum(axis=-1) / verdicts
        count, claimed, _ = self._cells[:, index].reshape(3, -1)
        served = _means(count, claimed, np.tile(BIN_CENTRES, len(count) // NUM_BINS))
        moved = np.abs(self._shifted(served, index * len(count) + np.arange(len(count))) - served)
        return CorrectionMetrics(verdicts, float(errors[0]), float(errors[1]), float(count @ moved / verdicts))

    @property
    def _num_origins(self) -> int:
        return self._cells.shape[2]

    def _cells_of(self, trees: TreeBatch, served: Doubles, drafters: Sequence[str], greedy: Sequence[bool], origins: Ints | None) -> Ints:
        """[n] index of each node's cell, over all drafters and origins."""
        if origins is not None:
            self._make_room(int(origins.max(initial=0)) + 1)
        indices = np.asarray([self._index(name) for name in drafters], np.int64)
        cells = (2 * self._num_origins * indices + np.asarray(greedy, np.int64))[trees.owners]
        if origins is not None:
            cells += 2 * origins
        cells *= NUM_DEPTHS
        cells += DEPTH_BUCKETS[np.minimum(trees.depths, len(DEPTH_BUCKETS) - 1)]
        cells *= NUM_RANKS
        cells += np.minimum(trees.ranks, NUM_RANKS - 1)
        cells *= NUM_BINS
        cells += np.searchsorted(BIN_EDGES, served, side="right")
        return cells

    def _index(self, drafter: str) -> int:
        index = self._drafters.setdefault(drafter, len(self._drafters))
        if index == self._cells.shape[1]:
            self._cells = np.pad(self._cells, ((0, 0), (0, 1), (0, 0), (0, 0)))
            self._judged = np.pad(self._judged, ((0, 0), (0, 0), (0, 1), (0, 0)))
            self._odds_ratios = None
        return index

    def _make_room(self, num_origins: int) -> None:
        if num_origins > self._num_origins:
            self._cells = np.pad(self._cells, ((0, 0), (0, 0), (0, num_origins - self._num_origins), (0, 0)))
            self._odds_ratios = None

    def _shifted(self, served: Doubles, cells: Ints) -> Doubles:
        """Chances [k] with the odds of their cells [k]."""
        if self._odds_ratios is None:
            self._odds_ratios = self._fresh_odds_ratios()
        return np.clip(_shift(served, self._odds_ratios[cells]), SMALLEST, 1.0 - SMALLEST)

    def _fresh_odds_ratios(self) -> Doubles:  # [X * R * NUM_CELLS]
        """Cell -> its depth -> what was served: each level is the prior of the one before."""
        count, claimed, accepted = self._cells.reshape(3, -1, *SHAPE)
        weight = self._prior_weight
        totals = [column.sum(axis=(-1, -2), keepdims=True) for column in (count, claimed, accepted)]
        said = _means(totals[0], totals[1], np.array(0.5))
        of_depth = _odds((totals[2] + weight * said) / (totals[0] + weight)) / _odds(said)
        said = _means(count, claimed, BIN_CENTRES)
        of_cell = _odds((accepted + weight * _shift(said, of_depth)) / (count + weight)) / _odds(said)
        return of_cell.reshape(-1)

    def _fade(self, trees: TreeBatch, drafters: Sequence[str]) -> None:
        """Older verdicts lose weight by the rounds that each drafter has just had; a round without candidates is none."""
        indices = [self._drafters[name] for name, size in zip(drafters, trees.sizes.tolist(), strict=True) if size]
        rounds = np.bincount(np.asarray(indices, np.int64), minlength=len(self._drafters))
        fading = 0.5 ** (rounds / self._half_life_rounds)
        self._cells *= fading[:, None, None]
        self._judged *= fading[:, None]


def origins_of(trees: Sequence[CandidateTree]) -> Ints | None:
    """[n] origin of each node of all trees; None where it is 0 for all of them, as it is where nothing was merged."""
    if all(tree.origins is None for tree in trees):
        return None
    origins = [np.zeros(len(tree), np.uint8) if tree.origins is None else tree.origins for tree in trees]
    return np.concatenate(origins).astype(np.int64)


def _served(trees: TreeBatch) -> Doubles:
    return np.clip(trees.conditional, SMALLEST, 1.0 - SMALLEST)


def _sums(index: Ints, claimed: Doubles, accepted: Doubles, shape: tuple[int, ...]) -> Doubles:  # [3, ...] = shape
    """Count, sum of claims and sum of acceptances by index."""
    columns = [np.bincount(index, weights, math.prod(shape[1:])) for weights in (None, claimed, accepted)]
    return np.asarray(columns, np.float64).reshape(shape)


def _means(count: Doubles, total: Doubles, without: Doubles) -> Doubles:
    """total / count, and `without` where nothing was counted."""
    seen = count > 1e-6
    return np.where(seen, total / np.where(seen, count, 1.0), without)


def _odds(chance: Doubles) -> Doubles:
    return chance / (1.0 - chance)


def _shift(chance: Doubles, odds_ratio: Doubles) -> Doubles:
    """The chance whose odds are so many times larger; exact for a ratio of 1."""
    raised = chance * odds_ratio
    return raised / (raised + (1.0 - chance))
