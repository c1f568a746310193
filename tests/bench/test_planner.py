"""The planner's bench: a line for each number of sessions, of times that were taken. How long they are is not tested."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dspark.bench.planner import PlannerTimes, planner_curves, planner_table, planner_times, planner_title
from dspark.cli import app


def test_every_number_of_sessions_gets_its_line() -> None:
    table = planner_table(planner_times((1, 3), num_nodes=4, repeats=2), planner_title(4, 2)).splitlines()
    assert [line.split("|")[1].strip() for line in table[4:]] == ["1", "3"]
    assert len({line.count("|") for line in table[2:]}) == 1


def test_table_and_picture_show_the_same_times() -> None:
    times = [PlannerTimes(1, 7, 0.1, 0.2, 0.3, 0.4), PlannerTimes(64, 99, 1.1, 1.2, 1.3, 1.4)]
    curves = planner_curves(times)
    table = [[cell.strip() for cell in line.strip("| ").split("|")] for line in planner_table(times, "").splitlines()[2:]]
    assert table[0] == ["sessions", "kept", *curves]
    for index, row in enumerate(table[2:]):
        assert row[2:] == [f"{curve[index]:.3f}" for curve in curves.values()]
    assert [row[0] for row in table[2:]] == ["1", "64"]


def test_the_command_writes_the_times_and_their_picture(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "planner", "--sessions", "1,2", "--nodes", "3", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "planner.json").read_text())
    assert [point["num_sessions"] for point in record["points"]] == [1, 2]
    assert f"{record['points'][1]['plan_ms']:.3f}" in result.output
    assert (tmp_path / "out" / "planner.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("num_sessions", [1, 8])
def test_trees_and_choice_depend_on_the_seed_only(num_sessions: int) -> None:
    first, again = (planner_times((num_sessions,), num_nodes=6, repeats=1, seed=5)[0] for _ in range(2))
    assert first.num_kept == again.num_kept > 0
    assert first.plan_ms > 0
