"""From a drafter's confidence logits to calibrated survival estimates, and the record of it that lies in a checkpoint folder.

Symbols: S sessions, K draft positions, T_k temperature of position k. Pure; numpy only. Knows no model and does not fit
(deepspec/fitting.py does). Method: Sequential Temperature Scaling, the paper's section on the confidence head: survival of
position k = product over i <= k of sigmoid(logit_i / T_i).

Other estimators are fitted from decoding traces (fitted_net.py); which one lies beside a checkpoint is found out in estimators.py.
"""

import json
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dspark.errors import ModelLoadError
from dspark.scheduling.records import check_object, check_version, numbers, parse, some_list
from dspark.scheduling.signals import NodeSignals

CALIBRATION_FILE = "calibration.json"
SEQUENTIAL_TEMPERATURE_SCALING = "sequential_temperature_scaling"
FITTED_NET = "fitted_net"
FORMAT_VERSION = 1
MAX_POSITIONS = 64
DEFAULT_BOUNDS = (0.1, 10.0)
"""Beyond these a temperature no longer scales: the estimate is a step or a constant."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class DraftSignals:
    """What a drafter knows of its candidates beside their confidence logits."""

    gaps: Floats  # [S, K] noised log draft_probs minus that of the best sibling
    log_draft_probs: Floats  # [S, K]


class Estimator(Protocol):
    """Turns what a drafter knows of its candidates into the chance that they survive."""

    @property
    def method(self) -> str:
        """Its key in ESTIMATORS."""
        ...

    def survival(self, confidence_logits: ArrayLike, sampling_temperature: float, signals: DraftSignals | None = None) -> Floats:
        """[S, K] for chains with logits [S, K]; within 0..1, and never rising along a path."""
        ...

    def conditional(self, signals: NodeSignals) -> Floats:
        """[n] chance that a candidate is the target's token given that its parent is; 0..1. Survival is its product along the path."""
        ...

    def to_json(self) -> str:
        """An object whose `method` names the reader."""
        ...


@dataclass(frozen=True, slots=True)
class TemperatureFit:
    """The temperatures fitted on what was sampled at one sampling temperature."""

    sampling_temperature: float
    temperatures: tuple[float, ...]  # [K] T_k; the last one also serves deeper positions
    fitted: tuple[bool, ...]  # [K] False: too few observations, the position before lent its T


@dataclass(frozen=True, slots=True)
class Calibration:
    """Sequential Temperature Scaling as it is served."""

    fits: tuple[TemperatureFit, ...]
    bounds: tuple[float, float] = DEFAULT_BOUNDS
    """Smallest and largest T that the fit might choose."""
    method: str = SEQUENTIAL_TEMPERATURE_SCALING

    @classmethod
    def identity(cls) -> "Calibration":
        """T = 1 everywhere: the drafter's own confidence."""
        return cls((TemperatureFit(0.0, (1.0,), (False,)),))

    def nearest(self, sampling_temperature: float) -> TemperatureFit:
        """The fit that serves this sampling temperature; the lower one of two as near."""
        return min(self.fits, key=lambda f: (abs(f.sampling_temperature - sampling_temperature), f.sampling_temperature))

    def temperatures(self, sampling_temperature: float, num_positions: int) -> NDArray[np.float64]:  # [K]
        """T_k that serve this sampling temperature."""
        known = np.asarray(self.nearest(sampling_temperature).temperatures[:num_positions], np.float64)
        return np.pad(known, (0, num_positions - len(known)), mode="edge") if num_positions else known

    def survival(self, confidence_logits: ArrayLike, sampling_temperature: float, signals: DraftSignals | None = None) -> Floats:
        """[S, K] running product of sigmoid(logit_k / T_k). A logit that is not a number counts as hopeless: it costs speed only."""
        logits = np.asarray(confidence_logits, np.float64)
        scaled = np.where(np.isnan(logits), -np.inf, logits) / self.temperatures(sampling_temperature, logits.shape[-1])
        return np.cumprod(sigmoid(scaled), axis=-1).astype(np.float32)

    def conditional(self, signals: NodeSignals) -> Floats:
        """[n] sigmoid(logit / T_depth) for the best sibling, and the others share the rest; without confidence as `sigmoid_of_gaps`.

        Of the rest, rank r gets sigmoid(gap) / 2^(r - 1): less than half, a quarter and so on, so that siblings never claim more
        than 1 together. An unknown gap counts as 0.
        """
        logits = signals.confidence_logits.astype(np.float64)
        best = sigmoid(logits / self._scales(signals))
        clearness = sigmoid(np.nan_to_num(signals.gaps.astype(np.float64)))
        others = (1.0 - best) * clearness * 0.5 ** (np.maximum(signals.ranks, 1) - 1.0)
        chosen = np.where(np.isnan(logits), clearness, np.where(signals.ranks == 0, best, others))
        return np.asarray(chosen, np.float32)

    def _scales(self, signals: NodeSignals) -> NDArray[np.float64]:  # [n]
        """T of each candidate's depth, at its sampling temperature."""
        scales = np.ones(len(signals))
        for temperature in np.unique(signals.temperatures).tolist():
            known = np.asarray(self.nearest(temperature).temperatures)
            here = signals.temperatures == temperature
            scales[here] = known[np.clip(signals.depths[here], 1, len(known)) - 1]
        return scales

    def to_json(self) -> str:
        """Readable, one key a line."""
        return json.dumps(self.record(), indent=2) + "\n"

    def record(self) -> dict[str, Any]:
        """What is stored, ready for JSON."""
        fits = [
            {"sampling_temperature": f.sampling_temperature, "temperatures": list(f.temperatures), "fitted": list(f.fitted)}
            for f in self.fits
        ]
        return {"format_version": FORMAT_VERSION, "method": self.method, "bounds": list(self.bounds), "fits": fits}

    @classmethod
    def from_json(cls, text: str, file: str = CALIBRATION_FILE) -> "Calibration":
        """Raises ModelLoadError naming file and key."""
        return read_temperature_scaling(parse(text, file), file)


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)) that neither overflows nor warns."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))


def read_temperature_scaling(record: dict[str, Any], file: str) -> Calibration:
    """A parsed record of this method. Raises ModelLoadError naming file and key."""
    check_object(record, {"format_version", "method", "bounds", "fits"}, file)
    check_version(record, FORMAT_VERSION, file)
    if record["method"] != SEQUENTIAL_TEMPERATURE_SCALING:
        raise ModelLoadError(f"{file}: method {record['method']!r} is not {SEQUENTIAL_TEMPERATURE_SCALING}", "method")
    low, high = numbers(record["bounds"], 2, 2, file, "bounds")
    if not 0.0 < low <= 1.0 <= high:
        raise ModelLoadError(f"{file}: bounds {[low, high]} must be positive and hold 1 between them", "bounds")
    fits = tuple(_read_fit(fit, (low, high), file, f"fits[{i}]") for i, fit in enumerate(some_list(record["fits"], file, "fits")))
    if len({fit.sampling_temperature for fit in fits}) != len(fits):
        raise ModelLoadError(f"{file}: fits holds a sampling_temperature twice", "fits")
    return Calibration(fits, (low, high))


def _read_fit(record: Any, bounds: tuple[float, float], file: str, key: str) -> TemperatureFit:
    check_object(record, {"sampling_temperature", "temperatures", "fitted"}, file, key)
    [sampling_temperature] = numbers([record["sampling_temperature"]], 1, 1, file, f"{key}.sampling_temperature")
    temperatures = numbers(record["temperatures"], 1, MAX_POSITIONS, file, f"{key}.temperatures")
    fitted = some_list(record["fitted"], file, f"{key}.fitted")
    if sampling_temperature < 0:
        raise ModelLoadError(f"{file}: {key}.sampling_temperature is below 0", f"{key}.sampling_temperature")
    if not all(bounds[0] <= t <= bounds[1] for t in temperatures):
        raise ModelLoadError(f"{file}: {key}.temperatures leaves the bounds {list(bounds)}", f"{key}.temperatures")
    if len(fitted) != len(temperatures) or not all(isinstance(flag, bool) for flag in fitted):
        raise ModelLoadError(f"{file}: {key}.fitted is not one true or false per temperature", f"{key}.fitted")
    return TemperatureFit(sampling_temperature, temperatures, tuple(fitted))
