"""A saved curve: read back as it was written, refused where it is not true, and told by file and key where it is no curve."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dspark.errors import FingerprintMismatch, ModelLoadError
from dspark.scheduling.curve import ThroughputCurve
from dspark.scheduling.curve_file import CurveSetup, SavedCurve, read_curve
from dspark.scheduling.records import MAX_JSON_BYTES

CURVE = ThroughputCurve(np.asarray([1, 2, 4]), np.asarray([64, 512]), np.asarray([[3.5, 3.6, 8.1], [4.2, 4.5, 9.7]]))
SETUP = CurveSetup("m1", "cpu Some Processor", "float32", 2, 512)
SAVED = SavedCurve(CURVE, SETUP)


def same(one: ThroughputCurve, other: ThroughputCurve) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("rows", "context_tokens", "step_ms"))


def test_a_curve_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    path.write_text(SAVED.to_json())
    back = read_curve(path)
    assert back.setup == SETUP
    assert same(back.curve, CURVE)
    assert same(back.curve_for(SETUP), CURVE)


@pytest.mark.parametrize(
    "change",
    [
        {"model_fingerprint": "m2"},
        {"device": "cuda Some Accelerator"},
        {"dtype": "bfloat16"},
        {"num_threads": 1},
        {"max_batch_rows": 64},
        {"deterministic": True},
        {"quantization": '{"bits": 4}'},
    ],
)
def test_a_curve_of_another_set_up_is_refused_with_what_differs(change: dict[str, Any]) -> None:
    with pytest.raises(FingerprintMismatch) as caught:
        SAVED.curve_for(replace(SETUP, **change))
    ((name, value),) = change.items()
    assert f"{name} is {getattr(SETUP, name)!r}, not {value!r}" in caught.value.message
    assert ";" not in caught.value.message


def record(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(SAVED.to_json())
    return fields | changes


def setup(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = record()["setup"]
    return fields | changes


WRONG = {
    "format_version": record(format_version=2),
    "format_version ": record(format_version=True),
    "comment": record(comment="hello"),
    "setup": record(setup=["m1"]),
    "setup.num_threads": record(setup=setup(num_threads=2.0)),
    "setup.num_threads ": record(setup=setup(num_threads=True)),
    "setup.deterministic": record(setup=setup(deterministic=0)),
    "setup.device": record(setup=setup(device=None)),
    "setup.device ": record(setup=setup(device="x" * 5000)),
    "setup.colour": record(setup=setup(colour="red")),
    "rows": record(rows=[]),
    "rows ": record(rows=[1, 2, 4.0]),
    "rows  ": record(rows=[1, 2, True]),
    "rows   ": record(rows=[4, 2, 1]),
    "rows    ": record(rows=[1, 2, 10**30]),
    "context_tokens": record(context_tokens=[512, 64]),
    "context_tokens ": record(context_tokens="64"),
    "step_ms": record(step_ms=[]),
    "step_ms ": record(step_ms=[[3.5, 3.6, 8.1]]),
    "step_ms  ": record(step_ms=[[3.5, 3.6, 3.1], [4.2, 4.5, 9.7]]),
    "step_ms   ": record(step_ms=[[0, 3.6, 8.1], [4.2, 4.5, 9.7]]),
    "step_ms[1]": record(step_ms=[[3.5, 3.6, 8.1], [4.2, 4.5]]),
    "step_ms[1] ": record(step_ms=[[3.5, 3.6, 8.1], [4.2, 4.5, float("nan")]]),
    "step_ms[0]": record(step_ms=[3.5, 3.6, 8.1]),
    "step_ms[0] ": record(step_ms=[[3.5, 3.6, float("inf")], [4.2, 4.5, 9.7]]),
}


@pytest.mark.parametrize(("key", "wrong"), WRONG.items())
def test_what_does_not_fit_is_refused_with_file_and_key(tmp_path: Path, key: str, wrong: dict[str, Any]) -> None:
    path = tmp_path / "curve.json"
    path.write_text(json.dumps(wrong))
    with pytest.raises(ModelLoadError) as caught:
        read_curve(path)
    assert str(path) in caught.value.message
    assert caught.value.field == key.strip()


@pytest.mark.parametrize("key", ["rows", "setup", "step_ms"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ModelLoadError, match=f"here.json: {key} is missing"):
        SavedCurve.from_json(json.dumps({k: v for k, v in record().items() if k != key}), "here.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, " " * (MAX_JSON_BYTES + 1)], ids=range(6))
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "curve.json"
    path.write_text(text)
    with pytest.raises(ModelLoadError, match=r"curve\.json"):
        read_curve(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"none\.json: cannot be read"):
        read_curve(tmp_path / "none.json")
