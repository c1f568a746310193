"""Who takes part in a simulation: sessions, draft and target replicas, as they stand at a moment of made-up time."""

import math
from dataclasses import dataclass, field

from dspark.bench.simulator.acceptance import Draft
from dspark.routing.plain_pace import PlainPace
from dspark.routing.target_economy import TargetEconomy
from dspark.scheduling.drafting_plan import SKIP, DraftLimits
from dspark.session import Session
from dspark.tree import CandidateTree
from dspark.types import SessionId

NOTHING = Draft(CandidateTree.empty(), ())


@dataclass(slots=True, eq=False)
class SimulatedSession:
    """One request on its way."""

    session: Session
    """As the router knows it."""
    client: int
    target: "SimulatedTarget"
    drafter: "SimulatedDrafter"
    arrived_ms: float
    num_cached: int = 0
    num_uncached: int = 1
    """Committed tokens that the target has not seen, the anchor included: more than 1 while the prompt is prefilled."""
    draft: Draft = NOTHING
    limits: DraftLimits = SKIP
    kept: list[int] = field(default_factory=list)
    began_ms: float = 0.0
    """When its round did."""
    draft_ms: float = 0.0
    """How long its draft took, waiting included."""
    explored: bool = False
    num_told: int = 0
    """Tokens of its context that its drafter has read."""

    @property
    def session_id(self) -> SessionId:
        """As everywhere."""
        return self.session.session_id

    @property
    def num_news(self) -> int:
        """Tokens of its context that its drafter has not read."""
        return self.session.base_length - self.num_told

    @property
    def num_rows(self) -> int:
        """Of the target, until its verdict."""
        return self.num_uncached + len(self.kept)


@dataclass(slots=True, eq=False)
class SimulatedDrafter:
    """A draft replica."""

    waiting: list[SimulatedSession] = field(default_factory=list)
    drafting: list[SimulatedSession] = field(default_factory=list)
    began_ms: float = 0.0
    """When the call in hand began, or the last one."""
    num_sessions: int = 0


@dataclass(slots=True, eq=False)
class SimulatedTarget:
    """A target replica, with the lane and the books that the router keeps for it."""

    books: TargetEconomy
    pace: PlainPace = field(default_factory=PlainPace)
    ready: list[SimulatedSession] = field(default_factory=list)
    """Rounds whose drafts are there; they are not planned yet."""
    submitted: dict[SessionId, SimulatedSession] = field(default_factory=dict)
    """Rounds handed in, until their verdict: long prompts take several steps."""
    is_busy: bool = False
    sessions: dict[SessionId, SimulatedSession] = field(default_factory=dict)
    submitted_ms: float = 0.0
    free_since_ms: float = 0.0
    patience_ends_ms: float = math.inf
    """Of the wait for drafts in flight; infinite while there is none."""
