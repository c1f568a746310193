"""The profile of a real model: by a clock of its own, within its budget, and without a trace in the pool."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from dspark.config import KvCacheConfig, ProfileConfig, TargetConfig
from dspark.errors import ModelLoadError
from dspark.runtime.model import PackedModel
from dspark.runtime.packed import Segment
from dspark.scheduling.curve import rows_to_measure
from dspark.scheduling.curve_file import read_curve
from dspark.verifying.profile import CONTEXTS, TURNS, measure_curve, setup_of
from dspark.verifying.target_model import LoadedTarget, load_target
from tests.runtime.tiny_models import packed_model


@dataclass
class Bench:
    """A real model whose forwards take what a law says, by a clock that nothing else moves. A batch of the same shape runs only once."""

    model: PackedModel
    law_s: Callable[[int, float], float]
    """Seconds by rows and mean cached tokens."""
    now_s: float = 0.0
    batches: list[list[Segment]] = field(default_factory=list)

    def __post_init__(self) -> None:
        forward = self.model.forward
        logits: dict[tuple[int, int], torch.Tensor] = {}

        def timed(segments: list[Segment]) -> torch.Tensor:
            self.batches.append(segments)
            shape = sum(len(segment.token_ids) for segment in segments), segments[0].num_cached
            self.now_s += self.law_s(*shape)
            if shape not in logits:
                logits[shape] = forward(segments)
            return logits[shape]

        self.model.forward = timed  # type: ignore[method-assign]

    def clock(self) -> float:
        return self.now_s


def stair_s(rows: int, context: float) -> float:
    return (10.0 + 0.1 * rows + 8.0 * (rows > 16) + 0.01 * context) / 1e3


def bench(law_s: Callable[[int, float], float] = stair_s, num_cache_tokens: int = 4096) -> Bench:
    return Bench(packed_model("qwen3", num_cache_tokens=num_cache_tokens, block_tokens=8), law_s)


def test_the_curve_is_what_forwards_take() -> None:
    b = bench()
    curve = measure_curve(b.model, max_rows=40, max_length=448, budget_s=100.0, clock=b.clock)
    assert curve is not None
    curve.check()
    assert curve.rows.tolist() == rows_to_measure(40)
    assert curve.context_tokens.tolist() == [64, 440]
    expected = [[1e3 * stair_s(rows, context) for rows in curve.rows] for context in curve.context_tokens]
    assert np.allclose(curve.step_ms, expected)


def test_the_pool_is_as_it_was_and_sessions_can_have_all_of_it() -> None:
    b = bench(num_cache_tokens=512)
    before = b.model.pool.take(5)
    b.model.pool.give_back(before)
    measure_curve(b.model, max_rows=64, max_length=512, budget_s=100.0, clock=b.clock)
    assert b.model.pool.num_free == b.model.pool.num_blocks
    assert b.model.pool.take(5) == before


def test_a_batch_looks_like_many_sessions_of_a_few_rows() -> None:
    b = bench()
    measure_curve(b.model, max_rows=128, max_length=80, budget_s=100.0, clock=b.clock)
    for segments in b.batches:
        sizes = [len(segment.token_ids) for segment in segments]
        assert max(sizes) <= 8
        assert max(sizes) - min(sizes) <= 1
        assert len(sizes) >= min(sum(sizes), 8)
        slots = [slot for segment in segments for slot in segment.slots]
        assert len(set(slots)) == len(slots), "no session reads or writes another's"
        assert all(segment.num_logits == len(segment.token_ids) for segment in segments)


def test_a_small_cache_takes_fewer_sessions_and_leaves_out_what_has_no_room() -> None:
    b = bench(num_cache_tokens=128)
    curve = measure_curve(b.model, max_rows=256, max_length=512, budget_s=100.0, clock=b.clock)
    assert curve is not None
    assert curve.context_tokens[-1] == 120
    assert curve.rows[-1] == 8
    assert all(len(segments) * b.model.pool.blocks_for(len(segments[0].slots)) <= 16 for segments in b.batches)


@pytest.mark.parametrize("max_length", [1, 5, 30])
def test_a_target_for_short_texts_is_measured_at_the_context_it_can_have(max_length: int) -> None:
    b = bench()
    curve = measure_curve(b.model, max_rows=16, max_length=max_length, budget_s=100.0, clock=b.clock)
    assert curve is not None
    assert curve.context_tokens.tolist() == [max(0, max_length - 8)]
    assert all(len(segment.slots) <= max_length for segments in b.batches for segment in segments)


def test_without_room_for_a_row_there_is_no_curve() -> None:
    b = bench(num_cache_tokens=8)
    b.model.pool.take(1)
    assert measure_curve(b.model, max_rows=4, max_length=64, budget_s=1.0, clock=b.clock) is None


def test_the_budget_is_kept_and_what_is_measured_first_is_the_shape() -> None:
    b = bench(lambda rows, context: 0.01 * max(1.0, rows / 8))
    curve = measure_curve(b.model, max_rows=512, max_length=512, budget_s=4.0, clock=b.clock)
    assert curve is not None
    assert b.now_s <= 4.0
    assert {1, 2, 4, 8, 16, 32, 64} <= set(curve.rows.tolist())
    assert 512 not in curve.rows, "one forward of it would take 0.64 s, and its point four of them"


def test_a_target_slower_than_the_budget_is_measured_at_one_row() -> None:
    b = bench(lambda rows, context: 7.0)
    curve = measure_curve(b.model, max_rows=64, max_length=60, budget_s=1.0, clock=b.clock)
    assert curve is not None
    assert (curve.rows.tolist(), len(b.batches)) == ([1], 2)


def test_every_point_has_its_warm_up_and_is_measured_over_several_turns() -> None:
    b = bench()
    measure_curve(b.model, max_rows=4, max_length=60, budget_s=100.0, clock=b.clock)
    counts = [sum(len(segment.token_ids) for segment in segments) for segments in b.batches]
    assert counts[:8] == [1, 1, 2, 2, 4, 4, 3, 3]
    assert counts[8:] == [1, 2, 4, 3] * (TURNS - 1)


def test_a_busy_moment_leaves_no_mark() -> None:
    b = bench()
    calm = b.law_s
    b.law_s = lambda rows, context: calm(rows, context) * (20.0 if 30 <= len(b.batches) < 60 else 1.0)
    curve = measure_curve(b.model, max_rows=32, max_length=60, budget_s=100.0, clock=b.clock)
    assert curve is not None
    assert np.allclose(curve.step_ms[0], [1e3 * stair_s(rows, 52) for rows in curve.rows])


def test_rows_that_the_device_cannot_run_end_the_curve_but_not_the_start(caplog: pytest.LogCaptureFixture) -> None:
    def law(rows: int, context: float) -> float:
        if rows >= 32:
            raise torch.OutOfMemoryError("no memory left")
        return stair_s(rows, context)

    b = bench(law)
    with caplog.at_level(logging.WARNING):
        curve = measure_curve(b.model, max_rows=64, max_length=512, budget_s=100.0, clock=b.clock)
    assert curve is not None
    assert curve.rows[-1] == 24
    assert b.model.pool.num_free == b.model.pool.num_blocks
    assert "cannot run 32 rows" in caplog.text


def target_of(folder: Path, path: Path | None = None, **changes: object) -> LoadedTarget:
    profile = ProfileConfig(budget_s=0.05, path=None if path is None else str(path))
    parts: dict[str, object] = {"kv_cache": KvCacheConfig(num_tokens=1024), "max_batch_rows": 16, "profile": profile}
    return load_target(TargetConfig(model=str(folder), **(parts | changes)))  # type: ignore[arg-type]


def test_a_loaded_target_profiles_itself_by_the_real_clock(tiny_folder: Path) -> None:
    target = target_of(tiny_folder)
    curve = target.profile()
    assert curve is not None
    curve.check()
    assert curve.rows[0] == 1
    assert curve.context_tokens[0] == CONTEXTS[0]
    assert not target.verifier.has_work


def test_a_target_that_shall_not_be_profiled_has_no_curve(tiny_folder: Path) -> None:
    assert target_of(tiny_folder, profile=ProfileConfig(enabled=False)).profile() is None


def test_a_curve_is_saved_and_the_next_start_reads_it(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "curves" / "target.json"
    target = target_of(tiny_folder, path)
    first = target.profile()
    assert first is not None
    assert [file.name for file in path.parent.iterdir()] == ["target.json"], "nothing half written is left"
    assert read_curve(path).setup == setup_of(target.packed_model, target.config, target.card)
    record = json.loads(path.read_text())
    record["step_ms"] = [[1e6] * len(line) for line in record["step_ms"]]
    path.write_text(json.dumps(record))
    again = target_of(tiny_folder, path).profile()
    assert again is not None
    assert np.all(again.step_ms == 1e6), "read, not measured"


def test_a_saved_curve_of_another_set_up_is_measured_anew(tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "target.json"
    target_of(tiny_folder, path).profile()
    with caplog.at_level(logging.WARNING):
        curve = target_of(tiny_folder, path, max_batch_rows=8).profile()
    assert curve is not None
    assert "max_batch_rows is 16, not 8" in caplog.text
    assert read_curve(path).setup.max_batch_rows == 8


def test_a_file_that_is_no_curve_is_not_written_over(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    path.write_text('{"mine": 1}')
    with pytest.raises(ModelLoadError, match=r"notes\.json"):
        target_of(tiny_folder, path).profile()
    assert path.read_text() == '{"mine": 1}'


def test_a_folder_that_cannot_be_written_to_costs_nothing_but_the_file(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert target_of(tiny_folder, tmp_path / "file" / "curve.json").profile() is not None
    assert "could not be saved" in caplog.text
