"""Puts meters between an Engine and its models: what drafting calls cost, and which trees got which verdicts.

The ports are passed on as they are; a meter is told what went through.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from dspark.engine import Backend
from dspark.messages import DraftReport, DraftRequest, FeatureSpec, SessionOpen, StepReport, VerifyRequest
from dspark.ports import Drafter, DrafterLease, DrafterPool, Pools, Verifier, VerifierLease, VerifierPool
from dspark.routing.placement import LocalDrafterLease, LocalVerifierLease
from dspark.scheduling.curve import ThroughputCurve
from dspark.tree import CandidateTree
from dspark.types import ModelCard, SessionId

OnDrafts = Callable[[Sequence[DraftRequest], DraftReport], None]
OnVerdict = Callable[[CandidateTree, tuple[int, ...]], None]
"""A tree as it was verified, and its accepted nodes."""


@dataclass(frozen=True, slots=True)
class MeteredDrafter:
    """Implements ports.Drafter."""

    inner: Drafter
    on_drafts: OnDrafts

    def open(self, session: SessionOpen) -> None:
        """See ports.Drafter."""
        self.inner.open(session)

    async def draft(self, requests: Sequence[DraftRequest]) -> DraftReport:
        """See ports.Drafter."""
        report = await self.inner.draft(requests)
        self.on_drafts(requests, report)
        return report

    def close(self, session_id: SessionId) -> None:
        """See ports.Drafter."""
        self.inner.close(session_id)


@dataclass(frozen=True, slots=True)
class MeteredVerifier:
    """Implements ports.Verifier."""

    inner: Verifier
    on_verdict: OnVerdict
    _trees: dict[SessionId, CandidateTree] = field(default_factory=dict)

    def open(self, session: SessionOpen) -> None:
        """See ports.Verifier."""
        self.inner.open(session)

    def submit(self, requests: Sequence[VerifyRequest]) -> None:
        """See ports.Verifier."""
        self._trees.update((request.session_id, request.tree) for request in requests)
        self.inner.submit(requests)

    async def next_report(self) -> StepReport:
        """See ports.Verifier."""
        report = await self.inner.next_report()
        for result in report.results:
            self.on_verdict(self._trees.pop(result.session_id), result.accepted)
        return report

    def close(self, session_id: SessionId) -> None:
        """See ports.Verifier."""
        self._trees.pop(session_id, None)
        self.inner.close(session_id)


@dataclass(slots=True)
class _DrafterPool:
    inner: DrafterPool
    on_drafts: OnDrafts
    _drafter: MeteredDrafter | None = None
    """One for all leases, as a connection has it."""

    @property
    def features(self) -> FeatureSpec | None:
        return self.inner.features

    async def acquire(self, session_id: SessionId) -> DrafterLease:
        lease = await self.inner.acquire(session_id)
        if self._drafter is None:
            self._drafter = MeteredDrafter(lease.drafter, self.on_drafts)
        return LocalDrafterLease(self._drafter, lease.replica_id, lease.calls)


@dataclass(slots=True)
class _VerifierPool:
    inner: VerifierPool
    on_verdict: OnVerdict
    _verifier: MeteredVerifier | None = None

    async def acquire(self, session_id: SessionId) -> VerifierLease:
        lease = await self.inner.acquire(session_id)
        if self._verifier is None:
            self._verifier = MeteredVerifier(lease.verifier, self.on_verdict)
        return LocalVerifierLease(self._verifier, lease.card, lease.curve, lease.replica_id)


class MeteredBackend:
    """Implements engine.Backend, for pools of one replica that lives in this process: their leases can always be had and never end."""

    def __init__(self, inner: Backend, *, on_drafts: OnDrafts | None = None, on_verdict: OnVerdict | None = None) -> None:
        """What is not asked for is not metered."""
        self._inner = inner
        self._on_drafts = on_drafts
        self._on_verdict = on_verdict
        self.curve: ThroughputCurve | None = None
        """What the target's steps cost, as it was profiled; known once started."""

    @property
    def card(self) -> ModelCard:
        """See engine.Backend."""
        return self._inner.card

    async def start(self) -> Pools:
        """See engine.Backend."""
        pools = await self._inner.start()
        self.curve = (await pools.targets.acquire(SessionId("meter"))).curve
        if self._on_drafts is not None:
            pools = replace(pools, drafters={name: _DrafterPool(pool, self._on_drafts) for name, pool in pools.drafters.items()})
        if self._on_verdict is not None:
            pools = replace(pools, targets=_VerifierPool(pools.targets, self._on_verdict))
        return pools

    async def stop(self) -> None:
        """See engine.Backend."""
        await self._inner.stop()

    async def ready(self) -> bool:
        """See engine.Backend."""
        return await self._inner.ready()
