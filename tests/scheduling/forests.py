"""Random trees for tests of rules that see many of them at once."""

import numpy as np

from dspark.tree import ANCHOR, CandidateTree


def random_tree(draw: np.random.Generator, size: int) -> CandidateTree:
    """Any shape; scores never rise along a path."""
    parents = [int(draw.integers(-1, node)) if node else ANCHOR for node in range(size)]
    scores: list[float] = []
    for parent in parents:
        scores.append(float(draw.random()) * (1.0 if parent == ANCHOR else scores[parent]))
    return CandidateTree(np.arange(size, dtype=np.int32), np.asarray(parents, np.int32), np.asarray(scores, np.float32))


def random_forest(seed: int, count: int = 40, largest: int = 12) -> list[CandidateTree]:
    """Some of the trees are empty."""
    draw = np.random.default_rng(seed)
    return [random_tree(draw, int(draw.integers(0, largest + 1))) for _ in range(count)]
