"""The fakes keep the contracts that the real parts keep: a fake that is too kind would hide bugs."""

import asyncio
import random
from dataclasses import replace

import numpy as np
import pytest

from dspark.errors import DraftUnavailable, InvalidMessage, TargetUnavailable
from dspark.fakes import FakeDrafter, FakePool, LyingDrafter, ToyLaw, ToyTarget, toy_features
from dspark.messages import ContextFeatures, DraftRequest, FeatureSpec, SessionOpen, StepReport, VerifyRequest
from dspark.tree import ANCHOR, CandidateTree
from dspark.types import SamplingParams, SessionId

NAME = SessionId("s")
PROMPT = (1, 2, 3)
GREEDY = SamplingParams(temperature=0.0)
NOISY = SamplingParams(temperature=1.0, top_p=0.9, seed=11)


def opened(sampling: SamplingParams = GREEDY, max_length: int = 100) -> ToyTarget:
    target = ToyTarget(ToyLaw(), max_length=max_length)
    target.open(SessionOpen(NAME, PROMPT, sampling))
    return target


async def ask(target: ToyTarget, round_number: int, base_length: int, tree: CandidateTree | None = None) -> StepReport:
    target.submit([VerifyRequest(NAME, round_number, base_length, CandidateTree.empty() if tree is None else tree)])
    return await asyncio.wait_for(target.next_report(), 1)


@pytest.mark.parametrize("sampling", [GREEDY, NOISY], ids=["greedy", "sampled"])
async def test_the_toy_targets_text_is_that_of_plain_decoding_whatever_the_trees(sampling: SamplingParams) -> None:
    target, draw = opened(sampling, max_length=400), random.Random(5)
    tokens, round_number, num_accepted = list(PROMPT), 0, 0
    while len(tokens) < 150:
        count = draw.randint(0, 20)
        parents = [draw.randint(max(ANCHOR, k - 12), k - 1) for k in range(count)]
        ids = [draw.randrange(12) for _ in range(count)]
        tree = CandidateTree(np.asarray(ids, np.int32), np.asarray(parents, np.int32), np.ones(count, np.float32))
        (result,) = (await ask(target, round_number, len(tokens), tree)).results
        assert [ids[node] for node in result.accepted] == list(result.token_ids[:-1])
        tokens += result.token_ids
        num_accepted += len(result.accepted)
        round_number += 1
    assert tokens[3:] == ToyLaw().continuation(PROMPT, sampling, len(tokens) - 3)
    assert num_accepted > 10


async def test_the_last_round_is_answered_again_and_others_are_stale() -> None:
    target = opened()
    first = await ask(target, 0, 3)
    again = await ask(target, 0, 3)
    assert again.results == first.results
    for round_number, base_length in ((0, 4), (2, 4), (1, 3), (1, 5)):
        report = await ask(target, round_number, base_length)
        assert [failure.error for failure in report.failures] == ["StaleRound"]
    assert (await ask(target, 1, 4)).results[0].round == 1


async def test_an_unknown_session_and_a_bad_tree_are_failures() -> None:
    target = opened(max_length=5)
    assert (await ask(target, 0, 3, CandidateTree.chain([12]))).failures[0].error == "InvalidMessage"
    assert (await ask(target, 0, 3, CandidateTree.chain([1, 2, 3]))).failures[0].error == "InvalidMessage"
    target.close(NAME)
    assert (await ask(target, 0, 3)).failures[0].error == "UnknownSession"


async def test_a_dead_target_says_so_even_to_those_who_wait() -> None:
    target = opened()
    waiting = asyncio.create_task(target.next_report())
    await asyncio.sleep(0)
    target.die()
    for reading in (waiting, target.next_report()):
        with pytest.raises(TargetUnavailable):
            await asyncio.wait_for(reading, 1)


async def test_the_fake_drafter_follows_deltas_and_refuses_gaps() -> None:
    law = ToyLaw()
    drafter = FakeDrafter(law.guess)
    drafter.open(SessionOpen(NAME, PROMPT, GREEDY))
    report = await drafter.draft([DraftRequest(NAME, 5, (7, 8), 3, 4)])
    assert report.results[0].tree.token_ids.tolist() == law.continuation([*PROMPT, 7, 8], GREEDY, 3)
    assert (await drafter.draft([DraftRequest(NAME, 5, (8,), 3, 2)])).results[0].tree.token_ids.tolist() == (
        law.continuation([*PROMPT, 7, 8], GREEDY, 2)
    )
    assert (await drafter.draft([DraftRequest(NAME, 7, (1,), 3, 4)])).failures[0].error == "StaleRound"
    drafter.forget_all()
    assert (await drafter.draft([DraftRequest(NAME, 5, (), 3, 4)])).failures[0].error == "UnknownSession"
    drafter.dead = True
    with pytest.raises(DraftUnavailable):
        await drafter.draft([])


async def test_the_liar_tells_every_kind_of_lie() -> None:
    drafter = LyingDrafter(12, seed=1)
    drafter.open(SessionOpen(NAME, PROMPT, GREEDY))
    seen = set()
    for _ in range(300):
        result = (await drafter.draft([DraftRequest(NAME, 3, (), 4, 4)])).results[0]
        tree = result.tree
        seen.add("wrong length" if result.base_length != 3 else "right length")
        seen.add("chain" if tree.is_chain else "tree")
        if len(set(zip(tree.parents.tolist(), tree.token_ids.tolist(), strict=True))) < len(tree):
            seen.add("equal siblings")
        if len(tree) and tree.depths.max() > 4:
            seen.add("too deep")
        try:
            tree.check(12, 4)
        except InvalidMessage as error:
            seen.add(error.field or "")
    assert seen >= {"wrong length", "right length", "chain", "tree", "equal siblings", "too deep", "tree.token_ids"}


async def test_equal_seeds_tell_equal_lies() -> None:
    async def told() -> list[list[int]]:
        drafter = LyingDrafter(12, seed=4)
        drafter.open(SessionOpen(NAME, PROMPT, GREEDY))
        reports = [await drafter.draft([DraftRequest(NAME, 3, (), 4, 4)]) for _ in range(20)]
        return [report.results[0].tree.token_ids.tolist() for report in reports]

    assert await told() == await told()


async def test_a_fake_pool_counts_its_leases_and_can_be_empty_or_gone() -> None:
    pool = FakePool(opened())
    lease = await pool.acquire(NAME)
    assert lease.card.vocab_size == 12
    assert not lease.lost()
    pool.gone = True
    assert lease.lost()
    await lease.release()
    await lease.release()
    assert (pool.num_acquired, len(pool.leases)) == (1, 0)
    pool.available = False
    with pytest.raises(TargetUnavailable):
        await pool.acquire(NAME)
    with pytest.raises(DraftUnavailable):
        await FakePool(LyingDrafter(12), available=False).acquire(NAME)


async def test_the_toy_targets_features_are_those_of_its_text_and_only_for_who_asked_at_the_opening() -> None:
    target = ToyTarget(ToyLaw())
    target.open(SessionOpen(NAME, PROMPT, GREEDY, features=FeatureSpec("d", (0,))))
    right = ToyLaw().continuation(PROMPT, GREEDY, 3)
    target.submit([VerifyRequest(NAME, 0, 3, CandidateTree.chain(right[:2]), 1)])
    (result,) = (await asyncio.wait_for(target.next_report(), 1)).results
    assert result.features is not None
    assert result.features.values.tolist() == [[token, 1 + k] for k, token in enumerate([2, 3, *right[:2]])]
    target.open(SessionOpen(NAME, PROMPT, GREEDY))
    target.submit([VerifyRequest(NAME, 0, 3, CandidateTree.empty(), 1)])
    assert [failure.error for failure in (await asyncio.wait_for(target.next_report(), 1)).failures] == ["InvalidMessage"]


async def test_a_fake_that_reads_features_refuses_gaps_and_drafts_without_them() -> None:
    drafter = FakeDrafter(ToyLaw().guess, reads_features=True)
    drafter.open(SessionOpen(NAME, PROMPT, GREEDY))
    request = DraftRequest(NAME, 3, (), 2, 2)

    async def errors(features: ContextFeatures | None, depth: int = 2) -> list[str]:
        report = await drafter.draft([replace(request, features=features, max_depth=depth)])
        return [failure.error for failure in report.failures]

    assert await errors(None) == ["StaleRound"]
    assert await errors(toy_features(PROMPT, 1, 2)) == ["StaleRound"]
    assert await errors(toy_features(PROMPT, 0, 1), depth=0) == []
    assert await errors(toy_features(PROMPT, 0, 2)) == []
    assert drafter.num_repeated_rows == 1
