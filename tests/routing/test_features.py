"""Features from a toy target to a drafter that keeps them: every committed position, once and in order."""

import asyncio
from dataclasses import replace

from dspark.fakes import FakePool, toy_features
from dspark.messages import NO_FEATURES, ContextFeatures, VerifyResult
from dspark.tree import CandidateTree
from dspark.types import SessionId
from tests.routing.parts import DRAFTER
from tests.routing.readers import PROMPT, SPEC, Desk, reader


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


async def test_nothing_is_asked_for_while_no_lease_is_to_be_had() -> None:
    drafter = reader()
    desk = Desk(drafter, FakePool(drafter, available=False, features=SPEC), draft_retry_s=30)
    await asyncio.sleep(0.01)
    for _ in range(5):
        await desk.round()
        assert desk.drafts.features_from == NO_FEATURES
    assert desk.observer.num_feature_rows == 0
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


def test_toy_rows_name_their_token_and_position() -> None:
    features: ContextFeatures = toy_features((5, 6, 7), 1, 3)
    assert features.values.tolist() == [[6, 1], [7, 2]]
