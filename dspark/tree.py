"""CandidateTree: what a drafter proposes, as flat arrays. A chain is a tree of width 1; a tree of no nodes is legal.

      anchor            index      0   1   2   3
      ├── "def" (0)     token_ids  17  4   9   3
      │   ├── " f" (2)  parents    -1  -1  0   0
      │   └── " g" (3)  scores     .8  .1  .5  .2
      └── "@" (1)

A parent stands before its children, and a node's score, its estimated survival, is at most its parent's.

Trees merged into one leave their mark: `origins` says who proposed each node. Verdicts correct a score by it (scheduling/correction.py).
It crosses no wire: trees are merged after drafters have sent them, and a target verifies candidates whatever their origin.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dspark.errors import InvalidMessage

ANCHOR = -1

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]
OriginArray = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class CandidateTree:
    """Candidate tokens below one anchor. N = number of nodes."""

    token_ids: IntArray  # [N] ids of the target's vocabulary
    parents: IntArray  # [N] index of the parent node, ANCHOR for roots
    scores: FloatArray  # [N] estimated survival, 0..1
    origins: OriginArray | None = None  # [N] which of the merged trees proposed it, see `merged`; None: 0 for all

    @staticmethod
    def empty() -> "CandidateTree":
        """No candidates: the round is one step of plain decoding."""
        return CandidateTree.chain([])

    @staticmethod
    def chain(token_ids: list[int], scores: list[float] | None = None) -> "CandidateTree":
        """A path: node k is the child of node k-1."""
        length = len(token_ids)
        survival = [1.0] * length if scores is None else scores
        return CandidateTree(
            np.asarray(token_ids, np.int32),
            np.arange(-1, length - 1, dtype=np.int32),
            np.asarray(survival, np.float32),
        )

    def __len__(self) -> int:
        return len(self.token_ids)

    @cached_property
    def depths(self) -> IntArray:
        """[N] edges from the anchor: 1 for roots."""
        depths = np.empty(len(self), np.int32)
        for node, parent in enumerate(self.parents.tolist()):
            depths[node] = 1 if parent == ANCHOR else depths[parent] + 1
        return depths

    @property
    def chances(self) -> FloatArray:
        """[N] of each node given its parent: its score over the parent's, 1 where it claims more, 0 where the parent has none."""
        above = np.append(self.scores, np.float32(1))[self.parents]  # ANCHOR is the last
        ratios = np.divide(self.scores, above, out=np.zeros_like(self.scores), where=above > 0)
        return np.asarray(np.fmin(ratios, np.float32(1)), np.float32)

    @cached_property
    def is_chain(self) -> bool:
        """True if every node is the child of the one before it."""
        return bool(np.array_equal(self.parents, np.arange(-1, len(self) - 1)))

    def path(self, node: int) -> list[int]:
        """Node indices from the root down to `node`, itself included."""
        nodes = []
        while node != ANCHOR:
            nodes.append(node)
            node = int(self.parents[node])
        return nodes[::-1]

    def select(self, kept: list[int]) -> "CandidateTree":
        """The sub-tree of the given nodes, in their order; with a node its parent must be kept too."""
        if kept == list(range(len(self))):
            return self
        new_index = {ANCHOR: ANCHOR} | {node: index for index, node in enumerate(kept)}
        try:
            parents = [new_index[int(self.parents[node])] for node in kept]
        except KeyError as missing:
            raise ValueError(f"node {missing} is not kept, but a child of it is") from None
        origins = None if self.origins is None else self.origins[kept]
        return CandidateTree(self.token_ids[kept], np.asarray(parents, np.int32), self.scores[kept], origins)

    @staticmethod
    def merged(trees: Sequence["CandidateTree"]) -> "CandidateTree":
        """One tree of all their paths. Of a node's chance given its parent, the best of what its proposers say is taken: more would
        count one chance twice. Its score is the product along its path, since who proposed the parent tells nothing of the child.

        Its origin is the set of trees that propose it, tree i as bit i, less one: 0 for the first alone, 1 the second, 2 both.
        Two drafters that agree are right more often than the better score says, so they are a case of its own. At most eight trees.
        Origins that the trees have already are forgotten.
        """
        if len(trees) == 1:
            return trees[0]
        places: dict[tuple[int, int], int] = {}  # (parent, token) in the merged tree -> node
        chances: list[float] = []
        proposers: list[int] = []  # bits
        for number, tree in enumerate(trees):
            own: list[int] = []  # node of this tree -> node of the merged tree
            for token, parent, chance in zip(tree.token_ids.tolist(), tree.parents.tolist(), tree.chances.tolist(), strict=True):
                key = (ANCHOR if parent == ANCHOR else own[parent], token)
                node = places.setdefault(key, len(places))
                if node == len(chances):
                    chances.append(chance)
                    proposers.append(0)
                chances[node] = max(chances[node], chance)
                proposers[node] |= 1 << number
                own.append(node)
        scores: list[float] = []
        for (parent, _), chance in zip(places, chances, strict=True):  # a parent stands before its children
            scores.append(chance * (1.0 if parent == ANCHOR else scores[parent]))
        parents, tokens = (np.asarray([key[part] for key in places], np.int32) for part in (0, 1))
        origins = np.asarray(proposers, np.uint8) - np.uint8(1)
        return CandidateTree(tokens, parents, np.asarray(scores, np.float32), origins if origins.any() else None)

    def check(self, vocab_size: int, max_nodes: int) -> None:
        """Raise InvalidMessage, naming the field, unless every array fits; run on each tree that crosses a wire."""
        count = len(self.token_ids)
        for name, array, kind in (
            ("token_ids", self.token_ids, np.int32),
            ("parents", self.parents, np.int32),
            ("scores", self.scores, np.float32),
        ):
            if array.ndim != 1 or len(array) != count or array.dtype != kind:
                raise InvalidMessage(f"tree.{name} must be {kind.__name__} of shape [{count}]", f"tree.{name}")
        if self.origins is not None and (self.origins.shape != (count,) or self.origins.dtype != np.uint8):
            raise InvalidMessage(f"tree.origins must be uint8 of shape [{count}], or None", "tree.origins")
        if count > max_nodes:
            raise InvalidMessage(f"the tree has {count} nodes, more than the {max_nodes} allowed", "tree")
        if count and not (self.token_ids.min() >= 0 and self.token_ids.max() < vocab_size):
            raise InvalidMessage(f"tree.token_ids outside 0..{vocab_size - 1}", "tree.token_ids")
        if count and not bool(np.all((self.parents >= ANCHOR) & (self.parents < np.arange(count)))):
            raise InvalidMessage("tree.parents must point to an earlier node or to the anchor (-1)", "tree.parents")
        if not bool(np.all(np.isfinite(self.scores))):
            raise InvalidMessage("tree.scores must be finite", "tree.scores")
