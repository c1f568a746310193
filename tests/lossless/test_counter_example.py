"""The paper's counter-example (its appendix A): pruning with hindsight biases rejection sampling, and cannot bias the shared-noise law.

Vocabulary {A, B}; target_probs (0.7, 0.3); draft_probs of the first token (0.5, 0.5), so a_1 = sum of minima = 0.8; SPS of 1, 2
and 3 rows = 1.0, 0.5, 0.45. The tokens that the appendix leaves open: after A the drafter drafts as the target does (c_2 = 1),
after B it always drafts B (c_2 = 0.3). All confidences are true, and still

    after A  a_2 = 0.80   rates 1, 0.90, (1 + 0.8 + 0.80) 0.45 = 1.170   both candidates are verified
    after B  a_2 = 0.24   rates 1, 0.90, (1 + 0.8 + 0.24) 0.45 = 0.918   none is

Whether x_1 is verified so depends on x_1. The scheduler in both laws is the project's own planner.
"""

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from random import Random

import numpy as np
import pytest
import torch

from dspark.acceptance import walk
from dspark.sampling import RowSampling, Sampler
from dspark.scheduling.costs import RoundCosts
from dspark.scheduling.planner import plan
from dspark.tree import CandidateTree
from dspark.types import SamplingParams, SessionId
from tests.test_sampling import p_value

Law = tuple[Fraction, Fraction]
"""Probabilities of A and of B."""
Scheduler = Callable[[tuple[int, int]], int]
"""Drafted tokens -> how many of them are verified."""
A, B = 0, 1
TARGET: Law = (Fraction(7, 10), Fraction(3, 10))
FIRST_DRAFT: Law = (Fraction(1, 2), Fraction(1, 2))
SECOND_DRAFT: dict[int, Law] = {A: TARGET, B: (Fraction(0), Fraction(1))}
COSTS = RoundCosts(np.asarray([0.0, 1e3 / 1.0, 1e3 / 0.5, 1e3 / 0.45]))
SESSION = SessionId("s")

SEED = 20261125
DRAWS = 6_000
ALARM = 1e-6
"""False-alarm chance of a chi-square test; the seeds are fixed, so a run never flickers."""


def overlap(draft_probs: Law, target_probs: Law = TARGET) -> Fraction:
    """1 - TV: the chance that rejection sampling accepts."""
    return sum((min(d, t) for d, t in zip(draft_probs, target_probs, strict=True)), Fraction(0))


@cache
def hindsight(tokens: tuple[int, int]) -> int:
    """How many candidates of a drafted chain the naive scheduler verifies: it looks at the survival of what WAS drafted."""
    first = overlap(FIRST_DRAFT)
    survival = [float(first), float(first * overlap(SECOND_DRAFT[tokens[0]]))]
    return len(plan({SESSION: CandidateTree.chain(list(tokens), survival)}, 3, COSTS).kept[SESSION])


def first_drop(tokens: tuple[int, int]) -> int:
    """The paper's cure: stop at the first fall of the rate. The second candidate's rate is below the first's here, whatever was drafted."""
    survival = float(overlap(FIRST_DRAFT))
    rates = [1e3 / COSTS.step_of(1), 1e3 * (1 + survival) / COSTS.step_of(2)]
    assert rates[1] < rates[0]
    return 0


def everything(tokens: tuple[int, int]) -> int:
    """No selection."""
    return 2


def residual() -> Law:
    """What rejection sampling draws from after a rejected first token."""
    left = [max(Fraction(0), t - d) for t, d in zip(TARGET, FIRST_DRAFT, strict=True)]
    return left[A] / sum(left), left[B] / sum(left)


def first_token_law(scheduler: Scheduler) -> Law:
    """Exactly, of rejection sampling: over all drafts, verdicts and draws, the chance that the first committed token is A, or B."""
    chance = [Fraction(0), Fraction(0)]
    for x1 in (A, B):
        for x2 in (A, B):
            drafted = FIRST_DRAFT[x1] * SECOND_DRAFT[x1][x2]
            if scheduler((x1, x2)) == 0:  # the step has the anchor's row only: a plain sample
                accepted, otherwise = Fraction(0), TARGET
            else:
                accepted, otherwise = min(Fraction(1), TARGET[x1] / FIRST_DRAFT[x1]), residual()
            chance[x1] += drafted * accepted
            for token in (A, B):
                chance[token] += drafted * (1 - accepted) * otherwise[token]
    return chance[A], chance[B]


def rejection_counts(scheduler: Scheduler) -> list[int]:
    """The same law by throwing dice: how often the first committed token was A, and B."""
    rng = Random(SEED)

    def draw(law: Law) -> int:
        return A if rng.random() < float(law[A]) else B

    counts = Counter({A: 0, B: 0})
    for _ in range(DRAWS):
        x1 = draw(FIRST_DRAFT)
        x2 = draw(SECOND_DRAFT[x1])
        if scheduler((x1, x2)) == 0:
            counts[draw(TARGET)] += 1
        elif rng.random() < float(TARGET[x1] / FIRST_DRAFT[x1]):
            counts[x1] += 1
        else:
            counts[draw(residual())] += 1
    return [counts[A], counts[B]]


def test_the_example_is_the_papers() -> None:
    assert overlap(FIRST_DRAFT) == Fraction(8, 10)
    assert [1e3 / COSTS.step_of(rows) for rows in (1, 2, 3)] == pytest.approx([1.0, 0.5, 0.45])
    assert {tokens: hindsight(tokens) for tokens in ((A, A), (A, B), (B, B))} == {(A, A): 2, (A, B): 2, (B, B): 0}


def test_rejection_sampling_with_hindsight_puts_out_another_law_than_the_targets() -> None:
    """x_1 = A is always accepted: 1/2. x_1 = B is always dropped, and a plain sample comes instead: 1/2 (0.7, 0.3)."""
    assert first_token_law(hindsight) == (Fraction(85, 100), Fraction(15, 100))


@pytest.mark.parametrize("scheduler", [everything, first_drop])
def test_without_hindsight_the_model_of_rejection_sampling_is_right(scheduler: Scheduler) -> None:
    assert first_token_law(scheduler) == TARGET
    assert p_value(rejection_counts(scheduler), [float(chance) for chance in TARGET]) > ALARM


def test_the_chi_square_test_catches_the_bias() -> None:
    """6 000 draws, seed 20261125; a lawful sampler would fail with chance 1e-6."""
    counts = rejection_counts(hindsight)
    assert p_value(counts, [float(chance) for chance in TARGET]) < ALARM
    assert p_value(counts, [0.85, 0.15]) > ALARM, "what the enumeration says"


def test_the_same_hindsight_leaves_the_shared_noise_law_the_targets() -> None:
    """6 000 seeds from 20261125 on; false-alarm chance 1e-6. And every single token is that of plain decoding."""
    laws = torch.tensor([[float(chance) for chance in law] for law in (TARGET, FIRST_DRAFT, SECOND_DRAFT[A], SECOND_DRAFT[B])])
    rows = [RowSampling(SamplingParams(seed=SEED + draw), position) for draw in range(DRAWS) for position in (1, 2, 3)]
    sampler = Sampler(2, torch.device("cpu"))
    chosen = [sampler.choose(law.log().expand(len(rows), 2), rows).view(DRAWS, 3).tolist() for law in laws]
    firsts, verified = Counter({A: 0, B: 0}), Counter[tuple[int, int]]()
    for plain, first_draft, after_a, after_b in zip(*chosen, strict=True):  # each the tokens at positions 1, 2, 3
        x1 = first_draft[0]
        x2 = (after_a, after_b)[x1][1]
        kept = hindsight((x1, x2))
        tree = CandidateTree.chain([x1, x2]).select(list(range(kept)))
        committed = walk(tree, plain[: 1 + kept]).token_ids
        assert list(committed) == plain[: len(committed)]
        firsts[committed[0]] += 1
        verified[x1, kept] += 1
    assert set(verified) == {(A, 2), (B, 0)}, "the scheduler has looked"
    assert p_value([firsts[A], firsts[B]], [float(chance) for chance in TARGET]) > ALARM
    assert p_value([firsts[A], firsts[B]], [0.85, 0.15]) < ALARM
