"""How much the sessions of one target draft: what is expected to pay, else now and then a little to find out, else nothing.

In this order:
1. what is most expected to pay, by gains and costs as they were measured, in one wave or in two. While few drafts were seen and little
   is to be won, that is an exploration as in 2;
2. if nothing is expected to pay: what would pay if drafts were as good and as cheap as they may still be for all that is known; a few
   sessions try it, if the purse can pay for it (scheduling/exploration.py);
3. nothing. A session that begins then takes no place at a drafter before it needs one.

A decision stands for a few steps, for all sessions of a regime.
"""

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np

from dspark.routing.economy import Economy, Regime, regime_of
from dspark.scheduling.acceptance_profile import FIRST_DRAFTS
from dspark.scheduling.costs import Floats, RoundCosts
from dspark.scheduling.drafting_plan import SKIP, DraftChoice, DraftLimits, DraftOutlook, best_draft
from dspark.scheduling.waves import Wave, WaveChoice, WaveCosts, choose_wave, visible_draft_ms
from dspark.session import Session
from dspark.types import SessionId

DECISION_STEPS = 4
"""Steps that a decision stands: it changes slowly, and making it costs as much as planning."""
IDLE_DECISION_STEPS = 16
"""The same where nothing is drafted: then nothing new is learned of drafts."""
MOST_EXPLORERS = 4
"""Sessions that try at the same time; all at once would cost a whole step."""
MOST_TRIES = 8
"""Rounds without a draft after which a session's turn to explore goes to another, for good: it may have asked never to draft."""
CLEAR_GAIN = 1.2
"""Expected speed over plain that is believed also after few drafts."""


class DraftDecisions:
    """Belongs to the books of one target."""

    def __init__(self, economy: Economy) -> None:
        self._economy = economy
        self._decided: dict[Regime, DraftLimits] = {}
        self._to_explore: Counter[Regime] = Counter()
        """Rounds that are still to be drafted to find out what that brings."""
        self._explored_with: dict[Regime, DraftLimits] = {}
        self._exploring: dict[SessionId, Regime] = {}
        """Sessions whose round in hand does so."""
        self._try_again: defaultdict[Regime, Counter[SessionId]] = defaultdict(Counter)
        """Of these, the ones that had no draft in time yet, and how often."""
        self._given_up: set[SessionId] = set()
        """Sessions that are not asked to explore again."""
        self._num_steps = 0
        self._waves: dict[Regime, WaveChoice] = {}
        self._gains: dict[Regime, float] = {}
        """Expected speed of what was decided over plain decoding."""

    def waves(self, regime: Regime) -> WaveChoice | None:
        """One wave or two, as decided last; None where there was no choice."""
        return self._waves.get(regime)

    def enter(self) -> None:
        """The number of sessions has changed."""
        self._forget()

    def leave(self, session: Session) -> None:
        """A session is over."""
        if (regime := self._exploring.get(session.session_id)) is not None:
            self._ended(session.session_id, regime)
            self._to_explore[regime] += 1
        self._given_up.discard(session.session_id)
        self._forget()

    def step_done(self, learned: bool) -> None:
        """A step of the target; `learned` where verdicts on drafts came with it that can change a decision at once."""
        self._num_steps += 1
        idle = all(limits.skips for limits in self._decided.values())
        if learned or self._num_steps >= (IDLE_DECISION_STEPS if idle else DECISION_STEPS):
            self._forget()

    def limits(self, session: Session, costs: RoundCosts | None, num_sessions: int) -> DraftLimits:
        """For the session's coming round."""
        regime = regime_of(session)
        assert regime is not None, "only sessions with a drafter ask"
        limits = self._limits_of(regime, costs, num_sessions)
        if limits.skips and session.session_id in self._exploring and self._economy.paying.may_draft(regime):
            return self._explored_with[regime]
        if limits.skips and self._to_explore[regime] > 0 and session.session_id not in self._given_up:
            self._to_explore[regime] -= 1
            self._exploring[session.session_id] = regime
            return self._explored_with[regime]
        return limits

    def explores(self, session_id: SessionId) -> bool:
        """True while the session's round in hand is one to find out."""
        return session_id in self._exploring

    def explored(self, session_id: SessionId, *, drafted: bool) -> bool:
        """The round in hand is over; True if it was one to find out. Where no draft came in time, because the session has no place at the
        drafter yet, say, it tries again in its next round: another session would have to get a place of its own first."""
        regime = self._exploring.get(session_id)
        if regime is None:
            return False
        if drafted:
            self._ended(session_id, regime)
        else:
            self._try_again[regime][session_id] += 1
            if self._try_again[regime][session_id] >= MOST_TRIES:
                self._ended(session_id, regime)
                self._to_explore[regime] += 1
                self._given_up.add(session_id)
        return True

    def _ended(self, session_id: SessionId, regime: Regime) -> None:
        del self._exploring[session_id]
        self._try_again[regime].pop(session_id, None)

    def will_draft(self, session: Session, costs: RoundCosts | None, num_sessions: int) -> bool:
        """Whether sessions of its kind draft now, or some of them are to try."""
        regime = regime_of(session)
        assert regime is not None, "only sessions with a drafter ask"
        return not self._limits_of(regime, costs, num_sessions).skips or self._to_explore[regime] > 0

    def _forget(self) -> None:
        self._decided.clear()
        self._num_steps = 0

    def _limits_of(self, regime: Regime, costs: RoundCosts | None, num_sessions: int) -> DraftLimits:
        if regime not in self._decided:
            self._waves.pop(regime, None)
            self._decided[regime] = self._decide(regime, costs, max(1, num_sessions))
            self._economy.decided(regime, self._decided[regime], self._waves.get(regime))
        return self._decided[regime]

    def _decide(self, regime: Regime, costs: RoundCosts | None, num_sessions: int) -> DraftLimits:
        economy, most = self._economy, self._economy.limits[regime[0]]
        if not economy.planned or most.skips or costs is None:
            return most
        if not economy.paying.may_draft(regime):
            return SKIP
        outlook = self._outlook(regime, costs, num_sessions)
        limits = SKIP if outlook is None else self._in_the_better_way(regime, outlook)
        if not limits.skips and (self._gains[regime] >= CLEAR_GAIN or economy.profiles[regime[0]].num_drafts(*regime) >= FIRST_DRAFTS):
            return limits
        self._waves.pop(regime, None)  # sessions that do not draft have nothing to hide; in halves they would only be slower
        if self._to_explore[regime] <= 0 and not self._try_again[regime]:
            self._explore(regime, outlook, num_sessions)
        return SKIP

    def _explore(self, regime: Regime, outlook: DraftOutlook | None, num_sessions: int) -> None:
        """Have it tried, if anything is worth it and can be paid."""
        economy = self._economy
        hoped, price_rounds = economy.limits[regime[0]], 0.0
        if outlook is not None:
            cheap_ms = economy.hoped_draft_ms(regime, num_sessions)
            hopeful = replace(outlook, draft_ms=cheap_ms, gains=economy.profiles[regime[0]].hopeful(*regime))
            best = best_draft(hopeful)
            hoped, price_rounds = best.limits, _lost_rounds(best, hopeful, outlook.gains)
        if not hoped.skips and economy.explorations[regime].affords(price_rounds):
            self._to_explore[regime] = min(num_sessions, MOST_EXPLORERS)
            self._explored_with[regime] = hoped

    def _outlook(self, regime: Regime, costs: RoundCosts, num_sessions: int) -> DraftOutlook | None:
        """None before the first draft."""
        draft_ms = self._economy.draft_ms(regime[0], num_sessions)
        if draft_ms is None:
            return None
        gains = self._economy.profiles[regime[0]].gains(*regime)
        return DraftOutlook(num_sessions, gains, draft_ms, costs, self._economy.limits[regime[0]])

    def _in_the_better_way(self, regime: Regime, outlook: DraftOutlook) -> DraftLimits:
        """All sessions together, or in two halves with the drafts of one hidden behind the verification of the other."""
        together, num_sessions = best_draft(outlook), outlook.num_sessions
        self._gains[regime] = together.gain
        if num_sessions == 1 or self._economy.overlap == 0:
            return together.limits
        half = (num_sessions + 1) // 2
        draft_ms = self._economy.draft_ms(regime[0], half)
        assert draft_ms is not None, "it was known for all together"
        visible_ms = visible_draft_ms(draft_ms, outlook.costs.step_of(num_sessions - half), self._economy.overlap)
        by_halves = best_draft(replace(outlook, num_sessions=half, draft_ms=visible_ms))
        if by_halves.limits.skips:
            return together.limits
        one, two = (self._wave_costs(choice, outlook, draft_ms) for choice in (together, by_halves))
        self._waves[regime] = choose_wave(num_sessions, one, two)
        if self._waves[regime].wave is Wave.ONE:
            return together.limits
        self._gains[regime] = together.gain * self._waves[regime].gain_of_two
        return by_halves.limits

    def _wave_costs(self, choice: DraftChoice, outlook: DraftOutlook, half_draft_ms: Floats) -> WaveCosts:
        num_sessions, depth = outlook.num_sessions, choice.limits.max_depth
        by_sessions = np.full(num_sessions + 1, half_draft_ms[depth])
        by_sessions[num_sessions] = outlook.draft_ms[depth]
        return WaveCosts(outlook.costs, by_sessions, choice.nodes_per_session, choice.tau, overlap=self._economy.overlap)


def _lost_rounds(choice: DraftChoice, outlook: DraftOutlook, gains: Floats) -> float:
    """What one session loses by this draft if it brings what is most expected, in plain rounds; 0 where it loses nothing."""
    costs, depth, nodes = outlook.costs, choice.limits.max_depth, round(choice.nodes_per_session)
    round_ms = costs.step_of(outlook.num_sessions + nodes) + costs.fixed_ms + float(outlook.draft_ms[depth])
    plain_ms = costs.step_of(outlook.num_sessions) + costs.fixed_ms
    return max(0.0, round_ms / plain_ms - 1.0 - float(gains[depth, nodes]) / outlook.num_sessions)
