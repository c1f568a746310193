"""Pools of one: a drafter and a target that live in this process, for the Engine and for drafters that need no replica."""

from collections.abc import Sequence
from dataclasses import dataclass

from dspark.messages import FeatureSpec
from dspark.ports import Drafter, Verifier
from dspark.scheduling.curve import ThroughputCurve
from dspark.scheduling.draft_cost import DraftCall
from dspark.types import ModelCard, ReplicaId, SessionId

LOCAL = ReplicaId("local")


@dataclass(frozen=True, slots=True)
class LocalDrafterLease:
    """A place that is always there."""

    drafter: Drafter
    replica_id: ReplicaId = LOCAL
    calls: Sequence[DraftCall] = ()

    def lost(self) -> bool:
        """Never: it would take this process with it."""
        return False

    async def release(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class LocalVerifierLease:
    """A place that is always there."""

    verifier: Verifier
    card: ModelCard
    curve: ThroughputCurve | None = None
    replica_id: ReplicaId = LOCAL

    def lost(self) -> bool:
        """Never: it would take this process with it."""
        return False

    async def release(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class LocalDrafterPool:
    """Implements ports.DrafterPool."""

    drafter: Drafter
    features: FeatureSpec | None = None
    calls: Sequence[DraftCall] = ()

    async def acquire(self, session_id: SessionId) -> LocalDrafterLease:
        """See ports.DrafterPool."""
        return LocalDrafterLease(self.drafter, calls=self.calls)


@dataclass(frozen=True, slots=True)
class LocalVerifierPool:
    """Implements ports.VerifierPool."""

    verifier: Verifier
    card: ModelCard
    curve: ThroughputCurve | None = None

    async def acquire(self, session_id: SessionId) -> LocalVerifierLease:
        """See ports.VerifierPool."""
        return LocalVerifierLease(self.verifier, self.card, self.curve)
