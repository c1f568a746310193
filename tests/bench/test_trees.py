"""`dspark bench accept --nodes`: chains, trees and selected trees at equal numbers of candidates."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dspark.bench.trees import LAWS, REJECTION, TreePlan, TreePoint, measure_trees, threshold_for, tree_curves, trees_table
from dspark.cli import app
from dspark.config import DrafterConfig, TargetConfig
from dspark.deepspec.decoding import DecodingPlan
from dspark.deepspec.metrics import Interval
from dspark.deepspec.traces import TraceRecorder

BOUND, CHAIN, TREE, SELECTED = LAWS


def point(law: str, nodes: int, verified: float, tau: float, temperature: float = 0.7) -> TreePoint:
    return TreePoint("block", temperature, nodes, law, verified, Interval(tau, tau - 0.1, tau + 0.1))


POINTS = [
    point(BOUND, 4, 4, 2.6),
    point(CHAIN, 4, 4.0, 2.5),
    point(TREE, 4, 3.9, 2.7),
    point(SELECTED, 4, 4.1, 2.8),
    point(BOUND, 16, 7, 2.9),
    point(TREE, 16, 15.5, 3.4),
    point(SELECTED, 16, 15.8, 3.5),
    point(BOUND, 32, 7, 2.9),
    point(TREE, 4, 4.0, 3.1, temperature=0.0),
]


def rows_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_the_table_has_a_line_for_each_number_of_candidates_and_a_column_for_each_law() -> None:
    head, _, *rows = rows_of(trees_table(POINTS))
    assert head == ["drafter", "temperature", "candidates", *LAWS]
    assert [row[:3] for row in rows] == [["block", "0.7", "4"], ["block", "0.7", "16"], ["block", "0.7", "32"], ["block", "0", "4"]]
    assert rows[0][3:] == ["2.60 [2.50, 2.70]", "2.50 [2.40, 2.60] at 4.0", "2.70 [2.60, 2.80] at 3.9", "2.80 [2.70, 2.90] at 4.1"]
    assert rows[1][4] == "", "no chain is so deep"


def test_the_picture_shows_what_the_table_says() -> None:
    rows, panels = rows_of(trees_table(POINTS))[2:], tree_curves(POINTS)
    assert list(panels) == ["block, temperature 0.7", "block, temperature 0"]
    shown = {(p.temperature, p.nodes, law): p.cell for curves in panels.values() for law, curve in curves.items() for p in curve}
    written = {(float(row[1]), int(row[2]), law): cell for row in rows for law, cell in zip(LAWS, row[3:], strict=True) if cell}
    assert set(written.items()) - set(shown.items()) == {((0.7, 32, REJECTION), "2.90 [2.80, 3.00]")}, "a chain of 7 again"
    assert set(shown.items()) <= set(written.items())
    for curves in panels.values():
        assert all([p.verified for p in curve] == sorted(p.verified for p in curve) for curve in curves.values())


@pytest.mark.timeout(120)
def test_the_command_writes_the_numbers_and_their_picture(tmp_path: Path) -> None:
    arguments = ["--drafters", "lookup", "--nodes", "2", "--temperatures", "0.7", "--count", "2", "--max-tokens", "8", "--depth", "2"]
    result = CliRunner().invoke(app, ["bench", "accept", *arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    points = json.loads((tmp_path / "out" / "accept.json").read_text())["points"]
    assert [(p["law"], p["nodes"]) for p in points] == [(CHAIN, 2), (TREE, 2), (SELECTED, 2)]
    assert f"{points[0]['tau']['value']:.2f} [" in result.output
    assert (tmp_path / "out" / "accept.png").read_bytes()[:4] == b"\x89PNG"


def test_there_is_no_picture_without_numbers_of_candidates(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "accept", "--drafters", "lookup", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "--nodes" in result.output


def test_the_threshold_leaves_the_wanted_number_of_candidates_in_the_mean_round() -> None:
    recorder, draw = TraceRecorder(), np.random.default_rng(0)
    for _ in range(200):
        recorder.add(0, 1.0, 0, draw.random(draw.integers(4, 13)).astype(np.float32))
    trace = recorder.trace()
    for nodes in (1, 3, 6):
        kept = (trace.score >= threshold_for(trace, nodes)).sum()
        assert kept == nodes * len(trace)
    assert threshold_for(trace, 1000) == trace.score.min()
    assert threshold_for(TraceRecorder().trace(), 4) == 0.0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trees_commit_more_than_chains_of_as_many_candidates() -> None:
    """12 prompts x 48 tokens at temperature 1. The noise is fixed by its seed, so nothing here is left to chance."""
    plan = TreePlan((1.0,), (7,), 4, DecodingPlan(max_tokens=48))
    points = measure_trees(TargetConfig(num_threads=1), {"block": DrafterConfig(num_threads=1)}, None, 12, plan)
    tau = {one.law: one.tau.value for one in points}
    assert set(tau) == set(LAWS)
    assert tau[TREE] > tau[CHAIN]
    assert tau[SELECTED] > tau[CHAIN]
