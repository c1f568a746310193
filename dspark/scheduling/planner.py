"""Selective verification: which candidates of which session are worth their rows in the target's next step. Pure; no torch,
no clock.

The rule here: every session gets its anchor row; the rows that are left go to the candidates of the highest estimated
survival, over all sessions together (method: the paper's section on confidence-scheduled verification). A parent's survival
is at least its child's and ties go to the shallower node, so ancestors are always kept with their descendants.
"""

from collections.abc import Mapping

import numpy as np

from dspark.messages import Plan
from dspark.tree import CandidateTree
from dspark.types import SessionId


def plan(trees: Mapping[SessionId, CandidateTree], max_rows: int) -> Plan:
    """Keep at most `max_rows` rows, one per session's anchor and one per kept candidate."""
    budget = max(0, max_rows - len(trees))
    total = sum(len(tree) for tree in trees.values())
    if total <= budget:
        kept = {session_id: list(range(len(tree))) for session_id, tree in trees.items()}
    else:
        kept = _best_nodes(trees, budget)
    expected = sum(1.0 + float(trees[s].scores[nodes].sum()) for s, nodes in kept.items())
    return Plan(kept, len(trees) + sum(len(nodes) for nodes in kept.values()), expected)


def _best_nodes(trees: Mapping[SessionId, CandidateTree], budget: int) -> dict[SessionId, list[int]]:
    session_ids = list(trees)
    owner = np.concatenate([np.full(len(trees[s]), index) for index, s in enumerate(session_ids)])
    node = np.concatenate([np.arange(len(trees[s])) for s in session_ids])
    survival = np.concatenate([_non_increasing(trees[s]) for s in session_ids])
    depth = np.concatenate([trees[s].depths for s in session_ids])
    best = np.lexsort((node, depth, -survival))[:budget]
    return {s: sorted(node[best[owner[best] == index]].tolist()) for index, s in enumerate(session_ids)}


def _non_increasing(tree: CandidateTree) -> np.ndarray:
    """[N] survival cut down to the parent's where a drafter claims more."""
    survival = tree.scores.astype(np.float64)
    for node, parent in enumerate(tree.parents.tolist()):
        if parent >= 0:
            survival[node] = min(survival[node], survival[parent])
    return survival
