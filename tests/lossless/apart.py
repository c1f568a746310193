"""A target and a drafter on threads of their own, whose costs are told instead of taken: what is decided then hangs on no machine.

The tokens are those of the real models. The times that the router is told are much longer than the real ones, so that neither this
machine's own time nor its load is seen in any decision.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dspark.drafting.build import LoadedDrafter
from dspark.drafting.drafter import ThreadedDrafter
from dspark.messages import DraftReport, DraftRequest, FeatureSpec, SessionOpen, StepReport, VerifyRequest
from dspark.ports import Drafter, Pools, Verifier
from dspark.routing.placement import LocalDrafterPool, LocalVerifierPool
from dspark.scheduling.curve import ThroughputCurve
from dspark.types import ModelCard, RouterId, SessionId
from dspark.verifying.runner import VerifierRunner
from dspark.verifying.target_model import LoadedTarget


@dataclass(slots=True)
class Seen:
    """What went over the two ports."""

    submits: list[frozenset[SessionId]] = field(default_factory=list)
    """Sessions of each hand-in to the target."""
    verifying: frozenset[SessionId] = frozenset()
    """Handed in, and no report since."""
    drafts_beside_a_step: int = 0
    """Drafts of sessions that were asked for while the target had others in hand."""


class ToldVerifier:
    """Implements ports.Verifier: says of every step what the curve says."""

    def __init__(self, inner: Verifier, curve: ThroughputCurve, seen: Seen) -> None:
        self._inner = inner
        self._curve = curve
        self._seen = seen

    def open(self, session: SessionOpen) -> None:
        """See ports.Verifier."""
        self._inner.open(session)

    def submit(self, requests: Sequence[VerifyRequest]) -> None:
        """See ports.Verifier."""
        self._seen.verifying = frozenset(request.session_id for request in requests)
        self._seen.submits.append(self._seen.verifying)
        self._inner.submit(requests)

    async def next_report(self) -> StepReport:
        """See ports.Verifier."""
        report = await self._inner.next_report()
        self._seen.verifying = frozenset()
        return replace(report, verify_ms=float(self._curve.step_ms_of([report.batch_rows], 0)[0]))

    def close(self, session_id: SessionId) -> None:
        """See ports.Verifier."""
        self._inner.close(session_id)


class ToldDrafter:
    """Implements ports.Drafter: says of every call that it took so long."""

    def __init__(self, inner: Drafter, draft_ms: float, seen: Seen) -> None:
        self._inner = inner
        self._draft_ms = draft_ms
        self._seen = seen

    def open(self, session: SessionOpen) -> None:
        """See ports.Drafter."""
        self._inner.open(session)

    async def draft(self, requests: Sequence[DraftRequest]) -> DraftReport:
        """See ports.Drafter."""
        if self._seen.verifying:
            self._seen.drafts_beside_a_step += sum(request.max_depth > 0 for request in requests)
        return replace(await self._inner.draft(requests), draft_ms=self._draft_ms)

    def close(self, session_id: SessionId) -> None:
        """See ports.Drafter."""
        self._inner.close(session_id)


class ApartBackend:
    """Implements engine.Backend: what LocalBackend does on one thread, on two, as on devices of their own."""

    def __init__(self, target: LoadedTarget, drafter: LoadedDrafter, curve: ThroughputCurve, draft_ms: float, overlap: float) -> None:
        """`curve` and `draft_ms` are what is told; `overlap` as in ports.Pools."""
        self._target = target
        self._loaded = drafter
        self._curve = curve
        self._draft_ms = draft_ms
        self._overlap = overlap
        self.seen = Seen()

    @property
    def card(self) -> ModelCard:
        """See engine.Backend."""
        return self._target.card

    async def start(self) -> Pools:
        """See engine.Backend."""
        self._runner = VerifierRunner(self._target.verifier)
        self._runner.start()
        self._drafter = ThreadedDrafter(self._loaded.drafter)
        verifier = ToldVerifier(self._runner.connect(RouterId("apart")), self._curve, self.seen)
        drafter = ToldDrafter(self._drafter, self._draft_ms, self.seen)
        features = FeatureSpec(self._loaded.card.model_fingerprint, self._loaded.card.tap_layers)
        targets = LocalVerifierPool(verifier, self.card, self._curve)
        return Pools(targets, {"default": LocalDrafterPool(drafter, features)}, overlap=self._overlap)

    async def stop(self) -> None:
        """See engine.Backend."""
        await self._drafter.stop()
        await self._runner.stop()

    async def ready(self) -> bool:
        """See engine.Backend."""
        return self._runner.alive
