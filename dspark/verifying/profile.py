"""Measures a target's throughput curve at start-up: what a step costs by rows and context, on this device, with these threads.

A batch in service is many sessions with a few rows each, so that is what is measured: one anchor and up to seven candidates a session,
as far as the cache has room for so many sessions. Every turn goes over all points once, so that a moment in which the machine was busy
spoils one sample of many points and not all samples of one.
"""

import contextlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dspark.config import TargetConfig
from dspark.devices import accelerator_name
from dspark.errors import FingerprintMismatch
from dspark.runtime.model import PackedModel
from dspark.runtime.packed import Segment
from dspark.scheduling.curve import ROWS_PER_SESSION, ThroughputCurve, rows_to_measure, sessions_measured
from dspark.scheduling.curve_file import CurveSetup, SavedCurve, read_curve
from dspark.types import ModelCard

logger = logging.getLogger(__name__)

CONTEXTS = (64, 512)
"""Cached tokens of each session; time over context is a line, so two are enough."""
TURNS = 7

Samples = dict[tuple[int, int], list[float]]
"""(rows, context_tokens) -> times in ms."""


def load_or_measure(
    model: PackedModel, config: TargetConfig, card: ModelCard, clock: Callable[[], float] = time.perf_counter
) -> ThroughputCurve | None:
    """The curve of `config.profile.path` if it is this set-up's, else one measured now, and saved there. None if `profile` is off.

    Blocks for about `profile.budget_s`; only while no session is open. Raises ModelLoadError if the file is something else than a curve:
    it might be somebody's, so it is not written over.
    """
    profile = config.profile
    if not profile.enabled:
        return None
    path = None if profile.path is None else Path(profile.path).expanduser()
    setup = setup_of(model, config, card)
    saved = None if path is None or not path.exists() else _saved_curve(path, setup)
    if saved is not None:
        return saved
    curve = measure_curve(
        model, max_rows=config.max_batch_rows, max_length=card.max_length, budget_s=profile.budget_s, clock=clock
    )
    if curve is not None and path is not None:
        _save(path, SavedCurve(curve, setup))
    return curve


def setup_of(model: PackedModel, config: TargetConfig, card: ModelCard) -> CurveSetup:
    """Where a curve of this target is true."""
    on_cpu = model.device.type == "cpu"
    return CurveSetup(
        model_fingerprint=card.model_fingerprint,
        device=_cpu_name() if on_cpu else f"{model.device.type} {accelerator_name(model.device)}, device_map {config.device_map}",
        dtype=config.dtype,
        num_threads=torch.get_num_threads() if on_cpu else 0,
        max_batch_rows=config.max_batch_rows,
        deterministic=config.deterministic,
        quantization="" if config.quantization is None else json.dumps(config.quantization, sort_keys=True, default=str),
    )


def measure_curve(
    model: PackedModel, *, max_rows: int, max_length: int, budget_s: float, clock: Callable[[], float] = time.perf_counter
) -> ThroughputCurve | None:
    """Medians of up to TURNS forwards at every point that fits the cache and the budget; None if not even one row fits.

    `clock` counts seconds. Afterwards the model's pool is as it was; the cache holds garbage where no session had anything.
    """
    deadline = clock() + budget_s
    samples: Samples = {}
    points = _points(max_rows, _contexts(model, max_length))
    for _ in range(TURNS):
        for rows, context in points:
            if samples and clock() + _expected_s(samples, rows, context) > deadline:
                continue
            if not _sample(model, samples, rows, context, max_length, clock):
                points = [point for point in points if point[0] < rows]
                break
    if not samples:
        return None
    curve = ThroughputCurve.from_samples(samples)
    logger.info("profiled the target at %d row counts up to %d", len(curve.rows), curve.rows[-1])
    return curve


def _contexts(model: PackedModel, max_length: int) -> list[int]:
    """Those of CONTEXTS that a session may have beside its rows, the longest cut to what it may."""
    longest = max(0, min(max_length, model.pool.num_free * model.pool.block_tokens) - ROWS_PER_SESSION)
    return sorted({min(context, longest) for context in CONTEXTS})


def _points(max_rows: int, contexts: list[int]) -> list[tuple[int, int]]:
    """(rows, context) in the order of worth: first the octaves and the end, for the curve's shape, then what lies between."""
    counts = rows_to_measure(max_rows)
    octaves = [count for count in counts if count & (count - 1) == 0 or count == max_rows]
    return [(rows, context) for rows in octaves + [count for count in counts if count not in octaves] for context in contexts]


def _expected_s(samples: Samples, rows: int, context: int) -> float:
    """Of the forwards of a sample: known for a point that was measured, else as if cost rose in proportion to rows. Two for a new one."""
    if (rows, context) in samples:
        return samples[rows, context][-1] / 1e3
    below = max((count for count, _ in samples if count <= rows), default=rows)
    known = max((times[-1] for (count, _), times in samples.items() if count == below), default=0.0)
    return 2.0 * known * rows / below / 1e3


def _sample(
    model: PackedModel, samples: Samples, rows: int, context: int, max_length: int, clock: Callable[[], float]
) -> bool:
    """One more time of a point; its first forward of all only warms up. False if the model cannot run so many rows."""
    sessions = _num_sessions(model, rows, context, max_length)
    if sessions == 0:
        return True  # this context has no room, a shorter one may
    blocks_each = model.pool.blocks_for(context + -(-rows // sessions))
    blocks = model.pool.take(blocks_each * sessions)
    try:
        segments = _segments(blocks, blocks_each, model.pool.block_tokens, rows, context)
        if (rows, context) not in samples:
            _forward_ms(model, segments, clock)
        samples.setdefault((rows, context), []).append(_forward_ms(model, segments, clock))
    except RuntimeError as error:  # out of memory, mostly: the service may still never come to so many rows
        logger.warning("the target cannot run %d rows in one step, so its curve ends before: %s", rows, error)
        return False
    finally:
        model.pool.give_back(blocks)
    return True


def _num_sessions(model: PackedModel, rows: int, context: int, max_length: int) -> int:
    """Over how many sessions the rows are spread; 0 if they do not fit at all."""
    for sessions in range(int(sessions_measured(rows)), 0, -1):
        length = context + -(-rows // sessions)
        if length <= max_length and sessions * model.pool.blocks_for(length) <= model.pool.num_free:
            return sessions
    return 0


def _segments(blocks: list[int], blocks_each: int, block_tokens: int, rows: int, context: int) -> list[Segment]:
    """Every session with blocks of its own and its share of the rows: a chain after the cached tokens."""
    sessions = len(blocks) // blocks_each
    segments: list[Segment] = []
    for index in range(sessions):
        count = rows // sessions + (index < rows % sessions)
        own = blocks[index * blocks_each : (index + 1) * blocks_each]
        slots = [block * block_tokens + offset for block in own for offset in range(block_tokens)][: context + count]
        segments.append(Segment([1] * count, list(range(context, context + count)), None, slots, context, count))
    return segments


def _forward_ms(model: PackedModel, segments: list[Segment], clock: Callable[[], float]) -> float:
    started = clock()
    model.forward(segments)[-1, 0].item()  # the number itself, because an accelerator answers before it has worked
    return (clock() - started) * 1e3


def _saved_curve(path: Path, setup: CurveSetup) -> ThroughputCurve | None:
    try:
        return read_curve(path).curve_for(setup)
    except FingerprintMismatch as error:
        logger.warning("%s is measured anew: %s", path, error.message)
        return None


def _save(path: Path, curve: SavedCurve) -> None:
    """Readers see the old file or the whole new one. A folder that cannot be written to costs the next start its time, no more."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(curve.to_json(), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        logger.warning("the target's curve could not be saved: %s", error)
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _cpu_name() -> str:
    """`cpu` and what the system calls its processor, where it tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"cpu {names[0] if names else platform.processor() or platform.machine()}"
