"""The loop: draft, plan and verify, learn, commit, yield. It never turns back.

What one request does; sessions meet only in the lanes, where their rounds are batched. Knows nothing of text, HTTP, gRPC or Ray.
"""

import time
from collections.abc import AsyncGenerator, Mapping

from dspark.config import DrafterConfig, LimitsConfig, SchedulingConfig
from dspark.ports import DrafterPool, VerifierLease, VerifierPool
from dspark.routing.admission import check_promises, promise_of
from dspark.routing.drafts import DraftSource
from dspark.routing.economy import DraftedRound, Economy
from dspark.routing.fleet import DrafterFleet
from dspark.routing.lanes import Verdict, VerifyLane
from dspark.routing.observer import Observer
from dspark.routing.target_economy import TargetEconomy
from dspark.session import Session, TokenChunk

REST_S = 0.005
"""A client that takes longer to take its tokens has let the session rest."""


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
        scheduling: SchedulingConfig | None = None,
    ) -> None:
        self._targets = targets
        scheduling = scheduling or SchedulingConfig()
        self.economy = Economy(drafter_configs, planned=scheduling.mode == "planned", overlap=scheduling.overlap)
        """What metrics read."""
        self._drafters = DrafterFleet(drafters, drafter_configs, limits, observer, self.economy)
        self._limits = limits
        self._max_batch_rows = max_batch_rows
        self._observer = observer
        self._verify_lanes: dict[int, VerifyLane] = {}

    async def run(self, session: Session, *, speculate: bool, drafter: str | None = None) -> AsyncGenerator[TokenChunk, None]:
        """Rounds of one session until it is finished. Closing the iterator frees its places.

        `drafter` is the one that the request names; without it, the one with the best measured acceptance is taken.
        Raises TargetUnavailable if there is no target, or the one in use dies; SpeedUnavailable where limits enforce promises and one
        would be broken; whatever the target reports for this session.
        """
        lease = await self._targets.acquire(session.session_id)
        if speculate:
            self._drafters.assign(session, drafter)
        lane = self._lane(lease)
        try:
            self._enter(session, lane)
        except Exception:  # mostly SpeedUnavailable
            self._drafters.refused(session)
            await lease.release()
            raise
        drafts = self._drafters.drafts(session, lease.card.vocab_size, at_once=lane.books.will_draft(session))
        try:
            lane.verifier.open(session.opening(drafts.features))
            self._observer.session_started(session)
            while not session.finished:
                started = time.perf_counter()
                drafted = await lane.drafted(session, drafts)
                verdict = await lane.verify(session, drafted, drafts.features_from)
                drafts.learn(verdict.result)
                chunk = session.commit(verdict.result, num_drafted=len(drafted.tree), num_selected=verdict.num_selected)
                round_ms = (time.perf_counter() - started) * 1e3
                self._learn(session, lane, chunk, verdict, round_ms)
                handed_over = time.perf_counter()
                yield chunk
                if time.perf_counter() - handed_over > REST_S:
                    lane.disturb()
        finally:
            lane.books.leave(session)
            self._observer.session_ended(session, session.finish_reason)
            lane.verifier.close(session.session_id)
            await _leave(lease, drafts)

    async def stop(self) -> None:
        """End all lanes; sessions that still run are told that their target is gone."""
        for lane in self._verify_lanes.values():
            await lane.stop()
        self._verify_lanes.clear()
        await self._drafters.stop()

    def _enter(self, session: Session, lane: VerifyLane) -> None:
        """Checked and entered without a pause between, so that of two sessions that come together the second is judged with the first."""
        if self._limits.enforce_promises:
            check_promises(lane.books.load(self._drafters.tau), promise_of(session, self._drafters.tau(session)))
        lane.books.enter(session)

    def _learn(self, session: Session, lane: VerifyLane, chunk: TokenChunk, verdict: Verdict, round_ms: float) -> None:
        self._drafters.learn(session, chunk)
        if chunk.num_drafted > 0:
            pace, num_drafted = verdict.plain_tokens_per_second, lane.books.num_drafted(session)
            self.economy.round_done(DraftedRound(session, len(chunk.token_ids), round_ms, pace, verdict.explored, num_drafted))
        self._observer.round_done(session, chunk, round_ms)

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
                books=TargetEconomy(self.economy, lease.curve, self._max_batch_rows),
            )
        return self._verify_lanes[key]


async def _leave(lease: VerifierLease, drafts: DraftSource) -> None:
    """Give both places back, whatever happens to the first."""
    try:
        await drafts.close()
    finally:
        await lease.release()
