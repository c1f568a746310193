"""Sequential Temperature Scaling finds the temperature that a synthetic drafter was spoiled with, and says where it cannot."""

from pathlib import Path

import numpy as np
import pytest

from dspark.deepspec.fitting import FitOptions, calibration_table, fit_temperatures, observations, write_calibration
from dspark.deepspec.metrics import bin_edges, expected_calibration_error, reliability_bins
from dspark.deepspec.traces import DecodingTrace, TraceRecorder
from dspark.errors import ConfigError
from dspark.scheduling.calibration import Calibration
from dspark.scheduling.estimators import load_estimator
from tests.deepspec.synthetic import synthetic_trace


def test_the_first_temperature_is_the_one_that_spoiled_the_confidence() -> None:
    """Seed fixed. Over seeds 0..19 the fitted T was 1.97 on average, with a standard deviation of 0.06: 0.4 away is 6 of them."""
    fit = fit_temperatures(synthetic_trace(0, (2.0,), rounds=400))
    assert fit.calibration.fits[0].temperatures[0] == pytest.approx(2.0, rel=0.2)
    assert fit.notes == ()


def test_held_out_errors_fall_to_about_the_floor_at_every_position() -> None:
    """Seed fixed; with the same bounds none of seeds 0..19 failed."""
    fit = fit_temperatures(synthetic_trace(1, (2.5, 2.0, 2.5, 3.0), rounds=300))
    assert [row.position for row in fit.positions] == [0, 1, 2, 3]
    for row in fit.positions:
        assert row.before.ece > 0.04
        assert row.after.ece < 0.4 * row.before.ece
        assert row.after.ece < 2.5 * row.after.ece_floor
        assert row.after.brier < row.before.brier
        assert row.fitted
        assert row.num_fit_observations == 20 * 300


def test_calibrated_confidence_is_left_about_as_it_is() -> None:
    """Seed fixed. Over seeds 0..19 the fitted T lay within 0.93..1.03, with a standard deviation of 0.03."""
    fit = fit_temperatures(synthetic_trace(2, (1.0,), rounds=300))
    assert fit.calibration.fits[0].temperatures[0] == pytest.approx(1.0, abs=0.25)


def test_no_temperature_of_a_fine_grid_is_better_than_the_fitted_one() -> None:
    trace, options = synthetic_trace(3, (2.0,)), FitOptions()
    logits = trace.padded("confidence_logit")[:, 0].astype(np.float64)
    half = np.isin(trace.session, np.random.default_rng(0).permutation(np.unique(trace.session))[:20])

    def error(t: float) -> float:
        claimed = 1 / (1 + np.exp(-logits[half] / t))
        return expected_calibration_error(reliability_bins(claimed, trace.num_accepted[half] > 0, bin_edges(claimed)))

    chosen = fit_temperatures(trace, options).calibration.fits[0].temperatures[0]
    assert error(chosen) <= min(error(t) for t in np.geomspace(*options.bounds, 41)) + 1e-9


def test_equal_errors_go_to_the_temperature_nearest_one() -> None:
    """All logits 0: no temperature changes anything."""
    recorder = TraceRecorder()
    for session in range(10):
        for r in range(50):
            recorder.add(session, 0.0, r % 2, [0.5], [0.0])
    assert fit_temperatures(recorder.trace()).calibration.fits[0].temperatures == (1.0,)


def test_a_position_with_too_few_observations_keeps_the_temperature_before_it_and_is_named() -> None:
    recorder = TraceRecorder()
    rich = synthetic_trace(4, (2.0, 2.0), sessions=20, rounds=60)
    for r in range(len(rich)):
        first, last = rich.offsets[r], rich.offsets[r] + (2 if r % 60 == 0 else 1)
        accepted = min(int(rich.num_accepted[r]), int(last - first))
        recorder.add(int(rich.session[r]), 1.0, accepted, rich.score[first:last], rich.confidence_logit[first:last])
    fit = fit_temperatures(recorder.trace())
    assert fit.calibration.fits[0].fitted == (True, False)
    assert fit.calibration.fits[0].temperatures[1] == fit.calibration.fits[0].temperatures[0]
    assert fit.notes == ("Sampling temperature 1: position 1 (10 observations) had fewer than 200 and took the T of the position before.",)


def test_each_sampling_temperature_is_fitted_by_itself_and_one_with_too_little_is_left_out() -> None:
    traces = [synthetic_trace(5, (3.0,), rounds=200, temperature=0.7), synthetic_trace(6, (1.0,), rounds=200, temperature=0.0)]
    poor = synthetic_trace(7, (1.0,), rounds=2, temperature=1.3)
    fit = fit_temperatures(DecodingTrace.concatenate([*traces, poor]))
    cold, warm = fit.calibration.fits
    assert (cold.sampling_temperature, warm.sampling_temperature) == (0.0, 0.7)
    assert warm.temperatures[0] > 2 > cold.temperatures[0]
    assert "Sampling temperature 1.3: no position has the 200 observations" in fit.notes[0]
    assert {row.sampling_temperature for row in fit.positions} == {0.0, 0.7, 1.3}
    assert not next(row for row in fit.positions if row.sampling_temperature == 1.3).fitted


def test_a_session_serves_one_half_only() -> None:
    """Twenty sessions of very different size: the two halves must add up to whole sessions."""
    trace = synthetic_trace(8, (1.5,), sessions=20, rounds=60)
    kept = np.concatenate([np.arange(60) < 30 + session for session in range(20)])
    fit = fit_temperatures(trace.select(kept), FitOptions(seed=3, min_observations=100))
    [row] = fit.positions
    sessions = np.random.default_rng(3).permutation(20)
    assert row.num_fit_observations == int((30 + sessions[:10]).sum())
    assert row.after.count == int((30 + sessions[10:]).sum())


def test_only_verified_positions_with_a_confidence_count() -> None:
    recorder = TraceRecorder()
    recorder.add(0, 1.0, 0, [0.5, 0.4], [1.0, 1.0], num_verified=1)
    recorder.add(0, 1.0, 0, [0.5, 0.4], [1.0, 1.0])
    recorder.add(0, 1.0, 2, [0.5, 0.4], [np.nan, 1.0])
    trace = recorder.trace()
    assert observations(trace, 0).tolist() == [True, True, False]
    assert observations(trace, 1).tolist() == [False, True, False]
    assert not observations(trace, 2).any()


def test_what_cannot_be_fitted_is_said() -> None:
    headless = TraceRecorder()
    headless.add(0, 1.0, 1, [0.5])
    with pytest.raises(ConfigError, match="without confidence head"):
        fit_temperatures(headless.trace())
    with pytest.raises(ConfigError, match="needs two"):
        fit_temperatures(synthetic_trace(0, (1.0,), sessions=1))
    with pytest.raises(ConfigError, match="decode more prompts"):
        fit_temperatures(synthetic_trace(0, (1.0,), sessions=4, rounds=5))


def test_the_table_of_the_identity_changes_nothing() -> None:
    [row] = calibration_table(synthetic_trace(9, (2.0,), sessions=5), Calibration.identity())
    assert row.before == row.after
    assert (row.confidence_temperature, row.fitted) == (1.0, False)


def test_a_written_calibration_is_what_serving_loads(tmp_path: Path) -> None:
    fit = fit_temperatures(synthetic_trace(0, (2.0,)))
    write_calibration(tmp_path, fit.calibration)
    assert load_estimator(tmp_path) == fit.calibration
