"""Estimators of survival by the `method` that the JSON beside a checkpoint names. Everyone who serves or scores asks for an `Estimator`
only; a further one needs its name and a reader here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dspark.errors import ModelLoadError
from dspark.scheduling.calibration import (
    CALIBRATION_FILE,
    FITTED_NET,
    SEQUENTIAL_TEMPERATURE_SCALING,
    Estimator,
    read_temperature_scaling,
)
from dspark.scheduling.fitted_net import read_fitted_net
from dspark.scheduling.records import parse, read_text

ESTIMATORS: dict[str, Callable[[dict[str, Any], str], Estimator]] = {
    SEQUENTIAL_TEMPERATURE_SCALING: read_temperature_scaling,
    FITTED_NET: read_fitted_net,
}
"""Stored `method` -> reader of the parsed record; the text names the file in errors."""


def estimator_from_json(text: str, file: str = CALIBRATION_FILE) -> Estimator:
    """The estimator that the text describes. Raises ModelLoadError naming file and key."""
    record = parse(text, file)
    reader = ESTIMATORS.get(record["method"]) if isinstance(record.get("method"), str) else None
    if reader is None:
        raise ModelLoadError(f"{file}: method {record.get('method')!r} is none of {sorted(ESTIMATORS)}", "method")
    return reader(record, file)


def load_estimator(folder: Path) -> Estimator | None:
    """What lies beside a checkpoint; None where it was never calibrated. Raises ModelLoadError naming file and key."""
    path = folder / CALIBRATION_FILE
    if not path.exists():
        return None
    return estimator_from_json(read_text(path), str(path))
