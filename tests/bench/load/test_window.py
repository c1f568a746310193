"""Counting of one turn."""

import pytest

from dspark.bench.load.window import RequestSpeed, Window, speed_reached_by


def test_the_median_speed_is_that_of_the_median_second_of_the_users_time() -> None:
    requests = [RequestSpeed(100.0, 10.0), RequestSpeed(400.0, 10.0), RequestSpeed(30.0, 10.0), RequestSpeed(500.0, 0.5)]
    assert speed_reached_by(requests, 0.5) == 10.0, "the one that was seen for half a second counts for little"
    assert speed_reached_by(requests, 0.95) == 3.0
    assert speed_reached_by(requests, 0.01) == 1000.0
    assert speed_reached_by([], 0.5) == 0.0
    assert speed_reached_by([RequestSpeed(3.0, 0.0)], 0.5) == 0.0


def test_rows_that_are_neither_anchors_nor_candidates_are_prompts() -> None:
    window = Window(seconds=2.0, tokens=300.0, rounds=100.0, selected=250.0, rows=800)
    assert window.prompt_rows == 450.0
    assert window.tokens_per_second == 150.0
    assert Window(rounds=100.0, rows=90).prompt_rows == 0.0


def test_the_record_leaves_requests_and_samples_out() -> None:
    window = Window(seconds=1.0, probe_ms=2.5, requests={1: RequestSpeed()}, step_samples=[(1, 1, 1, 1.0)])
    record = window.record()
    assert record["probe_ms"] == pytest.approx(2.5)
    assert not {"requests", "step_samples", "draft_samples"} & set(record)


def test_the_mean_context_is_that_of_all_sessions_of_all_steps() -> None:
    """One step of a session with 100 tokens, and one of three with 200 each."""
    window = Window(seconds=1.0, step_samples=[(1, 1, 100, 5.0), (9, 3, 600, 8.0)])
    assert window.context_tokens == pytest.approx(175.0)
    assert window.record()["context_tokens"] == pytest.approx(175.0)
    assert Window(seconds=1.0).record()["context_tokens"] is None, "over HTTP"
