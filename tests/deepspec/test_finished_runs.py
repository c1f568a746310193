"""Finished parts: taken up by what they depend on, made again otherwise."""

from pathlib import Path

import pytest

from dspark.config import DrafterConfig
from dspark.deepspec.finished_runs import CHAINS, RESULTS, FinishedRuns, drafter_facts
from dspark.deepspec.results import EvaluationResult, evaluation_result
from dspark.deepspec.traces import DecodingTrace
from dspark.runtime.weight_layout import multiplies_bfloat16
from tests.deepspec.synthetic import synthetic_trace
from tests.runtime.folders import edit_json


def trace() -> DecodingTrace:
    return synthetic_trace(11, (2.0, 2.0), sessions=4, rounds=10)


def result() -> EvaluationResult:
    return evaluation_result(trace(), drafter="a", prompt_set="b", temperature=0.0, depth=2, max_tokens=8, seconds=1.5)


def never() -> DecodingTrace:
    raise AssertionError("was to be read")


def test_a_part_is_made_once_and_read_back_as_it_was(tmp_path: Path) -> None:
    first, second = FinishedRuns(tmp_path / "runs"), FinishedRuns(tmp_path / "runs")
    assert first.once(RESULTS, {"seed": 1}, result) == result()
    first.once(CHAINS, {"seed": 1}, trace)
    assert second.once(CHAINS, {"seed": 1}, never).score.tolist() == trace().score.tolist()
    assert second.once(RESULTS, {"seed": 1}, lambda: pytest.fail("was to be read")) == result()
    assert (first.reused, second.reused) == (0, 2)


def test_other_facts_are_another_part_and_dropped_if_nobody_asks(tmp_path: Path) -> None:
    for seed in (1, 2):
        FinishedRuns(tmp_path).once(CHAINS, {"seed": seed}, trace)
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "thesis.txt").write_text("not ours")
    runs = FinishedRuns(tmp_path)
    runs.once(CHAINS, {"seed": 2}, never)
    runs.drop_others()
    assert len(list(tmp_path.glob(CHAINS.name))) == 1
    runs.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_that_cannot_be_read_is_made_again(tmp_path: Path) -> None:
    FinishedRuns(tmp_path).once(RESULTS, {}, result)
    [path] = tmp_path.iterdir()
    path.write_text("{")
    runs = FinishedRuns(tmp_path)
    assert (runs.once(RESULTS, {}, result), runs.reused) == (result(), 0)
    assert FinishedRuns(tmp_path).once(RESULTS, {}, lambda: pytest.fail("was to be read")) == result()


def test_a_drafter_is_its_weights_its_calibration_and_its_configuration(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DrafterConfig(kind="language_model", model=str(folder))
    seen = [drafter_facts(config), drafter_facts(config.model_copy(update={"min_survival": 0.5}))]
    (folder / "calibration.json").write_text("{}")
    seen.append(drafter_facts(config))
    edit_json(folder / "config.json", rms_norm_eps=1e-5)
    seen.append(drafter_facts(config))
    monkeypatch.setattr("dspark.runtime.loading.multiplies_bfloat16", lambda device: not multiplies_bfloat16(device))
    seen.append(drafter_facts(config))  # on another machine
    assert all(one != other for number, one in enumerate(seen) for other in seen[:number])
    assert drafter_facts(DrafterConfig(kind="lookup")) == drafter_facts(DrafterConfig(kind="lookup"))
