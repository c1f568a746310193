"""What a drafter knows of its candidates, node by node: what survival is estimated from, and what estimators are fitted on.

Symbols: n candidates, of any depth, session and round.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class NodeSignals:
    """One entry per candidate. NaN is unknown."""

    depths: Ints  # [n] 1 for children of the anchor
    ranks: Ints  # [n] among its siblings by noised score; 0 is the best
    gaps: Floats  # [n] noised score of the candidate minus that of its best sibling, proposed or not; negative unless rank is 0
    log_draft_probs: Floats  # [n] by the drafter's own distribution, before temperature and filters
    confidence_logits: Floats  # [n] of the drafter's confidence head for this position of this path; NaN without a head
    temperatures: Floats  # [n] sampling temperature; 0 is greedy

    def __len__(self) -> int:
        return len(self.depths)


def sigmoid_of_gaps(signals: NodeSignals) -> Floats:
    """[n] chance that a candidate is the target's token if its parent is, from how clear the drafter's own choice was.

    For drafters that were never calibrated. With the target's scores equal to the drafter's plus logistic error, exact for two candidates.
    """
    gaps = signals.gaps.astype(np.float64)
    return (0.5 * (1.0 + np.tanh(0.5 * gaps))).astype(np.float32)
