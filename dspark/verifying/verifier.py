"""The target's side of a round: prefill, one packed forward over candidates of many sessions, the acceptance walk, and the
KV cache after it.

Synchronous and for one thread; runner.py puts it behind the port. It knows nothing of routers, gRPC or drafters.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from dspark.acceptance import Acceptance, walk
from dspark.devices import finish
from dspark.errors import DSparkError, OutOfBlocks, UnknownSession
from dspark.messages import NO_FEATURES, SessionFailure, SessionOpen, StepReport, VerifyRequest, VerifyResult
from dspark.runtime.kv_cache import BlockTable
from dspark.runtime.model import PackedModel
from dspark.runtime.taps import Taps
from dspark.sampling import Sampler
from dspark.tree import CandidateTree
from dspark.types import SessionId
from dspark.verifying.feature_store import FeatureStore, KeptRows, Projection, WantedRows
from dspark.verifying.rows import share_rows
from dspark.verifying.sessions import TargetSession


@dataclass(frozen=True, slots=True)
class _Forwarded:
    """What came out of one forward."""

    tokens: list[int]
    """The target's own, after every anchor and candidate."""
    finite: list[bool]
    """Whether the logits that chose them were."""
    taps: Taps
    """Hidden states of all rows, at the layers that some session's drafter reads."""


class BatchVerifier:
    """All sessions of one target replica."""

    def __init__(
        self, model: PackedModel, *, max_length: int, max_batch_rows: int, projections: Iterable[Projection] = ()
    ) -> None:
        """Sessions whose drafter's projection is not among `projections` get raw taps."""
        self._model = model
        self._store = FeatureStore(model, projections)
        self._sampler = Sampler(model.vocab_size, model.device)
        self._max_length = max_length
        self._max_batch_rows = max_batch_rows
        self._sessions: dict[SessionId, TargetSession] = {}
        self._num_opened = 0
        self._num_asked = 0
        self._results: list[VerifyResult] = []
        self._failures: list[SessionFailure] = []

    @property
    def has_work(self) -> bool:
        """True if a step would do something."""
        return bool(self._results or self._failures) or any(s.pending is not None for s in self._sessions.values())

    @property
    def num_sessions(self) -> int:
        """Sessions held, waiting or not."""
        return len(self._sessions)

    def check_open(self, message: SessionOpen) -> None:
        """Raises InvalidMessage where the session's drafter wants what this target does not have. For any thread: it reads constants."""
        if message.features is not None:
            self._store.check(message.features)

    def open(self, message: SessionOpen) -> None:
        """Hold a session; one of the same id is replaced. Raises what `check_open` does."""
        self.check_open(message)
        self.close(message.session_id)
        table = BlockTable(self._model.pool)
        session = TargetSession.from_open(message, table, self._num_opened)
        if session.spec is not None:
            session.features = self._store.enter(session.spec)
        self._sessions[message.session_id] = session
        self._num_opened += 1

    def submit(self, request: VerifyRequest) -> None:
        """Queue a round; what is wrong with it becomes a failure of its session in the next report."""
        session = self._sessions.get(request.session_id)
        try:
            if session is None:
                raise UnknownSession(f"no session {request.session_id} here")
            repeated = session.accept_request(self._fitting(request), self._max_length)
        except DSparkError as error:
            self._failures.append(_failure(request.session_id, error))
        else:
            if repeated is not None:
                self._results.append(repeated)
            session.asked = self._num_asked
            self._num_asked += 1

    def _fitting(self, request: VerifyRequest) -> VerifyRequest:
        """Without its candidates where the whole cache could not hold them: drafts must never turn an answer into an error."""
        pool = self._model.pool
        if pool.blocks_for(request.base_length + len(request.tree)) <= pool.num_blocks:
            return request
        return replace(request, tree=CandidateTree.empty())

    def close(self, session_id: SessionId) -> None:
        """Forget a session and free its blocks."""
        session = self._sessions.pop(session_id, None)
        if session is not None:
            session.table.release()
            if session.spec is not None:
                self._store.leave(session.spec)

    def step(self) -> StepReport:
        """One forward for what waits; returns the rounds it completed."""
        started = time.perf_counter()
        chosen = self._choose()
        if chosen:
            self._run(chosen)
            finish(self._model.device)
        results, self._results = self._results, []
        failures, self._failures = self._failures, []
        return StepReport(
            tuple(results),
            tuple(failures),
            verify_ms=(time.perf_counter() - started) * 1e3,
            batch_rows=sum(rows for _, rows in chosen),
            free_kv_blocks=self._model.pool.num_free,
            total_kv_blocks=self._model.pool.num_blocks,
        )

    def _choose(self) -> list[tuple[TargetSession, int]]:
        """Sessions of the step and their rows, with slots reserved for all of them."""
        waiting = sorted((s for s in self._sessions.values() if s.pending is not None), key=lambda s: s.arrival)
        works = {session.session_id: session.work() for session in waiting}
        in_order = sorted(waiting, key=lambda s: s.asked)
        shares = share_rows([works[session.session_id] for session in in_order], self._max_batch_rows)
        chosen: list[tuple[TargetSession, int]] = []
        for session in waiting:
            rows = shares.get(session.session_id, 0)
            if session.work() != works[session.session_id]:
                continue  # preempted a moment ago: its rows no longer fit what it needs, so its turn is the next step
            if rows and self._reserve(session, rows, chosen):
                chosen.append((session, rows))
        return chosen or self._choose_oldest(waiting)

    def _choose_oldest(self, waiting: Sequence[TargetSession]) -> list[tuple[TargetSession, int]]:
        """Rows went to sessions that got no blocks, or the other way round: the oldest alone can always go on."""
        for session in waiting:
            rows = share_rows([session.work()], self._max_batch_rows)[session.session_id]
            if self._reserve(session, rows, []):
                return [(session, rows)]
        return []

    def _reserve(self, session: TargetSession, rows: int, chosen: Sequence[tuple[TargetSession, int]]) -> bool:
        """Own the slots of the step, if need be by preempting others; False leaves the session waiting, and everyone else as they were."""
        pool = self._model.pool
        wanted = pool.blocks_for(session.num_cached + rows) - len(session.table.blocks)
        victims = [] if wanted <= pool.num_free else self._victims(session, {s.session_id for s, _ in chosen})
        if pool.num_free + sum(len(victim.table.blocks) for victim in victims) < wanted:
            if pool.blocks_for(session.num_cached + rows) > pool.num_blocks:
                self._fail(session, OutOfBlocks("the session needs more KV blocks than this target has"))
            return False
        for victim in victims:
            if pool.num_free >= wanted:
                break
            victim.forget_cache()
        session.table.reserve(session.num_cached + rows)
        return True

    def _victims(self, session: TargetSession, chosen: set[SessionId]) -> list[TargetSession]:
        """Who may lose their blocks to this session, first to last: those between rounds, then those waiting that are younger.

        Sessions between rounds of any age: a client that reads slowly must not hold up the others.
        """
        others = [s for s in self._sessions.values() if s.table.blocks and s is not session and s.session_id not in chosen]
        idle = sorted((s for s in others if s.pending is None), key=lambda s: s.asked)
        younger = [s for s in others if s.pending is not None and s.arrival > session.arrival]
        return idle + sorted(younger, key=lambda s: -s.arrival)

    def _run(self, chosen: Sequence[tuple[TargetSession, int]]) -> None:
        """Forward all together; if that fails, each alone, so that one session's fault stays its own."""
        try:
            outcome = self._forward(chosen)
        except Exception as error:  # whatever a model's own code raises
            if len(chosen) == 1:
                self._fail(chosen[0][0], error)
                return
            for one in chosen:
                self._run([one])
        else:
            self._advance(chosen, outcome)

    def _forward(self, chosen: Sequence[tuple[TargetSession, int]]) -> _Forwarded:
        """The target's token of every anchor and candidate. Changes no session: it may be repeated."""
        sampling = [row for session, rows in chosen if session.completes_with(rows) for row in session.row_sampling()]
        self._sampler.make_noise(sampling)  # now, so that a GPU has it to do while the forward is still being told
        with self._store.capture(session.captured for session, _ in chosen) as taps:
            logits = self._model.forward([session.segment(rows) for session, rows in chosen])  # [sum(1 + N), V]
        finite = torch.isfinite(logits).all(-1)
        tokens = self._sampler.choose(logits, sampling).tolist() if sampling else []
        return _Forwarded(tokens, finite.tolist(), taps)

    def _advance(self, chosen: Sequence[tuple[TargetSession, int]], outcome: _Forwarded) -> None:
        """Prompt chunks are cached, finished rounds committed; then the features of both are kept, and the rounds answered."""
        start = first_row = 0
        kept: list[KeptRows | None] = []
        moves: list[tuple[int, int]] = []
        committed: list[tuple[TargetSession, VerifyRequest, VerifyResult]] = []
        for session, rows in chosen:
            if not session.completes_with(rows):
                kept.append(session.kept_rows(first_row, range(rows)))
                session.num_cached += rows
            else:
                stop = start + 1 + len(session.tree)
                if all(outcome.finite[start:stop]):
                    accepted = walk(session.tree, outcome.tokens[start:stop])
                    kept.append(session.kept_rows(first_row, _path_rows(session, accepted)))
                    committed.append(self._commit(session, accepted, moves))
                else:
                    self._fail(session, RuntimeError("the target's logits are not finite"))
                start = stop
            first_row += rows
        if moves:
            self._model.cache.move([old for old, _ in moves], [new for _, new in moves])
        self._store.keep(outcome.taps, [one for one in kept if one is not None])
        features = self._store.read([_wanted_rows(session, request) for session, request, _ in committed])
        for (session, _, result), values in zip(committed, features, strict=True):
            session.last_result = replace(result, features=values)
            self._results.append(session.last_result)

    def _commit(
        self, session: TargetSession, accepted: Acceptance, moves: list[tuple[int, int]]
    ) -> tuple[TargetSession, VerifyRequest, VerifyResult]:
        """Move on to the next round. The result lacks its features still, and `moves` grows by the slots of keys and values to be copied
        so that the accepted path's stay: all sessions' together, once this step's are known."""
        request = session.pending
        assert request is not None, "only sessions with a pending round are chosen"
        base = len(session.token_ids)
        source = session.table.slots(0, base + len(session.tree))
        moves += [(source[base + node], source[base + k]) for k, node in enumerate(accepted.nodes) if node != k]
        session.num_cached = base + len(accepted.nodes)
        session.table.shrink(session.num_cached)
        result = VerifyResult(session.session_id, session.round, base, accepted.nodes, accepted.token_ids)
        session.token_ids.extend(accepted.token_ids)
        session.round += 1
        session.pending = None
        return session, request, result

    def _fail(self, session: TargetSession, error: Exception) -> None:
        self._failures.append(_failure(session.session_id, error))
        self.close(session.session_id)


def _path_rows(session: TargetSession, accepted: Acceptance) -> list[int]:
    """Rows of the session's segment that it commits: all tokens up to the anchor, then the accepted candidates."""
    uncached = session.work().num_uncached
    return [*range(uncached), *(uncached + node for node in accepted.nodes)]


def _wanted_rows(session: TargetSession, request: VerifyRequest) -> WantedRows | None:
    """From the position that the request named up to the new anchor; None where nothing is wanted, or some features are missing."""
    start, features = request.features_from, session.captured
    if start == NO_FEATURES or features is None or features.table is None:
        return None
    return WantedRows(features.table, start, session.table.slots(start, session.num_cached))


def _failure(session_id: SessionId, error: Exception) -> SessionFailure:
    """Only errors of our own tree keep their name and text; others may quote addresses or paths."""
    if isinstance(error, DSparkError):
        return SessionFailure(session_id, type(error).__name__, error.message)
    return SessionFailure(session_id, DSparkError.__name__, f"the target could not compute this round ({type(error).__name__})")
