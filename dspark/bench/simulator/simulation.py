"""A discrete-event simulation of the service: clients, one router with its lanes, draft and target replicas.

    client -> (draft lane: while the drafter is busy, requests wait; then all that wait go together)
           -> (verify lane: when the target is idle, the policy plans over all that is ready) -> step -> commit -> client

The rules are those of routing/lanes.py, batching.py and verifying/rows.py; only time is made up. Deterministic by its seed.
Replicas hold the sessions placed on them; a new session goes where the fewest are. Unless the set-up has one processor for all,
replicas run beside each other.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import numpy as np

from dspark.bench.simulator.acceptance import Draft, DraftBook
from dspark.bench.simulator.costs import Setup
from dspark.bench.simulator.policies import Policy, Situation
from dspark.bench.simulator.tally import RequestRecord, Tally
from dspark.bench.simulator.workload import Poisson, Workload
from dspark.scheduling.curve import Floats
from dspark.scheduling.drafting_plan import SKIP, DraftLimits
from dspark.tree import CandidateTree
from dspark.types import SessionId
from dspark.verifying.rows import Work, share_rows

CONTEXT_STEP = 64
"""Tokens of context to which tables of step costs are rounded: they are computed once for each."""
NOTHING = Draft(CandidateTree.empty(), ())


@dataclass(slots=True, eq=False)
class _Session:
    session_id: SessionId
    client: int
    target: "_Target"
    drafter: "_Drafter"
    arrived_ms: float
    num_tokens: int
    """Wanted."""
    tokens_left: int
    num_cached: int = 0
    num_uncached: int = 1
    """Committed tokens that the target has not seen, the anchor included: more than 1 while the prompt is prefilled."""
    draft: Draft = NOTHING
    limits: DraftLimits = SKIP
    kept: list[int] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Drafter:
    waiting: list[_Session] = field(default_factory=list)
    drafting: list[_Session] = field(default_factory=list)
    ends_ms: float = 0.0
    """Of the call in hand."""
    num_sessions: int = 0


@dataclass(slots=True, eq=False)
class _Target:
    ready: list[_Session] = field(default_factory=list)
    """Rounds whose drafts are there; the policy has not seen them yet."""
    submitted: dict[SessionId, _Session] = field(default_factory=dict)
    """Rounds handed in, until their verdict: long prompts take several steps."""
    is_busy: bool = False
    sessions: dict[SessionId, _Session] = field(default_factory=dict)
    situation: Situation | None = None
    """At the moment when rounds began last, and how many did."""
    began_ms: float = -1.0
    num_begun: int = 0


class Simulation:
    """One run. `run` may be called once."""

    def __init__(
        self, setup: Setup, workload: Workload, policy: Policy, book_of: Callable[[DraftLimits], DraftBook], seed: int = 0
    ) -> None:
        """`book_of` gives the drafts under some limits."""
        self._setup = setup
        self._workload = workload
        self._policy = policy
        self._book_of = book_of
        self._rng = np.random.default_rng(seed)
        self._targets = [_Target() for _ in range(setup.num_targets)]
        self._drafters = [_Drafter() for _ in range(setup.num_drafters)]
        self._queue: list[tuple[int, float]] = []
        """Client and time of arrival of requests that wait for a place."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._ids = count()
        self._processor_free_ms = 0.0
        self._tables: dict[int, Floats] = {}
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
        return sum(s.num_tokens - s.tokens_left for target in self._targets for s in target.sessions.values())

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
        """Run a job on a replica; on one processor, after all jobs before it. Returns when it ends."""
        start_ms = max(self.now_ms, self._processor_free_ms) if self._setup.one_processor else self.now_ms
        self._processor_free_ms = start_ms + busy_ms
        self._at(start_ms + busy_ms, done)
        return start_ms + busy_ms

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
        session = _Session(SessionId(str(next(self._ids))), client, target, drafter, arrived_ms, num_tokens, num_tokens)
        session.num_cached, session.num_uncached = self._workload.cached_tokens, max(1, self._workload.prompt_tokens)
        target.sessions[session.session_id] = session
        drafter.num_sessions += 1
        self._begin_round(session)

    def _close(self, session: _Session) -> None:
        del session.target.sessions[session.session_id]
        session.drafter.num_sessions -= 1
        self.requests.append(RequestRecord(session.client, session.num_tokens, session.arrived_ms, self.now_ms))
        if self._queue:
            client, arrived_ms = self._queue.pop(0)
            self._open(client, self._workload.output_tokens, arrived_ms)
        if not isinstance(self._workload.arrivals, Poisson):
            self._arrive(session.client, self._workload.output_tokens)

    # Drafting

    def _begin_round(self, session: _Session) -> None:
        target = session.target
        if target.situation is None or target.began_ms != self.now_ms:
            target.situation, target.began_ms, target.num_begun = self._situation(target), self.now_ms, 0
        session.draft, session.kept = NOTHING, []
        is_plain = self._setup.plain_first_round and session.tokens_left == session.num_tokens
        session.limits = SKIP if is_plain else self._policy.draft_limits(target.situation, target.num_begun)
        target.num_begun += not is_plain
        if session.limits.skips:
            target.ready.append(session)
        else:
            session.drafter.waiting.append(session)

    def _start_draft(self, drafter: _Drafter) -> None:
        if drafter.drafting or not drafter.waiting:
            return
        drafter.drafting, drafter.waiting = drafter.waiting, []
        busy_ms = self._setup.draft.ms(len(drafter.drafting), max(session.limits.max_depth for session in drafter.drafting))
        drafter.ends_ms = self._occupy(busy_ms, partial(self._end_draft, drafter, busy_ms))

    def _end_draft(self, drafter: _Drafter, busy_ms: float) -> None:
        batch, drafter.drafting = drafter.drafting, []
        self.tally.draft_ms += busy_ms
        for session in batch:
            session.draft = self._book_of(session.limits).pick(self._rng)
            self.tally.drafted += len(session.draft.tree)
            session.target.ready.append(session)

    # Verification

    def _start_step(self, target: _Target) -> None:
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

    def _submit(self, target: _Target) -> int:
        """Plan over all that goes now and hand the selected candidates in; returns how many sessions went."""
        situation, drafting = self._situation(target), self._drafts_in_flight(target)
        remaining_ms = max((session.drafter.ends_ms - self.now_ms for session in drafting), default=0.0)
        num_fired = self._policy.num_to_fire(len(target.ready), len(drafting), remaining_ms, situation)
        assert num_fired or drafting, "nothing would ever end this wait"
        fired, target.ready = target.ready[:num_fired], target.ready[num_fired:]
        kept = self._policy.select({s.session_id: s.draft.tree for s in fired}, situation) if fired else {}
        for session in fired:
            session.kept = kept[session.session_id]
            target.submitted[session.session_id] = session
        return num_fired

    def _drafts_in_flight(self, target: _Target) -> list[_Session]:
        return [session for drafter in self._drafters for session in drafter.drafting if session.target is target]

    def _step_ms(self, batch: list[tuple[_Session, int]]) -> float:
        rows, cached = sum(share for _, share in batch), sum(s.num_cached for s, _ in batch)
        context = sum(s.num_cached * share for s, share in batch) / rows
        return self._setup.target.step_ms(rows, context, cached)

    def _end_step(self, target: _Target, batch: list[tuple[_Session, int]], step_ms: float) -> None:
        target.is_busy = False
        self.tally.step_ms += step_ms
        self.tally.steps += 1
        self.tally.rows += sum(rows for _, rows in batch)
        for session, rows in batch:
            if rows < session.num_uncached + len(session.kept):
                session.num_uncached -= rows  # a piece of the prompt
                session.num_cached += rows
            else:
                self._commit(session)

    def _commit(self, session: _Session) -> None:
        """The round's verdict."""
        del session.target.submitted[session.session_id]
        num_accepted = session.draft.num_accepted(session.kept)
        self._policy.learn(session.limits, session.draft.tree, session.kept, num_accepted)
        tokens = min(1 + num_accepted, session.tokens_left)
        session.num_cached += session.num_uncached + tokens - 1
        session.num_uncached = 1
        session.tokens_left -= tokens
        self.tally.tokens += tokens
        self.tally.rounds += 1
        self.tally.verified += len(session.kept)
        if session.tokens_left:
            self._begin_round(session)
        else:
            self._close(session)

    def _situation(self, target: _Target) -> Situation:
        setup, num_sessions = self._setup, len(target.sessions)
        cached = sum(session.num_cached for session in target.sessions.values())
        return Situation(
            num_sessions,
            step_ms=self._table(cached / num_sessions, cached),
            draft=setup.draft,
            router=setup.router,
            one_processor=setup.one_processor,
            drafters_share=setup.num_targets / setup.num_drafters,
        )

    def _table(self, context_tokens: float, cached_tokens: float) -> Floats:
        bucket = CONTEXT_STEP * round(context_tokens / CONTEXT_STEP)
        if bucket not in self._tables:
            self._tables[bucket] = self._setup.target.table(self._setup.max_rows, bucket, 0.0)
        return self._tables[bucket] + self._setup.target.kv_us_per_token * cached_tokens / 1e3
