"""Statistics against hand counts, brute force, and distributions that are known."""

import itertools

import numpy as np
import pytest

from dspark.deepspec.metrics import (
    area_under_curve,
    bin_edges,
    brier_score,
    count_acceptance,
    ece_floor,
    expected_calibration_error,
    reliability_bins,
    score_calibration,
    summarise_acceptance,
    tau_difference,
)
from dspark.errors import ConfigError


def test_acceptance_is_counted_by_hand() -> None:
    found = summarise_acceptance(count_acceptance([0, 0, 1, 1], [3, 3, 3, 2], [3, 2, 3, 0], [3, 0, 1, 0]))
    assert found.tau.value == pytest.approx(1 + 4 / 4)
    assert [i.value for i in found.acceptance] == pytest.approx([2 / 3, 1 / 3, 1 / 2])
    assert [i.value for i in found.conditional_acceptance] == pytest.approx([2 / 3, 1 / 2, 1.0])
    assert (found.drafted_per_round, found.verified_per_round, found.accepted_per_round) == (11 / 4, 8 / 4, 4 / 4)
    assert found.num_rounds == 4


def test_positions_never_reached_have_no_conditional_acceptance() -> None:
    found = summarise_acceptance(count_acceptance([0, 1], [3, 3], [3, 3], [0, 1]))
    assert len(found.acceptance) == 3
    assert [i.value for i in found.conditional_acceptance] == pytest.approx([0.5, 0.0])


def test_counts_merged_in_parts_equal_counts_of_the_whole() -> None:
    draw = np.random.default_rng(1)
    session, drafted = draw.integers(0, 5, 60), draw.integers(0, 6, 60)
    accepted = np.minimum(drafted, draw.integers(0, 4, 60))
    columns = (session, drafted, drafted, accepted)
    whole = count_acceptance(*columns)
    first, second = count_acceptance(*(c[:7] for c in columns)), count_acceptance(*(c[7:] for c in columns))
    merged = first.merge(second)
    for name in whole.__dataclass_fields__:
        assert np.array_equal(getattr(whole, name), getattr(merged, name)), name


def test_intervals_hold_the_true_tau_about_as_often_as_they_say() -> None:
    """200 experiments at 95 %: for exact intervals, fewer than 176 hits have a chance of 2.6e-5, and 200 of 3.5e-5. Seed fixed."""
    draw, hits, truth = np.random.default_rng(20261123), 0, 1 + 0.6 + 0.36
    for trial in range(200):
        accepted = np.cumprod(draw.random((40, 20, 2)) < 0.6, axis=-1).sum(axis=-1).reshape(-1)
        full = np.full(800, 2)
        found = summarise_acceptance(count_acceptance(np.repeat(np.arange(40), 20), full, full, accepted), trial, 400)
        hits += found.tau.low <= truth <= found.tau.high
    assert 176 <= hits < 200


def test_rounds_of_one_session_do_not_pass_for_independent() -> None:
    """Sessions accept all or nothing: ten of them leave tau uncertain, however many rounds each has."""
    session = np.repeat(np.arange(10), 500)
    drafted = np.ones(5000, int)
    found = summarise_acceptance(count_acceptance(session, drafted, drafted, session % 2))
    assert found.tau.high - found.tau.low > 0.4


def test_the_same_seed_gives_the_same_interval_and_one_session_gives_no_certainty() -> None:
    counts = count_acceptance([0, 1, 2], [2, 2, 2], [2, 2, 2], [0, 1, 2])
    assert summarise_acceptance(counts, 7) == summarise_acceptance(counts, 7)
    alone = summarise_acceptance(count_acceptance([3, 3], [2, 2], [2, 2], [2, 2]))
    assert (alone.tau.low, alone.tau.value, alone.tau.high) == (1.0, 3.0, 3.0)
    assert (alone.acceptance[0].low, alone.acceptance[0].high) == (0.0, 1.0)


def test_nothing_to_summarise_is_refused() -> None:
    with pytest.raises(ConfigError, match="empty"):
        summarise_acceptance(count_acceptance([], [], [], []))


def test_a_paired_difference_is_tighter_than_two_intervals() -> None:
    draw = np.random.default_rng(3)
    session = np.repeat(np.arange(30), 40)
    ease = draw.normal(0, 1, 30)[session]
    full = np.full(1200, 1)
    taken = [(ease + draw.normal(shift, 0.3, 1200) > 0).astype(int) for shift in (0.3, 0.0)]
    better, worse = (count_acceptance(session, full, full, accepted) for accepted in taken)
    difference = tau_difference(better, worse)
    separate = summarise_acceptance(better).tau
    assert difference.value == pytest.approx(taken[0].mean() - taken[1].mean())
    assert 0 < difference.low < difference.value < difference.high
    assert difference.high - difference.low < separate.high - separate.low
    with pytest.raises(ConfigError, match="same sessions"):
        tau_difference(better, count_acceptance([99], [1], [1], [1]))


def test_ece_is_the_weighted_distance_of_claim_and_outcome() -> None:
    bins = reliability_bins([0.1, 0.1, 0.9, 0.9], [0, 1, 1, 1], bin_edges([], "equal_width", 2))
    assert bins.count == (2, 2)
    assert expected_calibration_error(bins) == pytest.approx(0.5 * 0.4 + 0.5 * 0.1)


def test_predictions_on_an_edge_and_at_both_ends_are_counted_once() -> None:
    assert reliability_bins([0.0, 0.5, 1.0], [0, 0, 1], [0.0, 0.5, 1.0]).count == (1, 2)


def test_equal_mass_bins_hold_as_many_each() -> None:
    predicted = np.random.default_rng(0).beta(8, 1, 1500)
    bins = reliability_bins(predicted, predicted > 0.5, bin_edges(predicted, "equal_mass"))
    assert set(bins.count) == {100}
    assert len(bin_edges(np.full(50, 0.3), "equal_mass")) == 3


def test_merged_bins_equal_the_bins_of_all_and_need_the_same_edges() -> None:
    edges = bin_edges([], "equal_width", 5)
    predicted, outcome = np.random.default_rng(0).random(40), np.arange(40) % 3 == 0
    whole = reliability_bins(predicted, outcome, edges)
    merged = reliability_bins(predicted[:9], outcome[:9], edges).merge(reliability_bins(predicted[9:], outcome[9:], edges))
    assert merged.count == whole.count
    assert merged.predicted_sum == pytest.approx(whole.predicted_sum)
    assert merged.outcome_sum == pytest.approx(whole.outcome_sum)
    with pytest.raises(ConfigError, match="edges"):
        whole.merge(reliability_bins(predicted, outcome, bin_edges([], "equal_width", 4)))


def test_the_floor_is_the_error_that_perfect_predictions_show() -> None:
    """Mean of 200 draws, seed fixed: the mean's own spread is far below the 10 % allowed."""
    draw, errors, floors = np.random.default_rng(5), [], []
    for _ in range(200):
        predicted = draw.random(900)
        bins = reliability_bins(predicted, draw.random(900) < predicted, bin_edges(predicted))
        errors.append(expected_calibration_error(bins))
        floors.append(ece_floor(bins))
    assert np.mean(errors) == pytest.approx(np.mean(floors), rel=0.1)


def test_auc_equals_the_share_of_pairs_in_order_with_ties_as_half() -> None:
    draw = np.random.default_rng(2)
    predicted, outcome = draw.integers(0, 6, 80) / 5, draw.random(80) < 0.4
    pairs = itertools.product(predicted[outcome], predicted[~outcome])
    assert area_under_curve(predicted, outcome) == pytest.approx(np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs]))
    assert area_under_curve([0.2, 0.3], [1, 1]) is None


def test_brier_is_the_mean_squared_distance() -> None:
    assert brier_score([0.0, 0.5, 1.0], [0, 1, 0]) == pytest.approx((0 + 0.25 + 1) / 3)


def test_scores_hold_together_and_need_observations() -> None:
    predicted = np.random.default_rng(0).random(500)
    outcome = predicted > 0.5
    scores = score_calibration(predicted, outcome)
    assert scores.count == sum(scores.bins.count) == 500
    assert scores.auc == 1.0
    assert scores.ece == pytest.approx(expected_calibration_error(scores.bins))
    with pytest.raises(ConfigError, match="no observations"):
        score_calibration([], [])
