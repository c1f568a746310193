"""Features from a toy target to a drafter that keeps them: every committed position, in order, whatever goes wrong on the way."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import pytest

from dspark.config import SchedulingConfig
from dspark.errors import StaleRound
from dspark.fakes import FakeDrafter, FakePool, LyingDrafter, ToyLaw, ToyTarget, toy_features
from dspark.messages import NO_FEATURES, ContextFeatures, DraftReport, DraftRequest, DraftResult, FeatureSpec, VerifyResult
from dspark.routing import drafts as drafts_module
from dspark.routing.draft_lanes import DraftLanes
from dspark.routing.drafts import MAX_IDLE_ROWS, LeasedDrafts, NoDrafts
from dspark.routing.loop import SpeculativeLoop
from dspark.session import Session
from dspark.tree import CandidateTree
from dspark.types import SessionId
from tests.routing.parts import DRAFTER, GREEDY, LIMITS_OF_DRAFTER, NOISY, CountingObserver, limits_with, session_named

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


async def test_every_committed_position_arrives_once_and_in_order() -> None:
    desk = Desk(reader())
    await desk.ready()
    assert await desk.round() == 0, "the prompt's features come with the first round"
    for _ in range(12):
        assert await desk.round() == DRAFTER.max_depth
        assert desk.arrived() == desk.expected(len(desk.arrived()))
    base = desk.session.base_length
    await desk.propose()
    assert desk.arrived() == desk.expected(base - 1)
    assert desk.drafter.num_repeated_rows == 0
    assert desk.observer.lost == {}
    assert desk.observer.num_feature_rows == base - 1
    assert desk.observer.num_feature_bytes == (base - 1) * 4
    await desk.close()


async def test_features_are_asked_for_while_the_lease_is_on_its_way() -> None:
    desk = Desk(reader())
    assert len(await desk.propose()) == 0
    assert desk.drafts.features_from == 0
    desk.verify(CandidateTree.empty())
    await desk.ready()
    assert await desk.round() == DRAFTER.max_depth
    await desk.close()


async def test_the_drafter_is_never_asked_before_it_can_have_all_features() -> None:
    desk = Desk(reader())
    desk.target_answers = False
    await desk.ready()
    for _ in range(5):
        assert await desk.round() == 0
    assert desk.drafter.num_drafts == 0
    assert desk.observer.lost == {"no_features": 5}
    desk.target_answers = True
    await desk.check_it_drafts()
    await desk.close()


async def test_a_round_without_candidates_feeds_the_drafter_all_the_same() -> None:
    """The most reported silent failure: a drafter that missed what was committed plainly."""
    desk = Desk(reader())
    await desk.ready()
    await desk.round()
    for count in range(8):
        tree = await desk.propose()
        desk.verify(CandidateTree.empty() if count % 2 else tree)  # as if the planner had kept nothing
    base = desk.session.base_length
    await desk.propose()
    assert desk.arrived() == desk.expected(base - 1)
    await desk.close()


async def test_after_a_late_draft_nothing_is_missing() -> None:
    desk = Desk(reader())
    await desk.check_it_drafts()
    desk.drafter.delay_s = 0.15
    assert await desk.round() == 0
    assert desk.observer.lost == {"late": 1}
    desk.drafter.delay_s = 0
    for _ in range(5):
        assert await desk.round() == 0, "a pause"
    await asyncio.sleep(0.2)
    await desk.check_it_drafts()
    assert desk.drafts._feed.num_rows <= MAX_IDLE_ROWS
    await desk.close()


async def test_a_drafter_that_stays_away_does_not_fill_the_memory() -> None:
    desk = Desk(reader(), draft_retry_s=30)
    await desk.check_it_drafts()
    desk.drafter.delay_s = 0.2
    asked = 0
    for _ in range(200):
        await desk.round()
        asked += desk.drafts.features_from != NO_FEATURES
    assert MAX_IDLE_ROWS < desk.drafts._feed.num_rows <= MAX_IDLE_ROWS + DRAFTER.max_depth + 1
    assert asked < 80
    assert desk.observer.lost == {"late": 1}
    desk.drafter.delay_s = 0
    await asyncio.sleep(0.25)  # its late answer is out of the way
    desk.drafts._paused_until_s = 0
    await desk.check_it_drafts()
    await desk.close()


async def test_a_drafter_that_forgot_the_session_gets_everything_again() -> None:
    desk = Desk(reader())
    await desk.check_it_drafts()
    desk.drafter.forget_all()
    assert await desk.round() == 0
    assert desk.observer.lost == {"stale": 1}
    await desk.check_it_drafts(within_rounds=2)
    await desk.close()


async def test_a_drafter_that_lost_features_gets_everything_again() -> None:
    desk = Desk(reader())
    await desk.check_it_drafts()
    desk.arrived()[3:] = []
    assert await desk.round() == 0
    assert desk.observer.lost == {"stale": 1}
    await desk.check_it_drafts(within_rounds=2)
    await desk.close()


async def test_a_new_replica_gets_everything_from_the_start() -> None:
    desk = Desk(reader())
    await desk.check_it_drafts()
    desk.pool.gone = True
    desk.drafter.forget_all()
    assert await desk.round() == 0
    desk.pool.gone = False
    await desk.check_it_drafts()
    assert desk.pool.num_acquired == 2
    await desk.close()


async def test_a_dead_drafter_is_replaced_and_the_next_one_is_brought_up_to_date() -> None:
    desk = Desk(reader())
    await desk.check_it_drafts()
    desk.drafter.dead, desk.pool.available = True, False
    for _ in range(5):
        await desk.round()
        await desk.ready()
    desk.drafter.dead, desk.pool.available = False, True
    desk.drafter.forget_all()
    await desk.check_it_drafts()
    await desk.close()


async def test_nothing_is_asked_for_while_no_lease_is_to_be_had() -> None:
    drafter = reader()
    desk = Desk(drafter, FakePool(drafter, available=False, features=SPEC), draft_retry_s=30)
    await asyncio.sleep(0.01)
    for _ in range(5):
        await desk.round()
        assert desk.drafts.features_from == NO_FEATURES
    assert desk.observer.num_feature_rows == 0
    await desk.close()


async def test_the_last_token_needs_no_features() -> None:
    desk = Desk(reader(), max_tokens=1)
    await desk.ready()
    await desk.propose()
    assert desk.drafts.features_from == NO_FEATURES
    await desk.close()


async def test_results_of_another_round_feed_nothing() -> None:
    desk = Desk(reader())
    await desk.ready()
    await desk.propose()
    good = VerifyResult(SessionId("s"), 0, 5, (), (7,), toy_features(PROMPT, 0, 5))
    for wrong in (replace(good, round=1), replace(good, base_length=6), replace(good, features=toy_features([*PROMPT, 7], 0, 6))):
        desk.drafts.learn(wrong)
        assert desk.drafts._feed.num_rows == 0
    desk.drafts.learn(good)
    assert desk.drafts._feed.num_rows == 5
    await desk.close()


class Recorder(FakeDrafter):
    """Keeps the requests, too."""

    def __init__(self) -> None:
        super().__init__(LAW.guess, reads_features=True)
        self.requests: list[DraftRequest] = []

    def answer(self, request: DraftRequest) -> DraftResult:
        self.requests.append(request)
        return super().answer(request)


async def test_a_backfill_larger_than_one_message_goes_in_several_while_rounds_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts_module, "FEATURE_PART_BYTES", 24)  # six rows
    drafter = Recorder()
    desk = Desk(drafter, prompt=PROMPT * 4)
    await desk.ready()
    assert await desk.round() == 0
    assert await desk.round() == 0, "twenty rows of the prompt: the first six are on their way"
    await desk.check_it_drafts(within_rounds=2)
    sizes = [(request.max_depth, 0 if request.features is None else len(request.features.values)) for request in drafter.requests]
    assert sizes[:4] == [(0, 6), (0, 6), (0, 6), (4, 3)]
    assert drafter.num_repeated_rows == 0
    await desk.close()


async def test_catching_up_survives_a_drafter_that_forgets_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts_module, "FEATURE_PART_BYTES", 4)  # one row
    drafter = Recorder()
    desk = Desk(drafter, draft_retry_s=1e-3)
    await desk.ready()
    await desk.round()
    answer = drafter.answer
    drafter.answer = lambda request: _forget_once(drafter, request, answer)  # type: ignore[method-assign]
    await desk.round()
    await desk.ready()
    assert desk.observer.lost == {"stale": 1}
    monkeypatch.setattr(drafts_module, "FEATURE_PART_BYTES", 1000)
    await asyncio.sleep(0.01)
    await desk.check_it_drafts()
    await desk.close()


def _forget_once(drafter: Recorder, request: DraftRequest, answer: object) -> DraftResult:
    if len(drafter.requests) == 2:
        drafter.requests.append(request)
        raise StaleRound("forgotten")
    return answer(request)  # type: ignore[operator,no-any-return]


async def test_a_drafter_that_cannot_be_brought_up_to_date_is_not_flooded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attempt sends a whole session: with pauses in between."""

    class Forgetful(FakeDrafter):
        async def draft(self, requests: Sequence[DraftRequest]) -> DraftReport:
            self.forget_all()
            return await super().draft(requests)

    monkeypatch.setattr(drafts_module, "FEATURE_PART_BYTES", 4)
    desk = Desk(Forgetful(LAW.guess, reads_features=True), draft_retry_s=30)
    await desk.ready()
    for _ in range(30):
        assert await desk.round() == 0
        await desk.ready()
    assert desk.drafter.num_drafts <= 2
    await desk.close()


async def test_a_drafter_that_reads_tokens_only_costs_no_features() -> None:
    drafter = FakeDrafter(LAW.guess)
    desk = Desk(drafter, FakePool(drafter))
    assert desk.drafts.features is None
    await desk.ready()
    for _ in range(3):
        assert await desk.round() == DRAFTER.max_depth
        assert desk.drafts.features_from == NO_FEATURES
    await desk.close()


def test_no_drafts_want_no_features() -> None:
    assert (NoDrafts().features, NoDrafts().features_from) == (None, NO_FEATURES)


# Through the whole loop


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


def sessions() -> list[Session]:
    prompts = [(1, 2, 3), (4,), (5, 6), (7, 7, 7, 7)]
    return [session_named(f"s{index}", prompt, (GREEDY, NOISY)[index % 2], 60) for index, prompt in enumerate(prompts)]


def expected_text(session: Session) -> list[int]:
    return LAW.continuation(session.prompt_ids, session.sampling, session.stop.max_tokens)


async def test_sessions_draft_from_features_and_say_what_plain_decoding_says() -> None:
    house = House(reader())
    running = sessions()
    texts = await asyncio.gather(*(house.text_of(session) for session in running))
    assert texts == [expected_text(session) for session in running]
    assert house.observer.num_accepted > 4 * 60 * 0.7, "after the first rounds every draft is right"
    assert house.observer.lost == {}
    assert house.drafter.num_repeated_rows == 0
    positions = sum(len(session.prompt_ids) + len(session.output_ids) for session in running)
    assert positions - 4 * 6 <= house.observer.num_feature_rows < positions
    await house.loop.stop()


@pytest.mark.parametrize("kind", ["dies and comes back", "lies", "a target without features"])
async def test_whatever_happens_to_features_the_text_is_that_of_plain_decoding(kind: str) -> None:
    drafter = LyingDrafter(LAW.vocab_size, seed=3) if kind == "lies" else reader()
    house = House(drafter)
    house.target.keeps_features = kind != "a target without features"

    async def trouble() -> None:
        for _ in range(20):
            await asyncio.sleep(0.005)
            drafter.dead = not drafter.dead
            drafter.forget_all()

    troubling = asyncio.create_task(trouble()) if kind == "dies and comes back" else None
    running = sessions()
    texts = await asyncio.gather(*(house.text_of(session) for session in running))
    assert texts == [expected_text(session) for session in running]
    if kind == "a target without features":
        assert house.drafter.num_drafts == 0
    if troubling is not None:
        await troubling
    await house.loop.stop()


async def test_plain_sessions_ask_the_target_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(reader())
    opened: list[object] = []
    open_session = house.target.open
    monkeypatch.setattr(house.target, "open", lambda session: opened.append(session.features) or open_session(session))  # type: ignore[func-returns-value]
    await house.text_of(session_named("plain"), speculate=False)
    await house.text_of(session_named("drafted"))
    assert opened == [None, SPEC]
    await house.loop.stop()


def test_toy_rows_name_their_token_and_position() -> None:
    features: ContextFeatures = toy_features((5, 6, 7), 1, 3)
    assert features.values.tolist() == [[6, 1], [7, 2]]
