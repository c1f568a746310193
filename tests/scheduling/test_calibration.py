"""Calibrated survival: the product of scaled confidences, never rising; and what a stored calibration must be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dspark.errors import ModelLoadError
from dspark.scheduling.calibration import CALIBRATION_FILE, Calibration, TemperatureFit
from dspark.scheduling.estimators import estimator_from_json, load_estimator
from dspark.scheduling.signals import NodeSignals, sigmoid_of_gaps

FITTED = Calibration((TemperatureFit(0.0, (2.0, 0.5), (True, True)), TemperatureFit(1.0, (4.0,), (True,))), (0.1, 10.0))


def sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def test_survival_is_the_running_product_of_scaled_confidences() -> None:
    expected = [sigmoid(1.0 / 2), sigmoid(1.0 / 2) * sigmoid(-1.0 / 0.5)]
    assert FITTED.survival([[1.0, -1.0]], 0.0)[0] == pytest.approx(expected, rel=1e-6)


def test_positions_deeper_than_the_fit_use_its_last_temperature() -> None:
    expected = np.cumprod([sigmoid(3.0 / t) for t in (2.0, 0.5, 0.5, 0.5)])
    assert FITTED.survival(np.full((1, 4), 3.0), 0.0)[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("asked", "used"), [(0.0, 0.0), (0.4, 0.0), (0.5, 0.0), (0.6, 1.0), (7.0, 1.0)])
def test_the_nearest_sampling_temperature_serves(asked: float, used: float) -> None:
    assert np.array_equal(FITTED.survival([[2.0, 1.0]], asked), FITTED.survival([[2.0, 1.0]], used))
    assert FITTED.nearest(asked).sampling_temperature == used


def test_the_identity_leaves_the_drafters_confidence() -> None:
    assert Calibration.identity().survival([[0.3, 1.2]], 0.7)[0] == pytest.approx([sigmoid(0.3), sigmoid(0.3) * sigmoid(1.2)], rel=1e-6)


def test_survival_never_rises_and_stays_a_probability_for_any_logits() -> None:
    logits = np.random.default_rng(0).normal(0, 300, (200, 9)).astype(np.float32)
    logits[3, 4], logits[5, 0], logits[6, 2] = np.nan, np.inf, -np.inf
    survival = FITTED.survival(logits, 0.0)
    assert survival.dtype == np.float32
    assert survival.shape == (200, 9)
    assert np.all(np.diff(survival, axis=1) <= 0)
    assert np.all((survival >= 0) & (survival <= 1))
    assert np.all(survival[3, 4:] == 0)


def test_no_sessions_and_no_positions_are_legal() -> None:
    assert FITTED.survival(np.empty((0, 3)), 1.0).shape == (0, 3)
    assert FITTED.survival(np.empty((2, 0)), 1.0).shape == (2, 0)


def signals(**columns: Any) -> NodeSignals:
    """One value for all candidates, or one for each."""
    given = {"depths": 1, "ranks": 0, "gaps": 0.0, "log_draft_probs": -1.0, "confidence_logits": np.nan, "temperatures": 0.0} | columns
    whole = ("depths", "ranks")
    arrays = {name: np.asarray(value, np.int32 if name in whole else np.float32) for name, value in given.items()}
    return NodeSignals(*np.broadcast_arrays(*(np.atleast_1d(array) for array in arrays.values())))


def test_the_best_siblings_chance_is_the_confidence_at_its_depths_temperature() -> None:
    chances = FITTED.conditional(signals(depths=[1, 2, 3, 1], confidence_logits=[1.0, 1.0, 1.0, -2.0], temperatures=[0.0, 0.0, 0.0, 0.9]))
    assert chances.dtype == np.float32
    assert chances == pytest.approx([sigmoid(1.0 / 2), sigmoid(1.0 / 0.5), sigmoid(1.0 / 0.5), sigmoid(-2.0 / 4)], rel=1e-6)


def test_the_product_of_chances_along_a_chain_is_its_survival() -> None:
    logits = np.array([1.5, -0.3, 0.2], np.float32)
    chances = FITTED.conditional(signals(depths=[1, 2, 3], confidence_logits=logits))
    assert np.cumprod(chances) == pytest.approx(FITTED.survival(logits[None], 0.0)[0], rel=1e-5)


def test_further_siblings_share_what_the_best_one_leaves_by_their_gaps() -> None:
    chances = FITTED.conditional(signals(ranks=[0, 1, 2], gaps=[0.5, -0.5, -1.0], confidence_logits=1.0))
    rest = 1 - sigmoid(0.5)
    assert chances == pytest.approx([sigmoid(0.5), rest * sigmoid(-0.5), rest * sigmoid(-1.0) / 2], rel=1e-6)


def test_siblings_never_claim_more_than_one_together() -> None:
    """Even where all of them are as good as the best one."""
    for logit in (-8.0, 0.0, 8.0):
        assert FITTED.conditional(signals(ranks=np.arange(12), gaps=0.0, confidence_logits=logit)).sum() <= 1 + 1e-6


def test_without_confidence_the_gap_to_the_siblings_decides() -> None:
    known = signals(ranks=[0, 1, 2], gaps=[2.0, -2.0, -np.inf])
    assert np.allclose(FITTED.conditional(known), sigmoid_of_gaps(known))
    assert FITTED.conditional(signals(gaps=np.nan)).tolist() == [0.5]


def test_no_candidates_have_no_chances() -> None:
    assert FITTED.conditional(signals(gaps=np.empty(0))).shape == (0,)


def test_a_calibration_is_read_back_as_it_was_written() -> None:
    assert Calibration.from_json(FITTED.to_json()) == FITTED
    assert estimator_from_json(FITTED.to_json()) == FITTED
    assert Calibration.from_json(Calibration.identity().to_json()) == Calibration.identity()


def record(**changes: Any) -> dict[str, Any]:
    return json.loads(FITTED.to_json()) | changes


def fit(**changes: Any) -> list[dict[str, Any]]:
    return [{"sampling_temperature": 0.0, "temperatures": [1.0, 2.0], "fitted": [True, False]} | changes]


WRONG = {
    "method": record(method="oracle"),
    "method ": record(method=["a list"]),
    "format_version": record(format_version=2),
    "format_version ": record(format_version=True),
    "bounds": record(bounds=[2.0, 10.0]),
    "bounds ": record(bounds=[0.1]),
    "fits": record(fits=[]),
    "fits ": record(fits=fit() + fit()),
    "fits[0]": record(fits=[1.0]),
    "fits[0].temperatures": record(fits=fit(temperatures=[1.0, float("nan")])),
    "fits[0].temperatures ": record(fits=fit(temperatures=[1.0, 10**400])),
    "fits[0].temperatures  ": record(fits=fit(temperatures=[0.0, 1.0])),
    "fits[0].temperatures   ": record(fits=fit(temperatures=[1.0, True])),
    "fits[0].temperatures    ": record(fits=fit(temperatures=[1.0] * 65)),
    "fits[0].fitted": record(fits=fit(fitted=[True])),
    "fits[0].fitted ": record(fits=fit(fitted=[1, 0])),
    "fits[0].sampling_temperature": record(fits=fit(sampling_temperature=-1.0)),
    "fits[0].rank": record(fits=fit(rank=3)),
    "comment": record(comment="hello"),
}


@pytest.mark.parametrize(("key", "wrong"), WRONG.items())
def test_what_does_not_fit_is_refused_with_file_and_key(tmp_path: Path, key: str, wrong: dict[str, Any]) -> None:
    path = tmp_path / CALIBRATION_FILE
    path.write_text(json.dumps(wrong))
    with pytest.raises(ModelLoadError) as caught:
        load_estimator(tmp_path)
    assert str(path) in caught.value.message
    assert caught.value.field == key.strip()


@pytest.mark.parametrize("key", ["bounds", "fits", "format_version"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ModelLoadError, match=f"here.json: {key} is missing"):
        Calibration.from_json(json.dumps({k: v for k, v in record().items() if k != key}), "here.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000])
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / CALIBRATION_FILE).write_text(text)
    with pytest.raises(ModelLoadError, match=CALIBRATION_FILE):
        load_estimator(tmp_path)
