"""The drafters of one router: who a session gets, once, at its start, and what became of it.

A name without a pool, or a drafter of depth 0, is plain decoding; nothing in this file raises because of a drafter.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from dspark.config import DrafterConfig, LimitsConfig
from dspark.drafting.lookup import LookupDrafter
from dspark.ports import DrafterPool
from dspark.routing.choice import DrafterChooser
from dspark.routing.draft_lane import OnDraftCost
from dspark.routing.draft_lanes import DraftLanes
from dspark.routing.drafts import DraftSource, LeasedDrafts, NoDrafts
from dspark.routing.economy import Economy
from dspark.routing.merged import MergedDrafts
from dspark.routing.observer import DraftObserver, NamedDrafter, Observer, SilentObserver
from dspark.routing.placement import LocalDrafterPool
from dspark.session import Session, TokenChunk

_SEED = 0
"""Of the choice between drafters. It shows in no output, and a repeated run is to choose alike."""


@dataclass(frozen=True, slots=True)
class _Member:
    config: DrafterConfig
    pool: DrafterPool
    observer: DraftObserver
    lanes: DraftLanes
    lookup: "_Member | None" = None
    """Its helper, where the configuration wants one; nobody's choice by name."""


class DrafterFleet:
    """All drafters of a loop, by name. Lives on the loop's event loop."""

    def __init__(
        self,
        pools: Mapping[str, DrafterPool],
        configs: Mapping[str, DrafterConfig],
        limits: LimitsConfig,
        observer: Observer,
        economy: Economy,
    ) -> None:
        self._limits = limits
        self._members = {
            name: _member(pools[name], config, NamedDrafter(name, observer), partial(economy.draft_done, name))
            for name, config in configs.items()
            if name in pools and config.max_depth > 0
        }
        self._chooser = DrafterChooser(self._members, random.Random(_SEED)) if self._members else None

    def assign(self, session: Session, wanted: str | None) -> None:
        """Say who drafts for a new session: the one that its request names, else the one that does best."""
        if wanted is not None:
            session.drafter = wanted if wanted in self._members else None
        elif self._chooser is not None:
            session.drafter = self._chooser.choose(greedy=session.sampling.temperature == 0)
            session.drafter_was_chosen = True

    def refused(self, session: Session) -> None:
        """The session that `assign` dealt with is not to be: it was no trial of its drafter."""
        if self._chooser is not None and session.drafter is not None and session.drafter_was_chosen:
            self._chooser.take_back(session.drafter, greedy=session.sampling.temperature == 0)

    def tau(self, session: Session) -> float:
        """Committed tokens per round that the session's drafter was measured at; 1 where nobody drafts or nothing is known yet."""
        if self._chooser is None or session.drafter is None or session.max_nodes == 0:
            return 1.0
        return self._chooser.tau(session.drafter, greedy=session.sampling.temperature == 0) or 1.0

    def drafts(self, session: Session, vocab_size: int, *, at_once: bool = True) -> DraftSource:
        """The session's drafts, from the drafter that was assigned to it; `at_once` False takes no place before one is needed."""
        if session.drafter is None:
            return NoDrafts()
        member = self._members[session.drafter]
        main = self._leased(session, member, vocab_size, at_once)
        if member.lookup is None:
            return main
        return MergedDrafts(main, self._leased(session, member.lookup, vocab_size, at_once))

    def _leased(self, session: Session, member: "_Member", vocab_size: int, at_once: bool) -> LeasedDrafts:
        pool, lanes, config, observer = member.pool, member.lanes, member.config, member.observer
        return LeasedDrafts(session, pool, lanes, config, self._limits, observer, vocab_size, at_once=at_once)

    def learn(self, session: Session, chunk: TokenChunk) -> None:
        """A round is done. Only those of sessions without a wish are compared (see DrafterChooser.record)."""
        if self._chooser is not None and session.drafter is not None and session.drafter_was_chosen:
            greedy = session.sampling.temperature == 0
            self._chooser.record(session.drafter, greedy=greedy, committed=len(chunk.token_ids))

    async def stop(self) -> None:
        """End all lanes."""
        for member in self._members.values():
            await member.lanes.stop()
            if member.lookup is not None:
                await member.lookup.lanes.stop()


def _member(
    pool: DrafterPool, config: DrafterConfig, observer: DraftObserver, on_cost: OnDraftCost = lambda *_: None
) -> _Member:
    lookup = None
    if config.with_lookup:
        drafter = LookupDrafter(min_match=config.lookup_min_match, max_match=config.lookup_max_match)
        alone = config.model_copy(update={"kind": "lookup", "with_lookup": False})
        lookup = _member(LocalDrafterPool(drafter), alone, NamedDrafter(config.kind, SilentObserver()))
    return _Member(config, pool, observer, DraftLanes(observer, on_cost), lookup)
