"""DraftCost: its terms are found again, a hiccup is not believed, and nothing is ever negative."""

import itertools

import numpy as np
import pytest

from dspark.scheduling.draft_cost import NUM_TERMS, DraftCost, _non_negative_fit


def law(sessions: int, depth: float) -> float:
    return 2.0 + 0.1 * sessions + 1.0 * depth + 0.02 * sessions * depth


def taught(calls: int, noise: float = 0.0, seed: int = 0) -> DraftCost:
    draw = np.random.default_rng(seed)
    cost = DraftCost()
    for _ in range(calls):
        sessions, depth = int(draw.integers(1, 65)), int(draw.integers(0, 9))
        cost.observe(sessions, depth, law(sessions, depth) * float(draw.lognormal(0, noise)))
    return cost


def expected(cost: DraftCost, sessions: int, depth: float) -> float:
    found = cost.ms(sessions, depth)
    assert found is not None
    return found


def test_nothing_is_known_before_the_first_call() -> None:
    assert DraftCost().ms(1, 4) is None


def test_the_first_call_is_believed() -> None:
    cost = DraftCost()
    cost.observe(4, 7, 9.0)
    assert expected(cost, 4, 7) == pytest.approx(9.0, rel=0.01)
    assert 0 < expected(cost, 1, 1) < 9.0


@pytest.mark.parametrize(("sessions", "depth"), [(1, 0), (1, 4), (8, 7), (64, 2), (100, 12)])
def test_the_cost_of_any_shape_is_found_from_calls_of_many(sessions: int, depth: int) -> None:
    assert expected(taught(300), sessions, depth) == pytest.approx(law(sessions, depth), rel=0.02)
    assert expected(taught(300, noise=0.1), sessions, depth) == pytest.approx(law(sessions, depth), rel=0.2)


def test_calls_of_one_shape_only_are_predicted_for_that_shape() -> None:
    cost = DraftCost()
    for _ in range(100):
        cost.observe(4, 4, 10.0)
    assert expected(cost, 4, 4) == pytest.approx(10.0, rel=0.01)
    assert 0 < expected(cost, 4, 0) < 10.0 < expected(cost, 8, 8)


def test_a_drafter_that_became_slower_is_followed() -> None:
    cost = taught(200)
    for _ in range(300):
        cost.observe(8, 4, 4.0 * law(8, 4))
    assert expected(cost, 8, 4) == pytest.approx(4.0 * law(8, 4), rel=0.05)


def test_one_hiccup_moves_little() -> None:
    cost = taught(200)
    before = expected(cost, 8, 4)
    cost.observe(8, 4, 1000 * law(8, 4))
    for _ in range(8):
        cost.observe(8, 4, law(8, 4))
    assert abs(expected(cost, 8, 4) / before - 1.0) < 0.1


def test_the_cost_never_falls_with_sessions_or_depth_whatever_was_seen() -> None:
    draw = np.random.default_rng(5)
    for _ in range(30):
        cost = DraftCost()
        for _ in range(20):
            cost.observe(int(draw.integers(1, 65)), int(draw.integers(0, 9)), float(draw.lognormal(1, 1.5)))
        grid = np.asarray([[expected(cost, sessions, depth) for depth in range(10)] for sessions in range(1, 20)])
        assert np.all(grid >= 0)
        assert np.all(np.diff(grid, axis=0) >= -1e-9)
        assert np.all(np.diff(grid, axis=1) >= -1e-9)


def test_calls_that_say_nothing_are_passed_over() -> None:
    cost = DraftCost()
    for sessions, depth, draft_ms in ((0, 4, 1.0), (1, -1, 1.0), (1, float("inf"), 1.0), (1, 4, 0.0), (1, 4, float("nan"))):
        cost.observe(sessions, depth, draft_ms)
    assert cost.ms(1, 4) is None


def test_the_fit_is_the_best_of_those_without_a_negative_weight() -> None:
    """Seed 6; against a search over a grid of weights."""
    draw = np.random.default_rng(6)
    levels = np.linspace(0.0, 3.0, 7)
    grid = np.asarray(list(itertools.product(levels, repeat=NUM_TERMS)))
    for _ in range(5):
        terms = draw.uniform(0.0, 2.0, (12, NUM_TERMS))
        times = terms @ draw.normal(0.5, 1.0, NUM_TERMS)
        weights = _non_negative_fit(terms.T @ terms, terms.T @ times)
        assert np.all(weights >= 0)
        best = ((grid @ terms.T - times) ** 2).sum(axis=1).min()
        assert ((terms @ weights - times) ** 2).sum() <= best * 1.01 + 0.02


def test_what_was_news_to_the_drafter_does_not_make_later_calls_dear() -> None:
    """A prompt of 200 tokens is read in 40 ms; a call after it takes 12."""
    cost = DraftCost()
    cost.observe(1, 7, 52.0, 200)
    cost.observe(1, 7, 12.6, 3)
    assert cost.ms(1, 7) == pytest.approx(12.6, rel=0.02)
    assert cost.ms(1, 7, 200) == pytest.approx(52.0, rel=0.02)


def test_a_call_that_reads_the_prompts_of_many_sessions_does_not_make_the_next_ones_seem_cheap() -> None:
    """Calls as they were measured, of few sessions that explore and then of all: sessions, depth, ms, news. The next ones took 62 to 81."""
    first = ((1, 7, 11.5, 31), (1, 1, 5.8, 3), (1, 7, 12.4, 3), (8, 7, 30.8, 248), (8, 1, 8.0, 24), (8, 7, 27.1, 24))
    exploring = ((6, 7, 75.6, 1082), (4, 4, 16.6, 67), (5, 4, 61.3, 1044), (5, 4, 60.5, 880), (6, 4, 67.6, 1261), (5, 4, 62.0, 1004))
    cost = DraftCost()
    for call in first + exploring:
        cost.observe(*call)
    before = expected(cost, 64, 3)
    cost.observe(58, 2, 342.0, 8914)
    assert expected(cost, 64, 3) == pytest.approx(before, rel=0.1)


def test_a_call_that_is_not_as_expected_is_learned_from_at_once() -> None:
    cost = taught(200)
    cost.ms(1, 1)
    before = expected(cost, 64, 8)
    cost.observe(64, 8, 1.5 * law(64, 8))
    assert expected(cost, 64, 8) > 1.02 * before


def test_it_is_known_how_many_sessions_were_ever_drafted_together() -> None:
    cost = DraftCost()
    for sessions in (1, 4, 2):
        cost.observe(sessions, 3, 10.0)
    assert (cost.most_sessions, cost.num_calls) == (4, 3)


def test_what_makes_a_tree_of_a_chain_is_told_from_what_makes_it_deep() -> None:
    """Chains of 7 of some sessions take 10 ms and half a one each; nine more candidates of each a tenth of a ms."""
    cost = DraftCost()
    for number in range(40):
        sessions = 1 + number % 8
        side_nodes = 9 * sessions * (number % 2)
        cost.observe(sessions, 7, 10.0 + 0.5 * sessions + 0.1 * side_nodes, side_nodes=side_nodes)
    assert cost.ms(4, 7) == pytest.approx(12.0, rel=0.02)
    assert cost.ms(4, 7, side_nodes=36) == pytest.approx(15.6, rel=0.02)
