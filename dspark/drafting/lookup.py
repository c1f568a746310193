"""`lookup`: what followed earlier matches of the session's last tokens, in prompt and output. No weights, no replica.

Several matches make a tree: continuations that begin alike share their nodes.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dspark.drafting.context import DraftContext
from dspark.errors import DSparkError, UnknownSession
from dspark.messages import DraftReport, DraftRequest, DraftResult, SessionFailure, SessionOpen
from dspark.tree import ANCHOR, CandidateTree
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
        if request.max_depth == 0 or request.max_nodes == 0:
            return DraftResult(request.session_id, request.base_length, CandidateTree.empty())
        matches = index.continuations(request.max_depth, request.max_width)
        return DraftResult(request.session_id, request.base_length, _tree_of(matches, request.max_nodes))


@dataclass(frozen=True, slots=True)
class Match:
    """What followed an earlier place where the text stood as it stands now."""

    token_ids: list[int]
    length: int
    """Tokens before the place that are equal."""

    @property
    def odds(self) -> float:
        """The longer the match, the likelier it goes on; one more token of it costs the same odds again."""
        return self.length / (self.length + 1)


def _tree_of(matches: Sequence[Match], max_nodes: int) -> CandidateTree:
    """The best match as it is; each further one where it parts from those before it, for what they leave."""
    nodes: dict[tuple[int, ...], float] = {}  # path -> survival
    for match in matches:
        survival = 1.0
        path: tuple[int, ...] = ()
        for token_id in match.token_ids:
            siblings = sum(nodes[other] for other in nodes if len(other) == len(path) + 1 and other[:-1] == path)
            path = (*path, token_id)
            survival = nodes[path] if path in nodes else max(0.0, survival - siblings) * match.odds
            nodes[path] = survival
    best = sorted(sorted(nodes, key=lambda path: (-nodes[path], len(path)))[:max_nodes], key=len)
    places = {path: index for index, path in enumerate(best)} | {(): ANCHOR}
    return CandidateTree(
        np.asarray([path[-1] for path in best], np.int32),
        np.asarray([places[path[:-1]] for path in best], np.int32),
        np.asarray([nodes[path] for path in best], np.float32),
    )


class _SuffixIndex:
    """Where each run of `min_match` tokens ended before, grown as tokens are committed."""

    def __init__(self, context: DraftContext, min_match: int, max_match: int) -> None:
        self.context = context
        self._min_match = min_match
        self._max_match = max_match
        self._ends: dict[tuple[int, ...], list[int]] = {}  # run -> indices just after it, ascending
        self._num_indexed = 0

    def continuations(self, max_tokens: int, max_matches: int) -> list[Match]:
        """Up to `max_tokens` tokens that followed the longest earlier matches (of equals the latest first), no two alike."""
        tokens = self.context.token_ids
        self._index_new(tokens)
        ends = self._ends.get(tuple(tokens[-self._min_match :]), [])[-MAX_CANDIDATES:]
        ranked = sorted(((self._match_length(tokens, end), end) for end in ends), reverse=True)
        found: dict[tuple[int, ...], Match] = {}
        for length, end in ranked:
            following = tokens[end : end + max_tokens]
            if len(found) < max_matches and not any(other[: len(following)] == tuple(following) for other in found):
                found[tuple(following)] = Match(following, length)
        return list(found.values())

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
