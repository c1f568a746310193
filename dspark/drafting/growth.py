"""Trees out of a drafter, level by level, for all sessions of a round together.

Of all candidates seen so far only the best `max_nodes` of each session stay, by estimated survival, and only those that stay are grown on.
Survival never rises along a path, so whatever is dropped could not have had a descendant that stays: one call per level finds the tree
that best-first growth, one call per node, would find. A chain is a tree of width 1.

But for one thing: a node that stays is not grown on where its children would most likely have to give way in the end, to those that
better nodes have still to come. A row of a frontier costs as much for them as for children that stay. A tree may lack a late surprise
that way, which costs less than it saves (docs/measurements.md).

Children are the top of (processed log draft_probs + the noise of their position): under the shared-noise law these are the tokens
most likely to be the target's own (DESIGN section 4).

Symbols: S sessions, F rows of a frontier, w width, n candidates, N nodes of one draft, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dspark.sampling import RowSampling, Sampler
from dspark.scheduling.signals import NodeSignals
from dspark.tree import ANCHOR, CandidateTree
from dspark.types import SamplingParams

UNKNOWN = float("nan")
MAX_GAP = 1e4
"""Where a filter left one token only, its gap is infinite: that is as clear as this."""
LEAST_NEXT_SURVIVAL = 0.6
"""Of its parent's, that a node's best child is taken to have before it is known: rather too little than too much."""

Estimate = Callable[[NodeSignals], NDArray[np.float32]]
"""Chance of each candidate [n] to be the target's token, given that its parent is."""
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Stem:
    """One session's wish for a tree."""

    sampling: SamplingParams
    base_length: int
    max_depth: int
    max_nodes: int
    max_width: int
    min_survival: float = 0.0
    """Candidates that are expected to survive less often are not proposed."""


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """What was drafted for one session in one round, and what the drafter knew of each node."""

    tree: CandidateTree
    signals: NodeSignals

    @staticmethod
    def empty() -> "Draft":
        """Nothing drafted."""
        whole, real = np.empty(0, np.int32), np.empty(0, np.float32)
        return Draft(CandidateTree.empty(), NodeSignals(whole, whole, real, real, real, real))


@dataclass(frozen=True, slots=True, eq=False)
class Frontier:
    """The nodes whose children come next, all of one depth, in order of their sessions."""

    depth: int
    """0: the anchors."""
    owners: Indices  # [F] index of the session
    nodes: Indices  # [F] growing ids of their own; ANCHOR at depth 0
    parents: Indices  # [F] ids of their parents; ANCHOR at depth 0 and 1
    token_ids: Indices  # [F]; -1 for anchors
    parent_rows: Indices  # [F] row of the parent in the frontier before

    def __len__(self) -> int:
        return len(self.owners)


class Growth:
    """The trees of one round. The drafter asks for `frontier`, runs it, and gives `extend` what its children could be."""

    def __init__(self, stems: Sequence[Stem], sampler: Sampler, estimate: Estimate, *, wants_log_probs: bool) -> None:
        """`wants_log_probs`: somebody reads the candidates' log draft_probs, which cost a pass over the vocabulary."""
        self._stems = stems
        self._sampler = sampler
        self._estimate = estimate
        self._wants_log_probs = wants_log_probs
        self._limits = np.asarray([(s.max_depth, s.max_nodes, s.max_width) for s in stems], np.int64).reshape(-1, 3)  # [S, 3]
        self._min_survival = np.asarray([s.min_survival for s in stems], np.float32)
        self._temperature = np.asarray([s.sampling.temperature for s in stems], np.float32)
        self._nodes = _Nodes.none()
        self._alive: Indices = np.empty(0, np.int64)
        first = np.flatnonzero((self._limits > 0).all(1))
        none = np.full(len(first), ANCHOR)
        self.frontier = Frontier(0, first, none, none, none, np.arange(len(first)))
        self._make_noise()

    def extend(self, logits: torch.Tensor, confidence_logits: torch.Tensor | None = None) -> None:
        """Children for the frontier's rows, from the drafter's `logits` [F, V] and `confidence_logits` [F]; then the next frontier."""
        front = self.frontier
        rows = [RowSampling(self._stems[s].sampling, self._stems[s].base_length + front.depth) for s in front.owners.tolist()]
        width = int(self._limits[front.owners, 2].max())
        best = self._sampler.noised_scores(logits, rows).topk(min(width + 1, logits.shape[-1]), dim=-1)
        scores, token_ids = best.values.cpu().numpy(), best.indices.cpu().numpy()  # [F, w + 1]
        width = min(width, scores.shape[1])
        log_probs = self._log_probs(logits, best.indices[:, :width])
        confidence = _column(confidence_logits, scores[:, :width])
        wanted = (np.arange(width) < self._limits[front.owners, 2, None]) & np.isfinite(scores[:, :width])
        row, rank = np.nonzero(wanted)
        picked = tuple(values[row, rank] for values in (_gaps(scores)[:, :width], log_probs, confidence))
        self._add(row, rank, token_ids[row, rank], picked)

    def drafts(self) -> list[Draft]:
        """[S] the trees as they stand."""
        owners = self._nodes.owners[self._alive]
        return [self._draft(self._alive[owners == session]) for session in range(len(self._stems))]

    def _draft(self, nodes: Indices) -> Draft:
        """Ids grow with depth, so parents stand before their children."""
        if len(nodes) == 0:
            return Draft.empty()
        grown = self._nodes
        parents = grown.parents[nodes]
        places = np.where(parents == ANCHOR, ANCHOR, np.searchsorted(nodes, parents))
        tree = CandidateTree(grown.token_ids[nodes].astype(np.int32), places.astype(np.int32), grown.survival[nodes])
        return Draft(tree, grown.signals(nodes, self._temperature))

    def _add(self, row: Indices, rank: Indices, token_ids: Indices, known: tuple[NDArray[np.float32], ...]) -> None:
        """`known` are gaps, log draft_probs and confidence logits, each [n]."""
        front = self.frontier
        depth = np.full(len(row), front.depth + 1)
        gaps, log_probs, confidence = known
        survival = np.empty(len(row), np.float32)
        new = _Nodes(front.owners[row], front.nodes[row], row, depth, rank, token_ids, gaps, log_probs, confidence, survival)
        chances = self._estimate(new.signals(np.arange(len(row)), self._temperature))
        above = np.ones(len(row), np.float32) if front.depth == 0 else self._nodes.survival[new.parents]
        survival[:] = above * np.clip(np.nan_to_num(chances), 0, 1)
        start = len(self._nodes.owners)
        self._nodes = self._nodes.followed_by(new)
        self._alive = self._best(np.concatenate((self._alive, np.arange(start, start + len(row)))))
        self.frontier = self._next_frontier(self._alive[self._alive >= start])

    def _best(self, nodes: Indices) -> Indices:
        """Those that stay, in growing order."""
        owners, survival = self._nodes.owners[nodes], self._nodes.survival[nodes]
        order = np.lexsort((nodes, -survival, owners))  # among equals the older, so a parent before its children
        place = np.arange(len(nodes)) - np.searchsorted(owners[order], owners[order])  # from the best of each session
        stays = (place < self._limits[owners[order], 1]) & (survival[order] >= self._min_survival[owners[order]])
        return np.sort(nodes[order[stays]])

    def _next_frontier(self, nodes: Indices) -> Frontier:
        depth = self.frontier.depth + 1
        nodes = nodes[depth < self._limits[self._nodes.owners[nodes], 0]]
        nodes = nodes[self._leaves_some_that_stay(nodes, depth)]
        grown = self._nodes
        return Frontier(depth, grown.owners[nodes], nodes, grown.parents[nodes], grown.token_ids[nodes], grown.rows[nodes])

    def _leaves_some_that_stay(self, nodes: Indices, depth: int) -> NDArray[np.bool_]:
        """[n] of new nodes: whether a child of each might be among the best in the end, when chains below all of them have come."""
        owners, survival = self._nodes.owners[nodes], self._nodes.survival[nodes]
        if len(np.unique(owners)) == len(owners):
            return np.ones(len(nodes), np.bool_)  # chains
        levels = np.arange(1, int(self._limits[owners, 0].max()) - depth + 1)  # [k] to come
        to_come = survival[:, None] * LEAST_NEXT_SURVIVAL**levels * (levels <= self._limits[owners, 0, None] - depth)  # [n, k]
        seen = np.concatenate((self._nodes.survival[self._alive], to_come.ravel()))
        whose = np.concatenate((self._nodes.owners[self._alive], owners.repeat(len(levels))))
        order = np.lexsort((-seen, whose))
        whose, seen = whose[order], seen[order]
        last = np.searchsorted(whose, owners) + self._limits[owners, 1] - 1  # [n] the last that stays of the session's
        stays = np.minimum(last, len(seen) - 1)
        least = np.where((last < len(seen)) & (whose[stays] == owners), seen[stays], 0.0)
        return np.asarray(survival > least)

    def _log_probs(self, logits: torch.Tensor, token_ids: torch.Tensor) -> NDArray[np.float32]:
        """[F, w] by the drafter's own unprocessed distribution."""
        if not self._wants_log_probs:
            return np.full(token_ids.shape, UNKNOWN, np.float32)
        logits = logits.float()
        log_probs: NDArray[np.float32] = (logits.gather(-1, token_ids) - logits.logsumexp(-1, keepdim=True)).cpu().numpy()
        return log_probs

    def _make_noise(self) -> None:
        """For all positions to come at once: one by one, they cost many small operations each."""
        stems = [stem for stem in self._stems if min(stem.max_nodes, stem.max_width) > 0]
        self._sampler.make_noise([RowSampling(s.sampling, s.base_length + k) for s in stems for k in range(min(s.max_depth, s.max_nodes))])


@dataclass(frozen=True, slots=True, eq=False)
class _Nodes:
    """Everything ever seen in a round, kept or not; an entry's place is its id."""

    owners: Indices
    parents: Indices
    rows: Indices
    """Of the frontier that it came from."""
    depths: Indices
    ranks: Indices
    token_ids: Indices
    gaps: NDArray[np.float32]
    log_draft_probs: NDArray[np.float32]
    confidence_logits: NDArray[np.float32]
    survival: NDArray[np.float32]

    @staticmethod
    def none() -> "_Nodes":
        whole, real = np.empty(0, np.int64), np.empty(0, np.float32)
        return _Nodes(whole, whole, whole, whole, whole, whole, real, real, real, real)

    def followed_by(self, new: "_Nodes") -> "_Nodes":
        return _Nodes(*(np.concatenate((getattr(self, name), getattr(new, name))) for name in self.__slots__))

    def signals(self, nodes: Indices, temperature: NDArray[np.float32]) -> NodeSignals:
        return NodeSignals(
            self.depths[nodes].astype(np.int32),
            self.ranks[nodes].astype(np.int32),
            self.gaps[nodes],
            self.log_draft_probs[nodes],
            self.confidence_logits[nodes],
            temperature[self.owners[nodes]],
        )


def _gaps(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """[F, w + 1] of scores in falling order: the first one's lead over the second, the others' distance from the first."""
    with np.errstate(invalid="ignore"):  # between tokens that a filter removed
        gaps = scores - scores[:, :1]
        gaps[:, 0] = scores[:, 0] - scores[:, 1] if scores.shape[1] > 1 else MAX_GAP
    return np.asarray(np.clip(np.nan_to_num(gaps, nan=-MAX_GAP), -MAX_GAP, MAX_GAP), np.float32)


def _column(values: torch.Tensor | None, like: NDArray[np.float32]) -> NDArray[np.float32]:
    """[F, w]: each row's value beside all its candidates."""
    if values is None:
        return np.full(like.shape, UNKNOWN, np.float32)
    column: NDArray[np.float32] = values.float().cpu().numpy()
    return np.broadcast_to(column[:, None], like.shape)
