"""The fitted net: chances for any signals, one file with the confidence head's calibration, and what such a file must be."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dspark.errors import ModelLoadError
from dspark.scheduling.calibration import CALIBRATION_FILE, Calibration, DraftSignals, TemperatureFit
from dspark.scheduling.estimators import estimator_from_json, load_estimator
from dspark.scheduling.fitted_net import INPUTS, SMALLEST, FittedNet, Layer, raw_inputs
from dspark.scheduling.signals import NodeSignals

SCALING = Calibration((TemperatureFit(0.0, (2.0, 0.5), (True, True)),))


def random_net(seed: int = 0, hidden: tuple[int, ...] = (24, 18), scaling: Calibration | None = SCALING) -> FittedNet:
    draw, sizes = np.random.default_rng(seed), [len(INPUTS), *hidden, 1]

    def floats(*shape: int) -> np.ndarray:
        return draw.normal(0, 0.5, shape).astype(np.float32)

    layers = tuple(Layer(floats(a, b), floats(b)) for a, b in pairwise(sizes))
    return FittedNet(floats(len(INPUTS)), 0.5 + floats(len(INPUTS)) ** 2, layers, scaling)


def random_signals(seed: int, n: int = 50) -> NodeSignals:
    draw = np.random.default_rng(seed)
    gaps, log_probs, confidence = draw.normal(0, 3, (3, n)).astype(np.float32)
    temperatures = draw.choice([0.0, 0.7, 1.0], n).astype(np.float32)
    return NodeSignals(draw.integers(1, 9, n, np.int32), draw.integers(0, 6, n, np.int32), gaps, -abs(log_probs), confidence, temperatures)


def test_the_net_is_two_layers_of_tanh_over_standardised_inputs() -> None:
    net, signals = random_net(), random_signals(1)
    values = ((raw_inputs(signals) - net.mean) / net.scale).astype(np.float64)
    first, second, last = net.layers
    hidden = np.tanh(np.tanh(values @ first.weights + first.biases) @ second.weights + second.biases)
    expected = 1 / (1 + np.exp(-(hidden @ last.weights + last.biases)[:, 0]))
    assert net.conditional(signals) == pytest.approx(np.clip(expected, SMALLEST, 1 - SMALLEST), abs=1e-5)
    assert net.num_weights == 781


def test_inputs_stand_in_their_named_order() -> None:
    signals = NodeSignals(*(np.asarray([v], np.int32) for v in (3, 7)), *(np.asarray([v], np.float32) for v in (-0.5, -2.0, 1.5, 0.0)))
    named = dict(zip(INPUTS, raw_inputs(signals)[0].tolist(), strict=True))
    assert named == pytest.approx(
        {"gap": -0.5, "tanh_gap": np.tanh(-0.5), "log_draft_prob": -2.0, "confidence_logit": 1.5, "depth": 3, "temperature": 0}
        | {"confidence_known": 1, "greedy": 1, "rank_0": 0, "rank_1": 0, "rank_2": 0, "rank_3_or_more": 1}
    )


def test_chances_stay_within_their_limits_for_any_signals() -> None:
    signals = random_signals(2)
    for column in (signals.gaps, signals.log_draft_probs, signals.confidence_logits):
        column[:9] = [np.nan, np.inf, -np.inf] * 3
    steep = random_net(3)
    steep.layers[-1].weights[:] *= 1e6
    for net in (random_net(), steep):
        chances = net.conditional(signals)
        assert chances.dtype == np.float32
        assert np.all((chances >= np.float32(SMALLEST)) & (chances <= np.float32(1 - SMALLEST)))


def test_an_unknown_signal_counts_as_an_average_one() -> None:
    net, signals = random_net(), random_signals(4)
    average = random_signals(4)
    signals.log_draft_probs[:] = np.nan
    average.log_draft_probs[:] = net.mean[INPUTS.index("log_draft_prob")]
    assert np.allclose(net.conditional(signals), net.conditional(average), atol=1e-6)


def test_a_chains_survival_is_the_running_product_of_the_best_siblings_chances() -> None:
    net, draw = random_net(), np.random.default_rng(5)
    logits, gaps, log_probs = draw.normal(0, 1, (3, 2, 4)).astype(np.float32)
    survival = net.survival(logits, 0.7, DraftSignals(abs(gaps), -abs(log_probs)))
    row = NodeSignals(
        np.arange(1, 5, dtype=np.int32), np.zeros(4, np.int32), abs(gaps[1]), -abs(log_probs[1]), logits[1], np.full(4, 0.7, np.float32)
    )
    assert survival.shape == (2, 4)
    assert survival[1] == pytest.approx(np.cumprod(net.conditional(row)), rel=1e-5)


def test_without_signals_the_confidence_heads_own_calibration_answers() -> None:
    logits = np.array([[1.0, -1.0, 0.5]], np.float32)
    assert np.array_equal(random_net().survival(logits, 0.0), SCALING.survival(logits, 0.0))
    assert random_net(scaling=None).survival(logits, 0.0).shape == (1, 3)


def test_no_candidates_and_no_positions_are_legal() -> None:
    assert random_net().conditional(random_signals(0, 0)).shape == (0,)
    assert random_net(scaling=None).survival(np.empty((2, 0)), 1.0).shape == (2, 0)


@pytest.mark.parametrize("scaling", [SCALING, None])
def test_a_net_is_read_back_with_the_calibration_it_falls_back_on(tmp_path: Path, scaling: Calibration | None) -> None:
    net = random_net(scaling=scaling)
    text = net.to_json()
    (tmp_path / CALIBRATION_FILE).write_text(text)
    read = load_estimator(tmp_path)
    assert isinstance(read, FittedNet)
    assert read.temperature_scaling == scaling
    assert read.to_json() == text
    assert np.allclose(read.conditional(random_signals(6)), net.conditional(random_signals(6)), atol=1e-4)
    assert len(text) < 16 * 1024


def test_a_calibration_stored_before_nets_existed_is_read_as_it_was() -> None:
    assert estimator_from_json(SCALING.to_json()) == SCALING


def record(**changes: Any) -> dict[str, Any]:
    return json.loads(random_net(hidden=(2,)).to_json()) | changes


def layers(index: int = 0, **changes: Any) -> list[dict[str, Any]]:
    found = record()["layers"]
    found[index] |= changes
    return found


ROW = [1.0, 2.0]
WRONG = {
    "format_version": record(format_version=2),
    "inputs": record(inputs=["gap"]),
    "mean": record(mean=[0.0]),
    "mean ": record(mean=[float("nan")] * len(INPUTS)),
    "scale": record(scale=[0.0] * len(INPUTS)),
    "layers": record(layers=[]),
    "layers ": record(layers=layers()[:1]),
    "layers  ": record(layers=layers()[:1] * 5),
    "layers[0]": record(layers=["dense"]),
    "layers[0].bias": record(layers=layers(bias=[0.0])),
    "layers[0].biases": record(layers=layers(biases=[0.0] * 65)),
    "layers[0].weights": record(layers=layers(weights=[ROW] * 3)),
    "layers[0].weights[1]": record(layers=layers(weights=[ROW, [1.0], *[ROW] * (len(INPUTS) - 2)])),
    "layers[1].weights[0]": record(layers=layers(1, weights=[["1"], [1.0]])),
    "temperature_scaling": record(temperature_scaling=3),
    "bounds": record(temperature_scaling=SCALING.record() | {"bounds": [2.0, 3.0]}),
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
