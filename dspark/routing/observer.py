"""What the loop tells whoever counts: metrics in the service, statistics in benchmarks, nothing by default."""

from typing import Protocol

from dspark.messages import DraftReport, StepReport
from dspark.session import Session, TokenChunk
from dspark.types import FinishReason


class DraftObserver(Protocol):
    """What one drafter's lanes and sessions tell."""

    def draft_done(self, report: DraftReport) -> None:
        """One answer of the drafter."""

    def draft_lost(self, reason: str) -> None:
        """The drafter was late, refused or is gone; the session goes on without."""

    def features_received(self, num_rows: int, num_bytes: int) -> None:
        """Features of so many positions came from the target."""


class Observer(Protocol):
    """Called on the event loop, so an implementation only counts."""

    def session_started(self, session: Session) -> None:
        """A session got its place."""

    def session_ended(self, session: Session, reason: FinishReason | None) -> None:
        """A session is over; None if it failed or was left by its client."""

    def round_done(self, session: Session, chunk: TokenChunk, round_ms: float) -> None:
        """One round of one session: draft, queue, verification and commit; `session.drafter` says who was to draft."""

    def step_done(self, report: StepReport) -> None:
        """One forward of a target, with the results of this router."""

    def draft_done(self, report: DraftReport, drafter: str) -> None:
        """One answer of the drafter of this name."""

    def draft_lost(self, reason: str, drafter: str) -> None:
        """The drafter of this name was late, refused or is gone; the session goes on without."""

    def features_received(self, num_rows: int, num_bytes: int, drafter: str) -> None:
        """Features of so many positions came from a target, for the drafter of this name."""


class NamedDrafter:
    """Implements DraftObserver: adds the drafter's name for an Observer."""

    def __init__(self, name: str, observer: Observer) -> None:
        self._name = name
        self._observer = observer

    def draft_done(self, report: DraftReport) -> None:
        """See DraftObserver."""
        self._observer.draft_done(report, self._name)

    def draft_lost(self, reason: str) -> None:
        """See DraftObserver."""
        self._observer.draft_lost(reason, self._name)

    def features_received(self, num_rows: int, num_bytes: int) -> None:
        """See DraftObserver."""
        self._observer.features_received(num_rows, num_bytes, self._name)


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

    def draft_done(self, report: DraftReport, drafter: str) -> None:
        """See Observer."""

    def draft_lost(self, reason: str, drafter: str) -> None:
        """See Observer."""

    def features_received(self, num_rows: int, num_bytes: int, drafter: str) -> None:
        """See Observer."""
