"""The lane to one draft replica: requests that wait together are one call, and what a call costs is told to the books."""

import asyncio
from collections import deque
from collections.abc import Callable

from dspark import errors
from dspark.batching import NaturalBatcher
from dspark.errors import DraftUnavailable, DSparkError, ProtocolError
from dspark.messages import DraftRequest, DraftResult, SessionFailure
from dspark.ports import Drafter
from dspark.routing.observer import DraftObserver
from dspark.types import SessionId

REMEMBERED_WAYS = 64
"""Calls; the shortest way to the drafter and back among them is taken for the way itself."""
OnDraftCost = Callable[[int, int, float, int, int], None]


def error_of(failure: SessionFailure) -> DSparkError:
    """The failure as the error it was on the replica; an unknown name becomes a ProtocolError."""
    kind = getattr(errors, failure.error, ProtocolError)
    known = isinstance(kind, type) and issubclass(kind, DSparkError)
    return (kind if known else ProtocolError)(failure.message)


class DraftLane:
    """All drafts that one router wants of one draft replica."""

    def __init__(self, drafter: Drafter, observer: DraftObserver, on_cost: OnDraftCost = lambda *_: None) -> None:
        """`on_cost` is told of every call that drafted: sessions, depth, what it cost in ms, how many tokens or hidden states of context
        the drafter was given, and how many candidates beyond chains of each session's depth it was asked for.

        What it cost is what the drafter says, and what the way there and back adds at the least: the rest of the router's wait is a place
        behind other work, a step of the target in the same process above all, and says nothing of the next call.
        """
        self.drafter = drafter
        self._observer = observer
        self._on_cost = on_cost
        self._ways_ms: deque[float] = deque(maxlen=REMEMBERED_WAYS)
        self.call_began_s = 0.0
        """Event loop's time at which the call in hand began, or the last one."""
        self._batcher: NaturalBatcher[DraftRequest, DraftResult] = NaturalBatcher(self._draft)

    async def draft(self, request: DraftRequest) -> DraftResult:
        """Raises DraftUnavailable if the replica is gone, or the error that it reports for this session."""
        return await self._batcher.submit(request)

    async def stop(self) -> None:
        """What waits is told that the drafter is gone."""
        await self._batcher.stop(DraftUnavailable("the drafter was dropped"))

    async def _draft(self, requests: list[DraftRequest]) -> list[DraftResult | Exception]:
        clock = asyncio.get_running_loop().time
        started = self.call_began_s = clock()
        report = await self.drafter.draft(requests)
        drafting = [request for request in requests if request.max_depth > 0]
        if drafting and not report.failures:
            waited_ms = (clock() - started) * 1e3
            self._ways_ms.append(max(0.0, waited_ms - report.draft_ms))
            cost_ms = report.draft_ms + min(*self._ways_ms, report.draft_ms) if report.draft_ms > 0 else waited_ms
            depth = max(request.max_depth for request in drafting)
            self._on_cost(len(drafting), depth, cost_ms, sum(map(_num_news, requests)), sum(map(_num_side_nodes, drafting)))
        self._observer.draft_done(report)
        answers: dict[SessionId, DraftResult | Exception] = {result.session_id: result for result in report.results}
        answers.update({failure.session_id: error_of(failure) for failure in report.failures})
        missing = ProtocolError("the drafter left a request out of its answer")
        return [answers.get(request.session_id, missing) for request in requests]


def _num_news(request: DraftRequest) -> int:
    return len(request.new_token_ids) if request.features is None else len(request.features.values)


def _num_side_nodes(request: DraftRequest) -> int:
    return max(0, request.max_nodes - request.max_depth)
