"""Drafters without weights: one guesses as it is told, one answers with garbage.

They know no target; a guess may come from a toy target's law, or from anywhere else.
"""

import asyncio
import random
from collections.abc import Callable, Sequence

import numpy as np

from dspark.errors import DraftUnavailable, DSparkError, StaleRound, UnknownSession
from dspark.messages import DraftReport, DraftRequest, DraftResult, SessionFailure, SessionOpen
from dspark.tree import ANCHOR, CandidateTree
from dspark.types import SamplingParams, SessionId

Guess = Callable[[Sequence[int], SamplingParams, int], CandidateTree]
"""(committed tokens, how they are sampled, deepest level wanted) -> candidates below the last of them."""


class FakeDrafter:
    """Implements ports.Drafter with a given guess. It can be slow, and it can die and come back.

    One that reads features keeps what it gets, and like a real one refuses to draft unless it has all before the anchor.
    """

    def __init__(self, guess: Guess, *, delay_s: float = 0.0, reads_features: bool = False) -> None:
        self._guess = guess
        self._reads_features = reads_features
        self.delay_s = delay_s
        self.dead = False
        """While true every draft raises DraftUnavailable."""
        self.num_drafts = 0
        """Batches asked for, answered or not."""
        self._sessions: dict[SessionId, SessionOpen] = {}
        self._token_ids: dict[SessionId, list[int]] = {}
        self.features: dict[SessionId, list[tuple[int, ...]]] = {}
        """Rows by position, of each session held."""
        self.num_repeated_rows = 0
        """Rows that came although they were there."""

    @property
    def num_sessions(self) -> int:
        """Sessions held."""
        return len(self._sessions)

    def forget_all(self) -> None:
        """Lose every session, as a replica that was started again."""
        self._sessions.clear()
        self._token_ids.clear()
        self.features.clear()

    def open(self, session: SessionOpen) -> None:
        """See ports.Drafter."""
        self._sessions[session.session_id] = session
        self._token_ids[session.session_id] = list(session.token_ids)
        self.features[session.session_id] = []

    async def draft(self, requests: Sequence[DraftRequest]) -> DraftReport:
        """See ports.Drafter."""
        self.num_drafts += 1
        await asyncio.sleep(self.delay_s)
        if self.dead:
            raise DraftUnavailable("the fake drafter is dead")
        results, failures = [], []
        for request in requests:
            try:
                results.append(self.answer(request))
            except DSparkError as error:
                failures.append(SessionFailure(request.session_id, type(error).__name__, error.message))
        return DraftReport(tuple(results), tuple(failures))

    def close(self, session_id: SessionId) -> None:
        """See ports.Drafter."""
        self._sessions.pop(session_id, None)
        self._token_ids.pop(session_id, None)
        self.features.pop(session_id, None)

    def answer(self, request: DraftRequest) -> DraftResult:
        """One session's candidates. Raises UnknownSession and StaleRound."""
        tokens = self._token_ids.get(request.session_id)
        if tokens is None:
            raise UnknownSession(f"no session {request.session_id} here")
        start = request.base_length - len(request.new_token_ids)
        if not 0 <= start <= len(tokens):
            raise StaleRound(f"the delta starts at {start}, this drafter knows {len(tokens)} tokens")
        tokens[start:] = request.new_token_ids
        self._read(request)
        depth = min(request.max_depth, request.max_nodes)
        tree = self._guess(tuple(tokens), self._sessions[request.session_id].sampling, depth)
        return DraftResult(request.session_id, request.base_length, tree)

    def _read(self, request: DraftRequest) -> None:
        known = self.features[request.session_id]
        if request.features is not None:
            start = request.features.start
            if start > len(known):
                raise StaleRound(f"features start at {start}, this drafter has {len(known)} positions")
            self.num_repeated_rows += len(known) - start
            known[start:] = [tuple(row) for row in request.features.values.tolist()]
        if self._reads_features and request.max_depth > 0 and len(known) != request.base_length - 1:
            raise StaleRound(f"a draft at length {request.base_length} with features of {len(known)} positions")


class LyingDrafter(FakeDrafter):
    """Seeded garbage of every kind that a drafter can send; none of it may ever change an answer.

    Wrong tokens, senseless scores, trees with equal siblings, too deep or too large, ids outside the vocabulary, the wrong length,
    now and then `late_s` late.
    """

    def __init__(self, vocab_size: int, seed: int = 0, *, late_s: float = 0.0) -> None:
        super().__init__(self._garbage)
        self._vocab_size = vocab_size
        self._random = random.Random(seed)
        self._late_s = late_s

    async def draft(self, requests: Sequence[DraftRequest]) -> DraftReport:
        """See ports.Drafter."""
        self.delay_s = self._late_s * self._random.choice((0, 0, 1))
        return await super().draft(requests)

    def answer(self, request: DraftRequest) -> DraftResult:
        """As the honest one's, but about one in ten is for another length."""
        result = super().answer(request)
        shift = self._random.choice((-1, 1, *[0] * 18))
        return DraftResult(result.session_id, result.base_length + shift, result.tree)

    def _garbage(self, tokens: Sequence[int], sampling: SamplingParams, max_depth: int) -> CandidateTree:
        draw = self._random
        count = draw.randint(0, max_depth + draw.choice((0, 0, 0, 2)))
        highest = self._vocab_size + draw.choice((-1, -1, -1, 3))
        straight = draw.random() < 0.3
        parents = [node - 1 if straight else draw.randint(ANCHOR, node - 1) for node in range(count)]
        scores = [draw.choice((draw.random(), -1.0, 7.0, 0.0)) for _ in range(count)]
        ids = [draw.randint(0, highest) for _ in range(count)]
        return CandidateTree(np.asarray(ids, np.int32), np.asarray(parents, np.int32), np.asarray(scores, np.float32))
