"""From options to points, table, files: what `dspark bench simulate` does."""

import json
from pathlib import Path

import pytest

from dspark.bench.simulate import (
    RESULT_FILE,
    Agreement,
    Compared,
    SimulateOptions,
    SimulationReport,
    acceptance_named,
    compare,
    setup_named,
    simulate,
)
from dspark.bench.simulator.acceptance import ChainTraceSource, NodeTraceSource
from dspark.deepspec.node_traces import NodeTrace
from dspark.deepspec.traces import TraceRecorder
from dspark.errors import ConfigError
from tests.bench.simulator.test_acceptance import TABLE, recorded_trees

OPTIONS = SimulateOptions(policies=("plain", "fixed3", "planned"), loads=(1.0, 8.0), tokens_per_point=1500, num_drafts=200)
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def report() -> SimulationReport:
    return simulate(OPTIONS)


def test_every_policy_meets_every_load(report: SimulationReport) -> None:
    assert [(point.policy, point.load) for point in report.points] == [
        (policy, load) for policy in ("plain", "fixed3", "planned") for load in (1.0, 8.0)
    ]
    assert report == simulate(OPTIONS)


def test_on_a_target_with_room_planned_is_faster_than_fixed_and_fixed_than_plain(report: SimulationReport) -> None:
    speed = {(point.policy, point.load): point.tokens_per_second for point in report.points}
    for load in (1.0, 8.0):
        assert speed["planned", load] > speed["fixed3", load] > speed["plain", load]


def test_at_saturation_planned_stands_by_plain_where_fixed_falls_far_below() -> None:
    options = SimulateOptions(
        setup="qwen3-8b-h100-shared", policies=("plain", "fixed7", "planned"), loads=(192.0,), tokens_per_point=20_000, num_drafts=200
    )
    plain, fixed, planned = (point.tokens_per_second for point in simulate(options).points)
    assert fixed < 0.7 * plain
    assert planned > 0.97 * plain


def test_the_table_compares_with_plain_and_says_what_it_is_about(report: SimulationReport) -> None:
    lines = report.table().splitlines()
    assert "derived" in lines[0]
    assert "acceptance demo-dspark-t1" in lines[0]
    row = next(line for line in lines if line.startswith("| plain | 8 |")).split(" | ")
    assert float(row[3]) == 1.0


def test_points_are_written_as_json_and_pictures(report: SimulationReport, tmp_path: Path) -> None:
    files = report.write(tmp_path / "out")
    record = json.loads((tmp_path / "out" / RESULT_FILE).read_text())
    assert record["points"] == [point.record() for point in report.points]
    assert record["label"] == report.label
    pictures = [path for path in files if path.suffix == ".png"]
    assert len(pictures) == 3
    assert all(path.read_bytes()[:4] == PNG for path in pictures)


def test_requests_can_come_at_random() -> None:
    options = SimulateOptions(policies=("plain",), loads=(2.0,), poisson=True, tokens_per_point=1000, output_tokens=20)
    report = simulate(options)
    assert report.points[0].tokens_per_second == pytest.approx(40.0, rel=0.6), "50 requests: 4 standard deviations"
    assert "requests/s" in report.table()


def test_simulated_points_are_held_against_measured_ones(report: SimulationReport) -> None:
    plain, planned = report.points[0], report.points[-1]
    measured = {("plain", 1.0): plain.tokens_per_second / 1.1, ("planned", 8.0): planned.tokens_per_second / 0.95}
    agreement = compare(report.points, measured)
    text = agreement.table()
    assert "| 1.10 | +10.0% |" in text
    assert "| 0.95 | -5.0% |" in text
    assert "2 of 2 operating points within 15%; largest error 10.0%" in text
    assert agreement.is_enough


def test_a_simulation_that_is_off_at_more_points_than_six_agree_is_not_to_be_trusted() -> None:
    good, bad = Compared("plain", 1.0, 100.0, 114.0), Compared("plain", 2.0, 100.0, 80.0)
    assert not Agreement((good,) * 5 + (bad,)).is_enough
    assert Agreement((good,) * 6 + (bad,)).is_enough
    assert not Agreement(()).is_enough


def test_acceptance_comes_from_tables_and_from_both_kinds_of_traces(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(json.dumps({"conditional": [[0.5, 0.1]], "spread": 0.2}))
    assert acceptance_named(str(tmp_path / "table.json")) is not None
    nodes = recorded_trees(TABLE, 50)
    nodes.write(tmp_path / "nodes.safetensors")
    assert isinstance(acceptance_named(str(tmp_path / "nodes.safetensors"), temperature=1.0), NodeTraceSource)
    chains = TraceRecorder()
    chains.add(0, 0.7, 1, [0.5, 0.4])
    chains.trace().write(tmp_path / "chains.safetensors")
    assert isinstance(acceptance_named(str(tmp_path / "chains.safetensors"), temperature=0.7), ChainTraceSource)
    with pytest.raises(ConfigError, match="no rounds"):
        acceptance_named(str(tmp_path / "chains.safetensors"), temperature=1.0)
    assert isinstance(NodeTrace.read(tmp_path / "nodes.safetensors"), NodeTrace)


def test_names_that_are_nothing_are_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="qwen3-8b-h100"):
        setup_named("h900")
    with pytest.raises(ConfigError, match="demo-dspark-t1"):
        acceptance_named("lucky")
    (tmp_path / "bad.json").write_text('{"conditional": [[0.9, 0.9]]}')
    with pytest.raises(ConfigError, match="siblings at most 1 together"):
        acceptance_named(str(tmp_path / "bad.json"))
    (tmp_path / "junk.safetensors").write_text("junk")
    with pytest.raises(ConfigError, match="cannot be read"):
        acceptance_named(str(tmp_path / "junk.safetensors"))
    with pytest.raises(ConfigError, match="not a whole number"):
        simulate(SimulateOptions(loads=(1.5,)))
