"""A pool of one stand-in, for routers: leases that can be refused and lost."""

from dataclasses import dataclass, field
from typing import Any

from dspark.errors import DraftUnavailable, TargetUnavailable
from dspark.fakes.toy_target import ToyTarget
from dspark.messages import FeatureSpec
from dspark.scheduling.curve import ThroughputCurve
from dspark.scheduling.draft_cost import DraftCall
from dspark.types import ModelCard, ReplicaId, SessionId


@dataclass(eq=False)
class FakePool:
    """A pool of one replica that can be full, or be gone together with all its leases; implements both pools of ports.py."""

    replica: Any
    """A Drafter or a ToyTarget."""
    available: bool = True
    """False: `acquire` is refused."""
    gone: bool = False
    """True: every lease is lost."""
    num_acquired: int = 0
    leases: set["FakeLease"] = field(default_factory=set)
    """Those not given back yet."""
    features: FeatureSpec | None = None
    """See ports.DrafterPool."""
    curve: ThroughputCurve | None = None
    """See ports.VerifierLease."""

    async def acquire(self, session_id: SessionId) -> "FakeLease":
        """See ports.DrafterPool and ports.VerifierPool."""
        if not self.available:
            raise (TargetUnavailable if isinstance(self.replica, ToyTarget) else DraftUnavailable)("the fake pool is empty")
        self.num_acquired += 1
        lease = FakeLease(self)
        self.leases.add(lease)
        return lease


class FakeLease:
    """A place on the pool's replica; implements both leases of ports.py."""

    def __init__(self, pool: FakePool) -> None:
        self._pool = pool
        self.replica_id = ReplicaId("fake")
        self.drafter: Any = pool.replica
        self.verifier: Any = pool.replica
        self.calls: tuple[DraftCall, ...] = ()

    @property
    def card(self) -> ModelCard:
        """The toy target's card."""
        card: ModelCard = self.verifier.card
        return card

    @property
    def curve(self) -> ThroughputCurve | None:
        """What the pool says that the toy's steps cost."""
        return self._pool.curve

    def lost(self) -> bool:
        """See ports."""
        return self._pool.gone

    async def release(self) -> None:
        """See ports."""
        self._pool.leases.discard(self)
