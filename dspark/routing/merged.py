"""Candidates of two drafters as one tree: what one of them misses the other may have, and the planner buys nodes whatever their origin.
What each of them says is corrected apart (see CandidateTree.origins), since they err in different ways.
"""

import asyncio

from dspark.messages import FeatureSpec, VerifyResult
from dspark.routing.drafts import DraftSource
from dspark.scheduling.drafting_plan import DraftLimits
from dspark.scheduling.planner import plan
from dspark.tree import CandidateTree
from dspark.types import SessionId

_TREE = SessionId("tree")


class MergedDrafts:
    """Implements DraftSource. Only `main` may read features of the target."""

    def __init__(self, main: DraftSource, also: DraftSource) -> None:
        self._main = main
        self._also = also

    @property
    def features(self) -> FeatureSpec | None:
        """See DraftSource."""
        return self._main.features

    @property
    def features_from(self) -> int:
        """See DraftSource."""
        return self._main.features_from

    @property
    def answered_to(self) -> DraftLimits:
        """See DraftSource: without the main drafter's answer this is not what the two of them are worth."""
        return self._main.answered_to

    @property
    def num_told(self) -> int:
        """See DraftSource; the other one reads the session's own text."""
        return self._main.num_told

    @property
    def call_began_s(self) -> float:
        """See DraftSource; the other one is not waited for."""
        return self._main.call_began_s

    def learn(self, result: VerifyResult) -> None:
        """See DraftSource."""
        self._main.learn(result)
        self._also.learn(result)

    async def propose(self, limits: DraftLimits) -> CandidateTree:
        """See DraftSource. Both draft at the same time; of all candidates the likeliest are proposed. Origin 0 is the main drafter."""
        if limits.skips:  # two tasks each round would cost plain rounds more than all else that a router does for them
            await self._main.propose(limits)
            return await self._also.propose(limits)
        async with asyncio.TaskGroup() as tasks:
            proposals = [tasks.create_task(source.propose(limits)) for source in (self._main, self._also)]
        tree = CandidateTree.merged([proposal.result() for proposal in proposals])
        return tree.select(plan({_TREE: tree}, 1 + limits.max_nodes).kept[_TREE])

    async def close(self) -> None:
        """See DraftSource."""
        try:
            await self._main.close()
        finally:
            await self._also.close()
