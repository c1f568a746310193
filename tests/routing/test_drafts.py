"""LeasedDrafts: late, stale, lying or gone, a drafter costs candidates and never an exception."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from dspark.errors import FingerprintMismatch
from dspark.fakes import FakeDrafter, FakeLease, FakePool, LyingDrafter
from dspark.messages import DraftReport, DraftRequest
from dspark.routing.drafts import IDLE_ROUNDS, NoDrafts
from dspark.scheduling.drafting_plan import SKIP, DraftLimits
from dspark.tree import CandidateTree
from dspark.types import SamplingParams, SessionId
from tests.routing.desk import LAW, Desk
from tests.routing.parts import DRAFTER, LIMITS_OF_DRAFTER, session_named


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk(FakeDrafter(LAW.guess))
    yield desk
    await desk.close()


async def test_the_first_rounds_do_not_wait_for_a_lease(desk: Desk) -> None:
    assert len(await desk.propose()) == 0
    assert await desk.speculating()
    assert desk.drafter.num_drafts == 2, "one let the drafter read the prompt"


async def test_each_round_sends_only_what_is_new(desk: Desk) -> None:
    seen: list[DraftRequest] = []
    answer = desk.drafter.answer
    desk.drafter.answer = lambda request: seen.append(request) or answer(request)  # type: ignore[method-assign,func-returns-value]
    assert await desk.speculating()
    desk.commit(4, 5)
    assert await desk.speculating()
    desk.commit(6)
    assert await desk.speculating()
    assert [request.new_token_ids for request in seen] == [(), (), (4, 5), (6,)]
    assert desk.drafts.num_told == desk.session.base_length


async def test_no_deeper_than_what_the_session_may_still_take() -> None:
    desk = Desk(FakeDrafter(LAW.guess), session_named("s", max_tokens=3))
    await desk.ready()
    assert len(await desk.propose()) == 2, "the bonus token is the third"
    desk.commit(1, 1)
    assert len(await desk.propose()) == 0
    await desk.drafts.close()


async def test_a_late_drafter_gives_an_empty_tree_in_time_and_is_asked_again(desk: Desk) -> None:
    assert await desk.speculating()
    desk.drafter.delay_s = 0.2
    loop = asyncio.get_running_loop()
    started = loop.time()
    assert len(await desk.propose()) == 0
    assert loop.time() - started < 0.15
    assert desk.observer.lost == {"late": 1}
    desk.drafter.delay_s = 0
    desk.commit(7, 8)
    await asyncio.sleep(0.2)  # its late answer is out of the way
    assert await desk.speculating(), "the delta it may have missed was sent again"


async def test_a_hung_drafter_is_asked_less_and_less_often(desk: Desk) -> None:
    assert await desk.speculating()
    desk.drafter.delay_s = 60
    loop = asyncio.get_running_loop()
    started, rounds = loop.time(), 0
    while loop.time() - started < 0.8:
        assert len(await desk.propose()) == 0
        rounds += 1
        await asyncio.sleep(0.001)
    assert 1 < desk.observer.lost["late"] < 8, "asked again, but with pauses"
    assert rounds > 100, "most rounds did not wait at all"


async def test_a_lost_lease_is_given_back_and_speculation_resumes_on_the_next(desk: Desk) -> None:
    assert await desk.speculating()
    desk.pool.gone = True
    desk.drafter.forget_all()
    assert len(await desk.propose()) == 0
    assert desk.drafts.num_told == 0
    desk.pool.gone = False
    desk.commit(3)
    assert await desk.speculating()
    assert (desk.pool.num_acquired, len(desk.pool.leases)) == (2, 1)


async def test_a_dying_drafter_is_dropped_and_found_again_when_it_is_back(desk: Desk) -> None:
    assert await desk.speculating()
    desk.drafter.dead, desk.pool.available = True, False
    for _ in range(5):
        assert len(await desk.propose()) == 0
        await desk.ready()
    assert len(desk.pool.leases) == 0
    assert desk.observer.lost["unavailable"] == 1
    desk.drafter.dead, desk.pool.available = False, True
    desk.drafter.forget_all()
    assert len(await desk.propose()) == 0
    assert await desk.speculating()


async def test_an_empty_pool_is_asked_with_pauses() -> None:
    drafter = FakeDrafter(LAW.guess)
    desk = Desk(drafter, pool=FakePool(drafter, available=False))
    loop = asyncio.get_running_loop()
    started, num_rounds = loop.time(), 0
    while loop.time() - started < 0.1:
        assert len(await desk.propose()) == 0
        await asyncio.sleep(0)
        num_rounds += 1
    assert 1 <= desk.observer.lost["DraftUnavailable"] <= 6 < num_rounds, "the pause is 0.02 s"
    desk.pool.available = True
    await asyncio.sleep(0.03)
    await desk.propose()
    assert await desk.speculating()
    await desk.close()


async def test_a_drafter_that_forgot_the_session_is_told_again(desk: Desk) -> None:
    assert await desk.speculating()
    desk.drafter.forget_all()
    desk.commit(2)
    assert len(await desk.propose()) == 0
    assert desk.observer.lost == {"stale": 1}
    assert await desk.speculating()
    assert desk.pool.num_acquired == 1


async def test_a_drafter_that_is_behind_is_told_again(desk: Desk) -> None:
    assert await desk.speculating()
    desk.commit(2, 3)
    assert await desk.speculating()
    desk.drafter.open(session_named("s").opening())  # it lost the last two tokens
    desk.commit(4)
    assert len(await desk.propose()) == 0
    assert await desk.speculating()


def scripted(tree: CandidateTree) -> FakeDrafter:
    return FakeDrafter(lambda tokens, sampling, depth: tree)


BAD = {
    "an unknown token": CandidateTree.chain([LAW.vocab_size]),
    "too many nodes": CandidateTree.chain([1] * (DRAFTER.max_nodes + 1)),
    "too deep": CandidateTree.chain([1] * (DRAFTER.max_depth + 1)),
    "a score that is no number": CandidateTree.chain([1], [float("nan")]),
}


@pytest.mark.parametrize("tree", BAD.values(), ids=BAD.keys())
async def test_a_tree_that_does_not_fit_is_left_out(tree: CandidateTree) -> None:
    desk = Desk(scripted(tree))
    await desk.ready()
    for _ in range(3):
        assert len(await desk.propose()) == 0
    assert desk.observer.lost == {"InvalidMessage": 3}
    assert len(desk.pool.leases) == 1, "the replica may serve others well"
    await desk.close()


async def test_a_drafter_with_a_bug_costs_candidates_only(caplog: pytest.LogCaptureFixture) -> None:
    def guess(tokens: Sequence[int], sampling: SamplingParams, depth: int) -> CandidateTree:
        raise ZeroDivisionError

    desk = Desk(FakeDrafter(guess))
    await desk.ready()
    assert len(await desk.propose()) == 0
    assert desk.observer.lost == {"failed": 1}
    assert "ZeroDivisionError" in caplog.text
    await desk.close()


async def test_a_pool_with_another_model_is_as_good_as_none() -> None:
    class Mismatched(FakePool):
        async def acquire(self, session_id: SessionId) -> FakeLease:
            raise FingerprintMismatch("another tokenizer")

    desk = Desk(FakeDrafter(LAW.guess), pool=Mismatched(FakeDrafter(LAW.guess)))
    await asyncio.sleep(0)
    for _ in range(10):
        assert len(await desk.propose()) == 0
        await asyncio.sleep(0.001)
    assert 1 <= desk.observer.lost["FingerprintMismatch"] < 10  # not at every round, however slow the machine
    await desk.drafts.close()


async def test_no_lie_is_an_exception() -> None:
    desk = Desk(LyingDrafter(LAW.vocab_size, seed=2, late_s=0.06), draft_retry_s=1e-4)
    await desk.ready()
    kinds = set()
    for round_number in range(60):
        tree = await desk.propose()
        tree.check(LAW.vocab_size, DRAFTER.max_nodes)
        kinds.add(len(tree) > 0)
        if round_number % 2:
            desk.session.output_ids[:] = [*desk.session.output_ids, round_number % 12][-20:]
    assert kinds == {True, False}
    assert desk.observer.lost.keys() >= {"stale", "InvalidMessage", "late"}
    await desk.close()


async def test_one_session_that_drops_a_dead_drafter_does_not_end_the_others() -> None:
    """They share its lane: one is in the batch that fails, the other waits behind it."""
    drafter = FakeDrafter(LAW.guess)
    pool = FakePool(drafter)
    first = Desk(drafter, session_named("a"), pool)
    second = Desk(drafter, session_named("b"), pool)
    second.drafts._lanes = first.lanes
    assert await first.speculating()
    assert await second.speculating()
    drafter.dead, drafter.delay_s = True, 0.02
    early = asyncio.create_task(first.propose())
    await asyncio.sleep(0.01)
    late = asyncio.create_task(second.propose())
    assert [len(tree) for tree in await asyncio.gather(early, late)] == [0, 0]
    for desk in (first, second):
        await desk.drafts.close()
    await first.lanes.stop()
    assert len(pool.leases) == 0


async def test_closing_gives_the_lease_back_and_frees_the_drafters_memory(desk: Desk) -> None:
    assert await desk.speculating()
    assert desk.drafter.num_sessions == 1
    await desk.drafts.close()
    assert (desk.drafter.num_sessions, len(desk.pool.leases)) == (0, 0)
    await desk.drafts.close()


async def test_closing_before_there_is_a_lease_leaves_nothing_running() -> None:
    desk = Desk(FakeDrafter(LAW.guess, delay_s=60))
    await asyncio.sleep(0.01)
    await desk.drafts.close()
    assert len(desk.pool.leases) == 0
    await desk.lanes.stop()
    assert len(asyncio.all_tasks()) == 1


async def test_no_drafts_are_empty_trees() -> None:
    drafts = NoDrafts()
    assert len(await drafts.propose(LIMITS_OF_DRAFTER)) == 0
    await drafts.close()


class LatePrefill(FakeDrafter):
    """Answers the first call, which only reads the prompt, when it is let."""

    def __init__(self) -> None:
        super().__init__(LAW.guess)
        self.may_answer = asyncio.Event()

    async def draft(self, requests: Sequence[DraftRequest]) -> DraftReport:
        await self.may_answer.wait()
        return await super().draft(requests)


async def test_rounds_go_on_plainly_while_the_drafter_reads_a_long_prompt() -> None:
    drafter = LatePrefill()
    desk = Desk(drafter)
    for token in (4, 5, 6):
        assert len(await desk.propose()) == 0
        desk.commit(token)
    drafter.may_answer.set()
    assert await desk.speculating(), "and what was committed meanwhile is in the first delta"
    assert desk.observer.lost == {}
    await desk.close()


async def test_a_session_that_drafts_nothing_for_long_gives_its_lease_back_and_takes_one_when_it_drafts_again(desk: Desk) -> None:
    assert await desk.speculating()
    for number in range(IDLE_ROUNDS):
        assert len(desk.pool.leases) == 1
        assert len(await desk.drafts.propose(SKIP)) == 0
        if number % 8 == 0:
            desk.commit(4)
    assert (len(desk.pool.leases), desk.drafter.num_sessions, desk.drafts.num_told) == (0, 0, 0)
    for _ in range(IDLE_ROUNDS):
        await desk.drafts.propose(SKIP)
    assert desk.pool.num_acquired == 1, "nobody asked for drafts"
    assert len(await desk.propose()) == 0
    assert await desk.speculating()
    assert (desk.pool.num_acquired, desk.observer.lost) == (2, {})


async def test_only_an_answer_in_time_counts_as_one(desk: Desk) -> None:
    await desk.propose()
    assert desk.drafts.answered_to.skips, "there was no lease"
    assert await desk.speculating()
    assert not desk.drafts.answered_to.skips
    await desk.drafts.propose(SKIP)
    assert desk.drafts.answered_to.skips, "nobody was asked"
    desk.drafter.delay_s = 0.2
    await desk.propose()
    assert desk.drafts.answered_to.skips


async def test_what_is_answered_to_is_what_request_and_answers_end_leave_of_the_limits(desk: Desk) -> None:
    """A draft cut short by them says nothing of how good deeper ones are."""
    await desk.speculating()
    desk.session.max_nodes = 2
    await desk.drafts.propose(DraftLimits(3, 2, 4))
    assert desk.drafts.answered_to.max_nodes == 2
    desk.commit(*[4] * (desk.session.tokens_left - 2))
    await desk.drafts.propose(DraftLimits(3, 2, 4))
    assert desk.drafts.answered_to.max_depth == 1
