"""`deepspec evaluate` and `deepspec calibrate` on the shipped target, with a small block drafter, by real decoding."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dspark.config import DrafterConfig, TargetConfig
from dspark.deepspec.cli import app
from dspark.deepspec.decoding import Decoder, DecodingPlan
from dspark.deepspec.evaluate_commands import numbers
from dspark.drafting.build import load_drafter
from dspark.errors import ConfigError
from tests.warm_drafters import write_drafter

SMALL = ["--count", "2", "--max-tokens", "16", "--temperatures", "0,1"]


@pytest.fixture(scope="module")
def drafter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not trained: the target's own layers, which guess a little."""
    return write_drafter(tmp_path_factory.mktemp("drafter") / "warm", "dspark")


def told(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_report_compares_drafters_by_real_decoding(drafter: Path, tmp_path: Path) -> None:
    code, output = told(
        "evaluate", f"warm=block:{drafter}", "copy=lookup", "--out", str(tmp_path), *SMALL, "--thresholds", "0.2,0.9"
    )
    assert code == 0, output
    report = json.loads((tmp_path / "report.json").read_text())
    results = report["results"]
    assert {(r["drafter"], r["temperature"]) for r in results} == {(d, t) for d in ("warm", "copy") for t in (0.0, 1.0)}
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert list(tmp_path.rglob("*.png"))
    assert all(1.0 <= r["tau"]["value"] <= 8.0 for r in results)
    sweep = next(r["sweep"] for r in results if r["drafter"] == "warm")
    assert [row["threshold"] for row in sweep] == [0.2, 0.9]
    assert "warm" in output


def test_too_few_observations_for_a_calibration_are_told_and_nothing_is_stored(drafter: Path, tmp_path: Path) -> None:
    code, output = told("calibrate", str(drafter), "--out", str(tmp_path), *SMALL)
    assert code == 2
    assert "decode more prompts" in output
    assert not (drafter / "calibration.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_calibration_is_stored_with_the_checkpoint_and_used_by_the_next_load(drafter: Path, tmp_path: Path) -> None:
    own = TargetConfig(model="demo:target", num_threads=1)
    config = DrafterConfig(kind="block", model=str(drafter), num_threads=1)
    assert load_drafter(config, own).drafter._estimator is None  # type: ignore[attr-defined]
    enough = ["--count", "8", "--max-tokens", "96", "--temperatures", "1"]
    code, output = told("calibrate", str(drafter), "--out", str(tmp_path), *enough)
    assert code == 0, output
    stored = json.loads((drafter / "calibration.json").read_text())
    assert (tmp_path / "report.html").exists()
    assert list((tmp_path / "traces").iterdir())
    estimator = load_drafter(config, own).drafter._estimator  # type: ignore[attr-defined]
    assert json.loads(estimator.to_json()) == stored
    (drafter / "calibration.json").unlink()


def test_a_trace_holds_the_targets_verdict(drafter: Path) -> None:
    decoder = Decoder(TargetConfig(model="demo:target", num_threads=1))
    config = DrafterConfig(kind="block", model=str(drafter), num_threads=1)
    prompts = [decoder.codec.encode("def add(a, b):\n    return"), decoder.codec.encode("import os\n")]
    trace, seconds = decoder.trace(config, prompts, 0.0, DecodingPlan(max_tokens=24, depth=5))
    assert seconds > 0
    assert set(trace.session.tolist()) == {0, 1}
    for session in (0, 1):
        rounds = trace.num_accepted[trace.session == session] + 1
        assert rounds[:-1].sum() < 24 <= rounds.sum()  # the last round may reach past the end: the verdict is not cut there
    assert (trace.num_accepted <= trace.num_drafted).all()
    assert trace.num_accepted.max() > 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["evaluate", "nameless", "--out", "{out}"], 2, "NAME=KIND:CHECKPOINT"),
        (["evaluate", "a=medusa:b", "--out", "{out}"], 2, "NAME=KIND:CHECKPOINT"),
        (["evaluate", "a=lookup", "--temperatures", "warm", "--out", "{out}"], 2, "separated by commas"),
        (["evaluate", "a=lookup", "--prompts", "{out}/none.jsonl", "--out", "{out}"], 2, "none.jsonl: is no JSONL of prompts"),
        (["evaluate", "a=block:{out}", "--out", "{out}"], 3, "config.json"),
        (["calibrate", "{out}", "--out", "{out}"], 3, "config.json"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    found, output = told(*(argument.replace("{out}", str(tmp_path)) for argument in arguments))
    assert found == code, output
    assert message in output
    assert len([line for line in output.splitlines() if line.startswith("error: ")]) == 1


def test_numbers_are_read() -> None:
    assert numbers("0, 0.5,1") == (0.0, 0.5, 1.0)
    assert numbers("") == ()
    with pytest.raises(ConfigError):
        numbers("a")
