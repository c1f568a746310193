"""Counts on Ray's metrics port (docs/metrics.md says what each one means). Ray puts `ray_` before every name.

Routers count what they do, replicas what they hold. Knows no request and no text.
"""

import asyncio
import math
from collections.abc import Callable, Mapping

from ray.util.metrics import Counter, Gauge, Histogram

from dspark.config import NO_DRAFTER
from dspark.messages import DraftReport, StepReport
from dspark.routing.economy import Standing
from dspark.session import Session, TokenChunk
from dspark.types import FinishReason

BUCKETS_MS = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 5_000.0]
BUCKETS_ROWS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]
GAUGE_PERIOD_S = 1.0
DRAFTER = "drafter"
"""Label: whose candidates; NO_DRAFTER for sessions that decode plainly."""


class RouterMetrics:
    """Implements routing.Observer."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._drafted = self._counter("drafted_tokens", "Candidates proposed by drafters.", DRAFTER)
        self._selected = self._counter("selected_tokens", "Candidates sent to the target.", DRAFTER)
        self._accepted = self._counter("accepted_tokens", "Candidates that the target agreed with and the client got.", DRAFTER)
        self._committed = self._counter("committed_tokens", "Tokens given to clients.", DRAFTER)
        self._rounds = self._counter("rounds", "Rounds of single sessions.", DRAFTER)
        self._accepted_at = self._counter(
            "accepted_at_position", "Rounds that accepted a candidate at this depth.", "position", DRAFTER
        )
        self._ended = self._counter("sessions_ended", "Sessions that are over.", "reason")
        self._draft_lost = self._counter("draft_lost", "Drafts that came late, wrong or not at all.", "reason", DRAFTER)
        self._feature_rows = self._counter("feature_rows", "Positions whose hidden states came from targets for drafters.", DRAFTER)
        self._feature_bytes = self._counter("feature_bytes", "Bytes of those hidden states.", DRAFTER)
        self._sessions = Gauge("dspark_sessions", "Sessions with a place on a target.", tag_keys=("model",))
        self._sessions.set_default_tags({"model": model})
        self._round_ms = self._histogram("round_ms", "Draft, queue, verification and commit of one round, in ms.", BUCKETS_MS)
        self._verify_ms = self._histogram("verify_ms", "One forward of a target and its acceptance walk, in ms.", BUCKETS_MS)
        self._draft_ms = self._histogram("draft_ms", "One answer of a drafter, without the way there, in ms.", BUCKETS_MS, DRAFTER)
        self._target_rows = self._counter("target_rows", "Rows in the forwards of targets.")
        self._batch_rows = self._histogram("batch_rows", "Rows in one forward of a target.", BUCKETS_ROWS)
        self._num_sessions = 0
        self._sessions.set(0)

    def session_started(self, session: Session) -> None:
        """See Observer."""
        self._num_sessions += 1
        self._sessions.set(self._num_sessions)

    def session_ended(self, session: Session, reason: FinishReason | None) -> None:
        """See Observer."""
        self._num_sessions -= 1
        self._sessions.set(self._num_sessions)
        self._ended.inc(1, {"reason": reason.value if reason else "left"})

    def round_done(self, session: Session, chunk: TokenChunk, round_ms: float) -> None:
        """See Observer."""
        tags = {DRAFTER: session.drafter or NO_DRAFTER}
        self._rounds.inc(1, tags)
        _add(self._drafted, chunk.num_drafted, tags)
        _add(self._selected, chunk.num_selected, tags)
        _add(self._accepted, chunk.num_accepted, tags)
        _add(self._committed, len(chunk.token_ids), tags)
        for position in range(1, chunk.num_accepted + 1):
            self._accepted_at.inc(1, {"position": str(position), **tags})
        self._round_ms.observe(round_ms)

    def step_done(self, report: StepReport) -> None:
        """See Observer."""
        if report.batch_rows:  # other steps only carried news, no forward
            self._verify_ms.observe(report.verify_ms)
            self._batch_rows.observe(report.batch_rows)
            self._target_rows.inc(report.batch_rows)  # exact; Ray makes a histogram's sum of the middles of its buckets

    def draft_done(self, report: DraftReport, drafter: str) -> None:
        """See Observer."""
        self._draft_ms.observe(report.draft_ms, {DRAFTER: drafter})

    def draft_lost(self, reason: str, drafter: str) -> None:
        """See Observer."""
        self._draft_lost.inc(1, {"reason": reason, DRAFTER: drafter})

    def features_received(self, num_rows: int, num_bytes: int, drafter: str) -> None:
        """See Observer."""
        _add(self._feature_rows, num_rows, {DRAFTER: drafter})
        _add(self._feature_bytes, num_bytes, {DRAFTER: drafter})

    def _counter(self, name: str, description: str, *tags: str) -> Counter:
        counter = Counter(f"dspark_{name}_total", description, tag_keys=("model", *tags))
        counter.set_default_tags({"model": self._model})
        return counter

    def _histogram(self, name: str, description: str, boundaries: list[float], *tags: str) -> Histogram:
        histogram = Histogram(f"dspark_{name}", description, boundaries=boundaries, tag_keys=("model", *tags))
        histogram.set_default_tags({"model": self._model})
        return histogram


class DrafterGauges:
    """How each drafter does, in the eyes of one router, published once a second."""

    def __init__(self, model: str) -> None:
        self._tags = {"model": model}
        self._gauges = {
            name: Gauge(f"dspark_drafter_{name}", description, tag_keys=("model", DRAFTER)) for name, description in STANDINGS.items()
        }
        self._task: asyncio.Task[None] | None = None

    def start(self, read: Callable[[], Mapping[str, Standing]]) -> None:
        """Publish `read()`, standings by drafter, until the process ends; needs a running event loop."""
        self._task = asyncio.create_task(self._publish(read))

    async def _publish(self, read: Callable[[], Mapping[str, Standing]]) -> None:
        while True:
            for drafter, standing in read().items():
                for name, gauge in self._gauges.items():
                    value = float(getattr(standing, name))
                    if not math.isnan(value):  # nothing is known yet
                        gauge.set(value, self._tags | {DRAFTER: drafter})
            await asyncio.sleep(GAUGE_PERIOD_S)


class ReplicaGauges:
    """What one replica holds, published once a second."""

    def __init__(self, deployment: str, replica_id: str) -> None:
        self._tags = {"deployment": deployment, "replica": replica_id}
        self._gauges: dict[str, Gauge] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self, read: Callable[[], dict[str, float]]) -> None:
        """Publish `read()`, gauges by name, until the process ends; needs a running event loop."""
        self._task = asyncio.create_task(self._publish(read))

    async def _publish(self, read: Callable[[], dict[str, float]]) -> None:
        while True:
            for name, value in read().items():
                self._gauge(name).set(value, self._tags)
            await asyncio.sleep(GAUGE_PERIOD_S)

    def _gauge(self, name: str) -> Gauge:
        if name not in self._gauges:
            self._gauges[name] = Gauge(f"dspark_{name}", DESCRIPTIONS[name], tag_keys=tuple(self._tags))
        return self._gauges[name]


STANDINGS = {
    "speed_ratio": "Measured speed of its sessions over plain decoding as the target's curve predicts it.",
    "drafts": "1 while it drafts, 0 while it is left out because it does not pay.",
    "served_ece": "Expected calibration error of its estimates of survival.",
    "corrected_ece": "The same after verdicts have corrected them.",
    "drift": "Mean distance between its estimates and the corrected ones.",
    "waves": "1 where its sessions go together, 2 where they go in two halves by turns.",
    "gain_of_two_waves": "Predicted speed of two waves over that of one.",
    "waits": "Times that a free target waited for its drafts, since the router started.",
}
"""Fields of economy.Standing."""

DESCRIPTIONS = {
    "leases": "Sessions that have a place on this replica.",
    "held_sessions": "Sessions whose state this replica holds.",
    "refits": "Newly fitted estimators of survival that the replica took up without a restart.",
    "kv_blocks_used": "Blocks of the KV cache in use.",
    "kv_blocks_total": "Blocks of the KV cache.",
}


def _add(counter: Counter, amount: int, tags: dict[str, str]) -> None:
    if amount:  # Ray refuses to add nothing
        counter.inc(amount, tags)
