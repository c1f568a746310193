"""A throughput curve as a file, together with the set-up that it was measured on: on any other it would mislead the planner.

JSON, so that a person can look at it and tools can plot it. Every key is checked; what does not fit is named with file and key.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from dspark.errors import FingerprintMismatch, InvalidMessage, ModelLoadError
from dspark.scheduling.curve import MAX_POINTS, ThroughputCurve
from dspark.scheduling.records import check_object, check_version, parse, read_text, some_list

FORMAT_VERSION = 1
MAX_TEXT_CHARS = 4096

_KEYS = {"format_version", "setup", "rows", "context_tokens", "step_ms"}


@dataclass(frozen=True, slots=True)
class CurveSetup:
    """What decides about the time of a step: the curve's fingerprint, in words."""

    model_fingerprint: str
    device: str
    """Kind and name of the processor that it was measured on."""
    dtype: str
    num_threads: int
    """Torch threads of the process; 0 where the device is no CPU."""
    max_batch_rows: int
    deterministic: bool = False
    quantization: str = ""
    """JSON of the quantisation configuration; empty without one."""

    def difference(self, other: "CurveSetup") -> str:
        """`device is 'a', not 'b'; ...` for what differs; empty for the same set-up."""
        pairs = [(field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return "; ".join(f"{name} is {mine!r}, not {theirs!r}" for name, mine, theirs in pairs if mine != theirs)


@dataclass(frozen=True, slots=True, eq=False)
class SavedCurve:
    """A curve and where it is true."""

    curve: ThroughputCurve
    setup: CurveSetup

    def curve_for(self, setup: CurveSetup) -> ThroughputCurve:
        """The curve. Raises FingerprintMismatch, with what differs, on any other set-up than its own."""
        difference = self.setup.difference(setup)
        if difference:
            raise FingerprintMismatch(f"the curve was measured elsewhere: {difference}")
        return self.curve

    def to_json(self) -> str:
        """Readable, one key a line."""
        curve = self.curve
        record = {
            "format_version": FORMAT_VERSION,
            "setup": asdict(self.setup),
            "rows": curve.rows.tolist(),
            "context_tokens": curve.context_tokens.tolist(),
            "step_ms": curve.step_ms.tolist(),
        }
        return "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items()) + "\n}\n"

    @classmethod
    def from_json(cls, text: str, file: str = "curve.json") -> "SavedCurve":
        """Raises ModelLoadError naming file and key."""
        record = parse(text, file)
        check_object(record, _KEYS, file)
        check_version(record, FORMAT_VERSION, file)
        return cls(_read_curve(record, file), _read_setup(record["setup"], file))


def read_curve(path: Path) -> SavedCurve:
    """Raises ModelLoadError naming file and key."""
    return SavedCurve.from_json(read_text(path), str(path))


def _read_curve(record: dict[str, Any], file: str) -> ThroughputCurve:
    lines = some_list(record["step_ms"], file, "step_ms")
    rows = _numbers(record["rows"], (int,), file, "rows")
    times = [_numbers(line, (int, float), file, f"step_ms[{i}]") for i, line in enumerate(lines)]
    for i, line in enumerate(times):
        if len(line) != len(rows):
            raise ModelLoadError(f"{file}: step_ms[{i}] holds {len(line)} numbers, not one for each of {len(rows)} rows", f"step_ms[{i}]")
    contexts = _numbers(record["context_tokens"], (int,), file, "context_tokens")
    curve = ThroughputCurve(np.asarray(rows), np.asarray(contexts), np.asarray(times, np.float64))
    try:
        curve.check()
    except InvalidMessage as error:
        raise ModelLoadError(f"{file}: {error.message}", error.field) from error
    return curve


def _read_setup(record: Any, file: str) -> CurveSetup:
    check_object(record, {field.name for field in fields(CurveSetup)}, file, "setup")
    for field in fields(CurveSetup):
        value = record[field.name]
        if type(value) is not field.type or (isinstance(value, str) and len(value) > MAX_TEXT_CHARS):
            raise ModelLoadError(f"{file}: setup.{field.name} is {str(value)[:64]!r}", f"setup.{field.name}")
    return CurveSetup(**record)


def _numbers(value: Any, kinds: tuple[type, ...], file: str, key: str) -> list[Any]:
    """Of a size that numpy can hold; true and false are none. Their meaning is the curve's to check."""
    items = some_list(value, file, key)
    if len(items) > MAX_POINTS or not all(type(item) in kinds and -1e15 <= item <= 1e15 for item in items):
        raise ModelLoadError(f"{file}: {key} holds something that is not a number of a sane size", key)
    return items
