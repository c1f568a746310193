"""Features through the whole loop: whatever happens to them, the text is that of plain decoding, and who wants none asks for none."""

import asyncio

import pytest

from dspark.fakes import FakeDrafter, FakePool, LyingDrafter
from dspark.messages import NO_FEATURES
from dspark.routing.drafts import NoDrafts
from dspark.session import Session
from tests.routing.parts import DRAFTER, GREEDY, NOISY, session_named
from tests.routing.readers import LAW, SPEC, Desk, House, expected_text, reader


def sessions() -> list[Session]:
    prompts = [(1, 2, 3), (4,), (5, 6), (7, 7, 7, 7)]
    return [session_named(f"s{index}", prompt, (GREEDY, NOISY)[index % 2], 60) for index, prompt in enumerate(prompts)]


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


async def test_the_last_token_needs_no_features() -> None:
    desk = Desk(reader(), max_tokens=1)
    await desk.ready()
    await desk.propose()
    assert desk.drafts.features_from == NO_FEATURES
    await desk.close()
