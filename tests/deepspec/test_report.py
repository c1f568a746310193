"""Reports: records that survive their JSON, pages that stand alone, cards that hold the measured numbers."""

import json
import re
import struct
from functools import cache
from pathlib import Path

import pytest

from dspark.deepspec.cards import CardFacts, comparison_markdown, model_card
from dspark.deepspec.figures import DARK, LIGHT, acceptance_figure, reliability_figure, sweep_figure
from dspark.deepspec.fitting import fit_temperatures
from dspark.deepspec.report import report_html, write_report
from dspark.deepspec.results import EvaluationResult, Report, evaluation_result, read_report, report_from_json, report_to_json, sweep_row
from dspark.errors import ConfigError
from tests.deepspec.synthetic import synthetic_trace

NASTY = "<script>alert(1)</script> & | $x$"


def result(drafter: str, mean: float, temperature: float = 1.0, full: bool = False) -> EvaluationResult:
    trace = synthetic_trace(11, (2.0, 2.0, 2.0), sessions=20, rounds=40, temperature=temperature, mean=mean)
    rows = tuple(sweep_row(threshold, trace) for threshold in (0.1, 0.5)) if full else ()
    calibration = fit_temperatures(trace).positions if full else ()
    labels = {"drafter": drafter, "prompt_set": "held-out", "temperature": temperature, "depth": 3, "max_tokens": 64, "seconds": 2.5}
    return evaluation_result(trace, sweep=rows, calibration=calibration, **labels)


@cache
def full_report() -> Report:
    results = (result("weak", 0.2), result("strong", 1.5, full=True), result(NASTY, 0.8, temperature=0.0))
    return Report("Drafters of demo:target", results, {"target": NASTY})


def png_size(data: bytes) -> tuple[int, int]:
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    return int(width), int(height)


def test_an_evaluation_result_says_what_the_trace_says() -> None:
    trace = synthetic_trace(11, (2.0, 2.0, 2.0), sessions=20, rounds=40, mean=1.5)
    found = result("strong", 1.5)
    assert found.tau.value == pytest.approx(1 + trace.num_accepted.mean())
    assert found.acceptance[2].value == pytest.approx((trace.num_accepted == 3).mean())
    assert (found.num_prompts, found.num_rounds, found.verified_per_round) == (20, 800, 3.0)


def test_a_report_is_read_back_as_it_was_written() -> None:
    assert report_from_json(report_to_json(full_report())) == full_report()


def test_a_report_that_does_not_fit_is_refused_with_file_and_key(tmp_path: Path) -> None:
    record = json.loads(report_to_json(full_report()))
    path = tmp_path / "report.json"
    del record["results"][1]["tau"]["low"]
    path.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"report.json: results.1.tau.low"):
        read_report(tmp_path)
    with pytest.raises(ConfigError, match="format_version"):
        report_from_json(report_to_json(Report("t", (), format_version=2)))
    with pytest.raises(ConfigError, match="absent"):
        read_report(tmp_path / "absent")


def test_all_files_are_written_and_the_page_stands_alone(tmp_path: Path) -> None:
    paths = write_report(tmp_path / "report", full_report())
    names = {path.name for path in paths}
    pictures = {"acceptance.png", "conditional_acceptance.png", "sweep.png", "reliability_1_t1.png"}
    assert names == {"report.html", "report.json", "comparison.md", *pictures}
    assert names == {path.name for path in (tmp_path / "report").iterdir()}
    assert read_report(tmp_path / "report") == full_report()
    page = paths[0].read_text()
    assert page.count("data:image/png;base64,") == 2 * len(pictures)
    assert not re.search(r'(src|href|srcset)="(?!data:)', page)
    assert "prefers-color-scheme: dark" in page


def test_text_from_outside_is_escaped() -> None:
    page = report_html(Report(NASTY, (result(NASTY, 0.8, full=True),), {NASTY: NASTY}))
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_report_without_results_is_a_page_too(tmp_path: Path) -> None:
    assert "Nothing to draw." in write_report(tmp_path, Report("Empty", ()))[0].read_text()


def test_pictures_are_drawn_in_both_themes_and_only_where_there_is_something() -> None:
    results = full_report().results
    light, dark = acceptance_figure(results, LIGHT), acceptance_figure(results, DARK)
    assert light is not None
    assert dark is not None
    assert png_size(light) == png_size(dark)
    assert light != dark
    assert acceptance_figure(()) is None
    assert sweep_figure(results[:1]) is None
    assert reliability_figure(()) is None


def test_the_comparison_has_the_best_drafter_of_a_group_first_and_escapes_pipes() -> None:
    lines = comparison_markdown(full_report().results).splitlines()
    assert [line.split(" | ")[2] for line in lines[3:]] == ["strong", "weak"]
    assert "\\| $x$" in lines[2]
    strong = next(r for r in full_report().results if r.drafter == "strong")
    assert f"{strong.tau.value:.2f} [{strong.tau.low:.2f}, {strong.tau.high:.2f}]" in lines[3]


FACTS = CardFacts(
    name="demo drafter",
    summary="A DSpark drafter for the demonstration target.",
    target="demo:target",
    architecture={"Layers": "2"},
    training={"Steps": "12 000"},
    data=("standard library, 7 MB, PSF",),
    drafter_path="demo:dspark",
    depth=3,
)


def test_a_model_card_holds_numbers_limits_and_a_configuration_that_serves() -> None:
    import yaml

    from dspark.config import EngineConfig

    strong = next(r for r in full_report().results if r.drafter == "strong")
    card = model_card(FACTS, [strong])
    assert f"{strong.tau.value:.2f} [" in card
    for row in strong.calibration:
        assert f"{row.before.ece:.1%} → {row.after.ece:.1%}" in card
    assert "standard library, 7 MB, PSF" in card
    assert "## Limits" in card
    [block] = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    config = EngineConfig.model_validate(yaml.safe_load(block))
    assert (config.drafter.kind, config.drafter.model, config.drafter.max_depth) == ("block", "demo:dspark", 3)


def test_a_card_without_measurements_says_so() -> None:
    card = model_card(FACTS, [])
    assert "Not measured yet" in card
    assert "not calibrated" in card
