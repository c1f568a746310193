"""The seams of the house: what the loop needs of a drafter, a target and a pool, whoever stands behind them.

In one process they are the models themselves (drafting/, verifying/), in the service gRPC clients (wire/client.py), in tests
fakes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from dspark.messages import DraftReport, DraftRequest, FeatureSpec, SessionOpen, StepReport, VerifyRequest
from dspark.scheduling.curve import ThroughputCurve
from dspark.scheduling.draft_cost import DraftCall
from dspark.types import ModelCard, ReplicaId, RouterId, SessionId


class Drafter(Protocol):
    """Guesses. May be late, wrong or gone: that costs speed, never output."""

    def open(self, session: SessionOpen) -> None:
        """Make the session known. Cheap: work starts with the first draft. A second open of an id replaces the first."""

    async def draft(self, requests: Sequence[DraftRequest]) -> DraftReport:
        """Candidates for every request, in one answer. Tokens and features may overlap what is known: an answer may have been lost.

        A session that cannot be served is in `failures`. Raises DraftUnavailable if the replica is gone.
        """

    def close(self, session_id: SessionId) -> None:
        """Forget the session and free its memory. Unknown ids are ignored."""


class Verifier(Protocol):
    """Decides. Holds a rebuildable cache of each session, never the truth."""

    def open(self, session: SessionOpen) -> None:
        """Make the session known; its prompt is prefilled together with its first rounds."""

    def submit(self, requests: Sequence[VerifyRequest]) -> None:
        """Hand in rounds; their results come with some later `next_report`."""

    async def next_report(self) -> StepReport:
        """The next step's report, in order. Raises TargetUnavailable once the replica is gone."""

    def close(self, session_id: SessionId) -> None:
        """Stop the session's work within one step and free its KV blocks. Unknown ids are ignored."""


class VerifierHost(Protocol):
    """A target that several routers share: what the gRPC server in front of it talks to."""

    def connect(self, router_id: RouterId) -> Verifier:
        """A view for one router, with its own sessions and its own reports."""


class DrafterLease(Protocol):
    """One session's place on one draft replica."""

    @property
    def replica_id(self) -> ReplicaId:
        """Which replica."""

    @property
    def drafter(self) -> Drafter:
        """The replica's drafter; the same object for all leases of one connection."""

    @property
    def calls(self) -> Sequence[DraftCall]:
        """What some calls took when the replica started; empty where that was not measured."""

    def lost(self) -> bool:
        """True once the replica is known to be gone."""

    async def release(self) -> None:
        """Give the place back. Safe to call twice, and after the replica died."""


class VerifierLease(Protocol):
    """One session's place on one target replica."""

    @property
    def replica_id(self) -> ReplicaId:
        """Which replica."""

    @property
    def verifier(self) -> Verifier:
        """The replica's verifier; the same object for all leases of one connection."""

    @property
    def card(self) -> ModelCard:
        """What the replica runs."""

    @property
    def curve(self) -> ThroughputCurve | None:
        """What its steps cost, as it measured when it started; None where it did not."""

    def lost(self) -> bool:
        """True once the replica is known to be gone."""

    async def release(self) -> None:
        """Give the place back. Safe to call twice, and after the replica died."""


class DrafterPool(Protocol):
    """Where draft leases come from."""

    @property
    def features(self) -> FeatureSpec | None:
        """What sessions must ask the target for; None where these drafters read nothing but tokens."""

    async def acquire(self, session_id: SessionId) -> DrafterLease:
        """A place on some replica. Raises DraftUnavailable if there is none in time."""


class VerifierPool(Protocol):
    """Where target leases come from."""

    async def acquire(self, session_id: SessionId) -> VerifierLease:
        """A place on some replica. Raises TargetUnavailable if there is none in time."""


@dataclass(frozen=True, slots=True)
class Pools:
    """Where a loop gets its places."""

    targets: VerifierPool
    drafters: Mapping[str, DrafterPool]
    """By the drafter's name; empty where nobody drafts."""
    overlap: float | None = None
    """How far drafting and verifying hide each other there (0..1, as `scheduling.overlap`); None: whoever configures has to know."""
