"""What a lane tells its books: of rounds that are ready, of verdicts, and of drafts on their way."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dspark.scheduling.drafting_plan import DraftLimits
from dspark.scheduling.forest import SessionNeed
from dspark.session import Session
from dspark.tree import CandidateTree

MOST_USUAL_NEWS = 24
"""Tokens of a session's context, beyond what two drafts can commit; a draft for which more are to be told first is of no use for learning
what the next one takes."""


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """One session's round, ready to be planned."""

    session: Session
    tree: CandidateTree
    draft_ms: float = 0.0
    """How long its draft took, waiting included."""

    @property
    def need(self) -> SessionNeed:
        """For the planner: a lower `priority` of a request goes first, a higher one of the planner."""
        session = self.session
        return SessionNeed(
            self.tree,
            max_nodes=session.max_nodes,
            min_tokens_per_second=session.min_tokens_per_second,
            priority=-session.priority,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Verified:
    """One session's round after its verdict."""

    session: Session
    limits: DraftLimits
    """What its drafter answered to; SKIP where it was not asked, or did not answer in time."""
    drafted: CandidateTree
    kept: list[int]
    accepted: tuple[int, ...]
    """Nodes of the selected tree."""
    draft_ms: float = 0.0
    """How long its draft took, waiting included."""

    @property
    def promised(self) -> float:
        """Accepted tokens, by the drafter's word."""
        scores = self.drafted.scores[self.kept]
        return min(float(np.fmin(np.fmax(scores, 0.0), 1.0).sum()), float(self.limits.max_depth))


def decoding_rows(verified: Sequence[Verified]) -> int:
    """Of the step that gave these verdicts; it may have had others, of prompts that were read."""
    return sum(1 + len(one.kept) for one in verified)


@dataclass(frozen=True, slots=True)
class InFlight:
    """A draft on its way."""

    since_ms: float
    """How long already."""
    depth: int
    """Asked for."""
