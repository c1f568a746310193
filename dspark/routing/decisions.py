"""How much the sessions of one target draft: what is expected to pay, else now and then a little to find out, else nothing.

In this order:
1. what is most expected to pay, by gains and costs as they were measured, in one wave or in two. While few drafts were seen and little
   is to be won, that is an exploration as in 2; where drafting had to be stopped before, more must be expected (trials.py);
2. if nothing is expected to pay: what would pay if drafts were as good and as cheap as they may still be for all that is known; a few
   sessions try it, or all at once where that tells more for what it costs, if the purse can pay for it (scheduling/exploration.py);
3. nothing. A session that begins then takes no place at a drafter before it needs one.

Where drafts pay, two steps go without now and then (plain_steps.py): else nobody would know any more what they are to be compared with. And
some steps draft further than is thought best: else nobody would know any more what that brings.

A decision stands for a few steps, for all sessions of a regime. One that was promised a speed has its own: the fastest that keeps it.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dspark.routing.economy import Economy, Regime, regime_of
from dspark.routing.explorers import ToTry, first_try, worth_trying
from dspark.routing.plain_steps import PlainSteps
from dspark.routing.trials import Trials
from dspark.routing.turns import Turns
from dspark.scheduling.acceptance_profile import FIRST_DRAFTS
from dspark.scheduling.costs import Floats, RoundCosts
from dspark.scheduling.drafting_plan import SKIP, DraftChoice, DraftLimits, DraftOutlook, best_draft, promised_draft
from dspark.scheduling.paying import PayState
from dspark.scheduling.waves import Wave, WaveChoice, WaveCosts, by_whole_and_half, choose_wave, visible_draft_ms
from dspark.session import Session
from dspark.types import SessionId

DECISION_STEPS = 4
"""Steps that a decision stands: it changes slowly, and making it costs as much as planning."""
IDLE_DECISION_STEPS = 16
"""The same where nothing is drafted: then nothing new is learned of drafts."""
CLEAR_GAIN = 1.2
"""Expected speed over plain that is believed also after few drafts."""
FURTHER_EVERY = 16
"""Decisions to draft, of which one is for a candidate more and one deeper than is thought best: else nobody would learn that it pays."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """How many sessions a decision is about."""

    num_sessions: int
    """That share the target's steps."""
    num_drafting: int
    """Of these, the ones that have the drafter in question."""


class DraftDecisions:
    """Belongs to the books of one target."""

    def __init__(self, economy: Economy, news: Callable[[str], float], promised: Callable[[str], Sequence[float]]) -> None:
        """Of a drafter's sessions: `news` tokens of context that it has not been told yet, of one session in the mean; `promised` tokens
        per second, of those that were promised some. Both are asked for with few decisions, since they look at every session."""
        self._economy = economy
        self._news = news
        self._promised_speeds = promised
        self._decided: dict[Regime, DraftLimits] = {}
        self._turns = Turns()
        """To find out what drafting brings."""
        self._promised: dict[tuple[Regime, float], DraftLimits] = {}
        """By promised speed."""
        self._num_steps = 0
        """Since the last decision."""
        self._all_steps = 0
        self._plain_steps = PlainSteps()
        self._trials: defaultdict[Regime, Trials] = defaultdict(Trials)
        """Under way of regimes that drafted when last decided."""
        self._waves: dict[Regime, WaveChoice] = {}
        self._num_decided: Counter[Regime] = Counter()
        """To draft."""
        self._gains: dict[Regime, float] = {}
        """Expected speed of what was decided over plain decoding."""

    def waves(self, regime: Regime) -> WaveChoice | None:
        """One wave or two, as decided last; None where there was no choice."""
        return self._waves.get(regime)

    def drafts(self, regime: Regime) -> bool:
        """True where its sessions were last told to draft, not to find out but because it pays."""
        return self._trials[regime].is_under_way

    def begins(self, regime: Regime | None) -> bool:
        """True for the first rounds of a regime that drafts anew, in which drafters are told what they missed."""
        return regime is not None and self._trials[regime].has_just_begun(self._all_steps)

    def enter(self) -> None:
        """The number of sessions has changed."""
        self._forget()

    def leave(self, session: Session) -> None:
        """A session is over."""
        self._turns.leave(session.session_id, self._all_steps)
        self._forget()

    def nobody_left(self, regime: Regime) -> None:
        """Of its sessions: what stood for them is of no use for those that come later."""
        self._trials[regime].nobody_left()
        self._turns.nobody_left(regime)
        self._waves.pop(regime, None)
        self._decided.pop(regime, None)

    def sessions_changed(self) -> None:
        """By so many that what a plain step took may not hold any more."""
        self._plain_steps.soon()

    def step_done(self, learned: bool, plain_surprise: float | None = None) -> None:
        """A step of the target; `learned` where verdicts on drafts came with it that can change a decision at once. `plain_surprise` as in
        PlainSteps."""
        self._num_steps += 1
        self._all_steps += 1
        gain = max((self._gains.get(regime, 1.0) for regime in self._drafting()), default=1.0)
        was_measured = self._plain_steps.step_done(plain_surprise, may_begin=self._may_measure_plain(), gain=gain)
        idle = all(limits.skips for limits in self._decided.values())
        if learned or was_measured or self._num_steps >= (IDLE_DECISION_STEPS if idle else DECISION_STEPS):
            self._forget()

    def _may_measure_plain(self) -> bool:
        """Not a probe's rounds; nor where sessions go in two halves, so that no step is of all."""
        drafting, paying = self._drafting(), self._economy.paying
        is_probing = any(paying.state(regime) is PayState.PROBING for regime in drafting)
        return self._economy.planned and bool(drafting) and not is_probing and not any(map(self._goes_in_halves, drafting))

    def _drafting(self) -> list[Regime]:
        return [regime for regime, trial in self._trials.items() if trial.is_under_way]

    def _goes_in_halves(self, regime: Regime) -> bool:
        return regime in self._waves and self._waves[regime].wave is Wave.TWO

    def limits(self, session: Session, costs: RoundCosts | None, sharing: Sharing) -> DraftLimits:
        """For the session's coming round."""
        if self.measures_plain:
            return SKIP
        regime = regime_of(session)
        assert regime is not None, "only sessions with a drafter ask"
        limits = self._limits_of(regime, costs, sharing)
        if session.min_tokens_per_second is not None:
            limits = self._promised_limits(regime, session.min_tokens_per_second, limits, costs, sharing)
        if not limits.skips or not self._economy.paying.may_draft(regime):
            return limits
        to_try = self._turns.take(session.session_id, regime, self._all_steps)
        return limits if to_try is None else to_try.limits

    @property
    def measures_plain(self) -> bool:
        """True for rounds that are left plain to be measured, though drafts pay."""
        return self._plain_steps.is_now

    def explores(self, session_id: SessionId) -> bool:
        """True while the session's round in hand is one to find out."""
        return self._turns.has(session_id)

    def explored(self, session_id: SessionId, *, drafted: bool) -> bool:
        """The round in hand is over; True if it was one to find out."""
        return self._turns.round_done(session_id, self._all_steps, drafted=drafted)

    def price_rounds(self, regime: Regime) -> float:
        """What exploring was expected to lose when it was last decided on, in plain rounds."""
        return self._turns.price_rounds(regime)

    def will_draft(self, session: Session, costs: RoundCosts | None, sharing: Sharing) -> bool:
        """Whether sessions of its kind draft now, or some of them are to try; or it needs to, because it was promised a speed."""
        regime = regime_of(session)
        assert regime is not None, "only sessions with a drafter ask"
        is_promised = session.min_tokens_per_second is not None
        return is_promised or not self._limits_of(regime, costs, sharing).skips or self._turns.is_asked(regime, self._all_steps)

    def _forget(self) -> None:
        self._decided.clear()
        self._promised.clear()
        self._num_steps = 0

    def _promised_limits(
        self, regime: Regime, tokens_per_second: float, usual: DraftLimits, costs: RoundCosts | None, sharing: Sharing
    ) -> DraftLimits:
        """What keeps the promise; the others draft as `usual`, which may be not at all."""
        if not self._economy.planned or costs is None:
            return usual
        if (key := (regime, tokens_per_second)) not in self._promised:
            plain = 1e3 / costs.round_of(sharing.num_sessions)
            needy = sum(speed > plain for speed in self._promised_speeds(regime[0]))
            outlook = self._outlook(regime, costs, replace(sharing, num_drafting=max(1, needy)) if usual.skips else sharing)
            self._promised[key] = usual if outlook is None else promised_draft(outlook, tokens_per_second).limits
        return self._promised[key]

    def _limits_of(self, regime: Regime, costs: RoundCosts | None, sharing: Sharing) -> DraftLimits:
        if regime not in self._decided:
            self._waves.pop(regime, None)
            limits = self._decide(regime, costs, sharing)
            self._trials[regime].decided(not limits.skips, self._all_steps, sharing.num_sessions)
            self._economy.decided(regime, limits, self._waves.get(regime))
            self._decided[regime] = limits
        return self._decided[regime]

    def _decide(self, regime: Regime, costs: RoundCosts | None, sharing: Sharing) -> DraftLimits:
        economy, most = self._economy, self._economy.limits[regime[0]]
        if not economy.planned or most.skips or costs is None:
            return most
        if not economy.paying.may_draft(regime):
            return SKIP
        outlook = self._outlook(regime, costs, sharing)
        limits = SKIP if outlook is None else self._in_the_better_way(regime, outlook)
        if not limits.skips and outlook is not None and self._is_worth_it(regime, outlook):
            return self._now_and_then_further(regime, limits)
        self._waves.pop(regime, None)  # sessions that do not draft have nothing to hide; in halves they would only be slower
        if not self._turns.is_busy(regime, self._all_steps):
            self._explore(regime, outlook, sharing.num_drafting, limits)
        return SKIP

    def _now_and_then_further(self, regime: Regime, limits: DraftLimits) -> DraftLimits:
        """Not where a promise or the other half's verification decided how long drafts may take."""
        if self._goes_in_halves(regime) or self._promised_speeds(regime[0]):
            return limits
        self._num_decided[regime] += 1
        if self._num_decided[regime] % FURTHER_EVERY:
            return limits
        most = self._economy.limits[regime[0]]
        nodes = min(limits.max_nodes + 1, most.max_nodes)
        depth = min(limits.max_depth + 1, most.max_depth, nodes)
        width = min(limits.max_width + 1, most.max_width)
        return DraftLimits(depth, width, nodes if width > 1 else depth)

    def _is_worth_it(self, regime: Regime, outlook: DraftOutlook) -> bool:
        gain, trial = self._gains[regime], self._trials[regime]
        if trial.is_under_way:
            return True
        is_known = self._economy.profiles[regime[0]].num_drafts(*regime) >= FIRST_DRAFTS
        told_rounds = self._told_ms(regime, outlook.num_drafting) / outlook.costs.round_of(outlook.num_sessions)
        return (is_known or gain >= CLEAR_GAIN) and trial.may_begin(gain, told_rounds, self._all_steps, outlook.num_sessions)

    def _told_ms(self, regime: Regime, num_sessions: int) -> float:
        """What it takes to tell a drafter all that it has missed of so many sessions."""
        return self._economy.catch_up_ms(regime[0], self._news(regime[0]) * num_sessions)

    def _explore(self, regime: Regime, outlook: DraftOutlook | None, num_drafting: int, expected: DraftLimits) -> None:
        """Have it tried, if anything is worth it and can be paid; what pays in two halves only, as it is `expected` to."""
        if outlook is None:
            found: ToTry | None = first_try(self._economy.limits[regime[0]], num_drafting)
        else:
            likely = None if expected.skips else DraftChoice(expected, expected.max_nodes, 1.0, self._gains[regime])
            found = worth_trying(self._economy, regime, outlook, likely, lambda count: self._told_ms(regime, count))
        if found is not None and self._economy.explorations[regime].affords(found.price_rounds):
            self._turns.ask(regime, found, self._all_steps)

    def _outlook(self, regime: Regime, costs: RoundCosts, sharing: Sharing) -> DraftOutlook | None:
        """None before the first draft."""
        draft_ms = self._economy.draft_ms(regime[0], sharing.num_drafting)
        if draft_ms is None:
            return None
        economy, name = self._economy, regime[0]
        gains, most = economy.profiles[name].gains(*regime), economy.limits[name]
        return DraftOutlook(sharing.num_sessions, sharing.num_drafting, gains, draft_ms, costs, most, economy.side_node_ms(name))

    def _in_the_better_way(self, regime: Regime, outlook: DraftOutlook) -> DraftLimits:
        """All sessions together, or in two halves with the drafts of one hidden behind the verification of the other."""
        together, num_sessions = best_draft(outlook), outlook.num_sessions
        self._gains[regime] = together.gain
        if outlook.num_drafting == 1 or self._economy.overlap == 0:
            return together.limits
        half, half_drafting = (num_sessions + 1) // 2, (outlook.num_drafting + 1) // 2
        draft_ms = self._economy.draft_ms(regime[0], half_drafting)
        assert draft_ms is not None, "it was known for all together"
        overlap, costs = self._economy.overlap, outlook.costs.of_sessions(half)
        visible_ms = visible_draft_ms(draft_ms, costs.step_of(num_sessions - half), overlap)
        side_node_ms = (1.0 - overlap) * outlook.side_node_ms
        of_half = replace(outlook, num_sessions=half, num_drafting=half_drafting, draft_ms=visible_ms)
        by_halves = best_draft(replace(of_half, costs=costs, side_node_ms=side_node_ms))
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
        share = outlook.num_drafting / num_sessions  # means are over all sessions, also those that have no drafts
        by_sessions = by_whole_and_half(num_sessions, float(outlook.draft_ms[depth]), float(half_draft_ms[depth]))
        nodes, tau = share * choice.nodes_per_session, 1.0 + share * (choice.tau - 1.0)
        return WaveCosts(outlook.costs, by_sessions, nodes, tau, overlap=self._economy.overlap)
