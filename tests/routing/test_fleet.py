"""Several drafters on one loop: who gets a session, who is told of its rounds, and a dead one that costs speed only."""

import asyncio
from collections import Counter

import pytest

from dspark.config import DrafterConfig
from dspark.fakes import FakeDrafter, FakePool, ToyLaw, ToyTarget
from dspark.messages import DraftReport
from dspark.routing.choice import TRIAL_SESSIONS
from dspark.routing.economy import Economy
from dspark.routing.fleet import DrafterFleet
from dspark.routing.loop import SpeculativeLoop
from dspark.session import Session, TokenChunk
from tests.routing.parts import DRAFTER, GREEDY, NOISY, CountingObserver, limits_with, session_named

LAW = ToyLaw()


class NamingObserver(CountingObserver):
    """Counts by the drafter's name."""

    def __init__(self) -> None:
        super().__init__()
        self.drafts: Counter[str] = Counter()
        self.losses: Counter[str] = Counter()
        self.accepted: Counter[str | None] = Counter()

    def draft_done(self, report: DraftReport, drafter: str = "default") -> None:
        self.drafts[drafter] += 1

    def draft_lost(self, reason: str, drafter: str = "default") -> None:
        self.losses[drafter] += 1

    def round_done(self, session: Session, chunk: TokenChunk, round_ms: float) -> None:
        self.accepted[session.drafter] += chunk.num_accepted


class House:
    """A loop with an oracle and a drafter that is mostly wrong."""

    def __init__(self, **configs: DrafterConfig) -> None:
        self.target = ToyTarget(LAW, max_length=80)
        self.pools = {"oracle": FakePool(FakeDrafter(LAW.guess)), "worse": FakePool(FakeDrafter(ToyLaw(seed=1).guess))}
        self.observer = NamingObserver()
        self.loop = SpeculativeLoop(
            FakePool(self.target),
            self.pools,
            drafter_configs={"oracle": DRAFTER, "worse": DRAFTER} | configs,
            limits=limits_with(),
            max_batch_rows=32,
            observer=self.observer,
        )

    async def serve(self, number: int, drafter: str | None = None, speculate: bool = True) -> Session:
        session = session_named(f"s{number}", (1 + number % 9, 2, 3))
        async for _ in self.loop.run(session, speculate=speculate, drafter=drafter):
            pass
        assert session.output_ids == LAW.continuation(session.prompt_ids, GREEDY, 40)
        return session

    async def served(self, count: int) -> list[str | None]:
        return [(await self.serve(number)).drafter for number in range(count)]


async def test_a_named_drafter_drafts_and_nobody_else() -> None:
    house = House()
    assert (await house.serve(0, "worse")).drafter == "worse"
    assert (house.pools["worse"].num_acquired, house.pools["oracle"].num_acquired) == (1, 0)
    assert set(house.observer.drafts) == {"worse"}
    await house.loop.stop()


async def test_without_a_name_the_one_with_the_better_drafts_is_found() -> None:
    """Seed 0 of the fleet: 1 session in 20 goes to the other; 8 or more of 52 have a chance of 0.4 %."""
    house = House()
    chosen = await house.served(60)
    assert chosen[: 2 * TRIAL_SESSIONS].count("worse") == TRIAL_SESSIONS
    assert chosen[2 * TRIAL_SESSIONS :].count("oracle") >= 45
    assert house.observer.accepted["oracle"] > 0
    await house.loop.stop()


async def test_what_was_asked_for_by_name_is_not_compared() -> None:
    """Twenty good sessions by name tell nothing: both still get their trial."""
    house = House()
    for number in range(20):
        await house.serve(number, "oracle")
    chosen = await house.served(2 * TRIAL_SESSIONS)
    assert Counter(chosen) == {"oracle": TRIAL_SESSIONS, "worse": TRIAL_SESSIONS}
    await house.loop.stop()


async def test_a_drafter_that_cannot_be_reached_holds_nobody_up_and_is_soon_avoided() -> None:
    house = House()
    house.pools["oracle"].available = False
    async with asyncio.timeout(20):
        chosen = await house.served(40)
    assert chosen[2 * TRIAL_SESSIONS :].count("worse") >= 24
    assert set(house.observer.losses) == {"oracle"}
    assert house.observer.accepted["oracle"] == 0
    await house.loop.stop()


@pytest.mark.parametrize("name", ["oracle", None])
async def test_a_session_without_speculation_has_no_drafter(name: str | None) -> None:
    house = House()
    assert (await house.serve(0, name, speculate=False)).drafter is None
    assert not house.observer.drafts
    await house.loop.stop()


async def test_a_drafter_of_depth_0_never_drafts() -> None:
    house = House(worse=DrafterConfig(max_depth=0))
    assert (await house.serve(0, "worse")).drafter is None
    assert set(await house.served(10)) == {"oracle"}
    await house.loop.stop()


async def test_greedy_and_sampled_sessions_have_their_own_trials() -> None:
    house = House()
    await house.served(2 * TRIAL_SESSIONS)
    sampled = []
    for number in range(2 * TRIAL_SESSIONS):
        session = session_named(f"n{number}", sampling=NOISY)
        async for _ in house.loop.run(session, speculate=True):
            pass
        sampled.append(session.drafter)
    assert Counter(sampled) == {"oracle": TRIAL_SESSIONS, "worse": TRIAL_SESSIONS}
    await house.loop.stop()


async def test_a_sessions_tau_is_what_its_drafter_was_measured_at_on_such_text() -> None:
    pools, configs = {"oracle": FakePool(FakeDrafter(LAW.guess))}, {"oracle": DRAFTER}
    fleet = DrafterFleet(pools, configs, limits_with(), CountingObserver(), Economy(configs))
    session, sampled, plain, capped = (session_named(name, sampling=NOISY if name == "n" else GREEDY) for name in "snpc")
    capped.max_nodes = 0
    for chosen in (session, sampled, capped):
        fleet.assign(chosen, None)
    assert fleet.tau(session) == 1.0, "nothing is known yet"
    for num_tokens in (2, 4):
        fleet.learn(session, TokenChunk(tuple(range(num_tokens))))
    assert fleet.tau(session) == pytest.approx(3.0, rel=1e-3)
    assert [fleet.tau(other) for other in (sampled, plain, capped)] == [1.0, 1.0, 1.0]
    assert DrafterFleet({}, {}, limits_with(), CountingObserver(), Economy({})).tau(session) == 1.0


async def test_a_refused_session_was_no_trial_of_its_drafter() -> None:
    house = House()
    fleet = house.loop._drafters
    for number in range(3 * TRIAL_SESSIONS):
        session = session_named(f"s{number}")
        fleet.assign(session, None)
        assert session.drafter == "oracle"
        fleet.refused(session)
    named = session_named("named")
    fleet.assign(named, "worse")
    fleet.refused(named)
    served = [await house.serve(number) for number in range(2 * TRIAL_SESSIONS)]
    assert Counter(session.drafter for session in served) == {"oracle": TRIAL_SESSIONS, "worse": TRIAL_SESSIONS}
    await house.loop.stop()
