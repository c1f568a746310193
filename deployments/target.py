"""Target replica: the model that decides, behind a gRPC data service, leased session by session."""

import asyncio

import grpc.aio

from deployments.lease_book import LeasedVerifierHost
from deployments.replica import LeasedReplica, data_host
from deployments.telemetry import ReplicaGauges
from dspark.config import DrafterConfig, TargetConfig
from dspark.errors import TargetUnavailable
from dspark.verifying.runner import VerifierRunner
from dspark.verifying.target_model import load_target
from dspark.wire.server import VerificationService, start_server


class Target(LeasedReplica):
    """One target model in one process."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: TargetConfig, drafters: tuple[DrafterConfig, ...], lease_silence_timeout_s: float
    ) -> None:
        """`drafters` are those that may read its hidden states."""
        super().__init__(lease_silence_timeout_s)
        # In a thread, so that the replica answers Serve while it loads.
        loaded = await asyncio.to_thread(load_target, config, drafters)
        curve = await asyncio.to_thread(loaded.profile)
        self._runner = VerifierRunner(loaded.verifier)
        self._runner.start()
        self._total_kv_blocks = loaded.packed_model.pool.num_blocks
        service = VerificationService(
            LeasedVerifierHost(self._runner, self.book),
            loaded.card,
            self.replica_id,
            silence_timeout_s=lease_silence_timeout_s,
            on_session_end=self.book.closed,
            curve=curve,
        )
        self._server: grpc.aio.Server
        self._server, port = await start_server([service], host=data_host())
        self.address = f"{data_host()}:{port}"
        ReplicaGauges(self.deployment, self.replica_id).start(self._gauges)

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica if this raises."""
        if not self._runner.alive:
            raise TargetUnavailable("the step loop has ended")

    def record_routing_stats(self) -> dict[str, float]:
        """Published by Serve to request routers: how much room this replica has."""
        gauges = self._gauges()
        return {"free_kv_blocks": gauges["kv_blocks_total"] - gauges["kv_blocks_used"]}

    def _gauges(self) -> dict[str, float]:
        report = self._runner.last_report
        used = report.total_kv_blocks - report.free_kv_blocks  # nothing was reported yet: 0 - 0
        return {
            "leases": len(self.book),
            "held_sessions": self._runner.num_sessions,
            "kv_blocks_used": used,
            "kv_blocks_total": self._total_kv_blocks,
        }
