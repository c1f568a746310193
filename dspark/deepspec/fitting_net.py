"""The fitted net, from traces of candidates: half of the sessions fit it, the other half judge it.

Of the fitting half, a third of the sessions decides when to stop. Binary cross entropy over all verdicts, full batch, AdamW.
Symbols: n verdicts, I inputs. Knows traces and statistics, no drafter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from dspark.deepspec.fitting import first_half
from dspark.deepspec.node_scores import NodeScores, score_nodes
from dspark.deepspec.node_traces import Mask, NodeTrace
from dspark.errors import ConfigError
from dspark.scheduling.calibration import Calibration, Floats
from dspark.scheduling.fitted_net import INPUTS, NUM_MEASURED, FittedNet, Layer, raw_inputs
from dspark.scheduling.signals import sigmoid_of_gaps

MIN_SPREAD = 1e-3

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""(weights [in, out], biases [out]) from the first to the last."""


@dataclass(frozen=True, slots=True)
class NetOptions:
    """How the net is fitted."""

    hidden: tuple[int, ...] = (24, 18)
    """Units of the hidden layers: 781 weights in all."""
    learning_rate: float = 0.01
    weight_decay: float = 0.3
    max_steps: int = 600
    check_every: int = 5
    """Steps between two looks at the sessions kept for stopping."""
    patience: int = 12
    """Looks without a better one before it stops."""
    min_observations: int = 500
    """Verdicts of the sessions that fit."""


@dataclass(frozen=True, slots=True)
class NetReport:
    """What the net does to sessions that it has not seen."""

    scores: tuple[NodeScores, ...]
    """All sampling temperatures together, then each: as served, `sigmoid_of_gaps`, temperature scaling where there is one, the net."""
    num_sessions: int
    num_fit: int
    """Verdicts that weights were fitted on."""
    num_stopping: int
    """Verdicts that decided when to stop."""
    num_judged: int
    steps: int
    """Of the weights that were kept."""

    def of(self, estimator: str, sampling_temperature: float | None = None) -> NodeScores:
        """One row of the report."""
        return next(s for s in self.scores if (s.estimator, s.sampling_temperature) == (estimator, sampling_temperature))


def fit_net(
    trace: NodeTrace, seed: int = 0, temperature_scaling: Calibration | None = None, options: NetOptions | None = None
) -> tuple[FittedNet, NetReport]:
    """The net and how it does on the judging half. `temperature_scaling` goes with it, and is judged too.

    The halves are those of `fit_temperatures` with the same seed and sessions, so nothing is judged on what it was fitted on. Raises
    ConfigError where there are too few sessions or verdicts.
    """
    options = options or NetOptions()
    for_fit, for_stopping = _split(trace, seed)
    parts = {"fit": trace.select(for_fit), "stopping": trace.select(for_stopping), "judging": trace.select(~(for_fit | for_stopping))}
    for name, part in parts.items():
        least = options.min_observations if name == "fit" else 1
        if len(part) < least:
            raise ConfigError(f"{len(part)} verdicts for {name}, fewer than {least}: decode more prompts")
    net, steps = _train(parts["fit"], parts["stopping"], seed, options)
    net = replace(net, temperature_scaling=temperature_scaling)
    num_fit, num_stopping, num_judged = (len(part) for part in parts.values())
    scores = judge(parts["judging"], net)
    return net, NetReport(scores, len(np.unique(trace.session)), num_fit, num_stopping, num_judged, steps)


def judge(trace: NodeTrace, net: FittedNet) -> tuple[NodeScores, ...]:
    """The net against the estimates that it replaces, on the sessions of this trace."""
    signals = trace.signals
    estimates: dict[str, Floats] = {"served": trace.served, "sigmoid_of_gaps": np.nan_to_num(sigmoid_of_gaps(signals), nan=0.5)}
    if net.temperature_scaling is not None:
        estimates[net.temperature_scaling.method] = net.temperature_scaling.conditional(signals)
    return score_nodes(trace, estimates | {net.method: net.conditional(signals)})


def _split(trace: NodeTrace, seed: int) -> tuple[Mask, Mask]:
    """[n] verdicts that fit, [n] verdicts that stop; whole sessions. The rest judges."""
    half = first_half(trace.session, seed)
    sessions = np.unique(trace.session[half])
    if len(sessions) < 3:
        raise ConfigError(f"{len(sessions)} session(s) to fit on: a third of them decides when to stop, so it takes three", "session")
    shuffled = np.random.default_rng([seed, 1]).permutation(sessions)
    stopping = np.isin(trace.session, shuffled[: len(sessions) // 3])
    return half & ~stopping, stopping


def _train(fit: NodeTrace, stopping: NodeTrace, seed: int, options: NetOptions) -> tuple[FittedNet, int]:
    """The net of least loss on the sessions for stopping, and after how many steps that was."""
    raw = raw_inputs(fit.signals)
    blank = FittedNet(*_standardisation(raw), ())
    inputs, held_out = (torch.from_numpy(blank.standardised(part.signals)) for part in (fit, stopping))
    truth, held_out_truth = (torch.from_numpy(part.accepted.astype(np.float32)) for part in (fit, stopping))
    layers = _initial_layers(seed, options.hidden, float(truth.mean()))
    optimizer = torch.optim.AdamW(
        [tensor.requires_grad_() for layer in layers for tensor in layer], options.learning_rate, weight_decay=options.weight_decay
    )
    cooling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.max_steps)
    best = _Best(layers, _loss(layers, held_out, held_out_truth).item())
    for step in range(1, options.max_steps + 1):
        optimizer.zero_grad()
        _loss(layers, inputs, truth).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        cooling.step()
        if step % options.check_every == 0:
            with torch.no_grad():
                best.look(layers, _loss(layers, held_out, held_out_truth).item(), step)
        if best.looks_since >= options.patience:
            break
    return replace(blank, layers=_served(best.layers, raw)), best.step


class _Best:
    """The weights of least loss so far."""

    def __init__(self, layers: Layers, loss: float) -> None:
        self.layers, self.loss, self.step, self.looks_since = _copy(layers), loss, 0, 0

    def look(self, layers: Layers, loss: float, step: int) -> None:
        self.looks_since += 1
        if loss < self.loss:
            self.layers, self.loss, self.step, self.looks_since = _copy(layers), loss, step, 0


def _copy(layers: Layers) -> Layers:
    return [(weights.detach().clone(), biases.detach().clone()) for weights, biases in layers]


def _initial_layers(seed: int, hidden: Sequence[int], base_rate: float) -> Layers:
    """Small weights, so that the first answer is about the base rate everywhere."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [len(INPUTS), *hidden, 1]
    layers = [(torch.randn(a, b, generator=generator) * a**-0.5, torch.zeros(b)) for a, b in pairwise(sizes)]
    rate = min(max(base_rate, 1e-3), 1.0 - 1e-3)
    layers[-1] = (0.1 * layers[-1][0], torch.tensor([np.log(rate / (1.0 - rate))], dtype=torch.float32))
    return layers


def _loss(layers: Layers, inputs: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean binary cross entropy of inputs [n, I] against 0 or 1 [n]."""
    values = inputs
    for weights, biases in layers[:-1]:
        values = torch.tanh(torch.addmm(biases, values, weights))
    logits = torch.addmm(layers[-1][1], values, layers[-1][0])[:, 0]
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)


def _standardisation(raw: Floats) -> tuple[Floats, Floats]:
    """Mean and spread of the measured inputs [n, I]; flags stay 0 or 1. What never varied becomes 0."""
    mean, scale = np.zeros(len(INPUTS), np.float32), np.ones(len(INPUTS), np.float32)
    for index in range(len(INPUTS)):
        known = raw[~np.isnan(raw[:, index]), index].astype(np.float64)
        if not len(known):
            continue
        if known.min() == known.max():
            mean[index] = known[0]
        elif index < NUM_MEASURED:
            mean[index], scale[index] = known.mean(), max(known.std(), MIN_SPREAD)
    return _rounded(mean), _rounded(scale)


def _served(layers: Layers, raw: Floats) -> tuple[Layer, ...]:
    """As numpy arrays, rounded as they are stored. An input that never varied has nothing to say when it does: its weights are 0."""
    arrays = [Layer(_rounded(weights.numpy()), _rounded(biases.numpy())) for weights, biases in layers]
    filled = np.nan_to_num(raw)
    arrays[0].weights[filled.min(axis=0) == filled.max(axis=0)] = 0.0
    return tuple(arrays)


def _rounded(values: NDArray[np.float32]) -> Floats:
    return np.asarray([float(f"{value:.6g}") for value in values.ravel().tolist()], np.float32).reshape(values.shape)
