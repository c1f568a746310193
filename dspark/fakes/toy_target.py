"""A target without weights: it decides with the real sampler and the real acceptance walk on a tiny vocabulary.

Knows no wire and no clock but the event loop's.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dspark.acceptance import walk
from dspark.errors import DSparkError, InvalidMessage, StaleRound, TargetUnavailable, UnknownSession
from dspark.messages import NO_FEATURES, ContextFeatures, SessionFailure, SessionOpen, StepReport, VerifyRequest, VerifyResult
from dspark.sampling import RowSampling, Sampler
from dspark.tree import CandidateTree
from dspark.types import ModelCard, SamplingParams, SessionId


class ToyLaw:
    """A language of `vocab_size` words in which the last two tokens decide the distribution of the next one."""

    def __init__(self, vocab_size: int = 12, seed: int = 0) -> None:
        self.vocab_size = vocab_size
        generator = torch.Generator().manual_seed(seed)
        self._logits = 2.0 * torch.randn(vocab_size, vocab_size, vocab_size, generator=generator)  # [before last, last, next]
        self._sampler = Sampler(vocab_size, torch.device("cpu"))

    def logits(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        """[R, V] after each context; every context has at least one token."""
        last = [context[-1] for context in contexts]
        before = [context[-2] if len(context) > 1 else 0 for context in contexts]
        return self._logits[before, last]

    def tokens(self, contexts: Sequence[Sequence[int]], sampling: SamplingParams) -> list[int]:
        """The token that the law and the shared noise choose after each context."""
        rows = [RowSampling(sampling, len(context)) for context in contexts]
        return [int(token) for token in self._sampler.choose(self.logits(contexts), rows)]

    def continuation(self, prompt: Sequence[int], sampling: SamplingParams, num_tokens: int) -> list[int]:
        """Plain decoding, one token at a time: what every session over this law must give."""
        tokens = list(prompt)
        for _ in range(num_tokens):
            tokens += self.tokens([tokens], sampling)
        return tokens[len(prompt) :]

    def guess(self, tokens: Sequence[int], sampling: SamplingParams, max_depth: int) -> CandidateTree:
        """A `Guess` that is always right."""
        return CandidateTree.chain(self.continuation(tokens, sampling, max_depth))


@dataclass(slots=True)
class _ToySession:
    token_ids: list[int]
    sampling: SamplingParams
    has_features: bool = False
    round: int = 0
    pending: VerifyRequest | None = None
    last_result: VerifyResult | None = None


def toy_features(token_ids: Sequence[int], start: int, stop: int) -> ContextFeatures:
    """What a ToyTarget saw at positions start..stop-1: each row is the token there and the position."""
    rows = [(token_ids[position], position) for position in range(start, stop)]
    return ContextFeatures(start, np.asarray(rows, np.uint16).reshape(-1, 2), projected=True)


class ToyTarget:
    """Implements ports.Verifier over a ToyLaw. Rounds that wait together are answered in one report; fences as the real target's."""

    def __init__(self, law: ToyLaw, *, max_length: int = 4096, step_s: float = 0.0) -> None:
        self.law = law
        self.max_length = max_length
        self.step_s = step_s
        """How long a step takes."""
        self.keeps_features = True
        """False: results come without features, whoever asks."""
        self.batches: list[tuple[SessionId, ...]] = []
        """The sessions of every `submit`, in order."""
        self._sessions: dict[SessionId, _ToySession] = {}
        self._results: list[VerifyResult] = []
        self._failures: list[SessionFailure] = []
        self._wake = asyncio.Event()
        self._dead = False

    @property
    def card(self) -> ModelCard:
        """What a pool tells of this target."""
        return ModelCard("toy", self.law.vocab_size, self.max_length, (), "toy-model", "toy-tokenizer")

    @property
    def num_sessions(self) -> int:
        """Sessions held."""
        return len(self._sessions)

    def die(self) -> None:
        """From now on every `next_report` raises TargetUnavailable."""
        self._dead = True
        self._wake.set()

    def open(self, session: SessionOpen) -> None:
        """See ports.Verifier."""
        self._sessions[session.session_id] = _ToySession(list(session.token_ids), session.sampling, session.features is not None)

    def submit(self, requests: Sequence[VerifyRequest]) -> None:
        """See ports.Verifier."""
        self.batches.append(tuple(request.session_id for request in requests))
        for request in requests:
            try:
                self._take(request)
            except DSparkError as error:
                self._failures.append(SessionFailure(request.session_id, type(error).__name__, error.message))
        self._wake.set()

    async def next_report(self) -> StepReport:
        """See ports.Verifier."""
        await self._wake.wait()
        if self._dead:
            raise TargetUnavailable("the toy target is dead")
        self._wake.clear()
        await asyncio.sleep(self.step_s)
        waiting = [(session, session.pending) for session in self._sessions.values() if session.pending is not None]
        rows = sum(1 + len(request.tree) for _, request in waiting)
        self._results += [self._decide(session, request) for session, request in waiting]
        report = StepReport(tuple(self._results), tuple(self._failures), self.step_s * 1e3, rows)
        self._results, self._failures = [], []
        return report

    def close(self, session_id: SessionId) -> None:
        """See ports.Verifier."""
        self._sessions.pop(session_id, None)

    def _take(self, request: VerifyRequest) -> None:
        session = self._sessions.get(request.session_id)
        if session is None:
            raise UnknownSession(f"no session {request.session_id} here")
        last = session.last_result
        if last is not None and (request.round, request.base_length) == (last.round, last.base_length):
            self._results.append(last)
            return
        if (request.round, request.base_length) != (session.round, len(session.token_ids)):
            raise StaleRound(f"round {request.round}, not {session.round}")
        request.tree.check(self.law.vocab_size, self.max_length)
        if len(request.tree) and request.base_length + int(request.tree.depths.max()) > self.max_length:
            raise InvalidMessage("the tree reaches past the toy's length", "tree")
        start = request.features_from
        if start != NO_FEATURES and not (session.has_features and 0 <= start < request.base_length):
            raise InvalidMessage("features_from does not fit the session", "features_from")
        session.pending = request

    def _decide(self, session: _ToySession, request: VerifyRequest) -> VerifyResult:
        tree, base = request.tree, len(session.token_ids)
        paths = [[int(tree.token_ids[k]) for k in tree.path(node)] for node in range(len(tree))]
        accepted = walk(tree, self.law.tokens([session.token_ids, *(session.token_ids + path for path in paths)], session.sampling))
        session.token_ids.extend(accepted.token_ids)
        features = None
        if request.features_from != NO_FEATURES and self.keeps_features:
            features = toy_features(session.token_ids, request.features_from, base + len(accepted.nodes))
        session.last_result = VerifyResult(request.session_id, request.round, base, accepted.nodes, accepted.token_ids, features)
        session.round, session.pending = session.round + 1, None
        return session.last_result
