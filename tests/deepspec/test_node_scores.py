"""Scores of estimates, candidate by candidate: log-loss by hand, groups by depth and rank, and their JSON."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from dspark.deepspec.metrics import score_calibration
from dspark.deepspec.node_scores import CLIP, NodeScores, log_loss, score_nodes
from dspark.errors import ConfigError
from tests.deepspec.synthetic_nodes import synthetic_nodes


def test_log_loss_is_the_mean_surprise() -> None:
    assert log_loss([0.8, 0.4], [True, False]) == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2)


def test_a_certain_error_costs_no_more_than_the_cut() -> None:
    assert log_loss([1.0], [False]) == pytest.approx(-np.log(CLIP))


def test_nothing_cannot_be_scored() -> None:
    with pytest.raises(ConfigError, match="no observations"):
        log_loss([], [])


def test_every_estimator_is_scored_over_all_and_at_each_temperature() -> None:
    trace = synthetic_nodes(0, sessions=4)
    constant = np.full(len(trace), 0.3)
    found = score_nodes(trace, {"served": trace.served, "constant": constant})
    assert [(s.estimator, s.sampling_temperature) for s in found] == [
        (name, temperature) for temperature in (None, 0.0, 1.0) for name in ("served", "constant")
    ]
    greedy = trace.temperature == 0
    assert found[2].log_loss == pytest.approx(log_loss(trace.served[greedy], trace.accepted[greedy]))
    assert found[0].scores == score_calibration(trace.served, trace.accepted)


def test_groups_split_the_verdicts_by_depth_and_by_rank() -> None:
    trace = synthetic_nodes(1, sessions=4)
    [found, *_] = score_nodes(trace, {"served": trace.served})
    for groups, column in ((found.by_depth, trace.depth), (found.by_rank, trace.rank)):
        assert [g.group for g in groups] == sorted(set(column.tolist()))
        assert [g.scores.count for g in groups] == [int((column == g.group).sum()) for g in groups]
        assert found.log_loss == pytest.approx(sum(g.log_loss * g.scores.count for g in groups) / len(trace))


def test_scores_survive_json() -> None:
    adapter = TypeAdapter(tuple[NodeScores, ...])
    trace = synthetic_nodes(2, sessions=3)
    found = score_nodes(trace, {"served": trace.served})
    assert adapter.validate_json(adapter.dump_json(found)) == found
