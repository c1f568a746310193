"""Costs of a simulated service, from files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dspark.bench.simulator.costs import DraftCosts, RouterCosts, TargetCosts, curve_of, read_setup
from dspark.errors import ConfigError
from dspark.scheduling.curve_file import CurveSetup, SavedCurve

RECORD: dict[str, Any] = {
    "label": "mine",
    "target": {"rows": [1, 8, 64], "step_ms": [4.0, 5.0, 12.0]},
    "draft": {"fixed_ms": 6.0, "session_ms": 0.1, "depth_ms": 0.5},
    "router": {"round_ms": 0.4, "session_us": 150},
    "num_targets": 2,
    "one_processor": True,
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "setup.json"
    path.write_text(json.dumps(RECORD | changes))
    return path


def test_a_file_says_what_everything_costs(tmp_path: Path) -> None:
    setup = read_setup(written(tmp_path))
    assert (setup.label, setup.num_targets, setup.num_drafters, setup.one_processor) == ("mine", 2, 1, True)
    assert setup.target.step_ms(8, 0.0, 0.0) == 5.0
    assert setup.draft.ms(10, 4) == pytest.approx(6 + 1 + 2)
    assert setup.router.ms(10) == pytest.approx(0.4 + 1.5)


def test_a_replicas_saved_curve_can_be_named(tmp_path: Path) -> None:
    saved = SavedCurve(curve_of([1, 16], [3.0, 9.0]), CurveSetup("f" * 64, "cpu", "float32", 1, 512))
    (tmp_path / "curve.json").write_text(saved.to_json())
    setup = read_setup(written(tmp_path, target={"curve_file": "curve.json", "kv_us_per_token": 2.0}))
    assert setup.target.step_ms(16, 0.0, 1000.0) == pytest.approx(9.0 + 2.0)


def test_steps_cost_more_behind_more_context() -> None:
    target = TargetCosts(curve_of([1, 8], [[1.0, 2.0], [3.0, 4.0]], [0, 100]))
    assert target.step_ms(8, 50.0, 0.0) == pytest.approx(3.0)
    assert [target.step_ms(rows, 100.0, 0.0) for rows in (1, 8)] == pytest.approx([3.0, 4.0])
    assert replace(target, session_us=500.0).step_ms(8, 50.0, 0.0, 4) == pytest.approx(5.0), "half a millisecond of each of four"


def test_drafting_and_routing_grow_with_sessions_and_depth() -> None:
    assert DraftCosts(1.0, 0.5, 0.25, 0.125).ms(4, 2) == pytest.approx(1 + 2 + 0.5 + 1)
    assert RouterCosts().ms(100) == 0.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"targets": 2}, "targets is unknown"),
        ({"draft": {"step_ms": 1.0}}, "draft.step_ms is unknown"),
        ({"draft": {"fixed_ms": -1.0}}, "draft.fixed_ms is -1.0"),
        ({"target": {"rows": [1, 8], "step_ms": [4.0]}}, "step_ms must have the shape"),
        ({"target": {"rows": [8, 1], "step_ms": [4.0, 5.0]}}, "rows must be ascending"),
        ({"target": {"curve_file": "none.json"}}, "none.json: cannot be read"),
        ({"num_targets": 0}, "num_targets must be at least 1"),
        ({"target": {}}, "KeyError"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        read_setup(written(tmp_path, **changes))
    assert "setup.json" in str(caught.value)


def test_a_profile_holds_what_reading_the_cache_costs_the_sessions_that_are_measured() -> None:
    curve = curve_of([1, 8, 64], [2.0, 3.0, 9.0])
    assert TargetCosts(curve).profiled() is curve
    found = TargetCosts(curve, kv_us_per_token=10.0).profiled()
    assert found.step_ms_of([1, 8, 64], 0.0).tolist() == [2.0, 3.0, 9.0]
    assert found.step_ms_of([1, 8, 64], 100.0).tolist() == pytest.approx([2.0 + 1.0, 3.0 + 8.0, 9.0 + 8.0])
