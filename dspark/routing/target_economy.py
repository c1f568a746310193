"""The books of one lane: what its target's steps cost, who lives there, and the decisions that follow: how much to draft, which
candidates to verify, whether to wait for drafts in flight. What the router knows of drafters is economy.py's.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from dspark.routing.admission import TargetLoad, promise_of
from dspark.routing.decisions import DraftDecisions, Sharing
from dspark.routing.economy import Economy, Regime, regime_of
from dspark.routing.rounds import InFlight, Verified, Waiting, decoding_rows
from dspark.routing.step_lessons import StepLessons
from dspark.routing.verdicts import Verdicts
from dspark.scheduling.costs import RoundCosts
from dspark.scheduling.curve import ThroughputCurve
from dspark.scheduling.drafting_plan import DraftLimits
from dspark.scheduling.forest import Forest
from dspark.scheduling.online_curve import OnlineCurve
from dspark.scheduling.planner import Plan, plan
from dspark.scheduling.waves import WORTH_A_CHANGE, Wave, WaveChoice, WaveCosts, by_whole_and_half, choose_wave, should_wait
from dspark.session import Session
from dspark.types import SessionId

KEPT_GAIN = 0.05
TABLE_STEPS = 4
"""Steps that the costs stand: making their table takes longer than reading it, and it changes slowly."""


class TargetEconomy:
    """The books of one lane."""

    def __init__(self, economy: Economy, curve: ThroughputCurve | None, max_rows: int) -> None:
        """`curve` is what the replica measured when it started; without one, real steps will have to do."""
        self._economy = economy
        self._max_rows = max_rows
        self.curve = OnlineCurve(curve)
        self._sessions: dict[SessionId, Session] = {}
        self._promised: dict[SessionId, Session] = {}
        """Of these, the ones that were promised a speed."""
        self._regimes: Counter[Regime] = Counter()
        """Of the sessions that have a drafter."""
        self._told: dict[SessionId, int] = {}
        """Length of each session's context at its last draft."""
        self._decisions = DraftDecisions(economy, self._mean_news, self._promised_speeds)
        self._verdicts = Verdicts(economy)
        self._plain_costs: RoundCosts | None = None
        self._table_steps = 0
        self._mean_kept = 0.0
        """Candidates verified per session and round."""
        self._lessons = StepLessons(economy, self.curve, self._news)
        self._with_drafters: set[SessionId] = set()
        """Sessions that were told to draft, and whose rounds have not been planned yet."""
        self._had_others_draft = False
        """True where there were some when the step in hand was planned."""
        self._had_prompts = False
        """True where the last step had rows of prompts."""
        self._num_drafted: Counter[Regime | None] = Counter()
        """Sessions that had drafts in the last step."""

    @property
    def overlap(self) -> float:
        """See Economy."""
        return self._economy.overlap

    @property
    def num_sessions(self) -> int:
        """Sessions that live on this target."""
        return len(self._sessions)

    def enter(self, session: Session) -> None:
        """A session came to this target."""
        self._sessions[session.session_id] = session
        if session.min_tokens_per_second is not None:
            self._promised[session.session_id] = session
        if (regime := self._regime_of(session)) is not None:
            self._regimes[regime] += 1
        self._plain_costs = None
        self._lessons.session_entered()
        self._decisions.enter()

    def leave(self, session: Session) -> None:
        """A session is over."""
        if self._sessions.pop(session.session_id, None) is None:
            return
        self._promised.pop(session.session_id, None)
        self._told.pop(session.session_id, None)
        self._with_drafters.discard(session.session_id)
        self._plain_costs = None
        self._decisions.leave(session)
        if (regime := self._regime_of(session)) is not None:
            self._regimes[regime] -= 1
            if not self._regimes[regime]:
                del self._regimes[regime]
                self._decisions.nobody_left(regime)

    def _regime_of(self, session: Session) -> Regime | None:
        return regime_of(session) if session.drafter in self._economy.limits else None

    def costs(self, draft_ms: float = 0.0) -> RoundCosts | None:
        """Of a round at the sessions' present length; None while nothing is known of the target."""
        if self._plain_costs is None:
            lengths = [session.base_length for session in self._sessions.values()]
            table = self.curve.table(self._max_rows, float(np.mean(lengths)) if lengths else 0.0, max(1, len(lengths)))
            if table is None:
                return None
            num_sessions, session_ms = max(1, len(lengths)), self.curve.session_ms
            work_ms = self._economy.router_work.plain_ms(num_sessions)
            fixed_ms, own_ms = self.curve.round_overhead_ms + work_ms, work_ms / num_sessions
            self._plain_costs = RoundCosts(
                table, fixed_ms, num_sessions=num_sessions, session_ms=session_ms, fixed_session_ms=own_ms
            )
            self._table_steps = 0
        return self._plain_costs if draft_ms == 0 else replace(self._plain_costs, draft_ms=draft_ms)

    def will_draft(self, session: Session) -> bool:
        """Asked when an entered session begins: False where nothing is to be drafted for it soon."""
        return session.drafter is not None and self._decisions.will_draft(session, self.costs(), self._sharing(session.drafter))

    def draft_limits(self, session: Session) -> DraftLimits:
        """How much to draft for a session's coming round."""
        limits = self._decisions.limits(session, self.costs(), self._sharing(session.drafter))
        (self._with_drafters.discard if limits.skips else self._with_drafters.add)(session.session_id)
        return limits

    def _sharing(self, drafter: str | None) -> Sharing:
        """For decisions on a drafter; whoever asks is counted, were it to enter only now."""
        num_drafting = sum(self._regimes[drafter, greedy] for greedy in (False, True)) if drafter else 0
        return Sharing(max(1, self.num_sessions), max(1, num_drafting))

    def _promised_speeds(self, drafter: str) -> list[float]:
        return [s.min_tokens_per_second or 0.0 for s in self._promised.values() if s.drafter == drafter]

    def _mean_news(self, drafter: str) -> float:
        news = [self._news(session) for session in self._sessions.values() if session.drafter == drafter]
        return sum(news) / len(news) if news else 0.0

    def told(self, session: Session, num_tokens: int) -> None:
        """So much of its context its drafter has read."""
        self._told[session.session_id] = num_tokens

    def _news(self, session: Session) -> int:
        """Tokens of its context that its drafter has not been told."""
        return session.base_length - self._told.get(session.session_id, 0)

    def explores(self, session: Session) -> bool:
        """True while the session's round in hand is drafted to find out what that brings, or because drafting has just begun anew."""
        return self._decisions.explores(session.session_id) or self._decisions.begins(self._regime_of(session))

    def plan(self, waiting: Sequence[Waiting]) -> Plan:
        """Which candidates go to the target in the step that is about to begin."""
        self._with_drafters.difference_update(w.session.session_id for w in waiting)
        self._had_others_draft = bool(self._with_drafters)
        if not any(len(w.tree) for w in waiting):  # plain decoding shall not pay for what it does not use
            return Plan({w.session.session_id: [] for w in waiting}, len(waiting), float(len(waiting)))
        forest = Forest.of({w.session.session_id: w.need for w in waiting}, self._verdicts.corrected_scores(waiting))
        if not self._economy.planned:
            return plan(forest, self._max_rows)
        costs = self.costs(self._draft_ms(waiting, forest.depth))
        return plan(forest, self._max_rows, costs and costs.of_sessions(len(waiting)), others_ms=self._others_ms(len(waiting)))

    def _others_ms(self, num_waiting: int) -> float:
        """The step of those who do not go now; 0 where all go together."""
        costs, num_others = self.costs(), self.num_sessions - num_waiting
        if costs is None or num_others <= 0 or self.most_to_fire() is None:
            return 0.0
        return costs.of_sessions(num_others).round_of(min(costs.max_rows, num_others * (1.0 + self._mean_kept)))

    def _draft_ms(self, waiting: Sequence[Waiting], depth: int) -> float:
        """What the drafts of this step cost: expected, since how long each session waited for its own is mostly the step before."""
        drafted = [w for w in waiting if len(w.tree)]
        name = drafted[0].session.drafter
        expected = None if name is None else self._economy.draft_ms(name, len(drafted))
        if name is None or expected is None:
            return float(np.mean([w.draft_ms for w in drafted]))
        side_nodes = sum(max(0, len(w.tree) - depth) for w in drafted)
        return float(expected[min(len(expected) - 1, depth)]) + self._economy.side_ms(name, side_nodes)

    def plain_step_ms(self, num_reading: int = 0, prompt_rows: int = 0) -> float:
        """What a step takes in which all sessions decode plainly but `num_reading`, of whose prompts it has so many rows; 0: not known."""
        costs, num_decoding = self.costs(), self.num_sessions - num_reading
        if costs is None or num_decoding < 1:
            return 0.0
        return costs.round_of(min(num_decoding + prompt_rows, costs.max_rows))

    def load(self, tau: Callable[[Session], float]) -> TargetLoad | None:
        """What speed promises are judged by; `tau` tells what a session commits per round. None while nothing is known of the target."""
        costs, drafter = self.costs(), self._main_drafter()
        if costs is None:
            return None
        draft_ms = self._economy.draft_ms(drafter, self._sharing(drafter).num_drafting) if drafter else None
        promises = (promise_of(session, tau(session)) for session in self._sessions.values())
        return TargetLoad(
            self.num_sessions,
            tuple(promise for promise in promises if promise is not None),
            costs.step_ms,
            costs.fixed_ms,
            1.0 + self._mean_kept,
            0.0 if draft_ms is None else float(draft_ms[-1]),
            costs.fixed_session_ms,
        )

    def wait_ms(self, num_ready: int, in_flight: Sequence[InFlight]) -> float:
        """How long the free target should wait for drafts on their way; 0: go. In the fixed mode too: it says how much, not when."""
        costs, drafter = self.costs(), self._main_drafter()
        if not (in_flight and drafter and costs):
            return 0.0
        expected = self._economy.draft_ms(drafter, self._sharing(drafter).num_drafting)
        if expected is None:
            return 0.0
        remaining_ms = max(float(expected[min(draft.depth, len(expected) - 1)]) - draft.since_ms for draft in in_flight)
        shape = self._wave_costs(costs, drafter, min(max(draft.depth for draft in in_flight), len(expected) - 1))
        if remaining_ms <= 0 or not self._is_worth_waiting(num_ready, len(in_flight), remaining_ms, shape):
            return 0.0
        return remaining_ms

    def _is_worth_waiting(self, num_ready: int, num_drafting: int, remaining_ms: float, shape: WaveCosts) -> bool:
        """By what the next steps bring; but two waves are not merged where two are better, and merged where one is."""
        waves = self._waves()
        if waves is not None and waves.wave is Wave.TWO and 4 * num_ready >= self.num_sessions:
            return False
        if waves is None and self._drafts_in_one_wave():
            waves = choose_wave(self.num_sessions, shape)
        if waves is not None and waves.gain_of_two * WORTH_A_CHANGE <= 1.0 and num_drafting >= num_ready:
            return True
        return should_wait(num_ready, num_drafting, remaining_ms, shape)

    def _drafts_in_one_wave(self) -> bool:
        """True where two were not even considered, though all are drafted for: nothing overlaps, or the mode is fixed."""
        regime = self._main_regime()
        return regime is not None and self._decisions.drafts(regime) and (self._economy.overlap == 0 or not self._economy.planned)

    def _wave_costs(self, costs: RoundCosts, drafter: str, depth: int) -> WaveCosts:
        """With drafts of all sessions, and of half of them, at that depth."""
        num_drafting = self._sharing(drafter).num_drafting
        whole, half = (self._economy.draft_ms(drafter, count) for count in (num_drafting, (num_drafting + 1) // 2))
        assert whole is not None, "a draft in flight is of a drafter whose calls are known"
        assert half is not None, "what is known for some number of sessions is known for all"
        by_sessions = by_whole_and_half(self.num_sessions, float(whole[depth]), float(half[depth]))
        return WaveCosts(costs, by_sessions, self._mean_kept, 1.0, overlap=self._economy.overlap)

    def num_drafted(self, session: Session) -> int:
        """Sessions of its kind that had drafts in the last step, itself among them."""
        return max(1, self._num_drafted[regime_of(session)])

    def waited(self) -> None:
        """The target was free and waited for drafts."""
        if (drafter := self._main_drafter()) is not None:
            self._economy.waits[drafter] += 1

    def most_to_fire(self) -> int | None:
        """Sessions that go in one step: half of them where there are two waves, so that the other half follows; None: all."""
        waves = self._waves()
        return (self.num_sessions + 1) // 2 if waves is not None and waves.wave is Wave.TWO else None

    def _main_drafter(self) -> str | None:
        regime = self._main_regime()
        return None if regime is None else regime[0]

    def _main_regime(self) -> Regime | None:
        """Of most sessions."""
        return max(self._regimes, key=lambda regime: self._regimes[regime]) if self._regimes else None

    def _waves(self) -> WaveChoice | None:
        regime = self._main_regime()
        return None if regime is None else self._decisions.waves(regime)

    def step_done(
        self, rows: int, verify_ms: float, round_ms: float, verified: Sequence[Verified], between_ms: float | None = None
    ) -> None:
        """A step with its verdicts; `round_ms` from submit to report, `between_ms` from the report before to this submit."""
        self._lessons.router_work(rows, verified, self.num_sessions, between_ms)
        had_prompts, self._had_prompts = self._had_prompts, rows > decoding_rows(verified)
        if not verified:
            return
        plain_surprise = self._lessons.step(rows, verify_ms, verified, self.num_sessions, self.costs())
        # Else the step may have waited for their drafter, or for a chunk of a prompt.
        if not (self._had_others_draft or had_prompts or self._had_prompts):
            self.curve.observe_round(round_ms, verify_ms)
        self._num_drafted = Counter(regime_of(one.session) for one in verified if len(one.drafted))
        self._mean_kept += KEPT_GAIN * (sum(len(v.kept) for v in verified) / len(verified) - self._mean_kept)
        self._pay_for_exploring(verified)
        self._table_steps += 1
        if self._table_steps >= TABLE_STEPS or self._decisions.measures_plain:
            self._plain_costs = None
        if self._lessons.sessions_changed(self.num_sessions):
            self._decisions.sessions_changed()
        self._decisions.step_done(self._verdicts.learn_when_due(verified), plain_surprise)

    def _pay_for_exploring(self, verified: Sequence[Verified]) -> None:
        """Of every regime here: what explored rounds lost, or that a round passed without drafts."""
        costs = self.costs()
        explored: dict[Regime, list[Verified]] = {}
        drafted: set[Regime | None] = set()
        for one in verified:
            regime = regime_of(one.session)
            has_drafted = not one.limits.skips
            if has_drafted:
                drafted.add(regime)
            if self._decisions.explored(one.session.session_id, drafted=has_drafted) and has_drafted and regime is not None:
                explored.setdefault(regime, []).append(one)
        for regime in self._regimes:
            if regime not in drafted:
                self._economy.round_skipped(regime)
            elif regime in explored and costs is not None:
                told_ms = self._economy.catch_up_ms(regime[0], sum(map(self._news, (one.session for one in explored[regime]))))
                lost_rounds = self._lost_rounds(explored[regime], len(verified), costs, told_ms)
                expected_rounds = max(self._decisions.price_rounds(regime), told_ms / costs.round_of(len(verified)))
                self._economy.explorations[regime].explored(lost_rounds, expected_rounds)
        self._told.update((one.session.session_id, one.session.base_length) for one in verified if not one.limits.skips)

    def _lost_rounds(self, explored: Sequence[Verified], num_sessions: int, costs: RoundCosts, told_ms: float) -> float:
        """Of the whole step, in plain rounds: all wait for these drafts, for what their drafter had to be told first (`told_ms`) and for
        their rows, and what they won is shared by all.

        What was won is the middle of what was accepted and of what the scores promised: one round's luck says little.
        """
        rows = num_sessions + sum(len(one.kept) for one in explored)
        name = explored[0].session.drafter
        expected = None if name is None else self._economy.draft_ms(name, len(explored))
        draft_ms = max(one.draft_ms for one in explored)
        if name is not None and expected is not None:
            depth = min(len(expected) - 1, max(one.limits.max_depth for one in explored))
            side_ms = self._economy.side_ms(name, sum(one.limits.num_side_nodes for one in explored))
            draft_ms = min(draft_ms, float(expected[depth]) + side_ms + told_ms)
        round_ms = draft_ms + costs.round_of(rows)
        won = sum(len(one.accepted) + one.promised for one in explored) / 2 / num_sessions
        return round_ms / costs.round_of(num_sessions) - 1.0 - won
