"""ThreadedDrafter: a drafter with a model on a thread of its own, behind the port, shared by any number of routers."""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dspark.batching import NaturalBatcher
from dspark.drafting.batch import CachedDrafter
from dspark.errors import DraftUnavailable, DSparkError
from dspark.messages import DraftReport, DraftRequest, SessionFailure, SessionOpen
from dspark.types import SessionId

logger = logging.getLogger(__name__)


class ThreadedDrafter:
    """Implements ports.Drafter. Calls that wait at the same moment share their forwards. Lives on one event loop."""

    def __init__(self, drafter: CachedDrafter[Any], thread: ThreadPoolExecutor | None = None) -> None:
        """`thread` has one worker; without it the drafter has one of its own."""
        self._drafter = drafter
        self._thread = thread or ThreadPoolExecutor(1, thread_name_prefix="draft")
        self._owns_thread = thread is None
        self._batcher: NaturalBatcher[Sequence[DraftRequest], DraftReport] = NaturalBatcher(self._process)
        self._stopped = False

    @property
    def num_sessions(self) -> int:
        """Sessions held."""
        return self._drafter.num_sessions

    @property
    def num_refits(self) -> int:
        """Newly fitted estimators taken up so far."""
        return self._drafter.num_refits

    def open(self, session: SessionOpen) -> None:
        """See ports.Drafter."""
        if not self._stopped:
            self._thread.submit(self._drafter.open, session)

    async def draft(self, requests: Sequence[DraftRequest]) -> DraftReport:
        """See ports.Drafter."""
        if self._stopped:
            raise DraftUnavailable("the drafter has stopped")
        return await self._batcher.submit(requests)

    def close(self, session_id: SessionId) -> None:
        """See ports.Drafter."""
        if not self._stopped:
            self._thread.submit(self._drafter.close, session_id)

    async def stop(self) -> None:
        """Finish the batch in hand and end."""
        self._stopped = True
        await self._batcher.stop(DraftUnavailable("the drafter has stopped"))
        if self._owns_thread:
            self._thread.shutdown(wait=True)

    async def _process(self, waiting: list[Sequence[DraftRequest]]) -> list[DraftReport | Exception]:
        requests = [request for batch in waiting for request in batch]
        try:
            report = await asyncio.get_running_loop().run_in_executor(self._thread, self._drafter.draft, requests)
        except Exception as error:  # whatever a model's own code raises: these rounds go without candidates
            logger.exception("a batch of drafts failed")
            message = f"the drafter could not compute this round ({type(error).__name__})"
            report = DraftReport(failures=tuple(SessionFailure(r.session_id, DSparkError.__name__, message) for r in requests))
        return [_share_of(report, {request.session_id for request in batch}) for batch in waiting]


def _share_of(report: DraftReport, session_ids: set[SessionId]) -> DraftReport:
    return DraftReport(
        tuple(result for result in report.results if result.session_id in session_ids),
        tuple(failure for failure in report.failures if failure.session_id in session_ids),
        report.draft_ms,
    )
