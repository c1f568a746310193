"""Two drafters for one session: their trees become one, and neither can harm the answer."""

import pytest

from dspark.config import DrafterConfig
from dspark.fakes import FakeDrafter, FakePool, ToyLaw, ToyTarget
from dspark.messages import FeatureSpec, VerifyResult
from dspark.routing.loop import SpeculativeLoop
from dspark.routing.merged import MergedDrafts
from dspark.scheduling.drafting_plan import DraftLimits
from dspark.tree import CandidateTree
from dspark.types import SessionId
from tests.routing.parts import DRAFTER, GREEDY, CountingObserver, limits_with, session_named


class OneTree:
    """A source that always says the same."""

    features: FeatureSpec | None = None
    features_from = -1
    answered_to = DraftLimits(3, 2, 3)
    num_told = 0
    call_began_s = 0.0

    def __init__(self, tree: CandidateTree, fault: Exception | None = None) -> None:
        self.tree = tree
        self.fault = fault
        self.learnt: list[VerifyResult] = []
        self.closed = False

    def learn(self, result: VerifyResult) -> None:
        self.learnt.append(result)

    async def propose(self, limits: DraftLimits) -> CandidateTree:
        return self.tree

    async def close(self) -> None:
        self.closed = True
        if self.fault is not None:
            raise self.fault


CHAIN = CandidateTree.chain([5, 6, 7], [0.9, 0.5, 0.2])
OTHER = CandidateTree.chain([5, 8], [0.4, 0.3])


async def test_both_trees_become_one_and_the_likeliest_candidates_are_kept() -> None:
    tree = await MergedDrafts(OneTree(CHAIN), OneTree(OTHER)).propose(DraftLimits(3, 2, 3))
    paths = {tuple(tree.token_ids[tree.path(node)].tolist()): float(tree.scores[node]) for node in range(len(tree))}
    assert paths == pytest.approx({(5,): 0.9, (5, 6): 0.5, (5, 8): 0.675}), "below the 0.9 that the other is sure of"


async def test_the_candidates_that_are_proposed_keep_who_proposed_them() -> None:
    likelier = CandidateTree.chain([5, 6, 9], [0.95, 0.3, 0.25])
    tree = await MergedDrafts(OneTree(CHAIN), OneTree(likelier)).propose(DraftLimits(3, 2, 3))
    assert tree.origins is not None
    assert (tree.token_ids.tolist(), tree.origins.tolist()) == ([5, 6, 9], [2, 2, 1])


async def test_where_one_has_nothing_all_is_the_others() -> None:
    alone = await MergedDrafts(OneTree(CHAIN), OneTree(CandidateTree.empty())).propose(DraftLimits(3, 2, 8))
    assert alone.origins is None
    other = await MergedDrafts(OneTree(CandidateTree.empty()), OneTree(CHAIN)).propose(DraftLimits(3, 2, 8))
    assert other.origins is not None
    assert other.origins.tolist() == [1, 1, 1]


async def test_where_one_has_nothing_the_other_is_enough() -> None:
    for sources in ((CHAIN, CandidateTree.empty()), (CandidateTree.empty(), CHAIN)):
        tree = await MergedDrafts(*(OneTree(source) for source in sources)).propose(DraftLimits(3, 2, 8))
        assert tree.token_ids.tolist() == [5, 6, 7]
    nothing = await MergedDrafts(OneTree(CandidateTree.empty()), OneTree(CandidateTree.empty())).propose(DraftLimits(3, 2, 8))
    assert len(nothing) == 0


async def test_both_learn_and_both_are_closed_whatever_happens_to_the_first() -> None:
    main, also = OneTree(CHAIN, RuntimeError("broken")), OneTree(OTHER)
    drafts = MergedDrafts(main, also)
    result = VerifyResult(SessionId("s"), 0, 3, (), (1,))
    drafts.learn(result)
    assert main.learnt == also.learnt == [result]
    with pytest.raises(RuntimeError, match="broken"):
        await drafts.close()
    assert also.closed


async def test_a_drafter_that_is_mostly_wrong_gains_from_lookup_and_the_tokens_stay_the_same() -> None:
    """The text repeats itself, so that lookup finds it."""
    law = ToyLaw()
    accepted = {}
    for with_lookup in (False, True):
        observer = CountingObserver()
        config = DrafterConfig.model_validate(DRAFTER.model_dump() | {"with_lookup": with_lookup, "lookup_min_match": 1})
        loop = SpeculativeLoop(
            FakePool(ToyTarget(law, max_length=80)),
            {"default": FakePool(FakeDrafter(ToyLaw(seed=1).guess))},
            drafter_configs={"default": config},
            limits=limits_with(),
            max_batch_rows=32,
            observer=observer,
        )
        expected = law.continuation((1, 2, 3), GREEDY, 20)
        prompt = (1, 2, 3, *expected, 1, 2, 3)
        session = session_named("s", prompt)
        async for _ in loop.run(session, speculate=True):
            pass
        await loop.stop()
        assert session.output_ids == law.continuation(prompt, GREEDY, 40)
        accepted[with_lookup] = observer.num_accepted
    assert accepted[True] >= accepted[False]


def test_lookup_beside_a_drafter_without_a_model_is_refused() -> None:
    with pytest.raises(ValueError, match="with_lookup"):
        DrafterConfig(kind="lookup", with_lookup=True)
