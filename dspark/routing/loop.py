"""The loop: draft, plan and verify, learn, commit, yield. It never turns back.

What one request does; sessions meet only in the lanes, where their rounds are batched. Knows nothing of text, HTTP, gRPC or Ray.
"""

import time
from collections.abc import AsyncGenerator, Mapping

from dspark.config import DrafterConfig, LimitsConfig
from dspark.ports import DrafterPool, VerifierLease, VerifierPool
from dspark.routing.drafts import DraftSource
from dspark.routing.fleet import DrafterFleet
from dspark.routing.lanes import VerifyLane
from dspark.routing.observer import Observer
from dspark.session import Session, TokenChunk


class SpeculativeLoop:
    """Runs sessions on pools of drafters and targets. One per router; lives on one event loop."""

    def __init__(
        self,
        targets: VerifierPool,
        drafters: Mapping[str, DrafterPool],
        *,
        drafter_configs: Mapping[str, DrafterConfig],
        limits: LimitsConfig,
        max_batch_rows: int,
        observer: Observer,
    ) -> None:
        self._targets = targets
        self._drafters = DrafterFleet(drafters, drafter_configs, limits, observer)
        self._limits = limits
        self._max_batch_rows = max_batch_rows
        self._observer = observer
        self._verify_lanes: dict[int, VerifyLane] = {}

    async def run(self, session: Session, *, speculate: bool, drafter: str | None = None) -> AsyncGenerator[TokenChunk, None]:
        """Rounds of one session until it is finished. Closing the iterator frees its places.

        `drafter` is the one that the request names; without it, the one with the best measured acceptance is taken.
        Raises TargetUnavailable if there is no target, or the one in use dies; whatever the target reports for this session.
        """
        lease = await self._targets.acquire(session.session_id)
        if speculate:
            self._drafters.assign(session, drafter)
        drafts = self._drafters.drafts(session, lease.card.vocab_size)
        lane = self._lane(lease)
        try:
            lane.verifier.open(session.opening(drafts.features))
            self._observer.session_started(session)
            while not session.finished:
                started = time.perf_counter()
                tree = await drafts.propose()
                verdict = await lane.verify(session, tree, drafts.features_from)
                drafts.learn(verdict.result)
                chunk = session.commit(verdict.result, num_drafted=len(tree), num_selected=verdict.num_selected)
                self._drafters.learn(session, chunk)
                self._observer.round_done(session, chunk, (time.perf_counter() - started) * 1e3)
                yield chunk
        finally:
            self._observer.session_ended(session, session.finish_reason)
            lane.verifier.close(session.session_id)
            await _leave(lease, drafts)

    async def stop(self) -> None:
        """End all lanes; sessions that still run are told that their target is gone."""
        for lane in self._verify_lanes.values():
            await lane.stop()
        self._verify_lanes.clear()
        await self._drafters.stop()

    def _lane(self, lease: VerifierLease) -> VerifyLane:
        for key in [key for key, lane in self._verify_lanes.items() if lane.lost]:
            del self._verify_lanes[key]
        key = id(lease.verifier)  # the lane holds the verifier, so no other can get its id
        if key not in self._verify_lanes:
            self._verify_lanes[key] = VerifyLane(
                lease.verifier,
                self._observer,
                max_rows=self._max_batch_rows,
                silence_timeout_s=self._limits.verify_timeout_s,
            )
        return self._verify_lanes[key]


async def _leave(lease: VerifierLease, drafts: DraftSource) -> None:
    """Give both places back, whatever happens to the first."""
    try:
        await drafts.close()
    finally:
        await lease.release()
