"""What a lane tells its books: of rounds that are ready, of verdicts, and of drafts on their way."""

from dataclasses import dataclass

from dspark.scheduling.drafting_plan import DraftLimits
from dspark.session import Session
from dspark.tree import CandidateTree


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """One session's round, ready to be planned."""

    session: Session
    tree: CandidateTree
    draft_ms: float = 0.0
    """How long its draft took, waiting included."""


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


@dataclass(frozen=True, slots=True)
class InFlight:
    """A draft on its way."""

    since_ms: float
    """How long already."""
    depth: int
    """Asked for."""
