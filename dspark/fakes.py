"""Stand-ins for models and pools, for tests of whatever talks to them: small, seeded, in one process, true to the contracts of ports.py.

`ToyTarget` decides with the real sampler and the real acceptance walk on a tiny vocabulary; `FakeDrafter` guesses as it is told;
`LyingDrafter` answers with garbage. Knows no weights, no wire and no clock but the event loop's.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dspark.acceptance import walk
from dspark.errors import DraftUnavailable, DSparkError, InvalidMessage, StaleRound, TargetUnavailable, UnknownSession
from dspark.messages import (
    NO_FEATURES,
    ContextFeatures,
    DraftReport,
    DraftRequest,
    DraftResult,
    FeatureSpec,
    SessionFailure,
    SessionOpen,
    StepReport,
    VerifyRequest,
    VerifyResult,
)
from dspark.sampling import RowSampling, Sampler
from dspark.scheduling.curve import ThroughputCurve
from dspark.tree import ANCHOR, CandidateTree
from dspark.types import ModelCard, ReplicaId, SamplingParams, SessionId

Guess = Callable[[Sequence[int], SamplingParams, int], CandidateTree]
"""(committed tokens, how they are sampled, deepest level wanted) -> candidates below the last of them."""


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


@dataclass(eq=False)
class FakePool:
    """A pool of one replica that can be full, or be gone together with all its leases; implements both pools of ports.py."""

    replica: Any
    """A Drafter or a ToyTarget."""
    available: bool = True
    """False: `acquire` is refused."""
    gone: bool = False
    """True: every lease is lost."""
    num_acquired: int = 0
    leases: set["FakeLease"] = field(default_factory=set)
    """Those not given back yet."""
    features: FeatureSpec | None = None
    """See ports.DrafterPool."""
    curve: ThroughputCurve | None = None
    """See ports.VerifierLease."""

    async def acquire(self, session_id: SessionId) -> "FakeLease":
        """See ports.DrafterPool and ports.VerifierPool."""
        if not self.available:
            raise (TargetUnavailable if isinstance(self.replica, ToyTarget) else DraftUnavailable)("the fake pool is empty")
        self.num_acquired += 1
        lease = FakeLease(self)
        self.leases.add(lease)
        return lease


class FakeLease:
    """A place on the pool's replica; implements both leases of ports.py."""

    def __init__(self, pool: FakePool) -> None:
        self._pool = pool
        self.replica_id = ReplicaId("fake")
        self.drafter: Any = pool.replica
        self.verifier: Any = pool.replica

    @property
    def card(self) -> ModelCard:
        """The toy target's card."""
        card: ModelCard = self.verifier.card
        return card

    @property
    def curve(self) -> ThroughputCurve | None:
        """What the pool says that the toy's steps cost."""
        return self._pool.curve

    def lost(self) -> bool:
        """See ports."""
        return self._pool.gone

    async def release(self) -> None:
        """See ports."""
        self._pool.leases.discard(self)
