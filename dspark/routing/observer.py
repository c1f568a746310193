"""What the loop tells whoever counts: metrics in the service, statistics in benchmarks, nothing by default."""

from typing import Protocol

from dspark.messages import DraftReport, StepReport
from dspark.session import Session, TokenChunk
from dspark.types import FinishReason


class Observer(Protocol):
    """Called on the event loop, so an implementation only counts."""

    def session_started(self, session: Session) -> None:
        """A session got its place."""

    def session_ended(self, session: Session, reason: FinishReason | None) -> None:
        """A session is over; None if it failed or was left by its client."""

    def round_done(self, session: Session, chunk: TokenChunk, round_ms: float) -> None:
        """One round of one session: draft, queue, verification and commit."""

    def step_done(self, report: StepReport) -> None:
        """One forward of a target, with the results of this router."""

    def draft_done(self, report: DraftReport) -> None:
        """One answer of a drafter."""

    def draft_lost(self, reason: str) -> None:
        """A drafter was late, refused or is gone; the session goes on without."""


class SilentObserver:
    """Counts nothing."""

    def session_started(self, session: Session) -> None:
        """See Observer."""

    def session_ended(self, session: Session, reason: FinishReason | None) -> None:
        """See Observer."""

    def round_done(self, session: Session, chunk: TokenChunk, round_ms: float) -> None:
        """See Observer."""

    def step_done(self, report: StepReport) -> None:
        """See Observer."""

    def draft_done(self, report: DraftReport) -> None:
        """See Observer."""

    def draft_lost(self, reason: str) -> None:
        """See Observer."""
