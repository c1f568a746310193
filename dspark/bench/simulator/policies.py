"""Who decides in a simulated router: what is drafted for a session's next round, and which candidates go to the target.

    plain        nothing is drafted
    fixed3       chains of three, all of them verified, whatever the load
    tree         the whole tree that the drafter may draft, all of it verified
    planned      this project: the product's own books, routing/economy.py and target_economy.py, in made-up time

The simulation tells and asks what the lanes of a router do (routing/lanes.py, draft_lane.py, loop.py), so `planned` has no rule of its
own. Books see measured times, scores and verdicts; never a set-up's costs, and never what the target would have said.
"""

import re
from collections.abc import Callable, Sequence
from typing import Protocol

from dspark.bench.simulator.costs import Setup
from dspark.config import DrafterConfig
from dspark.drafting.profile import SESSION_COUNTS
from dspark.errors import ConfigError
from dspark.routing.economy import DraftedRound, Economy
from dspark.routing.rounds import InFlight, Verified, Waiting
from dspark.routing.target_economy import TargetEconomy
from dspark.scheduling.drafting_plan import SKIP, DraftLimits
from dspark.scheduling.planner import Plan, plan
from dspark.session import Session

POLICIES = "plain, fixedN (N a number of positions), tree, planned"
DRAFTER = "simulated"
"""Name of the only drafter."""


class Books(Protocol):
    """What is decided and learned at one target. TargetEconomy says what each of these means; it is one."""

    def enter(self, session: Session) -> None:
        """A session came to this target."""

    def leave(self, session: Session) -> None:
        """A session is over."""

    def draft_limits(self, session: Session) -> DraftLimits:
        """How much to draft for a session's coming round."""

    def explores(self, session: Session) -> bool:
        """True while the session's round in hand is drafted to find out what that brings."""

    def wait_ms(self, num_ready: int, in_flight: Sequence[InFlight]) -> float:
        """How long the free target should wait for drafts on their way; 0: go."""

    def most_to_fire(self) -> int | None:
        """Sessions that go in one step; None: all."""

    def plan(self, waiting: Sequence[Waiting]) -> Plan:
        """Which candidates go to the target."""

    def plain_step_ms(self, num_reading: int = 0, prompt_rows: int = 0) -> float:
        """What a plain step takes beside so many rows of prompts; 0: not known."""

    def step_done(self, rows: int, verify_ms: float, round_ms: float, verified: Sequence[Verified]) -> None:
        """A step with its verdicts; `round_ms` from submit to report."""

    def round_done(self, session: Session, limits: DraftLimits, num_selected: int, round_ms: float) -> None:
        """A session's round, from before its draft to after its commit."""


class Router(Protocol):
    """What all targets of one simulated router share."""

    @property
    def drafter(self) -> str | None:
        """Of every session; None decodes plainly."""

    def books(self) -> Books:
        """New ones, for one target."""

    def draft_done(self, num_sessions: int, depth: int, draft_ms: float) -> None:
        """One call of a drafter."""

    def round_done(self, done: DraftedRound) -> None:
        """A session's drafted round."""


Policy = Callable[[Setup], Router]
"""A way to serve: makes the router of a simulated service."""


class FixedBooks:
    """Always the same draft, always all of it: as servers without a scheduler do. Candidates that no step has room for are left out."""

    def __init__(self, limits: DraftLimits, max_rows: int) -> None:
        self._limits = limits
        self._max_rows = max_rows

    def enter(self, session: Session) -> None:
        """Nothing changes."""

    def leave(self, session: Session) -> None:
        """Nothing changes."""

    def draft_limits(self, session: Session) -> DraftLimits:
        """See Books."""
        return self._limits

    def explores(self, session: Session) -> bool:
        """Never."""
        return False

    def wait_ms(self, num_ready: int, in_flight: Sequence[InFlight]) -> float:
        """Natural batching: all that is ready goes."""
        return 0.0

    def most_to_fire(self) -> int | None:
        """See Books."""
        return None

    def plan(self, waiting: Sequence[Waiting]) -> Plan:
        """See Books."""
        return plan({one.session.session_id: one.tree for one in waiting}, self._max_rows)

    def plain_step_ms(self, num_reading: int = 0, prompt_rows: int = 0) -> float:
        """Nobody asks what plain decoding would have made."""
        return 0.0

    def step_done(self, rows: int, verify_ms: float, round_ms: float, verified: Sequence[Verified]) -> None:
        """Nothing is learned."""

    def round_done(self, session: Session, limits: DraftLimits, num_selected: int, round_ms: float) -> None:
        """Nothing is learned."""


class FixedRouter:
    """Learns nothing."""

    def __init__(self, limits: DraftLimits, setup: Setup) -> None:
        self.drafter = None if limits.skips else DRAFTER
        self._limits = limits
        self._max_rows = setup.max_rows

    def books(self) -> Books:
        """See Router."""
        return FixedBooks(self._limits, self._max_rows)

    def draft_done(self, num_sessions: int, depth: int, draft_ms: float) -> None:
        """Nothing is learned."""

    def round_done(self, done: DraftedRound) -> None:
        """Nothing is learned."""


class PlannedRouter:
    """This project's. Its targets and its drafter were profiled when they started; what drafts are worth it finds out."""

    drafter = DRAFTER

    def __init__(self, most: DraftLimits, setup: Setup) -> None:
        """`most` is what the drafter may draft."""
        config = DrafterConfig(max_depth=most.max_depth, max_nodes=most.max_nodes, max_width=max(1, most.max_width))
        self.economy = Economy({DRAFTER: config}, overlap=0.0 if setup.one_processor else 1.0)
        self._setup = setup
        for count in SESSION_COUNTS if most.max_depth > 0 else ():
            for depth in {1, most.max_depth}:
                self.economy.draft_done(DRAFTER, count, depth, setup.draft.ms(count, depth))

    def books(self) -> Books:
        """See Router."""
        return TargetEconomy(self.economy, self._setup.target.curve, self._setup.max_rows)

    def draft_done(self, num_sessions: int, depth: int, draft_ms: float) -> None:
        """See Router."""
        self.economy.draft_done(DRAFTER, num_sessions, depth, draft_ms)

    def round_done(self, done: DraftedRound) -> None:
        """See Router."""
        self.economy.round_done(done)


def policy_named(name: str, most: DraftLimits) -> Policy:
    """`most` is what the drafter may draft. Raises ConfigError for a word that is no policy."""
    if name == "planned":
        return lambda setup: PlannedRouter(most, setup)
    limits = _fixed_limits(name, most)
    return lambda setup: FixedRouter(limits, setup)


def _fixed_limits(name: str, most: DraftLimits) -> DraftLimits:
    if name == "plain":
        return SKIP
    if name == "tree":
        return most
    if fixed := re.fullmatch(r"fixed([1-9]\d?)", name):
        return DraftLimits(int(fixed[1]), 1, int(fixed[1]))
    raise ConfigError(f"{name!r} is no policy; there are {POLICIES}", "policies")
