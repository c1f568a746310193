"""BatchVerifier: fences, memory, preemption, and faults that stay with the session they belong to."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from dspark.messages import SessionOpen, VerifyRequest
from dspark.runtime.model import PackedModel
from dspark.runtime.packed import Segment
from dspark.tree import ANCHOR, CandidateTree
from dspark.types import SamplingParams, SessionId
from dspark.verifying.verifier import BatchVerifier
from tests.runtime.tiny_models import VOCAB_SIZE, packed_model, random_prompts
from tests.verifying.rounds import GREEDY, Rounds

NAME = SessionId("0")
PROMPTS = random_prompts((5, 17, 33, 9))
NOISY = [SamplingParams(temperature=1.0, seed=3), GREEDY, SamplingParams(temperature=0.7, top_p=0.9, seed=4, choice=1), GREEDY]


def model_of(num_cache_tokens: int = 1024) -> PackedModel:
    """Deterministic, so that equal really means equal."""
    return packed_model("qwen3", num_cache_tokens=num_cache_tokens, block_tokens=8, deterministic=True)


def verifier_on(model: PackedModel, max_batch_rows: int = 64, max_length: int = 512) -> BatchVerifier:
    return BatchVerifier(model, max_length=max_length, max_batch_rows=max_batch_rows)


def random_tree(draw: random.Random, max_nodes: int) -> CandidateTree:
    count = draw.randint(0, max_nodes)
    parents = [draw.randint(ANCHOR, node - 1) for node in range(count)]
    ids = [draw.randrange(VOCAB_SIZE) for _ in range(count)]
    return CandidateTree(np.asarray(ids, np.int32), np.asarray(parents, np.int32), np.ones(count, np.float32))


def garbage(seed: int, max_nodes: int = 12) -> "Guess":
    return Guess(seed, max_nodes, [])


class Guess:
    """Random trees; where texts are given, with the right continuation hidden in them."""

    def __init__(self, seed: int, max_nodes: int, texts: list[list[int]]) -> None:
        self._draw = random.Random(seed)
        self._max_nodes = max_nodes
        self._texts = texts

    def __call__(self, which: int, output: Sequence[int]) -> CandidateTree:
        tree = random_tree(self._draw, self._max_nodes)
        if not self._texts:
            return tree
        right = self._texts[which][len(output) : len(output) + self._draw.randint(0, 4)]
        ids, parents = tree.token_ids.tolist(), tree.parents.tolist()
        last = ANCHOR
        for token in right:
            ids.append(token)
            parents.append(last)
            last = len(ids) - 1
        return CandidateTree(np.asarray(ids, np.int32), np.asarray(parents, np.int32), np.ones(len(ids), np.float32))


@pytest.fixture(scope="module")
def plain() -> list[list[int]]:
    """40 tokens of each prompt, each session alone and without candidates."""
    alone = [Rounds(verifier_on(model_of()), [p], sampling=s) for p, s in zip(PROMPTS, NOISY, strict=True)]
    return [rounds.run(40)[0] for rounds in alone]


def ask(verifier: BatchVerifier, round_number: int, base_length: int, tree: CandidateTree | None = None) -> None:
    verifier.submit(VerifyRequest(NAME, round_number, base_length, CandidateTree.empty() if tree is None else tree))


def opened(verifier: BatchVerifier, prompt: Sequence[int] = PROMPTS[0]) -> BatchVerifier:
    verifier.open(SessionOpen(NAME, tuple(prompt), GREEDY))
    return verifier


def test_many_rejected_candidates_leave_nothing_behind(plain: list[list[int]]) -> None:
    verifier = verifier_on(model_of())
    rounds = Rounds(verifier, PROMPTS, garbage(1), NOISY)
    assert rounds.run(40) == plain


def test_accepted_branches_of_trees_give_the_same_text_in_fewer_rounds(plain: list[list[int]]) -> None:
    rounds = Rounds(verifier_on(model_of()), PROMPTS, Guess(2, 5, plain), NOISY)
    assert rounds.run(40) == plain
    assert rounds.num_accepted > 60


def test_blocks_hold_the_committed_tokens_only_and_are_free_after_close(plain: list[list[int]]) -> None:
    model = model_of()
    verifier = verifier_on(model)
    rounds = Rounds(verifier, PROMPTS, garbage(3, 40), NOISY)
    for _ in range(15):
        rounds.submit(40)
        report = rounds.step()
        lengths = [len(p) + len(o) for p, o in zip(PROMPTS, rounds.outputs, strict=True)]
        assert model.pool.num_blocks - report.free_kv_blocks <= sum(-(-length // 8) for length in lengths)
    for which in range(len(PROMPTS)):
        verifier.close(SessionId(str(which)))
    assert verifier.num_sessions == 0
    assert model.pool.num_free == model.pool.num_blocks


def test_closing_an_unknown_session_is_nothing_and_opening_again_replaces() -> None:
    model = model_of()
    verifier = opened(verifier_on(model))
    verifier.close(SessionId("nobody"))
    ask(verifier, 0, 5)
    verifier.step()
    opened(verifier, PROMPTS[1])
    assert model.pool.num_free == model.pool.num_blocks
    ask(verifier, 0, 17)
    assert verifier.step().results[0].base_length == 17


def test_the_last_round_is_answered_again_without_another_forward() -> None:
    verifier = opened(verifier_on(model_of()))
    ask(verifier, 0, 5)
    first = verifier.step()
    ask(verifier, 0, 5)
    assert verifier.has_work
    again = verifier.step()
    assert again.results == first.results
    assert again.batch_rows == 0
    ask(verifier, 1, 6)
    assert verifier.step().results[0].round == 1


@pytest.mark.parametrize(("round_number", "base_length"), [(0, 5), (1, 6), (3, 7), (2, 6), (2, 8)])
def test_an_older_or_newer_round_is_stale_and_does_no_harm(round_number: int, base_length: int) -> None:
    verifier = opened(verifier_on(model_of()))
    for number in range(2):
        ask(verifier, number, 5 + number)
        verifier.step()
    if (round_number, base_length) != (1, 6):  # which is the last one
        ask(verifier, round_number, base_length)
        (failure,) = verifier.step().failures
        assert failure.error == "StaleRound"
    ask(verifier, 2, 7)
    assert verifier.step().results[0].round == 2


def test_a_session_that_nobody_opened_is_unknown() -> None:
    verifier = verifier_on(model_of())
    ask(verifier, 0, 5)
    assert verifier.has_work
    assert [f.error for f in verifier.step().failures] == ["UnknownSession"]
    assert not verifier.has_work


def test_a_tree_past_the_models_length_is_refused_and_a_smaller_one_is_not() -> None:
    verifier = opened(verifier_on(model_of(), max_length=8))
    ask(verifier, 0, 5, CandidateTree.chain([1, 2, 3, 4]))
    assert [f.error for f in verifier.step().failures] == ["InvalidMessage"]
    ask(verifier, 0, 5, CandidateTree.chain([1, 2, 3]))
    assert len(verifier.step().results) == 1


@pytest.mark.parametrize("pool_tokens", [96, 120, 160])
def test_a_tiny_cache_preempts_and_recomputes_and_gives_the_same_text(plain: list[list[int]], pool_tokens: int) -> None:
    """Four sessions of up to 73 tokens and their candidates, in a cache that holds little more than one."""
    model = model_of(pool_tokens)
    rounds = Rounds(verifier_on(model, max_batch_rows=24), PROMPTS, Guess(4, 6, plain), NOISY)
    assert rounds.run(40) == plain
    assert rounds.failures == {}
    assert model.pool.num_free == model.pool.num_blocks
    assert min(report.free_kv_blocks for report in rounds.reports) <= 2, "there was pressure"


def test_a_session_preempted_in_the_step_that_had_promised_it_rows_waits_for_the_next() -> None:
    """Six blocks of 8: the oldest holds one, the second four, the youngest one, and all wait. The oldest needs two more."""
    prompts = random_prompts((8, 32, 3), seed=1)
    calm = Rounds(verifier_on(model_of()), prompts)
    calm.run(4)
    rounds = Rounds(verifier_on(model_of(48), max_batch_rows=64), prompts)
    rounds.submit(1)
    rounds.step()
    tokens = [len(prompt) + 1 for prompt in prompts]
    sent = {0: CandidateTree.chain([5] * 15), 1: CandidateTree.empty(), 2: CandidateTree.chain([6] * 7)}
    for which, tree in sent.items():
        rounds._verifier.submit(VerifyRequest(SessionId(str(which)), 1, tokens[which], tree))
    first = rounds.step()
    assert [result.session_id for result in first.results] == ["0"]
    later = [result.session_id for _ in range(4) for result in rounds.step().results]
    assert later == ["1", "2"] or later == ["2", "1"]
    assert rounds.failures == {}
    for which in range(3):
        assert rounds.outputs[which] == calm.outputs[which][: len(rounds.outputs[which])]


def test_a_session_larger_than_the_cache_fails_alone() -> None:
    model = model_of(64)
    long = random_prompts((90,), seed=9)[0]
    rounds = Rounds(verifier_on(model), [PROMPTS[0], long, PROMPTS[3]])
    outputs = rounds.run(20)
    assert rounds.failures[1].error == "OutOfBlocks"
    assert set(rounds.failures) == {1}
    apart = [Rounds(verifier_on(model_of()), [PROMPTS[which]]).run(20)[0] for which in (0, 3)]
    assert [outputs[0], outputs[2]] == apart
    assert model.pool.num_free == model.pool.num_blocks


class Poisoned:
    """A model whose forward goes wrong for one session: whoever has a row of token `victim`."""

    def __init__(self, model: PackedModel, victim: int, error: Exception | None) -> None:
        self._model = model
        self._victim = victim
        self._error = error
        self.armed = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def forward(self, segments: list[Segment]) -> torch.Tensor:
        logits = self._model.forward(segments)
        if not self.armed:
            return logits
        start = 0
        for segment in segments:
            if self._victim in segment.token_ids:
                if self._error is not None:
                    raise self._error
                logits[start : start + segment.num_logits] = float("nan")
            start += segment.num_logits
        return logits


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (None, "RuntimeError"),
        (RuntimeError("CUDA error at 0x7f00"), "RuntimeError"),
        (IndexError("index out of range in self"), "IndexError"),
        (ValueError("secret/path"), "ValueError"),
    ],
    ids=["nan", "runtime", "index", "value"],
)
@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(top_k=20, top_p=0.9, min_p=0.01, seed=2)], ids=["greedy", "sampled"])
def test_a_fault_in_one_sessions_forward_fails_only_that_session(error: Exception | None, named: str, sampling: SamplingParams) -> None:
    prompts = [[7, 8, 9], [10, 11, 12], *random_prompts((40,))]
    healthy = Rounds(verifier_on(model_of(), max_batch_rows=16), prompts, sampling=sampling).run(12)
    victim = next(token for token in range(VOCAB_SIZE) if not any(token in (*p, *o) for p, o in zip(prompts, healthy, strict=True)))
    model = Poisoned(model_of(), victim, error)
    rounds = Rounds(
        verifier_on(model, max_batch_rows=16),  # type: ignore[arg-type]
        prompts,
        lambda which, output: CandidateTree.chain([victim] if which == 1 and len(output) > 3 else []),
        sampling,
    )
    model.armed = True
    outputs = rounds.run(12)
    assert set(rounds.failures) == {1}
    assert (outputs[0], outputs[2]) == (healthy[0], healthy[2])
    assert outputs[1] == healthy[1][: len(outputs[1])]
    failure = rounds.failures[1]
    assert failure.error == "DSparkError"
    assert named in failure.message
    assert "0x7f00" not in failure.message
    assert "secret" not in failure.message
    assert model._model.pool.num_free == model._model.pool.num_blocks


def test_ids_outside_the_vocabulary_fail_only_their_session() -> None:
    """The wire checks them, a caller in the same process may not have."""
    verifier = opened(verifier_on(model_of()))
    verifier.open(SessionOpen(SessionId("1"), (5, 6), GREEDY))
    ask(verifier, 0, 5, CandidateTree.chain([VOCAB_SIZE]))
    verifier.submit(VerifyRequest(SessionId("1"), 0, 2, CandidateTree.empty()))
    report = verifier.step()
    assert [failure.session_id for failure in report.failures] == [NAME]
    assert [result.session_id for result in report.results] == [SessionId("1")]


def test_a_session_between_rounds_gives_its_blocks_to_one_that_waits() -> None:
    """Whoever is older: a client that reads slowly must not hold up the others."""
    prompts = random_prompts((40, 30), seed=5)
    verifier = verifier_on(model_of(48), max_batch_rows=64)  # six blocks: the older prompt takes them all
    older = Rounds(verifier, prompts[:1])
    calm = Rounds(verifier_on(model_of()), prompts)
    expected = calm.run(3)
    older.submit(3)
    older.step()
    verifier.open(SessionOpen(SessionId("young"), tuple(prompts[1]), GREEDY))
    verifier.submit(VerifyRequest(SessionId("young"), 0, len(prompts[1]), CandidateTree.empty()))
    report = verifier.step()
    assert [result.session_id for result in report.results] == ["young"], "the older one is idle"
    assert list(report.results[0].token_ids) == expected[1][:1]
    verifier.close(SessionId("young"))
    assert older.run(3)[0] == expected[0]
