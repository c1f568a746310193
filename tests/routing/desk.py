"""A session at a drafter that may be late, lying or gone: for tests of LeasedDrafts."""

import asyncio

from dspark.fakes import FakeDrafter, FakePool, ToyLaw
from dspark.routing.draft_lanes import DraftLanes
from dspark.routing.drafts import LeasedDrafts
from dspark.session import Session
from dspark.tree import CandidateTree
from tests.routing.parts import DRAFTER, GREEDY, LIMITS_OF_DRAFTER, CountingObserver, limits_with, session_named

LAW = ToyLaw()


class Desk:
    """One session, its drafts, and everything behind them."""

    def __init__(
        self, drafter: FakeDrafter, session: Session | None = None, pool: FakePool | None = None, **limits: float
    ) -> None:
        self.drafter = drafter
        self.session = session or session_named("s")
        self.pool = pool or FakePool(drafter)
        self.observer = CountingObserver()
        self.lanes = DraftLanes(self.observer)
        self.drafts = LeasedDrafts(
            self.session, self.pool, self.lanes, DRAFTER, limits_with(**limits), self.observer, vocab_size=LAW.vocab_size
        )

    async def propose(self) -> CandidateTree:
        return await asyncio.wait_for(self.drafts.propose(LIMITS_OF_DRAFTER), 1)

    async def ready(self) -> None:
        """Until the background work, lease and prefill, is done."""
        while self.drafts._background is not None and not self.drafts._background.done():
            await asyncio.sleep(0.001)

    async def speculating(self) -> bool:
        """True if the next draft is the right one."""
        await self.ready()
        tokens = (*self.session.prompt_ids, *self.session.output_ids)
        return (await self.propose()).token_ids.tolist() == LAW.continuation(tokens, GREEDY, 4)

    async def close(self) -> None:
        await self.drafts.close()
        await self.lanes.stop()

    def commit(self, *token_ids: int) -> None:
        """As if a round had given these tokens."""
        self.session.output_ids += token_ids
