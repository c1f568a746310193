"""Draft replica: the model that guesses, behind a gRPC data service, leased session by session."""

import asyncio

import grpc.aio

from deployments.lease_book import LeasedDrafter
from deployments.replica import LeasedReplica, data_host
from deployments.telemetry import ReplicaGauges
from dspark.config import DrafterConfig, TargetConfig
from dspark.drafting.build import load_drafter
from dspark.drafting.drafter import ThreadedDrafter
from dspark.wire.server import DraftingService, start_server


class Draft(LeasedReplica):
    """One drafting model in one process."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: DrafterConfig, target: TargetConfig, lease_silence_timeout_s: float
    ) -> None:
        """`target` is whom it drafts for: some drafters share embedding, LM head and tokenizer with it."""
        super().__init__(lease_silence_timeout_s)
        # In a thread, so that the replica answers Serve while it loads.
        loaded = await asyncio.to_thread(load_drafter, config, target)
        calls = await asyncio.to_thread(loaded.profile)
        self._drafter = ThreadedDrafter(loaded.drafter)
        service = DraftingService(
            LeasedDrafter(self._drafter, self.book),
            loaded.card,
            self.replica_id,
            silence_timeout_s=lease_silence_timeout_s,
            on_session_end=self.book.closed,
            calls=calls,
        )
        self._server: grpc.aio.Server
        self._server, port = await start_server([service], host=data_host())
        self.address = f"{data_host()}:{port}"
        ReplicaGauges(self.deployment, self.replica_id).start(self._gauges)

    def _gauges(self) -> dict[str, float]:
        return {"leases": len(self.book), "held_sessions": self._drafter.num_sessions, "refits": self._drafter.num_refits}
