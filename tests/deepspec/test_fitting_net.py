"""The net learns what decides under shared noise, on real trees of an imagined pair; and learns nothing where there is nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dspark.deepspec.fitting import first_half, write_calibration
from dspark.deepspec.fitting_net import NetOptions, NetReport, fit_net
from dspark.deepspec.node_traces import COLUMNS, NodeTrace
from dspark.errors import ConfigError
from dspark.scheduling.calibration import Calibration
from dspark.scheduling.estimators import load_estimator
from dspark.scheduling.fitted_net import INPUTS, FittedNet
from tests.deepspec.synthetic_nodes import synthetic_nodes, without_confidence

SEQUENTIAL = Calibration.identity().method


@pytest.fixture(scope="module")
def trace() -> NodeTrace:
    return synthetic_nodes(0)


@pytest.fixture(scope="module")
def fit(trace: NodeTrace) -> tuple[FittedNet, NetReport]:
    return fit_net(trace, 0, Calibration.identity())


def changed(trace: NodeTrace, **columns: np.ndarray) -> NodeTrace:
    return NodeTrace(**{name: getattr(trace, name) for name in COLUMNS} | columns)


def test_the_net_beats_gaps_and_confidence_alone_on_unseen_sessions(fit: tuple[FittedNet, NetReport]) -> None:
    """Seed fixed. Over seeds 0..3 the log-loss fell by 0.083 to 0.099 from that of the gaps, by 0.051 to 0.071 from that of confidence."""
    report = fit[1]
    gaps, confidence, net = (report.of(name) for name in ("sigmoid_of_gaps", SEQUENTIAL, "fitted_net"))
    assert net.log_loss < gaps.log_loss - 0.06
    assert net.log_loss < confidence.log_loss - 0.03
    assert net.scores.brier < gaps.scores.brier
    assert gaps.scores.auc is not None
    assert net.scores.auc is not None
    assert net.scores.auc > gaps.scores.auc


def test_its_chances_can_be_believed_on_unseen_sessions(fit: tuple[FittedNet, NetReport]) -> None:
    """Seed fixed. Over seeds 0..3 the error was 1.2 to 2.1 times its floor; that of the gaps 10 times."""
    net, gaps = fit[1].of("fitted_net").scores, fit[1].of("sigmoid_of_gaps").scores
    assert net.ece < 3 * net.ece_floor
    assert gaps.ece > 3 * gaps.ece_floor


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_is_better_at_each_temperature(fit: tuple[FittedNet, NetReport], temperature: float) -> None:
    assert fit[1].of("fitted_net", temperature).log_loss < fit[1].of("sigmoid_of_gaps", temperature).log_loss - 0.03


def test_without_a_confidence_head_the_net_still_beats_the_gaps(trace: NodeTrace) -> None:
    """Seed fixed. It was better by 0.05 and more over seeds 0..3."""
    report = fit_net(without_confidence(trace), 0)[1]
    assert report.of("fitted_net").log_loss < report.of("sigmoid_of_gaps").log_loss - 0.03
    assert SEQUENTIAL not in {scores.estimator for scores in report.scores}


def test_permuted_verdicts_teach_nothing(trace: NodeTrace) -> None:
    """Seed fixed. Of about 9000 verdicts, 2800 accepted, the AUC of any fixed ranking has a standard deviation of 0.0065 around 0.5: 0.03
    away is 4.6 of them, a chance of 4e-6. A loss below that of the base rate would be luck of the same kind."""
    shuffled = changed(trace, accepted=np.random.default_rng(0).permutation(trace.accepted))
    net, report = fit_net(shuffled, 0)
    judged = shuffled.select(~first_half(shuffled.session, 0))
    rate = judged.accepted.mean()
    found = report.of("fitted_net")
    assert found.scores.auc == pytest.approx(0.5, abs=0.03)
    assert found.log_loss > -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)) - 0.003
    assert np.std(net.conditional(judged.signals)) < 0.06


def test_nothing_is_judged_on_sessions_that_fitted_or_stopped(trace: NodeTrace, fit: tuple[FittedNet, NetReport]) -> None:
    """Other verdicts in the judging half change the report but not one weight."""
    net, report = fit
    judging = ~first_half(trace.session, 0)
    turned = changed(trace, accepted=trace.accepted ^ judging)
    again, worse = fit_net(turned, 0, Calibration.identity())
    assert again.to_json() == net.to_json()
    assert worse.of("fitted_net").log_loss > report.of("fitted_net").log_loss
    assert (report.num_fit + report.num_stopping + report.num_judged, report.num_judged) == (len(trace), judging.sum())
    assert report.num_sessions == 60


def test_a_signal_that_never_varied_has_no_say_when_it_does(trace: NodeTrace) -> None:
    net = fit_net(without_confidence(trace.select(trace.temperature == 1.0)), 0, options=NetOptions(max_steps=40))[0]
    signals = trace.select(trace.temperature == 1.0).signals
    other = replace(signals, temperatures=np.full(len(signals), 0.5, np.float32), confidence_logits=np.ones(len(signals), np.float32))
    assert np.array_equal(net.conditional(signals), net.conditional(other))
    constant = [INPUTS.index(name) for name in ("temperature", "greedy", "confidence_known", "confidence_logit")]
    assert np.all(net.layers[0].weights[constant] == 0)


def test_what_is_stored_is_what_was_judged(tmp_path: Path, trace: NodeTrace, fit: tuple[FittedNet, NetReport]) -> None:
    net = fit[0]
    path = write_calibration(tmp_path, net)
    read = load_estimator(tmp_path)
    assert read is not None
    assert path.stat().st_size < 64 * 1024
    assert np.array_equal(read.conditional(trace.signals), net.conditional(trace.signals))


def test_too_little_to_fit_on_is_said(trace: NodeTrace) -> None:
    with pytest.raises(ConfigError, match=r"1 session\(s\)"):
        fit_net(trace.select(trace.session == 0))
    with pytest.raises(ConfigError, match="it takes three"):
        fit_net(trace.select(trace.session < 4))
    with pytest.raises(ConfigError, match="verdicts for fit, fewer than 500"):
        fit_net(trace.select(trace.round % 40 == 0))
