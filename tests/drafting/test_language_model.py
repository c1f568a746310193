"""The language-model drafter: the chain that step-by-step decoding gives, alone or in a batch, whatever was rejected before."""

import asyncio
import random

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dspark.drafting.drafter import ThreadedDrafter
from dspark.drafting.language_model import BatchDrafter
from dspark.errors import DraftUnavailable
from dspark.messages import DraftReport, DraftRequest, SessionOpen
from dspark.runtime.model import PackedModel
from dspark.sampling import RowSampling, Sampler
from dspark.scheduling.signals import NodeSignals
from dspark.types import SamplingParams, SessionId
from tests.runtime.tiny_models import packed_model, plain_logits, random_prompts

GREEDY = SamplingParams(temperature=0.0)
NOISY = SamplingParams(temperature=0.9, top_k=30, top_p=0.95, seed=12, choice=1)
DEPTH = 5
A, B, C = (SessionId(name) for name in "abc")


def model_of(num_cache_tokens: int = 1024) -> PackedModel:
    return packed_model("qwen3", num_cache_tokens=num_cache_tokens, deterministic=True)


def drafter_of(num_cache_tokens: int = 1024, max_length: int = 512, max_batch_rows: int = 512) -> BatchDrafter:
    return BatchDrafter(model_of(num_cache_tokens), max_length=max_length, max_batch_rows=max_batch_rows)


def step_by_step(tokens: list[int], sampling: SamplingParams, depth: int) -> list[int]:
    """The plain transformers model and one choice at a time."""
    sampler = Sampler(plain_logits("qwen3", [3]).shape[-1], torch.device("cpu"))
    chain: list[int] = []
    for _ in range(depth):
        logits = plain_logits("qwen3", tokens + chain)[-1:]
        chain.append(int(sampler.choose(logits, [RowSampling(sampling, len(tokens) + len(chain))])))
    return chain


@pytest.mark.parametrize("sampling", [GREEDY, NOISY], ids=["greedy", "sampled"])
def test_a_tree_is_what_the_plain_model_says_on_every_path(sampling: SamplingParams) -> None:
    drafter, tokens = drafter_of(), random_prompts((12,))[0]
    sampler = Sampler(drafter._model.vocab_size, torch.device("cpu"))
    opened(drafter, A, tokens, sampling)
    for _ in range(2):  # the second time much is cached
        tree = drafter.draft([DraftRequest(A, len(tokens), (), 4, 12, max_width=3)]).results[0].tree
        assert (len(tree), tree.is_chain) == (12, False)
        for parent in range(-1, len(tree)):
            children = [node for node in range(len(tree)) if tree.parents[node] == parent]
            path = [] if parent < 0 else tree.token_ids[tree.path(parent)].tolist()
            logits = plain_logits("qwen3", tokens + path)[-1:]
            best = sampler.noised_scores(logits, [RowSampling(sampling, len(tokens) + len(path))])[0].topk(3).indices.tolist()
            assert {int(tree.token_ids[node]) for node in children} == set(best[: len(children)])


def opened(drafter: BatchDrafter, session_id: SessionId, tokens: list[int], sampling: SamplingParams = GREEDY) -> None:
    drafter.open(SessionOpen(session_id, tuple(tokens), sampling))


def chain_of(report: DraftReport, index: int = 0) -> list[int]:
    assert report.failures == ()
    return report.results[index].tree.token_ids.tolist()


def ask(
    drafter: BatchDrafter, session_id: SessionId, base: int, new: list[int] | None = None, depth: int = DEPTH, nodes: int = 64
) -> DraftReport:
    return drafter.draft([DraftRequest(session_id, base, tuple(new or ()), depth, nodes)])


@pytest.mark.parametrize("sampling", [GREEDY, NOISY], ids=["greedy", "sampled"])
@pytest.mark.parametrize("length", [1, 7, 40])
def test_a_chain_is_what_the_plain_model_chooses_step_by_step(sampling: SamplingParams, length: int) -> None:
    tokens = random_prompts((length,))[0]
    drafter = drafter_of(max_batch_rows=16)  # the longest prompt comes in chunks
    opened(drafter, A, tokens, sampling)
    report = ask(drafter, A, length)
    assert chain_of(report) == step_by_step(tokens, sampling, DEPTH)
    tree = report.results[0].tree
    assert tree.is_chain
    scores = tree.scores.tolist()
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[-1] <= scores[0] < 1


class SurpriseLater:
    """Two first candidates are worth growing on, but of the second one nothing stays in the end."""

    def conditional(self, signals: NodeSignals) -> NDArray[np.float32]:
        later = np.where(signals.ranks == 0, 0.99, 0.01)
        return np.where(signals.depths == 1, np.asarray((0.6, 0.55))[signals.ranks], later).astype(np.float32)


def test_a_chain_that_was_a_tree_while_it_grew_is_not_taken_for_what_was_run() -> None:
    tokens = random_prompts((12,))[0]
    drafter = BatchDrafter(model_of(), max_length=512, max_batch_rows=512, estimator=SurpriseLater())
    opened(drafter, A, tokens)
    report = drafter.draft([DraftRequest(A, 12, (), 3, 3, max_width=2)])
    chain = chain_of(report)
    assert report.results[0].tree.is_chain
    assert len(chain) == 3
    assert chain_of(ask(drafter, A, 15, chain)) == step_by_step(tokens + chain, GREEDY, DEPTH)


def test_depth_and_nodes_bound_the_chain_and_depth_zero_only_reads() -> None:
    tokens = random_prompts((12,))[0]
    drafter = drafter_of()
    opened(drafter, A, tokens)
    assert chain_of(ask(drafter, A, 12, depth=0)) == []
    assert chain_of(ask(drafter, A, 12, depth=4, nodes=2)) == step_by_step(tokens, GREEDY, 2)


def test_the_models_length_bounds_the_chain() -> None:
    tokens = random_prompts((12,))[0]
    drafter = drafter_of(max_length=14)
    opened(drafter, A, tokens)
    assert len(chain_of(ask(drafter, A, 12))) == 2
    assert chain_of(ask(drafter, A, 14, [5, 6])) == []
    assert [failure.error for failure in ask(drafter, A, 15, [7]).failures] == ["OutOfBlocks"]


def test_a_batch_of_sessions_gives_each_what_it_gets_alone() -> None:
    prompts = random_prompts((3, 25, 11))
    params = [GREEDY, NOISY, SamplingParams(seed=1)]
    depths = [5, 2, 0]
    together = drafter_of()
    for name, prompt, sampling in zip((A, B, C), prompts, params, strict=True):
        opened(together, name, prompt, sampling)
    requests = [DraftRequest(n, len(p), (), d, 9) for n, p, d in zip((A, B, C), prompts, depths, strict=True)]
    report = together.draft(requests)
    for index, (name, prompt, sampling) in enumerate(zip((A, B, C), prompts, params, strict=True)):
        alone = drafter_of()
        opened(alone, name, prompt, sampling)
        single = ask(alone, name, len(prompt), depth=depths[index])
        assert chain_of(report, index) == chain_of(single)
        assert report.results[index].tree.scores.tolist() == single.results[0].tree.scores.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_after_any_rejections_the_drafter_says_what_a_fresh_one_says(seed: int) -> None:
    """Rounds that keep none, some or all of the last draft, with a right or a wrong token after it, and repeated deltas."""
    draw = random.Random(seed)
    tokens = random_prompts((9,), seed=seed + 1)[0]
    drafter = drafter_of()
    opened(drafter, A, tokens, NOISY)
    known = len(tokens)
    for _ in range(12):
        overlap = draw.randint(0, 3)
        start = max(0, known - overlap)
        report = ask(drafter, A, len(tokens), tokens[start:])
        fresh = drafter_of()
        opened(fresh, A, tokens, NOISY)
        assert chain_of(report) == chain_of(ask(fresh, A, len(tokens)))
        assert report.results[0].base_length == len(tokens)
        known = len(tokens)
        tokens = [*tokens, *chain_of(report)[: draw.randint(0, DEPTH)], draw.randrange(96)]


def test_a_round_after_an_accepted_chain_runs_only_the_rows_it_never_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = random_prompts((30,))[0]
    model = model_of()
    drafter = BatchDrafter(model, max_length=512)
    opened(drafter, A, tokens)
    chain = chain_of(ask(drafter, A, 30))
    rows: list[int] = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda segments: rows.append(sum(len(s.token_ids) for s in segments)) or forward(segments))
    ask(drafter, A, 36, [*chain, 7])
    assert rows == [2, 1, 1, 1, 1], "the last drafted token was never run, and the bonus is new"


def test_unknown_sessions_and_stale_deltas_fail_alone() -> None:
    drafter = drafter_of()
    prompt = random_prompts((6,))[0]
    opened(drafter, A, prompt)
    opened(drafter, B, prompt)
    report = drafter.draft([DraftRequest(C, 6, (), 3, 3), DraftRequest(A, 9, (1,), 3, 3), DraftRequest(B, 6, (), 3, 3)])
    assert {failure.session_id: failure.error for failure in report.failures} == {C: "UnknownSession", A: "StaleRound"}
    (result,) = report.results
    assert result.tree.token_ids.tolist() == step_by_step(prompt, GREEDY, 3)
    assert chain_of(ask(drafter, A, 6)) == step_by_step(prompt, GREEDY, DEPTH), "a stale delta changed nothing"


def test_a_closed_session_gives_its_blocks_back_and_a_second_open_replaces() -> None:
    model = model_of()
    drafter = BatchDrafter(model, max_length=512)
    first, second = random_prompts((20, 6))
    opened(drafter, A, first)
    ask(drafter, A, 20)
    assert model.pool.num_free < model.pool.num_blocks
    opened(drafter, A, second)
    assert chain_of(ask(drafter, A, 6)) == step_by_step(second, GREEDY, DEPTH)
    drafter.close(A)
    drafter.close(A)
    assert model.pool.num_free == model.pool.num_blocks
    assert drafter.num_sessions == 0


def test_a_tiny_cache_evicts_the_least_recently_used_session_and_it_comes_back() -> None:
    """Six blocks of 8, three sessions of two blocks and a little more."""
    drafter = drafter_of(num_cache_tokens=48)
    prompts = dict(zip((A, B, C), random_prompts((12, 12, 12)), strict=True))
    right = {name: step_by_step(prompt, GREEDY, 3) for name, prompt in prompts.items()}
    for name, prompt in prompts.items():
        opened(drafter, name, prompt)
        assert chain_of(ask(drafter, name, 12, depth=3)) == right[name]
    assert chain_of(ask(drafter, A, 12, depth=3)) == right[A]  # now B is the one that was used longest ago
    longer = [*prompts[C], *right[C], 5]
    ask(drafter, C, 16, longer[12:], depth=3)
    blocks = {name: len(session.table.blocks) for name, session in drafter._sessions.items()}
    assert blocks == {A: 2, B: 0, C: 3}
    assert chain_of(ask(drafter, B, 12, depth=3)) == right[B]
    assert len(drafter._sessions[A].table.blocks) == 0


def test_sessions_of_one_batch_do_not_evict_each_other() -> None:
    drafter = drafter_of(num_cache_tokens=32)
    prompts = dict(zip((A, B, C), random_prompts((12, 12, 12)), strict=True))
    for name, prompt in prompts.items():
        opened(drafter, name, prompt)
    report = drafter.draft([DraftRequest(name, 12, (), 3, 3) for name in (A, B, C)])
    assert [result.session_id for result in report.results] == [A, B]
    assert [(failure.session_id, failure.error) for failure in report.failures] == [(C, "OutOfBlocks")]
    for result in report.results:
        assert result.tree.token_ids.tolist() == step_by_step(prompts[result.session_id], GREEDY, 3)


async def test_calls_that_wait_together_share_their_forwards_and_get_their_own_shares() -> None:
    drafter = drafter_of()
    threaded = ThreadedDrafter(drafter)
    prompts = dict(zip((A, B), random_prompts((6, 9)), strict=True))
    for name, prompt in prompts.items():
        threaded.open(SessionOpen(name, tuple(prompt), GREEDY))
    calls = [[DraftRequest(A, 6, (), 2, 2)], [DraftRequest(B, 9, (), 3, 3), DraftRequest(C, 1, (), 1, 1)]]
    first, second = await asyncio.gather(*(threaded.draft(call) for call in calls))
    assert chain_of(first) == step_by_step(prompts[A], GREEDY, 2)
    assert second.results[0].tree.token_ids.tolist() == step_by_step(prompts[B], GREEDY, 3)
    assert [failure.session_id for failure in second.failures] == [C]
    assert drafter._clock == 1, "one batch"
    threaded.close(A)
    await threaded.stop()
    assert threaded.num_sessions == 1
    threaded.close(B)
    with pytest.raises(DraftUnavailable):
        await threaded.draft(calls[0])


async def test_opening_a_session_on_a_stopped_drafter_is_no_error() -> None:
    """A router may be about to open one when the drafter ends; its next draft is told."""
    threaded = ThreadedDrafter(drafter_of())
    await threaded.stop()
    threaded.open(SessionOpen(A, (1, 2), GREEDY))
    with pytest.raises(DraftUnavailable):
        await threaded.draft([DraftRequest(A, 2, (), 1, 1)])


async def test_a_failing_forward_is_a_failure_of_its_rounds_and_the_drafter_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    threaded = ThreadedDrafter(BatchDrafter(model, max_length=512))
    threaded.open(SessionOpen(A, (5, 6), GREEDY))

    def broken(segments: object) -> torch.Tensor:
        raise RuntimeError("out of memory at 0x7f00")

    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", broken)
        report = await threaded.draft([DraftRequest(A, 2, (), 2, 2)])
    assert report.results == ()
    (failure,) = report.failures
    assert failure.error == "DSparkError"
    assert "0x7f00" not in failure.message
    assert chain_of(await threaded.draft([DraftRequest(A, 2, (), 2, 2)])) == step_by_step([5, 6], GREEDY, 2)
    await threaded.stop()
