"""The lane to one target replica. While it is busy, rounds wait; when it is free, all that wait go together, planned as one batch."""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Protocol

from dspark.errors import TargetUnavailable
from dspark.messages import NO_FEATURES, StepReport, VerifyRequest, VerifyResult
from dspark.ports import Verifier
from dspark.routing.draft_lane import error_of
from dspark.routing.economy import Economy
from dspark.routing.observer import Observer
from dspark.routing.plain_pace import PlainPace
from dspark.routing.rounds import InFlight, Verified, Waiting
from dspark.routing.target_economy import TargetEconomy
from dspark.scheduling.drafting_plan import SKIP, DraftLimits
from dspark.session import Session
from dspark.tree import CandidateTree
from dspark.types import SessionId

logger = logging.getLogger(__name__)

WAIT_SLACK = 1.5
"""A wait that is worth its expected time is worth a little more: a draft that comes just too late costs a step of its own."""
REPORTS_TO_BE_SEEN = 2
"""After so many, what was handed in before them has had its turn."""


class Proposer(Protocol):
    """Where a session's candidates come from; drafts.py has them."""

    @property
    def answered_to(self) -> DraftLimits:
        """See DraftSource."""

    @property
    def num_told(self) -> int:
        """See DraftSource."""

    @property
    def call_began_s(self) -> float:
        """See DraftSource."""

    async def propose(self, limits: DraftLimits) -> CandidateTree:
        """Candidates within the limits; an empty tree if there are none in time."""


@dataclass(frozen=True, slots=True, eq=False)
class Drafted:
    """What a session brings to its round."""

    tree: CandidateTree
    limits: DraftLimits = SKIP
    """What it was drafted under; SKIP where no drafter answered."""
    draft_ms: float = 0.0
    """How long it took, waiting included; 0 where nothing came of it."""
    started_s: float | None = None
    """When the round began, by the event loop's time; None: when it is handed in."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one session's round: which candidates were sent, and what the target said."""

    num_selected: int
    result: VerifyResult
    plain_tokens_per_second: float = 0.0
    """What the session would have made by plain decoding since its round began, as far as the target's curve knows; 0 where it does not."""
    explored: bool = False
    """True if it was drafted to find out what that brings, at an expected loss."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A draft on its way."""

    drafts: Proposer
    limits: DraftLimits
    since_s: float
    """By the event loop's time."""


@dataclass(slots=True)
class _Round:
    """A round on its way through the lane."""

    session: Session
    tree: CandidateTree
    future: asyncio.Future[Verdict]
    limits: DraftLimits
    draft_ms: float
    started_s: float
    features_from: int = NO_FEATURES
    kept: list[int] = field(default_factory=list)
    submit: int = 0
    """Number of the hand-in that it went with."""
    explored: bool = False


class VerifyLane:
    """All rounds that one router has on one target replica. Selective verification happens here, at the moment the lane fires."""

    def __init__(
        self,
        verifier: Verifier,
        observer: Observer,
        *,
        max_rows: int,
        silence_timeout_s: float,
        books: TargetEconomy | None = None,
    ) -> None:
        """`books` of the router's economy; without them the lane keeps its own."""
        self.verifier = verifier
        self.books = books or TargetEconomy(Economy({}), None, max_rows)
        self._observer = observer
        self._silence_timeout_s = silence_timeout_s
        self._ready: dict[SessionId, _Round] = {}
        self._in_flight: dict[SessionId, _Round] = {}
        self._drafting: dict[SessionId, _Asked] = {}
        """Sessions whose drafts are on their way."""
        self._target_is_free = True
        """False from a submit to the next report. Rounds may still be in flight when it is free: they wait for KV blocks."""
        self._lost: TargetUnavailable | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waited: asyncio.TimerHandle | None = None
        """Ends the wait for drafts in flight."""
        self._num_submits = 0
        self._num_reports = 0
        """Since the last of them."""
        self._submitted_s = 0.0
        self._plain_pace = PlainPace()
        self._free_since_s = 0.0
        """Event loop's time in seconds of the last report."""
        self._silent_since = 0.0
        """Event loop's time in seconds: of the last report, or of the first round after a pause."""
        self._is_disturbed = False
        """True where the time from the last report to the next hand-in says nothing of the router: a client rested, a draft was late."""

    @property
    def lost(self) -> bool:
        """True once the target was given up; a new lane may find it well again."""
        return self._lost is not None

    def disturb(self) -> None:
        """Something that is no work of the router's holds up the next hand-in."""
        self._is_disturbed = True

    async def drafted(self, session: Session, drafts: Proposer) -> Drafted:
        """A session's candidates, as many as pay; the lane knows meanwhile that they are on their way."""
        started = asyncio.get_running_loop().time()
        self.books.told(session, drafts.num_told)
        limits = self.books.draft_limits(session) if session.drafter is not None else SKIP
        self._drafting[session.session_id] = _Asked(drafts, limits, started)
        try:
            tree = await drafts.propose(limits)
        finally:
            del self._drafting[session.session_id]
        draft_ms = (asyncio.get_running_loop().time() - started) * 1e3 if len(tree) else 0.0
        if not limits.skips and drafts.answered_to.skips:
            self.disturb()
        return Drafted(tree, drafts.answered_to, draft_ms, started)

    async def verify(self, session: Session, drafted: Drafted, features_from: int = NO_FEATURES) -> Verdict:
        """The target's verdict on one round, with the features from that position on.

        Raises TargetUnavailable if the replica is gone or silent.
        """
        if self._lost is not None:
            raise self._lost
        loop = asyncio.get_running_loop()
        started_s = loop.time() if drafted.started_s is None else drafted.started_s
        waiting = _Round(session, drafted.tree, loop.create_future(), drafted.limits, drafted.draft_ms, started_s, features_from)
        self._ready[session.session_id] = waiting
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())
        if self._target_is_free:
            loop.call_soon(self._fire)  # sessions woken by the same event still get into this batch
        try:
            return await waiting.future
        finally:
            self._forget(session.session_id, waiting)

    async def stop(self) -> None:
        """End the reader; waiting rounds are told that the target is gone."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self._give_up(TargetUnavailable("the connection to the target was closed"))

    def _fire(self, patient: bool = True) -> None:
        """Plan over all that is ready and hand the selected candidates in; or wait a little for drafts in flight, where that pays."""
        if not self._ready or self._lost is not None or not self._target_is_free:
            return
        if patient and self._waits_for_drafts():
            return
        self._end_wait()
        ready = self._taken(self.books.most_to_fire())
        rounds = list(ready.values())
        self._num_submits, self._num_reports = self._num_submits + 1, 0
        kept = self.books.plan([Waiting(r.session, r.tree, r.draft_ms) for r in rounds]).kept
        requests: list[VerifyRequest] = []
        for session_id, waiting in ready.items():
            waiting.kept, waiting.submit = kept[session_id], self._num_submits
            waiting.explored = self.books.explores(waiting.session)
            requests.append(waiting.session.verify_request(waiting.tree.select(waiting.kept), waiting.features_from))
        self._submitted_s = self._silent_since = asyncio.get_running_loop().time()
        self._target_is_free = False
        self._in_flight.update(ready)
        self.verifier.submit(requests)

    def _taken(self, most: int | None) -> dict[SessionId, _Round]:
        """The rounds that go now, in order of arrival; the others wait for the next step."""
        ready, self._ready = self._ready, {}
        if most is not None and len(ready) > most:
            rounds = list(ready.items())
            ready, self._ready = dict(rounds[:most]), dict(rounds[most:])
        return ready

    def _waits_for_drafts(self) -> bool:
        """True while the wait goes on; every session that becomes ready asks again, and the timer ends it."""
        if not self._drafting:
            return False
        loop = asyncio.get_running_loop()
        asked = [one for one in self._drafting.values() if not one.limits.skips]
        in_flight = [InFlight(self._drafted_for_ms(one, loop.time()), one.limits.max_depth) for one in asked]
        wait_ms = self.books.wait_ms(len(self._ready), in_flight)
        if wait_ms > 0 and self._waited is None:
            self.books.waited()
            self._waited = loop.call_later(WAIT_SLACK * wait_ms / 1e3, self._stop_waiting)
        return wait_ms > 0

    def _drafted_for_ms(self, asked: _Asked, now_s: float) -> float:
        """How long a draft has been worked on: not while its drafter worked for others, and while the target was busy only as far as the
        two overlap."""
        if asked.drafts.call_began_s < asked.since_s:
            return 0.0  # its call has still to begin
        since_s = asked.drafts.call_began_s
        beside_s = max(0.0, self._free_since_s - since_s)
        return (now_s - since_s - (1.0 - self.books.overlap) * beside_s) * 1e3

    def _stop_waiting(self) -> None:
        self._waited = None
        self._fire(patient=False)

    def _end_wait(self) -> None:
        if self._waited is not None:
            self._waited.cancel()
            self._waited = None

    async def _read(self) -> None:
        """Hand out reports as they come; after each of them the target is free, so fire."""
        try:
            while True:
                report = await self._next_report()
                between_ms = self._between_ms()
                self._silent_since = self._free_since_s = asyncio.get_running_loop().time()
                self._target_is_free = self._has_seen_all(report)
                self._learn(report, between_ms)
                self._settle(report)
                self._observer.step_done(report)
                await asyncio.sleep(0)  # sessions without a drafter are ready again at once
                self._fire()
        except TargetUnavailable as error:
            self._give_up(error)
        except Exception:  # without a reader everyone would wait for ever
            logger.exception("the lane to a target failed")
            self._give_up(TargetUnavailable("the connection to the target failed"))

    def _between_ms(self) -> float | None:
        """From the report before to the hand-in; None where that says nothing."""
        is_disturbed, self._is_disturbed = self._is_disturbed, False
        return None if is_disturbed else (self._submitted_s - self._free_since_s) * 1e3

    async def _next_report(self) -> StepReport:
        """Silence only counts while the target owes a report."""
        reading = asyncio.ensure_future(self.verifier.next_report())
        try:
            while True:
                done, _ = await asyncio.wait({reading}, timeout=self._patience_s())
                if done:
                    return reading.result()
                if not self._target_is_free and self._patience_s() == 0:
                    raise TargetUnavailable(f"the target was silent for {self._silence_timeout_s:g} s")
        finally:
            reading.cancel()

    def _has_seen_all(self, report: StepReport) -> bool:
        """False while a step with the rounds that were handed in last is still to come, or under way: to hand in more now would make two
        groups for good, each waiting for the other's step. Prompts may take many steps; others go beside them."""
        self._num_reports += 1
        last = {session_id for session_id, one in self._in_flight.items() if one.submit == self._num_submits}
        told = {result.session_id for result in report.results} | {failure.session_id for failure in report.failures}
        if report.batch_rows == 0 or self._num_reports >= REPORTS_TO_BE_SEEN or last & told:
            return True
        return all(self._in_flight[session_id].session.round == 0 for session_id in last)

    def _patience_s(self) -> float:
        """How long the target may still be silent."""
        if self._target_is_free:
            return self._silence_timeout_s
        return max(0.0, self._silent_since + self._silence_timeout_s - asyncio.get_running_loop().time())

    def _learn(self, report: StepReport, between_ms: float | None) -> None:
        """What goes wrong here may cost speed, but no answer."""
        try:
            self._keep_books(report, between_ms)
        except Exception:
            logger.exception("a step could not be learned from")

    def _keep_books(self, report: StepReport, between_ms: float | None) -> None:
        """Before the sessions commit: the books go by the lengths that the step had. `between_ms` from the report before to the hand-in."""
        verified = [
            Verified(one.session, one.limits, one.tree, one.kept, result.accepted, one.draft_ms)
            for result in report.results
            if (one := self._in_flight.get(result.session_id)) is not None
        ]
        self.books.step_done(report.batch_rows, report.verify_ms, (self._silent_since - self._submitted_s) * 1e3, verified, between_ms)
        num_reading = len(self._in_flight) - len(verified)  # their prompts are not through yet
        prompt_rows = report.batch_rows - sum(1 + len(one.kept) for one in verified)
        self._plain_pace.step_done(self._silent_since, self.books.plain_step_ms(num_reading, max(0, prompt_rows)))

    def _settle(self, report: StepReport) -> None:
        for result in report.results:
            waiting = self._in_flight.pop(result.session_id, None)
            if waiting is not None and not waiting.future.done():
                pace = self._plain_pace.per_second(waiting.started_s)
                waiting.future.set_result(Verdict(len(waiting.kept), result, pace, waiting.explored))
        for failure in report.failures:
            waiting = self._in_flight.pop(failure.session_id, None)
            if waiting is not None and not waiting.future.done():
                waiting.future.set_exception(error_of(failure))

    def _give_up(self, error: TargetUnavailable) -> None:
        self._lost = error
        self._end_wait()
        for waiting in (*self._ready.values(), *self._in_flight.values()):
            if not waiting.future.done():
                waiting.future.set_exception(TargetUnavailable(error.message))
        self._ready.clear()
        self._in_flight.clear()

    def _forget(self, session_id: SessionId, waiting: _Round) -> None:
        """A session that stopped waiting must not keep the lane believing that the target is busy."""
        for rounds in (self._ready, self._in_flight):
            if rounds.get(session_id) is waiting:
                del rounds[session_id]
                if not self._in_flight:
                    self._target_is_free = True
                    self._fire()
