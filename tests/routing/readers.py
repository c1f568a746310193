"""Drafters that read features, and what stands around them: one session's rounds by hand, or a whole loop."""

import asyncio
from typing import Literal

from dspark.config import SchedulingConfig
from dspark.fakes import FakeDrafter, FakePool, ToyLaw, ToyTarget, toy_features
from dspark.messages import NO_FEATURES, FeatureSpec, VerifyResult
from dspark.routing.draft_lanes import DraftLanes
from dspark.routing.drafts import LeasedDrafts
from dspark.routing.loop import SpeculativeLoop
from dspark.session import Session
from dspark.tree import CandidateTree
from dspark.types import SessionId
from tests.routing.parts import DRAFTER, GREEDY, LIMITS_OF_DRAFTER, CountingObserver, limits_with, session_named

LAW = ToyLaw()
SPEC = FeatureSpec("fake-drafter", (0,))
PROMPT = (1, 2, 3, 4, 5)


def reader(**options: float) -> FakeDrafter:
    return FakeDrafter(LAW.guess, reads_features=True, **options)


class Desk:
    """One session's drafts, and rounds by hand: what the loop does, one step at a time."""

    def __init__(
        self, drafter: FakeDrafter, pool: FakePool | None = None, max_tokens: int = 400, prompt: tuple[int, ...] = PROMPT, **limits: float
    ) -> None:
        self.drafter = drafter
        self.pool = pool or FakePool(drafter, features=SPEC)
        self.session = session_named("s", prompt, max_tokens=max_tokens)
        self.observer = CountingObserver()
        self.lanes = DraftLanes(self.observer)
        self.drafts = LeasedDrafts(
            self.session, self.pool, self.lanes, DRAFTER, limits_with(**limits), self.observer, vocab_size=LAW.vocab_size
        )
        self.target_answers = True
        self.num_drafted = 0

    @property
    def tokens(self) -> tuple[int, ...]:
        return (*self.session.prompt_ids, *self.session.output_ids)

    async def propose(self) -> CandidateTree:
        return await asyncio.wait_for(self.drafts.propose(LIMITS_OF_DRAFTER), 2)

    async def round(self) -> int:
        """Propose, verify, learn, commit; returns how many candidates there were."""
        tree = await self.propose()
        self.num_drafted += len(tree)
        self.verify(tree)
        await asyncio.sleep(0)
        return len(tree)

    def verify(self, tree: CandidateTree) -> None:
        """The target agrees with all candidates: they come from its own law."""
        session, start = self.session, self.drafts.features_from
        base = session.base_length
        right = LAW.continuation(self.tokens, GREEDY, len(tree) + 1)
        features = None
        if start != NO_FEATURES and self.target_answers:
            features = toy_features([*self.tokens, *right], start, base + len(tree))
        result = VerifyResult(session.session_id, session.round, base, tuple(range(len(tree))), tuple(right), features)
        self.drafts.learn(result)
        session.commit(result)

    async def ready(self) -> None:
        """Until lease and catching up, if any, are done."""
        while self.drafts._background is not None and not self.drafts._background.done():
            await asyncio.sleep(0.001)

    def arrived(self) -> list[tuple[int, ...]]:
        return self.drafter.features[SessionId("s")]

    def expected(self, stop: int) -> list[tuple[int, ...]]:
        return [(self.tokens[position], position) for position in range(stop)]

    async def check_it_drafts(self, within_rounds: int = 3) -> None:
        """Drafting is on (again), and the drafter has every position before the anchor."""
        for _ in range(within_rounds):
            await self.ready()
            if await self.round():
                break
        else:
            raise AssertionError(f"no draft in {within_rounds} rounds; lost: {self.observer.lost}")
        base = self.session.base_length
        assert await self.round() == DRAFTER.max_depth, "and in the next round, too"
        assert self.arrived() == self.expected(base - 1)

    async def close(self) -> None:
        await self.drafts.close()
        await self.lanes.stop()


class House:
    """A loop, and all that stands behind it."""

    def __init__(self, drafter: FakeDrafter, mode: Literal["planned", "fixed"] = "fixed", **limits: float) -> None:
        self.target = ToyTarget(LAW, max_length=200, step_s=0.001)
        self.drafter = drafter
        self.drafters = FakePool(drafter, features=SPEC)
        self.targets = FakePool(self.target)
        self.observer = CountingObserver()
        self.loop = SpeculativeLoop(
            self.targets,
            {"default": self.drafters},
            drafter_configs={"default": DRAFTER},
            limits=limits_with(**limits),
            max_batch_rows=64,
            observer=self.observer,
            scheduling=SchedulingConfig(mode=mode),
        )

    async def text_of(self, session: Session, speculate: bool = True) -> list[int]:
        async for _ in self.loop.run(session, speculate=speculate):
            pass
        return session.output_ids


def expected_text(session: Session) -> list[int]:
    return LAW.continuation(session.prompt_ids, session.sampling, session.stop.max_tokens)
