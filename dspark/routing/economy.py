"""What one router knows of its drafters' costs and gains, shared by all its targets. The rules are scheduling/'s; here they meet
measured numbers. What is decided for one target stands in target_economy.py. Nothing here can change a token (DESIGN section 4).

Symbols: D depth and N nodes that a drafter's configuration allows.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dspark.config import DrafterConfig
from dspark.routing.router_work import RouterWork
from dspark.scheduling.acceptance_profile import AcceptanceProfile
from dspark.scheduling.correction import SurvivalCorrector
from dspark.scheduling.costs import Floats
from dspark.scheduling.draft_cost import USUAL_NEWS, DraftCost
from dspark.scheduling.drafting_plan import SKIP, DraftLimits
from dspark.scheduling.exploration import Exploration
from dspark.scheduling.paying import Paying
from dspark.scheduling.waves import Wave, WaveChoice
from dspark.session import Session

NAN = float("nan")
DOUBT_OF_FIRST_CALLS = 7.0
"""One call may have taken so many times longer than later ones will, and five together a quarter longer."""
Regime = tuple[str, bool]
"""A drafter's name, and whether the text is greedy."""


def limits_of(config: DrafterConfig) -> DraftLimits:
    """What the configuration allows."""
    if min(config.max_depth, config.max_nodes) == 0:
        return SKIP
    return DraftLimits(config.max_depth, config.max_width, config.max_nodes)


def regime_of(session: Session) -> Regime | None:
    """What the session's drafts are learned and decided with; None where it has no drafter."""
    return None if session.drafter is None else (session.drafter, session.sampling.temperature == 0)


@dataclass(frozen=True, slots=True)
class DraftedRound:
    """What came of one session's round that had drafts."""

    session: Session
    committed: int
    """Tokens."""
    round_ms: float
    """From before its draft to after its commit."""
    plain_tokens_per_second: float
    """What the session would have made by plain decoding meanwhile; 0 where that is not known."""
    explored: bool = False
    """True if it was drafted to find out what that brings, at an expected loss, or is of the first steps of drafting that begins anew,
    when drafters have to be told all that they missed."""
    num_drafted: int = 1
    """Sessions of its kind that had drafts in the same step."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How one drafter does, for whoever publishes it."""

    speed_ratio: float
    """Measured speed of its sessions over that of plain decoding as the target's curve predicts it; NaN before the first round."""
    drafts: bool
    """False while it is switched off, or left out because it is not expected to pay."""
    served_ece: float
    """Expected calibration error of the drafter's own estimates."""
    corrected_ece: float
    """The same after verdicts have corrected them."""
    drift: float
    """Mean distance between the two."""
    waves: float = NAN
    """1 where its sessions were last told to go together, 2 in two halves by turns; NaN before the first choice."""
    gain_of_two_waves: float = NAN
    """Predicted speed of two waves over that of one; NaN before the first choice."""
    waits: int = 0
    """Times that a free target waited for its drafts."""


class Economy:
    """The books of one router."""

    def __init__(self, configs: Mapping[str, DrafterConfig], *, planned: bool = True, overlap: float = 1.0) -> None:
        """`planned` False drafts and verifies what the configuration allows, always: the fixed setting that benchmarks compare with. When a
        step begins is decided in both.

        `overlap`: how far drafting and verifying hide each other, 1 on separate devices, 0 on one core (scheduling/waves.py).
        """
        self.planned = planned
        self.overlap = overlap
        self.limits = {name: limits_of(config) for name, config in configs.items()}
        self.profiles = {name: AcceptanceProfile(limits) for name, limits in self.limits.items()}
        self.draft_costs = {name: DraftCost() for name in configs}
        self.explorations: defaultdict[Regime, Exploration] = defaultdict(Exploration)
        self.corrector = SurvivalCorrector()
        self.paying = Paying()
        """An account for each regime."""
        self.waits: Counter[str] = Counter()
        """By drafter: see Standing."""
        self.router_work = RouterWork()
        self.drafting_ms = 0.0
        """Of all calls so far that drafted, those of starting drafters among them."""
        self._drafting: dict[Regime, bool] = {}
        """What was decided last."""
        self._waves: dict[str, WaveChoice] = {}

    def draft_done(
        self, drafter: str, num_sessions: int, depth: int, draft_ms: float, news: int | None = None, side_nodes: int = 0
    ) -> None:
        """One call of a drafter, as long as the router waited for it; `news` and `side_nodes` as in DraftCost."""
        self.drafting_ms += draft_ms
        self.draft_costs[drafter].observe(num_sessions, depth, draft_ms, news, side_nodes)

    def draft_ms(self, drafter: str, num_sessions: int) -> Floats | None:  # [D + 1]
        """Expected time of a call for chains by depth, with what the router adds to it; 0 at depth 0, which makes none. None before the
        first call."""
        cost = self.draft_costs[drafter]
        depths = range(1, self.limits[drafter].max_depth + 1)
        times = [cost.ms(num_sessions, depth) for depth in depths]
        known = [ms for ms in times if ms is not None]
        added_ms = self.router_work.drafted_ms(drafter, num_sessions)
        return np.asarray([0.0, *(ms + added_ms for ms in known)]) if len(known) == len(times) else None

    def catch_up_ms(self, drafter: str, num_news: float) -> float:
        """What a call takes longer that has so much more context to read than usual; 0 while no call had more, or for drafters that read
        beside the rounds."""
        cost = self.draft_costs[drafter]
        if not cost.knows_news:
            return 0.0
        with_news, usual = cost.ms(1, 1, USUAL_NEWS + num_news), cost.ms(1, 1)
        return 0.0 if with_news is None or usual is None else with_news - usual

    def side_ms(self, drafter: str, num_side_nodes: int) -> float:
        """What a call takes longer for so many candidates beyond chains, of all its sessions."""
        return num_side_nodes * self.side_node_ms(drafter)

    def side_node_ms(self, drafter: str) -> float:
        """The same for one."""
        cost = self.draft_costs[drafter]
        with_one, without = cost.ms(1, 1, side_nodes=1.0), cost.ms(1, 1)
        return 0.0 if with_one is None or without is None else with_one - without

    def hoped_draft_ms(self, regime: Regime, num_sessions: int) -> Floats:  # [D + 1]
        """Once there was a call: what one may take as far as is known. The first calls, the very first above all, are slower than later
        ones are, and more sessions than were ever drafted together may cost no more."""
        most_seen = self.draft_costs[regime[0]].most_sessions
        return self.believed_draft_ms(regime, min(num_sessions, most_seen))

    def believed_draft_ms(self, regime: Regime, num_sessions: int) -> Floats:  # [D + 1]
        """The same, where more sessions cost what they are expected to."""
        expected = self.draft_ms(regime[0], num_sessions)
        assert expected is not None, "there was a call"
        num_calls = self.draft_costs[regime[0]].num_calls * self.profiles[regime[0]].freshness(*regime)
        return expected * num_calls**2 / (num_calls**2 + DOUBT_OF_FIRST_CALLS)

    def round_done(self, done: DraftedRound) -> None:
        """A session's drafted round against what plain decoding would have made."""
        regime, pace = regime_of(done.session), done.plain_tokens_per_second
        if regime is not None and pace > 0 and done.round_ms > 0:
            share = 1.0 / done.num_drafted  # they had the same step, at the same moment of the machine
            self.paying.round_done(regime, done.committed, done.round_ms, pace, explored=done.explored, share=share)

    def round_skipped(self, regime: Regime) -> None:
        """A step of some target in which none of the regime's sessions there had drafts."""
        self.paying.round_skipped(regime)
        self.profiles[regime[0]].round_skipped(*regime)
        self.explorations[regime].round_passed()
        self.router_work.round_skipped(regime[0])

    def decided(self, regime: Regime, limits: DraftLimits, waves: WaveChoice | None) -> None:
        """What some target's sessions were told, for standings; without `waves` there was no choice."""
        self._drafting[regime] = not limits.skips
        if waves is not None:
            self._waves[regime[0]] = waves

    def standings(self) -> dict[str, Standing]:
        """Every drafter, by name."""
        return {name: self._standing(name) for name in self.limits}

    def _standing(self, name: str) -> Standing:
        correction, waves = self.corrector.metrics(name), self._waves.get(name)
        regimes = [(name, True), (name, False)]
        decided = [self._drafting[regime] for regime in regimes if regime in self._drafting]
        return Standing(
            self.paying.ratio(*regimes),
            any(decided) or not decided,
            correction.served_ece,
            correction.corrected_ece,
            correction.drift,
            NAN if waves is None else 1.0 + (waves.wave is Wave.TWO),
            NAN if waves is None else waves.gain_of_two,
            self.waits[name],
        )
