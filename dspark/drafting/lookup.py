"""`lookup`: the continuation of the longest earlier match of the session's last tokens, in prompt and output. No weights, no replica."""

import time
from collections.abc import Sequence

from dspark.drafting.context import DraftContext
from dspark.errors import DSparkError, UnknownSession
from dspark.messages import DraftReport, DraftRequest, DraftResult, SessionFailure, SessionOpen
from dspark.tree import CandidateTree
from dspark.types import SessionId

MAX_CANDIDATES = 32
"""Earlier places looked at per round, the latest first: bounds the cost on repetitive text."""


class LookupDrafter:
    """Implements ports.Drafter within the router's own process."""

    def __init__(self, *, min_match: int, max_match: int) -> None:
        self._min_match = min_match
        self._max_match = max_match
        self._sessions: dict[SessionId, _SuffixIndex] = {}

    def open(self, session: SessionOpen) -> None:
        """See ports.Drafter."""
        self._sessions[session.session_id] = _SuffixIndex(DraftContext.from_open(session), self._min_match, self._max_match)

    async def draft(self, requests: Sequence[DraftRequest]) -> DraftReport:
        """See ports.Drafter."""
        started = time.perf_counter()
        results, failures = [], []
        for request in requests:
            try:
                results.append(self._draft_one(request))
            except DSparkError as error:
                failures.append(SessionFailure(request.session_id, type(error).__name__, error.message))
        return DraftReport(tuple(results), tuple(failures), (time.perf_counter() - started) * 1e3)

    def close(self, session_id: SessionId) -> None:
        """See ports.Drafter."""
        self._sessions.pop(session_id, None)

    def _draft_one(self, request: DraftRequest) -> DraftResult:
        index = self._sessions.get(request.session_id)
        if index is None:
            raise UnknownSession(f"no session {request.session_id} here")
        index.context.bring_up_to(request)
        token_ids, match_length = index.continuation(min(request.max_depth, request.max_nodes))
        # The longer the match, the likelier it goes on; one more token of it costs the same odds again.
        odds = match_length / (match_length + 1)
        scores = [odds ** (depth + 1) for depth in range(len(token_ids))]
        return DraftResult(request.session_id, request.base_length, CandidateTree.chain(token_ids, scores))


class _SuffixIndex:
    """Where each run of `min_match` tokens ended before, grown as tokens are committed."""

    def __init__(self, context: DraftContext, min_match: int, max_match: int) -> None:
        self.context = context
        self._min_match = min_match
        self._max_match = max_match
        self._ends: dict[tuple[int, ...], list[int]] = {}  # run -> indices just after it, ascending
        self._num_indexed = 0

    def continuation(self, max_tokens: int) -> tuple[list[int], int]:
        """Up to `max_tokens` tokens that followed the longest earlier match (of equals the latest), and the match's length."""
        tokens = self.context.token_ids
        self._index_new(tokens)
        ends = self._ends.get(tuple(tokens[-self._min_match :]), [])
        best_end, best_length = 0, 0
        for end in reversed(ends[-MAX_CANDIDATES:]):
            length = self._match_length(tokens, end)
            if length > best_length:
                best_end, best_length = end, length
        return tokens[best_end : best_end + max_tokens] if best_length else [], best_length

    def _index_new(self, tokens: list[int]) -> None:
        """The run that ends the text is left out: it would match itself."""
        for end in range(max(self._num_indexed + 1, self._min_match), len(tokens)):
            self._ends.setdefault(tuple(tokens[end - self._min_match : end]), []).append(end)
        self._num_indexed = max(self._num_indexed, len(tokens) - 1)

    def _match_length(self, tokens: list[int], end: int) -> int:
        length = 0
        limit = min(self._max_match, end)
        while length < limit and tokens[end - 1 - length] == tokens[len(tokens) - 1 - length]:
            length += 1
        return length
