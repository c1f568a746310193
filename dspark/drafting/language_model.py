"""`language_model`: any causal LM with the target's tokenizer drafts a chain, token by token, for all waiting sessions together.

It chooses as the target chooses: the same processors, the same noise (DESIGN section 4). Its keys and values are paged and
keep what was right of the last draft, so that a round runs only the rows it never saw. Synchronous and for one thread;
drafter.py puts it behind the port.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from dspark.drafting.context import DraftContext
from dspark.errors import DSparkError, OutOfBlocks, UnknownSession
from dspark.messages import DraftReport, DraftRequest, DraftResult, SessionFailure, SessionOpen
from dspark.runtime.kv_cache import BlockTable
from dspark.runtime.model import PackedModel
from dspark.runtime.packed import Segment
from dspark.sampling import RowSampling, Sampler
from dspark.tree import CandidateTree
from dspark.types import SessionId


@dataclass(slots=True)
class _DraftSession:
    """Committed tokens, and which tokens the cache really holds."""

    session_id: SessionId
    context: DraftContext
    table: BlockTable
    cached_ids: list[int] = field(default_factory=list)
    """Tokens whose keys and values stand in the table's first slots: committed ones, then those of the last draft."""
    last_used: int = 0
    drafted: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    depth: int = 0
    """Tokens wanted in this round."""

    def keep_common_prefix(self) -> None:
        """Forget cached tokens that were not committed; the anchor is always run again, for its logits."""
        tokens = self.context.token_ids
        limit = min(len(self.cached_ids), len(tokens) - 1)
        if self.cached_ids[:limit] != tokens[:limit]:
            limit = next(i for i in range(limit) if self.cached_ids[i] != tokens[i])
        del self.cached_ids[limit:]

    def next_segment(self, num_rows: int, *, with_logits: bool) -> Segment:
        """The next `num_rows` uncached tokens, committed or just drafted."""
        cached = len(self.cached_ids)
        tokens = [*self.context.token_ids, *self.drafted][cached : cached + num_rows]
        slots = self.table.slots(0, cached + len(tokens))
        return Segment(tokens, list(range(cached, cached + len(tokens))), None, slots, cached, 1 if with_logits else 0)


class BatchDrafter:
    """All sessions of one draft replica."""

    def __init__(self, model: PackedModel, *, max_length: int, max_batch_rows: int = 512) -> None:
        self._model = model
        self._sampler = Sampler(model.vocab_size, model.device)
        self._max_length = max_length
        self._max_batch_rows = max_batch_rows
        self._sessions: dict[SessionId, _DraftSession] = {}
        self._clock = 0

    @property
    def num_sessions(self) -> int:
        """Sessions held."""
        return len(self._sessions)

    def open(self, message: SessionOpen) -> None:
        """Hold a session; one of the same id is replaced."""
        self.close(message.session_id)
        table = BlockTable(self._model.pool)
        self._sessions[message.session_id] = _DraftSession(message.session_id, DraftContext.from_open(message), table)

    def close(self, session_id: SessionId) -> None:
        """Forget a session and free its blocks."""
        session = self._sessions.pop(session_id, None)
        if session is not None:
            session.table.release()

    def draft(self, requests: Sequence[DraftRequest]) -> DraftReport:
        """One chain per request; depth 0 only brings the cache up to date."""
        started = time.perf_counter()
        self._clock += 1
        failures = []
        ready: list[_DraftSession] = []
        for request in requests:
            try:
                ready.append(self._prepare(request, keep=ready))
            except DSparkError as error:
                failures.append(SessionFailure(request.session_id, type(error).__name__, error.message))
        self._prefill(ready)
        self._grow([session for session in ready if session.depth > 0])
        results = tuple(
            DraftResult(s.session_id, len(s.context.token_ids), CandidateTree.chain(s.drafted, s.scores)) for s in ready
        )
        return DraftReport(results, tuple(failures), (time.perf_counter() - started) * 1e3)

    def _prepare(self, request: DraftRequest, keep: Sequence[_DraftSession]) -> _DraftSession:
        """The session with its tokens up to date and the round's slots reserved."""
        session = self._sessions.get(request.session_id)
        if session is None:
            raise UnknownSession(f"no session {request.session_id} here")
        session.context.bring_up_to(request)
        session.keep_common_prefix()
        session.drafted, session.scores, session.last_used = [], [], self._clock
        base = len(session.context.token_ids)
        if base > self._max_length:
            raise OutOfBlocks(f"the session is longer than the drafter's {self._max_length} tokens")
        session.depth = min(request.max_depth, request.max_nodes, self._max_length - base)
        self._reserve(session, base + session.depth, keep)
        return session

    def _reserve(self, session: _DraftSession, num_tokens: int, keep: Sequence[_DraftSession]) -> None:
        """Own the slots, if need be at the cost of the least recently used session outside this round."""
        while True:
            try:
                return session.table.reserve(num_tokens)
            except OutOfBlocks:
                idle = [s for s in self._sessions.values() if s.table.blocks and s is not session and s not in keep]
                if not idle:
                    raise
                victim = min(idle, key=lambda s: s.last_used)
                victim.table.release()
                victim.cached_ids.clear()

    def _prefill(self, sessions: Sequence[_DraftSession]) -> None:
        """Cache every committed token before the anchor, except where few enough are left to ride with it."""
        for session in sessions:
            while (left := len(session.context.token_ids) - 1 - len(session.cached_ids)) > 0:
                if session.depth > 0 and left < self._max_batch_rows // max(1, len(sessions)):
                    break
                segment = session.next_segment(min(left, self._max_batch_rows), with_logits=False)
                self._model.forward([segment])
                session.cached_ids.extend(segment.token_ids)

    def _grow(self, sessions: Sequence[_DraftSession]) -> None:
        """One token deeper for all sessions that want more, until none does."""
        while growing := [s for s in sessions if len(s.drafted) < s.depth]:
            segments = [s.next_segment(self._max_batch_rows, with_logits=True) for s in growing]
            logits = self._model.forward(segments)  # [sessions, V]
            rows = [RowSampling(s.context.sampling, len(s.context.token_ids) + len(s.drafted)) for s in growing]
            choice = self._sampler.choose_with_gaps(logits, rows)
            survival = choice.gaps.sigmoid().tolist()
            for session, segment, token, odds in zip(growing, segments, choice.token_ids.tolist(), survival, strict=True):
                session.cached_ids.extend(segment.token_ids)
                session.scores.append(odds * (session.scores[-1] if session.scores else 1.0))
                session.drafted.append(token)
