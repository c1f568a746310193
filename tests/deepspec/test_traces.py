"""Decoding traces: columns that belong together, shards that are whole, and verdicts that count only where there was one."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dspark.deepspec.traces import FORMAT, DecodingTrace, TraceRecorder, read_traces
from dspark.errors import ConfigError


def small_trace() -> DecodingTrace:
    """Three drafted, one accepted; two drafted, one verified and accepted; nothing drafted."""
    recorder = TraceRecorder()
    recorder.add(4, 0.7, 1, [0.9, 0.5, 0.2], confidence_logit=[2.0, 0.1, -1.0], gap=[1.0, 2.0, 3.0])
    recorder.add(4, 0.7, 1, [0.8, 0.4], confidence_logit=[1.0, 0.5], num_verified=1)
    recorder.add(5, 0.0, 0, [])
    return recorder.trace()


def same(first: DecodingTrace, second: DecodingTrace) -> bool:
    names = first.__dataclass_fields__
    return all(np.array_equal(getattr(first, n), getattr(second, n), equal_nan=True) for n in names)


def test_the_recorder_keeps_rounds_and_their_positions_in_order() -> None:
    trace = small_trace()
    assert trace.offsets.tolist() == [0, 3, 5, 5]
    assert trace.depth == 3
    assert trace.score.tolist() == pytest.approx([0.9, 0.5, 0.2, 0.8, 0.4])
    assert trace.temperatures == (0.0, 0.7)
    assert trace.has_confidence
    assert np.isnan(trace.gap[3:]).all()
    assert np.isnan(trace.log_draft_prob).all()


def test_a_position_counts_only_if_verified_and_all_before_it_were_accepted() -> None:
    trace = small_trace()
    first, second, third = (trace.conditional_outcomes(k) for k in range(3))
    assert (first.rounds.tolist(), first.accepted.tolist(), first.indices.tolist()) == ([0, 1], [True, True], [0, 3])
    assert (second.rounds.tolist(), second.accepted.tolist(), second.indices.tolist()) == ([0], [False], [1])
    assert len(third.rounds) == 0


def test_the_masks_say_the_same_as_the_conditional_outcomes() -> None:
    trace = small_trace()
    for k in range(trace.depth):
        assert np.flatnonzero(trace.reached_mask()[:, k]).tolist() == trace.conditional_outcomes(k).rounds.tolist()
    assert trace.accepted_mask().sum(axis=1).tolist() == trace.num_accepted.tolist()
    assert trace.verified_mask().sum(axis=1).tolist() == [3, 1, 0]


def test_a_padded_column_has_nan_where_nothing_was_drafted() -> None:
    expected = np.array([[2.0, 0.1, -1.0], [1.0, 0.5, np.nan], [np.nan] * 3], np.float32)
    assert np.array_equal(small_trace().padded("confidence_logit"), expected, equal_nan=True)


def test_selected_rounds_take_their_positions_with_them() -> None:
    part = small_trace().select(np.array([False, True, True]))
    assert part.score.tolist() == pytest.approx([0.8, 0.4])
    assert same(small_trace().at_temperature(0.7), small_trace().select(np.array([True, True, False])))


def test_a_trace_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    small_trace().write(tmp_path / "t.safetensors")
    assert same(DecodingTrace.read(tmp_path / "t.safetensors"), small_trace())
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]


def test_an_empty_trace_is_legal(tmp_path: Path) -> None:
    empty = TraceRecorder().trace()
    empty.write(tmp_path / "t.safetensors")
    assert len(DecodingTrace.read(tmp_path / "t.safetensors")) == 0
    assert DecodingTrace.concatenate([]).depth == 0


def test_shards_are_read_in_their_order_and_equal_sessions_stay_one(tmp_path: Path) -> None:
    for name in "abc":
        small_trace().write(tmp_path / "traces" / f"trace-{name}.safetensors")
    assert same(read_traces(tmp_path / "traces"), DecodingTrace.concatenate([small_trace()] * 3))
    assert set(read_traces(tmp_path / "traces").session.tolist()) == {4, 5}


def test_renumbering_keeps_the_sessions_of_two_traces_apart() -> None:
    both = DecodingTrace.concatenate([small_trace(), small_trace()], renumber=True)
    assert len(set(both.session.tolist())) == 4
    assert both.session[0] == both.session[1] != both.session[3] == both.session[4]


def spoil(path: Path, **changes: np.ndarray | None) -> None:
    small_trace().write(path)
    columns = load_file(path) | changes
    save_file({name: column for name, column in columns.items() if column is not None}, path, {"format": FORMAT})


SPOILED = {
    "score": {"score": np.zeros(4, np.float32)},
    "gap": {"gap": np.zeros(5, np.float64)},
    "num_accepted": {"num_accepted": np.array([4, 0, 0], np.int32)},
    "num_accepted ": {"num_accepted": np.array([-1, 0, 0], np.int32)},
    "num_verified": {"num_verified": np.array([3, 3, 0], np.int32)},
    "session": {"session": np.zeros(2, np.int32)},
    "temperature": {"temperature": np.array([np.nan, 0, 0], np.float32)},
}


@pytest.mark.parametrize(("column", "changes"), SPOILED.items())
def test_a_file_with_a_wrong_column_is_refused_by_name(tmp_path: Path, column: str, changes: dict[str, np.ndarray]) -> None:
    path = tmp_path / "t.safetensors"
    spoil(path, **changes)
    with pytest.raises(ConfigError, match=f"t.safetensors.*{column.strip()}") as caught:
        DecodingTrace.read(path)
    assert caught.value.field == column.strip()


def test_missing_and_unknown_columns_are_named(tmp_path: Path) -> None:
    spoil(tmp_path / "t.safetensors", gap=None, rank=np.zeros(5, np.int32))
    with pytest.raises(ConfigError, match=r"missing columns \['gap'\], unknown columns \['rank'\]"):
        DecodingTrace.read(tmp_path / "t.safetensors")


def test_other_files_and_empty_folders_are_refused(tmp_path: Path) -> None:
    save_file({"weight": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("model.safetensors", "text.safetensors", "absent.safetensors"):
        with pytest.raises(ConfigError, match=name):
            read_traces(tmp_path / name)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="holds no decoding trace"):
        read_traces(tmp_path / "folder")


def test_columns_of_different_length_are_refused_when_recorded() -> None:
    with pytest.raises(ConfigError, match="'gap': 1 values for 2"):
        TraceRecorder().add(0, 1.0, 0, [0.5, 0.4], gap=[1.0])
