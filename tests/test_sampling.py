"""Sampling: the filters are those of transformers, the noise makes true samples, and rows do not see each other."""

import itertools
import math

import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from dspark.noise import NoiseKey, gumbel_noise
from dspark.sampling import RowSampling, Sampler, process_logits
from dspark.types import SamplingParams

CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0.0)
SEED = 20240608


def logits_of(seed: int, *shape: int) -> torch.Tensor:
    return 3.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_transformers_does(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """One row through the warpers of transformers, in their usual order."""
    scores = TemperatureLogitsWarper(params.temperature)(None, logits[None])
    if params.top_k:
        scores = TopKLogitsWarper(min(params.top_k, logits.shape[-1]))(None, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(None, scores)
    if params.min_p > 0:
        scores = MinPLogitsWarper(params.min_p)(None, scores)
    return scores[0]


GRID = [
    SamplingParams(temperature=t, top_k=k, top_p=p, min_p=m)
    for t, k, p, m in itertools.product((0.3, 1.0, 1.7), (0, 1, 5, 40, 500), (1.0, 0.9, 0.3, 1e-6), (0.0, 0.05, 0.6, 1.0))
]


@pytest.mark.parametrize("seed", range(4))
def test_the_filters_of_mixed_rows_equal_those_of_transformers(seed: int) -> None:
    logits = logits_of(seed, len(GRID), 97)
    ours = process_logits(logits, GRID)
    for row, params in enumerate(GRID):
        theirs = as_transformers_does(logits[row], params)
        assert torch.equal(ours[row].isinf(), theirs.isinf()), params
        torch.testing.assert_close(ours[row].log_softmax(-1), theirs.log_softmax(-1), atol=1e-5, rtol=1e-5)


def test_a_row_is_processed_the_same_alone_and_beside_others() -> None:
    logits = logits_of(7, len(GRID), 97).float()
    together = process_logits(logits, GRID)
    for row, params in enumerate(GRID):
        assert torch.equal(together[row], process_logits(logits[row : row + 1], [params])[0])


def test_processing_leaves_its_input_alone() -> None:
    logits = logits_of(8, 2, 11).float()
    before = logits.clone()
    process_logits(logits, [SamplingParams(), SamplingParams(top_k=1, top_p=0.1, min_p=0.9)])
    Sampler(11, CPU).choose(logits, [RowSampling(SamplingParams(seed=3), 1), RowSampling(GREEDY, 1)])
    assert torch.equal(logits, before)


def test_at_least_one_token_remains_however_narrow_the_filters() -> None:
    narrow = SamplingParams(temperature=0.01, top_k=1, top_p=1e-9, min_p=1.0)
    logits = logits_of(9, 50, 31)
    kept = torch.isfinite(process_logits(logits, [narrow] * 50))
    assert bool((kept.sum(-1) == 1).all())
    assert torch.equal(kept.int().argmax(-1), logits.argmax(-1))


def test_equal_logits_under_top_k_both_stay() -> None:
    kept = torch.isfinite(process_logits(torch.tensor([[1.0, 2.0, 2.0, 0.0]]), [SamplingParams(top_k=1)]))
    assert kept.tolist() == [[False, True, True, False]]


def test_greedy_is_the_argmax_and_ignores_seed_choice_and_position() -> None:
    logits = logits_of(10, 1, 64).float().expand(60, 64)
    rows = [RowSampling(SamplingParams(temperature=0.0, seed=seed, choice=seed % 3), seed) for seed in range(60)]
    assert set(Sampler(64, CPU).choose(logits, rows).tolist()) == {int(logits[0].argmax())}


def test_the_token_is_the_argmax_of_processed_logits_and_shared_noise() -> None:
    params = SamplingParams(temperature=0.8, top_k=20, seed=5, choice=2)
    logits = logits_of(11, 30, 64).float()
    rows = [RowSampling(params, position) for position in range(100, 130)]
    noise = gumbel_noise([NoiseKey(5, 2, position) for position in range(100, 130)], 64, CPU)
    expected = (process_logits(logits, [params] * 30) + noise).argmax(-1)
    assert torch.equal(Sampler(64, CPU).choose(logits, rows), expected)


def test_greedy_and_sampled_rows_side_by_side_are_each_what_they_are_alone() -> None:
    kinds = [GREEDY, SamplingParams(seed=1), SamplingParams(temperature=0.5, top_p=0.8, seed=1), SamplingParams(temperature=0.0, seed=9)]
    logits = logits_of(12, 40, 50).float()
    rows = [RowSampling(kinds[i % 4], i) for i in range(40)]
    together = Sampler(50, CPU).choose(logits, rows)
    alone = torch.cat([Sampler(50, CPU).choose(logits[i : i + 1], rows[i : i + 1]) for i in range(40)])
    assert torch.equal(together, alone)
    assert torch.equal(together[0::4], logits[0::4].argmax(-1))


def test_the_gap_is_the_lead_of_the_best_noised_score() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.5]])
    choice = Sampler(3, CPU).choose_with_gaps(logits, [RowSampling(GREEDY, 0)])
    assert choice.token_ids.tolist() == [1]
    assert choice.gaps.tolist() == [0.5]
    rows = [RowSampling(SamplingParams(seed=3), 4)]
    best, second = sorted(Sampler(3, CPU).noised_scores(logits, rows)[0].tolist(), reverse=True)[:2]
    assert Sampler(3, CPU).choose_with_gaps(logits, rows).gaps.item() == pytest.approx(best - second)


DRAWS = 30_000
CASES = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.5),
    SamplingParams(temperature=1.6),
    SamplingParams(temperature=1.0, top_k=4),
    SamplingParams(temperature=1.0, top_p=0.8),
    SamplingParams(temperature=1.3, min_p=0.1),
    SamplingParams(temperature=0.9, top_k=7, top_p=0.9),
    SamplingParams(temperature=1.2, top_k=8, top_p=0.95, min_p=0.05),
]
ALARM = 1e-6 / len(CASES)
"""Bonferroni: all cases together raise a false alarm with chance 1e-6. One fixed seed, so a run never flickers."""


def exact_probabilities(logits: list[float], params: SamplingParams) -> list[float]:
    """The distribution by its definition, in plain Python."""
    kept = {token: math.exp(value / params.temperature) for token, value in enumerate(logits)}
    ranked = sorted(kept, key=lambda token: -kept[token])
    if params.top_k:
        ranked = ranked[: params.top_k]
    total = sum(kept[token] for token in ranked)
    nucleus, mass = [], 0.0
    for token in ranked:
        if mass >= params.top_p * total and nucleus:
            break
        nucleus.append(token)
        mass += kept[token]
    nucleus = [token for token in nucleus if kept[token] >= params.min_p * kept[nucleus[0]]]
    total = sum(kept[token] for token in nucleus)
    return [kept[token] / total if token in nucleus else 0.0 for token in range(len(logits))]


def p_value(counts: list[int], probabilities: list[float]) -> float:
    """Pearson's chi-square test; a token of probability 0 that was drawn is certain evidence."""
    cells = [(count, probability) for count, probability in zip(counts, probabilities, strict=True) if probability > 0]
    if sum(count for count, _ in cells) < sum(counts):
        return 0.0
    n = sum(counts)
    statistic = sum((count - n * p) ** 2 / (n * p) for count, p in cells)
    degrees = torch.tensor((len(cells) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(degrees, torch.tensor(statistic / 2, dtype=torch.float64)))


def draw_counts(logits: torch.Tensor, params: SamplingParams, seed: int) -> list[int]:
    """Half of the draws from one seed along positions, half from neighbouring seeds at one position."""
    fields = {name: getattr(params, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    along = [RowSampling(SamplingParams(**fields, seed=seed), position) for position in range(DRAWS // 2)]
    across = [RowSampling(SamplingParams(**fields, seed=seed + 1 + draw), 77) for draw in range(DRAWS // 2)]
    tokens = Sampler(logits.shape[-1], CPU).choose(logits.expand(DRAWS, -1), along + across)
    return torch.bincount(tokens, minlength=logits.shape[-1]).tolist()


@pytest.mark.parametrize("case", range(len(CASES)))
def test_sampled_tokens_follow_the_exact_distribution(case: int) -> None:
    """240 000 draws over all cases, vocabulary of 12, seed 20240608; false-alarm chance of the whole set 1e-6."""
    logits = 1.2 * torch.randn(12, generator=torch.Generator().manual_seed(SEED + case))
    counts = draw_counts(logits, CASES[case], SEED + 1_000_000 * case)
    assert p_value(counts, exact_probabilities(logits.tolist(), CASES[case])) > ALARM


def test_the_chi_square_test_would_see_a_wrong_temperature() -> None:
    """Power: the same draws do not pass as those of a distribution ten per cent hotter."""
    logits = 1.2 * torch.randn(12, generator=torch.Generator().manual_seed(SEED))
    counts = draw_counts(logits, CASES[0], SEED)
    assert p_value(counts, exact_probabilities(logits.tolist(), SamplingParams(temperature=1.1))) < ALARM


def test_a_temperature_too_small_for_float32_is_greedy() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(3)) * 5
    sampler = Sampler(50, torch.device("cpu"))
    for temperature in (1e-46, 1e-39, 1e-30, 1e-7):
        rows = [RowSampling(SamplingParams(temperature=temperature, seed=1), position) for position in range(4)]
        assert torch.equal(sampler.choose(logits, rows), logits.argmax(-1))
