"""A drafter that was late, forgot, fell behind or was replaced gets every position it misses, and is not flooded with them."""

import asyncio
from collections.abc import Sequence

import pytest

from dspark.errors import StaleRound
from dspark.fakes import FakeDrafter
from dspark.messages import NO_FEATURES, DraftReport, DraftRequest, DraftResult
from dspark.routing import drafts as drafts_module
from dspark.routing.drafts import FRESH_ROUNDS, MAX_IDLE_ROWS
from dspark.scheduling.drafting_plan import SKIP
from tests.routing.parts import DRAFTER
from tests.routing.readers import LAW, PROMPT, Desk, reader


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


async def test_while_nothing_is_drafted_features_are_soon_left_to_the_target_and_all_there_again_when_it_is() -> None:
    desk = Desk(reader())
    await desk.check_it_drafts()
    asked = []
    for _ in range(5 * FRESH_ROUNDS):
        tree = await desk.drafts.propose(SKIP)
        asked.append(desk.drafts.features_from != NO_FEATURES)
        desk.verify(tree)
    assert asked == [True] * FRESH_ROUNDS + [False] * 4 * FRESH_ROUNDS
    await desk.check_it_drafts(within_rounds=2)
    assert desk.observer.lost == {}
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
