"""A small fitted network: from what a drafter knows of a candidate to the chance that the target chooses it, given its parent.

Under the shared-noise law the product of draft probabilities is a bad score: the noise decides (DESIGN section 4). What tells is how
clearly the noised score beats the siblings, together with the draft probability, the confidence head, rank, depth and temperature.
Two hidden layers of tanh units, about 800 weights, fitted per checkpoint by deepspec/fitting_net.py.

Symbols: n candidates, I inputs, S sessions, K draft positions. Pure; numpy only.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dspark.errors import ModelLoadError
from dspark.scheduling.calibration import FITTED_NET, Calibration, DraftSignals, Floats, read_temperature_scaling
from dspark.scheduling.records import check_object, check_version, numbers, some_list
from dspark.scheduling.signals import NodeSignals

INPUTS = (
    "gap",
    "tanh_gap",
    "log_draft_prob",
    "confidence_logit",
    "depth",
    "temperature",
    "confidence_known",
    "greedy",
    "rank_0",
    "rank_1",
    "rank_2",
    "rank_3_or_more",
)
NUM_MEASURED = 6
"""Inputs before this one are numbers, which a fit standardises; the rest are 0 or 1."""
FORMAT_VERSION = 1
MAX_INPUT = 30.0
"""Logits and log-probs beyond it say nothing new; candidates cut by top-k have infinite ones."""
SMALLEST = 1e-4
"""No candidate is hopeless or sure: a survival of 0 or 1 could not be corrected online."""
MIN_SCALE = 1e-6
MAX_LAYERS = 4
MAX_WIDTH = 64
_RANKS = np.arange(4)


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """values @ weights + biases"""

    weights: Floats  # [in, out]
    biases: Floats  # [out]


@dataclass(frozen=True, slots=True, eq=False)
class FittedNet:
    """The network as it is served."""

    mean: Floats  # [I]
    scale: Floats  # [I] inputs become (input - mean) / scale; an unknown one becomes 0
    layers: tuple[Layer, ...]
    """tanh between them; the last one has a single output, a logit."""
    temperature_scaling: Calibration | None = None
    """Of the confidence head alone: reported beside, and used where nothing but confidence is known."""
    method: str = FITTED_NET

    @property
    def num_weights(self) -> int:
        """Fitted numbers, without standardisation."""
        return sum(layer.weights.size + layer.biases.size for layer in self.layers)

    def conditional(self, signals: NodeSignals) -> Floats:
        """[n] chance that a candidate is the target's token given that its parent is; SMALLEST to 1 - SMALLEST for any signals."""
        values = self.standardised(signals)
        for layer in self.layers[:-1]:
            values = values @ layer.weights
            values += layer.biases
            np.tanh(values, out=values)
        last = self.layers[-1]
        logits = (values @ last.weights)[:, 0] + last.biases[0]
        odds = 0.5 + 0.5 * np.tanh(0.5 * logits)
        return np.asarray(np.clip(odds, SMALLEST, 1.0 - SMALLEST), np.float32)

    def standardised(self, signals: NodeSignals) -> Floats:
        """[n, I] what the first layer reads."""
        values = (raw_inputs(signals) - self.mean) / self.scale
        values[np.isnan(values)] = 0.0
        return values

    def survival(self, confidence_logits: ArrayLike, sampling_temperature: float, signals: DraftSignals | None = None) -> Floats:
        """[S, K] running product of `conditional` along chains. Without signals the confidence head's own calibration answers."""
        logits = np.asarray(confidence_logits, np.float32)
        if signals is None and self.temperature_scaling is not None:
            return self.temperature_scaling.survival(logits, sampling_temperature)
        unknown = np.full(logits.shape, np.nan, np.float32)
        gaps, log_draft_probs = (signals.gaps, signals.log_draft_probs) if signals is not None else (unknown, unknown)
        depths = np.broadcast_to(np.arange(1, logits.shape[-1] + 1, dtype=np.int32), logits.shape)
        nodes = NodeSignals(
            depths.ravel(),
            np.zeros(logits.size, np.int32),
            np.asarray(gaps, np.float32).ravel(),
            np.asarray(log_draft_probs, np.float32).ravel(),
            logits.ravel(),
            np.full(logits.size, sampling_temperature, np.float32),
        )
        return np.cumprod(self.conditional(nodes).reshape(logits.shape), axis=-1)

    def to_json(self) -> str:
        """One key a line; numbers with six digits."""
        scaling = self.temperature_scaling
        record = {
            "format_version": FORMAT_VERSION,
            "method": self.method,
            "inputs": list(INPUTS),
            "mean": _rounded(self.mean),
            "scale": _rounded(self.scale),
            "layers": [{"weights": [_rounded(row) for row in layer.weights], "biases": _rounded(layer.biases)} for layer in self.layers],
            "temperature_scaling": None if scaling is None else scaling.record(),
        }
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
        return f"{{\n{lines}\n}}\n"


def raw_inputs(signals: NodeSignals) -> Floats:
    """[n, I] in the order of INPUTS, within MAX_INPUT; NaN is unknown."""
    values = np.empty((len(signals), len(INPUTS)), np.float32)
    values[:, 0] = signals.gaps
    values[:, 1] = np.tanh(signals.gaps)
    values[:, 2] = signals.log_draft_probs
    values[:, 3] = signals.confidence_logits
    values[:, 4] = signals.depths
    values[:, 5] = signals.temperatures
    values[:, 6] = ~np.isnan(signals.confidence_logits)
    values[:, 7] = signals.temperatures == 0
    values[:, 8:] = np.minimum(signals.ranks, _RANKS[-1])[:, None] == _RANKS
    return np.clip(values, -MAX_INPUT, MAX_INPUT, out=values)


def read_fitted_net(record: dict[str, Any], file: str) -> FittedNet:
    """A parsed record of this method. Raises ModelLoadError naming file and key."""
    check_object(record, {"format_version", "method", "inputs", "mean", "scale", "layers", "temperature_scaling"}, file)
    check_version(record, FORMAT_VERSION, file)
    if record["inputs"] != list(INPUTS):
        raise ModelLoadError(f"{file}: inputs {record['inputs']!r} are not {list(INPUTS)}", "inputs")
    mean, scale = (_array(record[name], len(INPUTS), file, name) for name in ("mean", "scale"))
    if not (scale >= MIN_SCALE).all():
        raise ModelLoadError(f"{file}: scale holds a number below {MIN_SCALE}", "scale")
    scaling = record["temperature_scaling"]
    return FittedNet(mean, scale, _read_layers(record["layers"], file), None if scaling is None else _read_scaling(scaling, file))


def _read_layers(value: Any, file: str) -> tuple[Layer, ...]:
    records = some_list(value, file, "layers")
    if len(records) > MAX_LAYERS:
        raise ModelLoadError(f"{file}: layers holds {len(records)}, more than {MAX_LAYERS}", "layers")
    layers, width = [], len(INPUTS)
    for index, record in enumerate(records):
        layers.append(_read_layer(record, width, file, f"layers[{index}]"))
        width = len(layers[-1].biases)
    if width != 1:
        raise ModelLoadError(f"{file}: layers end with {width} outputs, not 1", "layers")
    return tuple(layers)


def _read_layer(record: Any, width: int, file: str, key: str) -> Layer:
    check_object(record, {"weights", "biases"}, file, key)
    biases = numbers(record["biases"], 1, MAX_WIDTH, file, f"{key}.biases")
    rows = some_list(record["weights"], file, f"{key}.weights")
    if len(rows) != width:
        raise ModelLoadError(f"{file}: {key}.weights has {len(rows)} rows, not {width}", f"{key}.weights")
    weights = [_array(row, len(biases), file, f"{key}.weights[{index}]") for index, row in enumerate(rows)]
    return Layer(np.stack(weights), np.asarray(biases, np.float32))


def _read_scaling(value: Any, file: str) -> Calibration:
    if not isinstance(value, dict):
        raise ModelLoadError(f"{file}: temperature_scaling is {type(value).__name__}, not an object", "temperature_scaling")
    return read_temperature_scaling(value, f"{file}: temperature_scaling")


def _array(value: Any, size: int, file: str, key: str) -> NDArray[np.float32]:
    return np.asarray(numbers(value, size, size, file, key), np.float32)


def _rounded(values: Sequence[float] | NDArray[np.float32]) -> list[float]:
    return [float(f"{float(value):.6g}") for value in values]
