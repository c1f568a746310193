"""What the drafters with a model have in common: sessions with a paged cache, brought up to date by deltas, and who gives way when
its blocks run out. What a cache holds, and how a draft comes out of it, is each drafter's own.

Synchronous and for one thread; drafter.py puts it behind the port.

Symbols: S sessions, K drafted positions, V target vocabulary.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

from dspark.drafting.context import DraftContext
from dspark.errors import DSparkError, OutOfBlocks, UnknownSession
from dspark.messages import DraftReport, DraftRequest, DraftResult, SessionFailure, SessionOpen
from dspark.runtime.kv_cache import BlockPool, BlockTable
from dspark.sampling import RowSampling, Sampler
from dspark.tree import CandidateTree
from dspark.types import SessionId

UNKNOWN = float("nan")


@dataclass(slots=True)
class Chain:
    """What was drafted in one round, and what the drafter knew of each position: what calibration is fitted on. K positions."""

    token_ids: list[int] = field(default_factory=list)  # [K]
    scores: list[float] = field(default_factory=list)  # [K] estimated survival
    gaps: list[float] = field(default_factory=list)  # [K] noised score of the token minus that of its best sibling
    log_draft_probs: list[float] = field(default_factory=list)  # [K] UNKNOWN where nobody listens
    confidence_logits: list[float] = field(default_factory=list)  # [K] UNKNOWN without a confidence head

    def __len__(self) -> int:
        return len(self.token_ids)

    def add(self, token_id: int, score: float, gap: float, log_draft_prob: float, confidence_logit: float = UNKNOWN) -> None:
        """One position more."""
        self.token_ids.append(token_id)
        self.scores.append(score)
        self.gaps.append(gap)
        self.log_draft_probs.append(log_draft_prob)
        self.confidence_logits.append(confidence_logit)

    def cut(self, min_survival: float) -> None:
        """Drop the positions from the first one on that is less likely to survive."""
        kept = next((k for k, score in enumerate(self.scores) if score < min_survival), len(self))
        for values in (self.token_ids, self.scores, self.gaps, self.log_draft_probs, self.confidence_logits):
            del values[kept:]


Listener = Callable[[SessionId, int, Chain], None]
"""Told of every draft: session, base length, chain."""


@dataclass(slots=True)
class DraftSession(ABC):
    """One session's state on a draft replica."""

    session_id: SessionId
    context: DraftContext
    table: BlockTable
    last_used: int = 0
    depth: int = 0
    """Positions wanted in this round."""
    chain: Chain = field(default_factory=Chain)
    """Drafted in this round."""

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

    def __init__(self, pool: BlockPool, *, max_length: int, min_survival: float = 0.0) -> None:
        """Positions whose estimated survival is below `min_survival` are not proposed."""
        self._pool = pool
        self._max_length = max_length
        self._min_survival = min_survival
        self._sessions: dict[SessionId, SessionT] = {}
        self._clock = 0
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
        """Cache what is new and draft `depth` positions for each session, into its `chain`."""

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
        """One chain per request; depth 0 only brings the state up to date."""
        started = time.perf_counter()
        self._clock += 1
        failures = []
        ready: list[SessionT] = []
        for request in requests:
            try:
                ready.append(self._prepared(request))
            except DSparkError as error:
                failures.append(SessionFailure(request.session_id, type(error).__name__, error.message))
        self._run(ready)
        results = tuple(self._result(session) for session in ready)
        return DraftReport(results, tuple(failures), (time.perf_counter() - started) * 1e3)

    def _result(self, session: SessionT) -> DraftResult:
        session.chain.cut(self._min_survival)
        if self.listener is not None:
            self.listener(session.session_id, session.base_length, session.chain)
        tree = CandidateTree.chain(session.chain.token_ids, session.chain.scores)
        return DraftResult(session.session_id, session.base_length, tree)

    def _prepared(self, request: DraftRequest) -> SessionT:
        session = self._sessions.get(request.session_id)
        if session is None:
            raise UnknownSession(f"no session {request.session_id} here")
        session.context.bring_up_to(request)
        session.chain, session.last_used = Chain(), self._clock
        if session.base_length > self._max_length:
            raise OutOfBlocks(f"the session is longer than the drafter's {self._max_length} tokens")
        session.depth = max(0, min(request.max_depth, request.max_nodes, self._max_length - session.base_length))
        self._take_in(session, request)
        return session

    def _extend(self, sessions: Sequence[SessionT], logits: torch.Tensor, sampler: Sampler) -> None:
        """One token more for each chain, chosen from `logits` [S, V] as the target chooses (DESIGN section 4).

        Survival from how clear the choices were: the noised gap to the best sibling, multiplied along the path.
        """
        rows = [RowSampling(s.context.sampling, s.base_length + len(s.chain)) for s in sessions]
        choice = sampler.choose_with_gaps(logits, rows)
        odds, gaps, tokens = choice.gaps.sigmoid().tolist(), choice.gaps.tolist(), choice.token_ids.tolist()
        log_probs = self._log_draft_probs(logits, choice.token_ids).tolist()
        for index, session in enumerate(sessions):
            score = odds[index] * (session.chain.scores[-1] if len(session.chain) else 1.0)
            session.chain.add(tokens[index], score, gaps[index], log_probs[index])

    @staticmethod
    def _make_noise(sessions: Sequence[DraftSession], sampler: Sampler) -> None:
        """For all positions to come: one by one, they cost many small operations each."""
        depth = max(session.depth for session in sessions)
        rows = [RowSampling(s.context.sampling, s.base_length + k) for k in range(depth) for s in sessions if k < s.depth]
        sampler.make_noise(rows)

    def _log_draft_probs(self, logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """[S] of the tokens chosen from `logits` [S, V], by the drafter's own unprocessed distribution; only traces want it."""
        if self.listener is None:
            return torch.full((len(token_ids),), UNKNOWN)
        return logits.float().log_softmax(-1).gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)

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
