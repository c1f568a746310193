"""The lanes of one router to one drafter, shared by its sessions, and what is said when that drafter fails."""

import logging
from collections import Counter

from dspark.ports import DrafterLease
from dspark.routing.draft_lane import DraftLane, OnDraftCost
from dspark.routing.observer import DraftObserver
from dspark.types import ReplicaId

logger = logging.getLogger(__name__)

FAILURE_LOG_S = 60.0
"""Between two lines about the same drafter's failures."""


class FailureLog:
    """Says that a drafter fails: the first time with its traceback, then one line a minute at most."""

    def __init__(self) -> None:
        self._told_s: float | None = None
        self._num_untold = 0

    def tell(self, error: Exception, now_s: float) -> None:
        """`now_s` by any clock that only goes forward."""
        self._num_untold += 1
        if self._told_s is None:
            logger.error("a drafter failed", exc_info=error)
        elif now_s - self._told_s >= FAILURE_LOG_S:
            logger.error("a drafter failed %d more times, at last with %s: %s", self._num_untold, type(error).__name__, error)
        else:
            return
        self._told_s, self._num_untold = now_s, 0


class DraftLanes:
    """One for each of the drafter's replicas that some session has a lease on."""

    def __init__(self, observer: DraftObserver, on_cost: OnDraftCost = lambda *_: None) -> None:
        """`on_cost`: see DraftLane."""
        self._observer = observer
        self._on_cost = on_cost
        self._lanes: dict[int, DraftLane] = {}
        self._num_leases: Counter[int] = Counter()
        self._told: set[ReplicaId] = set()
        """Replicas whose first calls are known."""
        self.failures = FailureLog()
        """Of the drafter's own bugs, whatever replica they were met on."""

    def enter(self, lease: DrafterLease) -> None:
        """A session got a lease: its replica's lane is needed."""
        key = id(lease.drafter)  # the lane holds the drafter, so no other can get its id
        if key not in self._lanes:
            self._lanes[key] = DraftLane(lease.drafter, self._observer, self._on_cost)
            self._tell_first_calls(lease)
        self._num_leases[key] += 1

    def _tell_first_calls(self, lease: DrafterLease) -> None:
        if lease.replica_id in self._told:
            return  # real calls have been seen since
        self._told.add(lease.replica_id)
        for call in lease.calls:
            self._on_cost(call.num_sessions, call.depth, call.draft_ms, call.num_news, 0)

    def of(self, lease: DrafterLease) -> DraftLane:
        """The lane of an entered lease."""
        return self._lanes[id(lease.drafter)]

    async def leave(self, lease: DrafterLease) -> None:
        """The session's lease is over; the last one takes the lane with it. What others wait for is left alone."""
        key = id(lease.drafter)
        self._num_leases[key] -= 1
        if self._num_leases[key] == 0:
            del self._num_leases[key]
            await self._lanes.pop(key).stop()

    async def stop(self) -> None:
        """End all lanes."""
        for lane in self._lanes.values():
            await lane.stop()
        self._lanes.clear()
        self._num_leases.clear()
