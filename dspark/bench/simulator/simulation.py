"""A discrete-event simulation of the service: clients, one router with its lanes, draft and target replicas.

    client -> (draft lane: while the drafter is busy, requests wait; then all that wait go together)
           -> (verify lane: when the target is idle, its books plan over all that is ready) -> step -> commit -> client

The rules are those of routing/lanes.py, batching.py and verifying/rows.py; only time is made up. What a router's books are asked and told
there, they are asked and told here. Deterministic by its seed.
Replicas hold the sessions placed on them; a new session goes where the fewest are. Unless the set-up has one processor for all,
replicas run beside each other.
"""

import heapq
import math
from collections.abc import Callable
from functools import partial
from itertools import count

import numpy as np

from dspark.bench.simulator.acceptance import DraftBook
from dspark.bench.simulator.costs import Setup
from dspark.bench.simulator.noise import NoisyClock
from dspark.bench.simulator.parties import NOTHING, SimulatedDrafter, SimulatedSession, SimulatedTarget
from dspark.bench.simulator.policies import Policy
from dspark.bench.simulator.tally import RequestRecord, Tally
from dspark.bench.simulator.workload import Poisson, Workload
from dspark.messages import VerifyResult
from dspark.routing.economy import DraftedRound
from dspark.routing.lanes import WAIT_SLACK
from dspark.routing.rounds import InFlight, Verified, Waiting
from dspark.scheduling.drafting_plan import SKIP, DraftLimits
from dspark.session import Session
from dspark.types import SamplingParams, SessionId, StopRules
from dspark.verifying.rows import Work, share_rows


class Simulation:
    """One run. `run` may be called once."""

    def __init__(
        self, setup: Setup, workload: Workload, policy: Policy, book_of: Callable[[DraftLimits], DraftBook], seed: int = 0
    ) -> None:
        """`book_of` gives the drafts under some limits."""
        self._setup = setup
        self._workload = workload
        self._router = policy(setup)
        self._book_of = book_of
        self._rng = np.random.default_rng(seed)
        self._noise = NoisyClock(setup.noise, seed)
        self._targets = [SimulatedTarget(self._router.books()) for _ in range(setup.num_targets)]
        self._drafters = [SimulatedDrafter() for _ in range(setup.num_drafters)]
        self._queue: list[tuple[int, float]] = []
        """Client and time of arrival of requests that wait for a place."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._ids = count()
        self._processor_free_ms = 0.0
        self.now_ms = 0.0
        self.tally = Tally()
        self.requests: list[RequestRecord] = []

    def run(self, num_tokens: int, warmup_tokens: int = 0) -> Tally:
        """Until so many tokens were committed after the warm-up; what happened in between.

        The window opens and closes right after commits, so a steady state is measured without an error at its ends.
        """
        self._let_clients_in()
        self._run_until(warmup_tokens)
        start = self.tally.copy()
        self._run_until(start.tokens + num_tokens)
        return self.tally.since(start)

    @property
    def tokens_of_open_requests(self) -> int:
        """Committed so far for requests that are not finished."""
        return sum(len(s.session.output_ids) for target in self._targets for s in target.sessions.values())

    def _run_until(self, num_tokens: int) -> None:
        while self.tally.tokens < num_tokens:
            self._advance()

    def _advance(self) -> None:
        """Everything that happens at the next moment, then whoever is idle starts: sessions woken by one event share a batch."""
        now_ms = self._events[0][0]
        self.tally.pass_time(now_ms - self.now_ms, self._num_users)
        self.now_ms = now_ms
        while self._events and self._events[0][0] <= now_ms:
            heapq.heappop(self._events)[2]()
        for drafter in self._drafters:
            self._start_draft(drafter)
        for target in self._targets:
            self._start_step(target)

    @property
    def _num_users(self) -> int:
        return len(self._queue) + sum(len(target.sessions) for target in self._targets)

    def _at(self, time_ms: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time_ms, next(self._order), action))

    def _occupy(self, busy_ms: float, done: Callable[[], None]) -> float:
        """Run a job on a replica; on one processor, after all jobs before it. Returns when it begins."""
        start_ms = max(self.now_ms, self._processor_free_ms) if self._setup.one_processor else self.now_ms
        self._processor_free_ms = start_ms + busy_ms
        self._at(start_ms + busy_ms, done)
        return start_ms

    # Clients

    def _let_clients_in(self) -> None:
        arrivals = self._workload.arrivals
        if isinstance(arrivals, Poisson):
            self._at(float(self._rng.exponential(1e3 / arrivals.requests_per_second)), self._arrive_by_chance)
            return
        for client in range(arrivals.clients):
            first = int(self._rng.integers(1, self._workload.output_tokens + 1))  # requests must not end all together
            self._at(float(self._rng.uniform(0, arrivals.spread_ms)), partial(self._arrive, client, first))

    def _arrive_by_chance(self) -> None:
        arrivals = self._workload.arrivals
        assert isinstance(arrivals, Poisson)
        self._arrive(next(self._ids), self._workload.output_tokens)
        self._at(self.now_ms + float(self._rng.exponential(1e3 / arrivals.requests_per_second)), self._arrive_by_chance)

    def _arrive(self, client: int, num_tokens: int) -> None:
        if self._num_users - len(self._queue) < self._workload.max_sessions:
            self._open(client, num_tokens, self.now_ms)
        else:
            self._queue.append((client, self.now_ms))

    def _open(self, client: int, num_tokens: int, arrived_ms: float) -> None:
        target = min(self._targets, key=lambda t: len(t.sessions))
        drafter = min(self._drafters, key=lambda d: d.num_sessions)
        cached, uncached = self._workload.cached_tokens, max(1, self._workload.prompt_tokens)
        known = Session(SessionId(str(next(self._ids))), (0,) * (cached + uncached), SamplingParams(), StopRules(num_tokens))
        known.drafter = self._router.drafter
        session = SimulatedSession(known, client, target, drafter, arrived_ms, cached, uncached)
        target.sessions[session.session_id] = session
        drafter.num_sessions += 1
        target.books.enter(known)
        self._begin_round(session)

    def _close(self, session: SimulatedSession) -> None:
        del session.target.sessions[session.session_id]
        session.drafter.num_sessions -= 1
        session.target.books.leave(session.session)
        self.requests.append(RequestRecord(session.client, len(session.session.output_ids), session.arrived_ms, self.now_ms))
        if self._queue:
            client, arrived_ms = self._queue.pop(0)
            self._open(client, self._workload.output_tokens, arrived_ms)
        if not isinstance(self._workload.arrivals, Poisson):
            self._arrive(session.client, self._workload.output_tokens)

    # Drafting

    def _begin_round(self, session: SimulatedSession) -> None:
        session.draft, session.kept, session.began_ms, session.draft_ms = NOTHING, [], self.now_ms, 0.0
        session.target.books.told(session.session, session.num_told)
        limits = SKIP if session.session.drafter is None else session.target.books.draft_limits(session.session)
        has_none = self._setup.plain_first_round and session.session.round == 0
        session.limits = SKIP if has_none else limits
        if session.limits.skips:
            session.target.ready.append(session)
        else:
            session.drafter.waiting.append(session)

    def _start_draft(self, drafter: SimulatedDrafter) -> None:
        if drafter.drafting or not drafter.waiting:
            return
        drafter.drafting, drafter.waiting = drafter.waiting, []
        expected_ms = self._setup.draft.ms(len(drafter.drafting), _depth_of(drafter.drafting), *_reading_of(drafter.drafting))
        busy_ms = expected_ms * self._noise.factor(self.now_ms)
        drafter.began_ms = self._occupy(busy_ms, partial(self._end_draft, drafter, busy_ms))

    def _end_draft(self, drafter: SimulatedDrafter, busy_ms: float) -> None:
        batch, drafter.drafting = drafter.drafting, []
        self.tally.draft_ms += busy_ms
        side_nodes, num_news = _reading_of(batch)
        self._router.draft_done(len(batch), _depth_of(batch), busy_ms, num_news, side_nodes)
        for session in batch:
            session.num_told = session.session.base_length
            session.draft = self._book_of(session.limits).pick(self._rng)
            session.draft_ms = self.now_ms - session.began_ms if len(session.draft.tree) else 0.0
            self.tally.drafted += len(session.draft.tree)
            session.target.ready.append(session)

    # Verification

    def _start_step(self, target: SimulatedTarget) -> None:
        if target.is_busy or not (target.ready or target.submitted):
            return
        num_ready = self._submit(target) if target.ready else 0
        if not target.submitted:
            return
        works = [Work(s.session_id, s.num_uncached, len(s.kept)) for s in target.submitted.values()]
        shares = share_rows(works, self._setup.max_rows)
        batch = [(target.submitted[session_id], rows) for session_id, rows in shares.items()]
        step_ms = self._step_ms(batch)
        router_ms = self._setup.router.ms(num_ready) if num_ready else 0.0  # a target goes on with a prompt by itself
        target.is_busy = True
        self._occupy(router_ms + step_ms, partial(self._end_step, target, batch, step_ms))

    def _submit(self, target: SimulatedTarget) -> int:
        """Plan over all that goes now and hand the selected candidates in; returns how many sessions went."""
        if self._waits_for_drafts(target):
            return 0
        target.patience_ends_ms = math.inf
        most = target.books.most_to_fire()
        num_fired = len(target.ready) if most is None else min(most, len(target.ready))
        fired, target.ready = target.ready[:num_fired], target.ready[num_fired:]
        kept = target.books.plan([Waiting(s.session, s.draft.tree, s.draft_ms) for s in fired]).kept
        for session in fired:
            session.kept = kept[session.session_id]
            session.explored = target.books.explores(session.session)
            target.submitted[session.session_id] = session
        target.submitted_ms = self.now_ms + self._setup.router.ms(num_fired)
        return num_fired

    def _waits_for_drafts(self, target: SimulatedTarget) -> bool:
        """True while the wait goes on; whoever becomes ready asks again, and patience ends."""
        in_flight = [InFlight(self._drafted_for_ms(s), s.limits.max_depth) for s in self._drafts_in_flight(target)]
        if not in_flight or self.now_ms >= target.patience_ends_ms:
            return False
        wait_ms = target.books.wait_ms(len(target.ready), in_flight)
        if wait_ms > 0 and target.patience_ends_ms == math.inf:
            target.patience_ends_ms = self.now_ms + WAIT_SLACK * wait_ms
            self._at(target.patience_ends_ms, _nothing)
        return wait_ms > 0

    def _drafted_for_ms(self, session: SimulatedSession) -> float:
        """How long its draft has been worked on: not while its drafter worked for others, and on one processor not beside its target."""
        if session not in session.drafter.drafting:
            return 0.0
        since_ms = session.drafter.began_ms
        beside_ms = max(0.0, session.target.free_since_ms - since_ms) if self._setup.one_processor else 0.0
        return max(0.0, self.now_ms - since_ms - beside_ms)

    def _drafts_in_flight(self, target: SimulatedTarget) -> list[SimulatedSession]:
        return [s for drafter in self._drafters for s in (*drafter.drafting, *drafter.waiting) if s.target is target]

    def _step_ms(self, batch: list[tuple[SimulatedSession, int]]) -> float:
        rows, cached = sum(share for _, share in batch), sum(s.num_cached for s, _ in batch)
        context = sum(s.num_cached * share for s, share in batch) / rows
        return self._setup.target.step_ms(rows, context, cached, len(batch)) * self._noise.factor(self.now_ms)

    def _end_step(self, target: SimulatedTarget, batch: list[tuple[SimulatedSession, int]], step_ms: float) -> None:
        target.is_busy = False
        between_ms, target.free_since_ms = target.submitted_ms - target.free_since_ms, self.now_ms
        num_rows = sum(rows for _, rows in batch)
        self.tally.step_ms += step_ms
        self.tally.steps += 1
        self.tally.rows += num_rows
        verified = [session for session, rows in batch if rows == session.num_rows]
        for session, rows in batch:
            if rows < session.num_rows:
                session.num_uncached -= rows  # a piece of the prompt
                session.num_cached += rows
        self._keep_books(target, num_rows, step_ms, verified, between_ms)
        for session in verified:
            self._commit(session)

    def _keep_books(
        self, target: SimulatedTarget, num_rows: int, step_ms: float, verified: list[SimulatedSession], between_ms: float
    ) -> None:
        """Before the sessions commit: the books go by the lengths that the step had."""
        done = [Verified(s.session, s.limits, s.draft.tree, s.kept, s.draft.accepted_of(s.kept), s.draft_ms) for s in verified]
        target.books.step_done(num_rows, step_ms, self.now_ms - target.submitted_ms, done, between_ms)
        num_reading = len(target.submitted) - len(verified)
        prompt_rows = num_rows - sum(1 + len(session.kept) for session in verified)
        target.pace.step_done(self.now_ms / 1e3, target.books.plain_step_ms(num_reading, max(0, prompt_rows)))

    def _commit(self, session: SimulatedSession) -> None:
        """The round's verdict."""
        known, target = session.session, session.target
        del target.submitted[session.session_id]
        accepted = session.draft.accepted_of(session.kept)
        result = VerifyResult(known.session_id, known.round, known.base_length, accepted, (0,) * (1 + len(accepted)))
        tokens = len(known.commit(result).token_ids)
        session.num_cached += session.num_uncached + tokens - 1
        session.num_uncached = 1
        self.tally.tokens += tokens
        self.tally.rounds += 1
        self.tally.verified += len(session.kept)
        self._judge(session, tokens)
        if known.finished:
            self._close(session)
        else:
            self._begin_round(session)

    def _judge(self, session: SimulatedSession, tokens: int) -> None:
        """Did its round pay?"""
        round_ms = self.now_ms - session.began_ms
        if len(session.draft.tree):
            target = session.target
            pace, num_drafted = target.pace.per_second(session.began_ms / 1e3), target.books.num_drafted(session.session)
            self._router.round_done(DraftedRound(session.session, tokens, round_ms, pace, session.explored, num_drafted))


def _depth_of(batch: list[SimulatedSession]) -> int:
    """Of a drafting call."""
    return max(session.limits.max_depth for session in batch)


def _reading_of(batch: list[SimulatedSession]) -> tuple[int, int]:
    """Candidates beyond chains, and tokens of context that are news, of a drafting call."""
    return sum(session.limits.num_side_nodes for session in batch), sum(session.num_news for session in batch)


def _nothing() -> None:
    """Somebody's patience is over: whoever is idle asks again."""
