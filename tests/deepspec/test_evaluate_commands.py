"""`deepspec evaluate` and `deepspec calibrate` on the shipped target, with a small block drafter, by real decoding."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dspark.config import DrafterConfig, TargetConfig
from dspark.deepspec.cli import app
from dspark.deepspec.decoding import Decoder, DecodingPlan
from dspark.deepspec.evaluate import read_prompt_sets
from dspark.deepspec.evaluate_commands import numbers, own_folder
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
    assert "# warm" in (tmp_path / "cards" / "warm.md").read_text()
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def stops_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], list[float]]:
    """Lets so many traces be decoded and then ends the command, as a kill does; gives the temperatures that were decoded."""
    decode = Decoder._decoded

    def limit(count: int | None) -> list[float]:
        decoded: list[float] = []

        def counted(self: Decoder, drafter: Any, prompts: Any, temperature: float, *rest: Any) -> Any:
            if len(decoded) == count:
                raise SystemExit(137)
            decoded.append(temperature)
            return decode(self, drafter, prompts, temperature, *rest)

        monkeypatch.setattr(Decoder, "_decoded", counted)
        return decoded

    return limit


def test_an_evaluation_that_was_killed_goes_on_where_it_was(stops_after: Callable[[int | None], list[float]], tmp_path: Path) -> None:
    def evaluate(out: str, *more: str) -> tuple[int, str]:
        arguments = ["--count", "2", "--max-tokens", "8", "--temperatures", "0,1"]
        return told("evaluate", "one=lookup", "two=lookup", "--out", str(tmp_path / out), *arguments, *more)

    stops_after(3)
    assert evaluate("killed")[0] == 137
    assert not (tmp_path / "killed" / "report.json").exists()
    decoded = stops_after(None)
    code, output = evaluate("killed")
    assert (code, decoded, "3 part(s) were there" in output) == (0, [1.0], True)
    assert evaluate("whole")[0] == 0
    killed, whole = (json.loads((tmp_path / name / "report.json").read_text())["results"] for name in ("killed", "whole"))
    for one, other in zip(killed, whole, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
    decoded.clear()
    assert evaluate("killed")[0] == 0
    assert len(decoded) == 4  # a finished evaluation begins anew: the program may be another one by now


def test_a_calibration_takes_its_own_traces_up_and_no_others(
    drafter: Path, stops_after: Callable[[int | None], list[float]], tmp_path: Path
) -> None:
    stops_after(3)
    assert told("calibrate", str(drafter), "--out", str(tmp_path), *SMALL)[0] == 137
    assert len(list((tmp_path / "traces").glob("trace-*"))) == 2
    decoded = stops_after(None)
    assert told("calibrate", str(drafter), "--out", str(tmp_path), *SMALL)[0] == 2  # too few, as the next test says
    assert decoded == [1.0]
    decoded.clear()
    assert told("calibrate", str(drafter), "--out", str(tmp_path), *SMALL, "--depth", "3")[0] == 2
    assert len(decoded) == 4
    assert len(list((tmp_path / "traces").iterdir())) == 4  # those of the other plan are not counted again


def test_a_calibration_is_refused_where_it_cannot_be_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("demo:dspark", "someone/drafter"):
        code, output = told("calibrate", name)
        assert (code, "copy that to a folder of yours" in output) == (2, True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="nothing can be written there"):
        own_folder("/proc/self")


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


def test_every_prompt_has_noise_of_its_own() -> None:
    """Else prompts would be draws of one lottery, and intervals over them too narrow."""
    decoder = Decoder(TargetConfig(model="demo:target", num_threads=1))
    prompt = decoder.codec.encode("def ")
    first, second = decoder.answers([prompt, prompt], 1.0, DecodingPlan(max_tokens=16))
    assert first.token_ids.tolist() != second.token_ids.tolist()
    again = decoder.answers([prompt, prompt], 1.0, DecodingPlan(max_tokens=16))
    assert [sample.token_ids.tolist() for sample in again] == [first.token_ids.tolist(), second.token_ids.tolist()]


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


def test_two_prompt_files_of_one_name_are_refused(tmp_path: Path) -> None:
    """They would be one set in the report."""
    with pytest.raises(ConfigError, match="two prompt files are called 'held_out'"):
        read_prompt_sets(Decoder(TargetConfig(num_threads=1)), [tmp_path / "a" / "held_out.jsonl", tmp_path / "b" / "held_out.jsonl"], 4)


def test_numbers_are_read() -> None:
    assert numbers("0, 0.5,1") == (0.0, 0.5, 1.0)
    assert numbers("") == ()
    with pytest.raises(ConfigError):
        numbers("a")
