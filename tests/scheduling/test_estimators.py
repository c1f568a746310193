"""Which estimator lies beside a checkpoint; what of it is refused stands with each method (test_calibration.py, test_fitted_net.py)."""

from pathlib import Path

import pytest

from dspark.scheduling.calibration import CALIBRATION_FILE, Calibration, TemperatureFit
from dspark.scheduling.estimators import ESTIMATORS, estimator_from_json, load_estimator

FITTED = Calibration((TemperatureFit(0.0, (2.0, 0.5), (True, True)),), (0.1, 10.0))


def test_a_folder_without_calibration_has_none_and_one_with_it_is_loaded(tmp_path: Path) -> None:
    assert load_estimator(tmp_path) is None
    (tmp_path / CALIBRATION_FILE).write_text(FITTED.to_json())
    assert load_estimator(tmp_path) == FITTED


def test_a_further_estimator_needs_a_method_name_and_a_reader_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ESTIMATORS, "constant", lambda fields, file: Calibration.identity())
    assert estimator_from_json('{"method": "constant", "weights": [1]}') == Calibration.identity()
