"""The ports' pools for a router in a cluster: Serve leases from leases.py, data over the clients of wire/."""

from collections.abc import Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from deployments.leases import Lease, LeasePool
from dspark.config import ServeArgs
from dspark.errors import DraftUnavailable, TargetUnavailable
from dspark.messages import FeatureSpec
from dspark.ports import Drafter, Verifier
from dspark.scheduling.curve import ThroughputCurve
from dspark.scheduling.draft_cost import DraftCall
from dspark.types import ModelCard, RouterId, SessionId
from dspark.wire.client import RemoteDrafter, RemoteVerifier


class TargetLease:
    """Implements ports.VerifierLease."""

    def __init__(self, lease: Lease[RemoteVerifier]) -> None:
        self.replica_id = lease.replica_id
        self.verifier: Verifier = lease.connection
        self.card: ModelCard = lease.connection.card
        self.curve: ThroughputCurve | None = lease.connection.curve
        self.lost = lease.lost
        self.release = lease.release


class DraftLease:
    """Implements ports.DrafterLease."""

    def __init__(self, lease: Lease[RemoteDrafter]) -> None:
        self.replica_id = lease.replica_id
        self.drafter: Drafter = lease.connection
        self.calls: Sequence[DraftCall] = lease.connection.calls
        self.lost = lease.lost
        self.release = lease.release


class TargetPool:
    """Implements ports.VerifierPool. Refuses replicas whose model or tokenizer is not that of `card`."""

    def __init__(self, handle: DeploymentHandle[Any], router_id: RouterId, card: ModelCard, args: ServeArgs) -> None:
        self._router_id = router_id
        self._card = card
        self._args = args
        timeout_s = args.limits.acquire_timeout_s
        self._leases = LeasePool(handle, self._connect, acquire_timeout_s=timeout_s, unavailable=TargetUnavailable)

    async def acquire(self, session_id: SessionId) -> TargetLease:
        """See ports.VerifierPool."""
        return TargetLease(await self._leases.acquire(session_id))

    async def close(self) -> None:
        """Close the connections."""
        await self._leases.close()

    async def _connect(self, address: str) -> RemoteVerifier:
        return await RemoteVerifier.connect(
            address,
            self._router_id,
            model_fingerprint=self._card.model_fingerprint,
            tokenizer_fingerprint=self._card.tokenizer_fingerprint,
            silence_timeout_s=self._args.lease_silence_timeout_s,
            connect_timeout_s=self._args.limits.acquire_timeout_s,
        )


class DraftPool:
    """Implements ports.DrafterPool. Any drafter will do whose token ids mean what the target's mean.

    One that reads the target's hidden states must be the very checkpoint that `features` names: the target has its projection.
    """

    def __init__(
        self, handle: DeploymentHandle[Any], router_id: RouterId, target: ModelCard, args: ServeArgs, features: FeatureSpec | None
    ) -> None:
        self.features = features
        """See ports.DrafterPool."""
        self._router_id = router_id
        self._target = target
        self._args = args
        timeout_s = args.limits.acquire_timeout_s
        self._leases = LeasePool(handle, self._connect, acquire_timeout_s=timeout_s, unavailable=DraftUnavailable)

    async def acquire(self, session_id: SessionId) -> DraftLease:
        """See ports.DrafterPool."""
        return DraftLease(await self._leases.acquire(session_id))

    async def close(self) -> None:
        """Close the connections."""
        await self._leases.close()

    async def _connect(self, address: str) -> RemoteDrafter:
        return await RemoteDrafter.connect(
            address,
            self._router_id,
            model_fingerprint="" if self.features is None else self.features.drafter_fingerprint,
            tokenizer_fingerprint=self._target.tokenizer_fingerprint,
            silence_timeout_s=self._args.lease_silence_timeout_s,
            connect_timeout_s=self._args.limits.acquire_timeout_s,
        )
