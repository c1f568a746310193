"""What the drafters with a model have in common: sessions with a paged cache, brought up to date by deltas, and who gives way when
its blocks run out. What a cache holds, and how a draft comes out of it, is each drafter's own.

Synchronous and for one thread; drafter.py puts it behind the port.

Symbols: S sessions.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

from dspark.devices import finish
from dspark.drafting.calibration_watch import WatchedCalibration
from dspark.drafting.context import DraftContext
from dspark.drafting.growth import Draft, Growth, Stem
from dspark.errors import DSparkError, OutOfBlocks, UnknownSession
from dspark.messages import DraftReport, DraftRequest, DraftResult, SessionFailure, SessionOpen
from dspark.runtime.kv_cache import BlockPool, BlockTable
from dspark.sampling import Sampler
from dspark.scheduling.calibration import Estimator
from dspark.scheduling.signals import sigmoid_of_gaps
from dspark.types import SessionId

CPU = torch.device("cpu")

Listener = Callable[[SessionId, int, Draft], None]
"""Told of every draft: session, base length, what was drafted."""


@dataclass(slots=True)
class DraftSession(ABC):
    """One session's state on a draft replica."""

    session_id: SessionId
    context: DraftContext
    table: BlockTable
    last_used: int = 0
    depth: int = 0
    """Levels wanted in this round."""
    max_nodes: int = 0
    max_width: int = 1
    draft: Draft = field(default_factory=Draft.empty)
    """Of this round."""

    @abstractmethod
    def forget_cache(self) -> None:
        """The blocks are gone: whatever stood in them has to come again."""

    @property
    def base_length(self) -> int:
        """Committed tokens known here."""
        return len(self.context.token_ids)


SessionT = TypeVar("SessionT", bound=DraftSession)


class CachedDrafter(ABC, Generic[SessionT]):
    """All sessions of one draft replica."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_length: int,
        min_survival: float = 0.0,
        estimator: Estimator | None = None,
        device: torch.device = CPU,
    ) -> None:
        """Candidates whose survival `estimator` puts below `min_survival` are not proposed; None estimates by `sigmoid_of_gaps`."""
        self._pool = pool
        self._estimator = estimator
        self._device = device
        self._max_length = max_length
        self._min_survival = min_survival
        self._sessions: dict[SessionId, SessionT] = {}
        self._clock = 0
        self._calibration: WatchedCalibration | None = None
        self.listener: Listener | None = None
        """For whoever collects traces; without one, what only traces need is not computed."""

    @abstractmethod
    def _new_session(self, message: SessionOpen, table: BlockTable) -> SessionT:
        """A session that has cached nothing."""

    @abstractmethod
    def _take_in(self, session: SessionT, request: DraftRequest) -> None:
        """Make room for the request's news and for a draft. Its tokens are in the context already; slots are got from `_reserve`.

        Raises what becomes this session's failure; the others are unharmed.
        """

    @abstractmethod
    def _run(self, sessions: Sequence[SessionT]) -> None:
        """Cache what is new and draft for each session that wants it, into its `draft`."""

    def follow(self, calibration: WatchedCalibration) -> None:
        """Estimate by what is there, and by whatever is newly fitted from the next draft on."""
        self._calibration, self._estimator = calibration, calibration.estimator

    @property
    def num_refits(self) -> int:
        """Newly fitted estimators taken up so far."""
        return 0 if self._calibration is None else self._calibration.num_refits

    @property
    def num_sessions(self) -> int:
        """Sessions held."""
        return len(self._sessions)

    def open(self, message: SessionOpen) -> None:
        """Hold a session; one of the same id is replaced."""
        self.close(message.session_id)
        self._sessions[message.session_id] = self._new_session(message, BlockTable(self._pool))

    def close(self, session_id: SessionId) -> None:
        """Forget a session and free its blocks."""
        session = self._sessions.pop(session_id, None)
        if session is not None:
            session.table.release()

    def draft(self, requests: Sequence[DraftRequest]) -> DraftReport:
        """One tree per request; depth 0 only brings the state up to date."""
        started = time.perf_counter()
        self._clock += 1
        if self._calibration is not None:
            self._estimator = self._calibration.latest()
        failures = []
        ready: list[SessionT] = []
        for request in requests:
            try:
                ready.append(self._prepared(request))
            except DSparkError as error:
                failures.append(SessionFailure(request.session_id, type(error).__name__, error.message))
        self._run(ready)
        finish(self._device)
        results = tuple(self._result(session) for session in ready)
        return DraftReport(results, tuple(failures), (time.perf_counter() - started) * 1e3)

    def _result(self, session: SessionT) -> DraftResult:
        if self.listener is not None:
            self.listener(session.session_id, session.base_length, session.draft)
        return DraftResult(session.session_id, session.base_length, session.draft.tree)

    def _prepared(self, request: DraftRequest) -> SessionT:
        session = self._sessions.get(request.session_id)
        if session is None:
            raise UnknownSession(f"no session {request.session_id} here")
        session.context.bring_up_to(request)
        session.draft, session.last_used = Draft.empty(), self._clock
        if session.base_length > self._max_length:
            raise OutOfBlocks(f"the session is longer than the drafter's {self._max_length} tokens")
        session.depth = max(0, min(request.max_depth, request.max_nodes, self._max_length - session.base_length))
        session.max_nodes, session.max_width = request.max_nodes, request.max_width
        self._take_in(session, request)
        return session

    def _growth(self, sessions: Sequence[SessionT], sampler: Sampler) -> Growth:
        """New trees for these sessions."""
        stems = [
            Stem(s.context.sampling, s.base_length, s.depth, s.max_nodes, s.max_width, self._min_survival) for s in sessions
        ]
        estimate = sigmoid_of_gaps if self._estimator is None else self._estimator.conditional
        return Growth(stems, sampler, estimate, wants_log_probs=self._estimator is not None or self.listener is not None)

    @staticmethod
    def _hand_out(sessions: Sequence[SessionT], growth: Growth) -> None:
        for session, draft in zip(sessions, growth.drafts(), strict=True):
            session.draft = draft

    def _reserve(self, session: SessionT, num_tokens: int) -> None:
        """Own the slots, if need be at the cost of the least recently used session outside this round."""
        while True:
            try:
                return session.table.reserve(num_tokens)
            except OutOfBlocks:
                idle = [s for s in self._sessions.values() if s.table.blocks and s is not session and s.last_used < self._clock]
                if not idle:
                    raise
                victim = min(idle, key=lambda s: s.last_used)
                victim.table.release()
                victim.forget_cache()
