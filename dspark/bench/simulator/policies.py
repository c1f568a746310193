"""Who decides in a simulated router: what is drafted for a session's next round, and which candidates go to the target.

    plain        nothing is drafted
    fixed3       chains of three, all of them verified, whatever the load
    tree         the whole tree that the drafter may draft, all of it verified
    planned      as much drafted and verified as pays

All go by the product's own books, routing/economy.py and target_economy.py, in made-up time; the first three in their fixed mode, in
which only waiting for drafts in flight is decided. The simulation tells and asks what the lanes of a router do (routing/lanes.py,
draft_lane.py, loop.py), so no policy has a rule of its own. Books see measured times, scores and verdicts; never a set-up's costs, and
never what the target would have said.
"""

import re
from collections.abc import Callable

from dspark.bench.simulator.costs import Setup
from dspark.config import DrafterConfig
from dspark.drafting.profile import CONTEXT_TOKENS, SESSION_COUNTS
from dspark.errors import ConfigError
from dspark.routing.economy import DraftedRound, Economy
from dspark.routing.target_economy import TargetEconomy
from dspark.scheduling.drafting_plan import SKIP, DraftLimits

POLICIES = "plain, fixedN (N a number of positions), tree, planned"
DRAFTER = "simulated"
"""Name of the only drafter."""


class ServiceRouter:
    """What all targets of one simulated router share. They and the drafter were profiled when they started; what drafts are worth, the
    router finds out."""

    def __init__(self, most: DraftLimits, setup: Setup, *, planned: bool) -> None:
        """`most` is what the drafter may draft; without `planned` it always does, and all of it is verified."""
        self.drafter = None if most.skips else DRAFTER
        """Of every session; None decodes plainly."""
        config = DrafterConfig(max_depth=most.max_depth, max_nodes=most.max_nodes, max_width=max(1, most.max_width))
        drafters = {} if most.skips else {DRAFTER: config}
        self.economy = Economy(drafters, planned=planned, overlap=0.0 if setup.one_processor else 1.0)
        self._setup = setup
        for count in () if most.skips else SESSION_COUNTS:
            for depth in {1, most.max_depth}:
                self.economy.draft_done(DRAFTER, count, depth, setup.draft.ms(count, depth))
            num_news = CONTEXT_TOKENS * count
            self.economy.draft_done(DRAFTER, count, 1, setup.draft.ms(count, 1, num_news=num_news), num_news)

    def books(self) -> TargetEconomy:
        """New ones, for one target."""
        return TargetEconomy(self.economy, self._setup.target.profiled(), self._setup.max_rows)

    def draft_done(self, num_sessions: int, depth: int, draft_ms: float, num_news: int | None = None, side_nodes: int = 0) -> None:
        """One call of a drafter."""
        self.economy.draft_done(DRAFTER, num_sessions, depth, draft_ms, num_news, side_nodes)

    def round_done(self, done: DraftedRound) -> None:
        """A session's drafted round."""
        self.economy.round_done(done)


Policy = Callable[[Setup], ServiceRouter]
"""A way to serve: makes the router of a simulated service."""


def policy_named(name: str, most: DraftLimits) -> Policy:
    """`most` is what the drafter may draft. Raises ConfigError for a word that is no policy."""
    if name == "planned":
        return lambda setup: ServiceRouter(most, setup, planned=True)
    limits = _fixed_limits(name, most)
    return lambda setup: ServiceRouter(limits, setup, planned=False)


def _fixed_limits(name: str, most: DraftLimits) -> DraftLimits:
    if name == "plain":
        return SKIP
    if name == "tree":
        return most
    if fixed := re.fullmatch(r"fixed([1-9]\d?)", name):
        return DraftLimits(int(fixed[1]), 1, int(fixed[1]))
    raise ConfigError(f"{name!r} is no policy; there are {POLICIES}", "policies")
