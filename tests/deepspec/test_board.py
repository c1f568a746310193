"""What is shown of a run: lines where there is no terminal, TensorBoard's files where it is installed."""

from pathlib import Path
from typing import Any

import pytest

from dspark.deepspec import board as board_module
from dspark.deepspec.board import board
from dspark.deepspec.train import StepRecord


def record(step: int) -> StepRecord:
    return StepRecord(step, 2.0, 1.0, 0.5, 0.1, [0.5, 0.5], 1.0, num_tokens=100, seconds=0.5)


def test_without_a_terminal_a_line_now_and_then_tells_how_long_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_module, "LINE_EVERY_S", 0.0)
    with board(tmp_path, 10, 4, tensorboard=False) as shown:
        shown.step(record(5))
        shown.step(record(6))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("step 6 of 10: loss 2, tau 1.75, tokens/s 200; about ")
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_gets_every_step_and_what_comes_now_and_then(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="an optional library: pip install 'dspark[train]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with board(tmp_path, 10, 0) as shown:
        for step in (1, 2, 3):
            shown.step(record(step))
        shown.value(3, "held_out_tau", 1.5)
    with board(tmp_path, 10, 2) as shown:  # killed after step 2 was saved
        shown.step(record(3))
    reader: Any = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    assert [event.step for event in reader.Scalars("loss")] == [1, 2, 3]
    assert {event.value for event in reader.Scalars("tau")} == {1.75}
