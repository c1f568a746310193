"""The loop over a toy target: whatever drafts, lies or dies, the text is that of plain decoding, and every place is given back."""

import asyncio

import numpy as np
import pytest

from dspark.errors import SpeedUnavailable, StaleRound, TargetUnavailable
from dspark.fakes import FakeDrafter, FakePool, LyingDrafter, ToyLaw, ToyTarget
from dspark.routing.loop import SpeculativeLoop
from dspark.scheduling.curve import ThroughputCurve
from dspark.session import Session
from dspark.tree import CandidateTree
from dspark.types import FinishReason, SamplingParams, SessionId, StopRules
from tests.routing.parts import DRAFTER, GREEDY, NOISY, CountingObserver, limits_with, session_named

LAW = ToyLaw()
PROMPTS = [(1, 2, 3), (4,), (5, 6), (7, 7, 7, 7), (2, 9), (11, 0)]


class House:
    """A loop, its two pools and what they count."""

    def __init__(self, drafter: FakeDrafter | None, max_batch_rows: int = 12, **limits: float) -> None:
        self.target = ToyTarget(LAW, max_length=80, step_s=0.001)
        self.targets = FakePool(self.target)
        self.drafter = drafter
        self.drafters = None if drafter is None else FakePool(drafter)
        self.observer = CountingObserver()
        self.loop = SpeculativeLoop(
            self.targets,
            {} if self.drafters is None else {"default": self.drafters},
            drafter_configs={"default": DRAFTER},
            limits=limits_with(**limits),
            max_batch_rows=max_batch_rows,
            observer=self.observer,
        )

    async def text_of(self, session: Session, speculate: bool = True) -> list[int]:
        async for chunk in self.loop.run(session, speculate=speculate):
            assert chunk.token_ids
        return session.output_ids

    def nothing_is_left(self) -> bool:
        held = len(self.targets.leases) + self.target.num_sessions
        if self.drafters is not None and self.drafter is not None:
            held += len(self.drafters.leases) + self.drafter.num_sessions
        return held == 0


def sessions_for(sampling: SamplingParams) -> list[Session]:
    """Six sessions; every second one with another choice's noise, one of them up to the model's length."""
    return [
        session_named(
            f"s{index}",
            prompt,
            SamplingParams(sampling.temperature, top_p=sampling.top_p, seed=sampling.seed, choice=index % 2),
            80 - len(prompt) if index == 3 else 30 + index,
        )
        for index, prompt in enumerate(PROMPTS)
    ]


DRAFTERS = {
    "nobody": lambda: None,
    "an oracle": lambda: FakeDrafter(LAW.guess),
    "a worse model": lambda: FakeDrafter(ToyLaw(seed=1).guess),
    "a slow oracle": lambda: FakeDrafter(LAW.guess, delay_s=0.005),
    "a liar": lambda: LyingDrafter(LAW.vocab_size, seed=3, late_s=0.06),
}


@pytest.mark.parametrize("sampling", [GREEDY, NOISY], ids=["greedy", "sampled"])
@pytest.mark.parametrize("make_drafter", DRAFTERS.values(), ids=DRAFTERS.keys())
async def test_the_text_is_that_of_plain_decoding_whoever_drafts(make_drafter: object, sampling: SamplingParams) -> None:
    house = House(make_drafter())  # type: ignore[operator]
    sessions = sessions_for(sampling)
    texts = await asyncio.gather(*(house.text_of(session) for session in sessions))
    for session, text in zip(sessions, texts, strict=True):
        assert text == LAW.continuation(session.prompt_ids, session.sampling, session.stop.max_tokens)
        assert session.finish_reason is FinishReason.LENGTH
    assert house.nothing_is_left()
    assert house.observer.ended == [FinishReason.LENGTH] * 6
    await house.loop.stop()


async def test_an_oracle_saves_most_rounds_and_sessions_share_steps() -> None:
    plain, helped = House(None), House(FakeDrafter(LAW.guess), max_batch_rows=64)
    for house in (plain, helped):
        await asyncio.gather(*(house.text_of(session) for session in sessions_for(GREEDY)))
        await house.loop.stop()
    num_tokens = sum(session.stop.max_tokens for session in sessions_for(GREEDY))
    assert sum(len(batch) for batch in plain.target.batches) == num_tokens
    assert len(plain.target.batches) < num_tokens / 2, "sessions are batched"
    assert sum(len(batch) for batch in helped.target.batches) < num_tokens / 2, "tokens come several at a time"
    assert helped.observer.num_accepted > num_tokens / 2


async def test_a_drafter_that_dies_and_comes_back_costs_speed_only() -> None:
    drafter = FakeDrafter(LAW.guess)
    house = House(drafter)
    sessions = [session_named(f"s{i}", prompt, NOISY, 70) for i, prompt in enumerate(PROMPTS)]

    async def trouble() -> None:
        assert house.drafters is not None
        for _ in range(3):
            await asyncio.sleep(0.008)
            drafter.dead, house.drafters.gone, house.drafters.available = True, True, False
            drafter.forget_all()
            await asyncio.sleep(0.005)
            drafter.dead, house.drafters.gone, house.drafters.available = False, False, True

    texts, _ = await asyncio.gather(asyncio.gather(*(house.text_of(session) for session in sessions)), trouble())
    for session, text in zip(sessions, texts, strict=True):
        assert text == LAW.continuation(session.prompt_ids, NOISY, 70)
    assert house.observer.lost
    assert house.nothing_is_left()
    await house.loop.stop()


async def test_speculation_can_be_refused_for_one_session() -> None:
    house = House(FakeDrafter(LAW.guess))
    text = await house.text_of(session_named("s"), speculate=False)
    assert text == LAW.continuation((1, 2, 3), GREEDY, 40)
    assert house.drafters is not None
    assert house.drafters.num_acquired == 0
    await house.loop.stop()


async def test_a_stop_token_inside_a_block_ends_the_session() -> None:
    expected = LAW.continuation((1, 2, 3), GREEDY, 40)
    stop = expected[10]
    house = House(FakeDrafter(LAW.guess))
    session = Session(SessionId("s"), (1, 2, 3), GREEDY, StopRules(40, frozenset({stop})))
    assert await house.text_of(session) == expected[: expected.index(stop) + 1]
    assert session.finish_reason is FinishReason.STOP
    await house.loop.stop()


@pytest.mark.parametrize("rounds", [0, 1, 4])
async def test_closing_the_iterator_gives_every_place_back(rounds: int) -> None:
    house = House(FakeDrafter(LAW.guess))
    iterator = house.loop.run(session_named("s"), speculate=True)
    for _ in range(rounds):
        await anext(iterator)
    await iterator.aclose()  # type: ignore[attr-defined]
    await asyncio.sleep(0.01)
    assert house.nothing_is_left()
    assert house.observer.ended == ([None] if rounds else [])
    await house.loop.stop()


async def test_a_cancelled_session_leaves_its_neighbours_unharmed() -> None:
    house = House(FakeDrafter(LAW.guess, delay_s=0.002))
    sessions = sessions_for(NOISY)
    tasks = [asyncio.create_task(house.text_of(session)) for session in sessions]
    await asyncio.sleep(0.01)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for session, result in list(zip(sessions, results, strict=True))[1::2]:
        assert result == LAW.continuation(session.prompt_ids, session.sampling, session.stop.max_tokens)
    assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
    assert house.nothing_is_left()
    await house.loop.stop()


async def test_without_a_target_there_is_no_answer() -> None:
    house = House(None)
    house.targets.available = False
    with pytest.raises(TargetUnavailable):
        await house.text_of(session_named("s"))


async def test_a_dying_target_ends_its_sessions_with_an_error_and_frees_their_places() -> None:
    house = House(FakeDrafter(LAW.guess, delay_s=0.002))
    tasks = [asyncio.create_task(house.text_of(session)) for session in sessions_for(GREEDY)]
    await asyncio.sleep(0.01)
    house.targets.gone = True
    house.target.die()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, TargetUnavailable) for result in results)
    assert house.nothing_is_left()
    assert house.observer.ended == [None] * 6
    await house.loop.stop()


async def test_a_target_that_was_silent_once_serves_the_next_session() -> None:
    """Its lease is not lost, so the next session meets the same target; it must not meet the given-up lane."""
    house = House(None, verify_timeout_s=0.05)
    house.target.step_s = 0.5
    with pytest.raises(TargetUnavailable, match="silent"):
        await house.text_of(session_named("a"))
    house.target.step_s = 0.001
    assert await house.text_of(session_named("b")) == LAW.continuation((1, 2, 3), GREEDY, 40)
    await house.loop.stop()


async def test_what_the_target_reports_for_a_session_is_raised_at_it_alone() -> None:
    house = House(None)
    good, bad = session_named("good"), session_named("bad")
    bad.round = 3  # not the round that the target will expect
    results = await asyncio.gather(house.text_of(good), house.text_of(bad), return_exceptions=True)
    assert results[0] == LAW.continuation((1, 2, 3), GREEDY, 40)
    assert isinstance(results[1], StaleRound)
    assert house.nothing_is_left()
    await house.loop.stop()


async def test_stopping_the_loop_ends_running_sessions_with_an_error() -> None:
    house = House(FakeDrafter(LAW.guess))
    house.target.step_s = 5
    task = asyncio.create_task(house.text_of(session_named("s")))
    await asyncio.sleep(0.01)
    await house.loop.stop()
    with pytest.raises(TargetUnavailable):
        await asyncio.wait_for(task, 1)
    assert house.nothing_is_left()


async def test_a_drafter_of_trees_is_selected_from_when_rows_are_short() -> None:
    """Three sessions share twelve rows, so that most nodes are left out; the text stays the same."""

    def bushy(tokens: object, sampling: SamplingParams, depth: int) -> CandidateTree:
        right = LAW.continuation(tokens, sampling, 3)  # type: ignore[arg-type]
        ids, parents = [*right, (right[0] + 1) % 12, (right[1] + 1) % 12], [-1, 0, 1, -1, 0]
        scores = [0.9, 0.6, 0.3, 0.2, 0.1]
        return CandidateTree(np.asarray(ids, np.int32), np.asarray(parents, np.int32), np.asarray(scores, np.float32))

    house = House(FakeDrafter(bushy), max_batch_rows=8)
    sessions = sessions_for(GREEDY)
    texts = await asyncio.gather(*(house.text_of(session) for session in sessions))
    for session, text in zip(sessions, texts, strict=True):
        assert text == LAW.continuation(session.prompt_ids, GREEDY, session.stop.max_tokens)
    await house.loop.stop()


async def test_a_lease_that_ends_with_its_session_leaves_the_others_alone() -> None:
    """A replica ends the lease when it is told that the session is over; that says nothing of the replica."""
    house = House(FakeDrafter(LAW.guess))
    close = house.target.close

    def close_and_end_all_leases(session_id: SessionId) -> None:
        house.targets.gone = True  # every lease looks lost from now on
        close(session_id)

    house.target.close = close_and_end_all_leases  # type: ignore[method-assign]
    short, long = session_named("short", (1, 2), GREEDY, 3), session_named("long", (3,), GREEDY, 60)
    await asyncio.gather(house.text_of(short), house.text_of(long))
    assert long.output_ids == LAW.continuation((3,), GREEDY, 60)


def promised(name: str, tokens_per_second: float | None) -> Session:
    session = session_named(name)
    session.min_tokens_per_second = tokens_per_second
    return session


def house_with_promises(enforce: bool = True) -> House:
    """One row takes 10 ms, two take 20: alone a session is promised 100 tokens per second at most, beside another 50."""
    house = House(FakeDrafter(LAW.guess), enforce_promises=enforce)
    rows = np.asarray([1, 64])
    house.targets.curve = ThroughputCurve(rows, np.asarray([0]), 10.0 * rows[None, :].astype(np.float64))
    return house


async def test_a_speed_that_cannot_be_promised_is_refused_and_nothing_is_started() -> None:
    house = house_with_promises()
    with pytest.raises(SpeedUnavailable, match="even alone"):
        await house.text_of(promised("s", 120.0))
    await asyncio.sleep(0)
    assert house.nothing_is_left()
    assert house.drafters is not None
    assert (house.targets.num_acquired, house.drafters.num_acquired, house.target.batches) == (1, 0, [])
    assert house.observer.ended == []
    await house.loop.stop()


@pytest.mark.parametrize("newcomers_speed", [None, 40.0, 60.0])
async def test_a_session_that_would_break_anothers_promise_is_refused_until_that_one_is_over(newcomers_speed: float | None) -> None:
    house = house_with_promises()
    house.target.step_s = 60.0
    running = asyncio.create_task(house.text_of(promised("first", 80.0)))
    await asyncio.sleep(0.01)
    for _ in range(2):
        with pytest.raises(SpeedUnavailable):
            await house.text_of(promised("second", newcomers_speed))
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await house.loop.stop()
    house.target.step_s = 0.001
    assert await house.text_of(promised("second", newcomers_speed)) == LAW.continuation((1, 2, 3), GREEDY, 40)
    assert house.nothing_is_left()
    await house.loop.stop()


async def test_of_two_that_come_together_the_second_is_judged_with_the_first() -> None:
    house = house_with_promises()
    results = await asyncio.gather(house.text_of(promised("a", 60.0)), house.text_of(promised("b", 60.0)), return_exceptions=True)
    assert results[0] == LAW.continuation((1, 2, 3), GREEDY, 40)
    assert isinstance(results[1], SpeedUnavailable)
    assert house.nothing_is_left()
    await house.loop.stop()


async def test_promises_that_are_not_enforced_are_served_as_well_as_can_be() -> None:
    house = house_with_promises(enforce=False)
    texts = await asyncio.gather(*(house.text_of(promised(name, 1000.0)) for name in "ab"))
    assert texts == [LAW.continuation((1, 2, 3), GREEDY, 40)] * 2
    await house.loop.stop()


async def test_while_nobody_knows_what_the_target_costs_no_promise_is_refused() -> None:
    house = house_with_promises()
    house.targets.curve = None
    assert await house.text_of(promised("s", 1e5)) == LAW.continuation((1, 2, 3), GREEDY, 40)
    await house.loop.stop()


async def consumed(house: House, session: Session, rest_s: float) -> None:
    async for _ in house.loop.run(session, speculate=False):
        await asyncio.sleep(rest_s)


async def test_a_client_that_takes_its_time_is_no_work_of_the_routers() -> None:
    """Steps of 1 ms; who rests 20 ms after each of them would make a router of 20 ms a round."""
    house = House(None)
    await consumed(house, session_named("a", max_tokens=12), rest_s=0.02)
    assert house.loop.economy.router_work.plain_ms(1) < 5.0
    await consumed(house, session_named("b", max_tokens=12), rest_s=0.0)
    assert 0 < house.loop.economy.router_work.plain_ms(1) < 5.0
