"""The whole measurement on the shipped pair: small, but through real engines, to the file and back, and against the simulator."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dspark.bench.load.against import simulate_against
from dspark.bench.load.measure import LoadMeasurement, LocalLoad
from dspark.bench.load.plan import LoadPlan, Patience
from dspark.bench.load.results import RESULT_FILE, TRACE_FILE, LoadReport, read_report
from dspark.bench.load.systems import Room, limits_of
from dspark.bench.load.tables import budget_table, load_table
from dspark.bench.load.window import Window
from dspark.bench.prompts import load_prompts
from dspark.bench.simulate import SimulateOptions
from dspark.cli import app
from dspark.config import DrafterConfig, ProfileConfig, TargetConfig
from dspark.errors import ConfigError

PLAN = LoadPlan(clients=(1, 2), tokens=8, turns=1, warmup_turns=1, max_tokens=24)
SYSTEMS = ("plain", "fixed3", "planned", "plain_again")
SIMULATED = SYSTEMS[:3]
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one measurement, with its trace."""
    out = tmp_path_factory.mktemp("load")
    target = TargetConfig(num_threads=1, profile=ProfileConfig(budget_s=0.2))
    local = LocalLoad(SYSTEMS, target, DrafterConfig(num_threads=1), [text[:120] for text in load_prompts(None, 8)], PLAN, Patience())
    with local.started() as measurement:
        trace = local.record_trees(20)
        assert trace is not None
        trace.write(out / TRACE_FILE)
        assert measurement.run()
        local.report(TRACE_FILE, is_complete=True).write(out)
    return out


@pytest.fixture(scope="module")
def report(folder: Path) -> LoadReport:
    return read_report(folder)


def test_every_system_has_a_point_at_every_load(report: LoadReport) -> None:
    assert [(point.policy, point.load) for point in report.points] == [(name, load) for load in (1.0, 2.0) for name in SYSTEMS]
    for point in report.points:
        assert point.tokens_per_second > 0
        assert point.user_tokens_per_second >= point.slow_user_tokens_per_second >= 0
        assert point.user_tokens_per_second > 0
        assert point.tau >= 1
        assert point.drafted_per_round >= point.verified_per_round
        assert len(point.turns) == 1
    assert report.of("fixed3")[0].verified_per_round > 0
    assert report.of("plain")[1].against_plain == 1.0
    assert report.of("plain")[1].verified_per_round == report.of("plain_again")[1].verified_per_round == 0.0
    with pytest.raises(ConfigError, match="plain, fixed3, planned, plain_again"):
        report.of("tree")


def test_the_report_holds_costs_a_trace_and_pictures(report: LoadReport, folder: Path) -> None:
    assert report.costs is not None
    assert report.costs.reads_features
    assert report.costs.draft.ms(1, 3) > 0
    assert report.trace == TRACE_FILE
    assert report.is_complete
    assert all((folder / f"{name}.png").read_bytes()[:4] == PNG for name in ("load", "budget", "frontier"))


def test_tables_say_what_they_are_about(report: LoadReport) -> None:
    text = load_table(report)
    assert "demo:target, block demo:dspark, in one process; temperature 0.7" in text
    assert "medians of 1 interleaved turns of 8 tokens per client, after 1 turn(s) of each load that do not count" in text
    assert sum(line.startswith("| fixed3 |") for line in text.splitlines()) == 2
    assert "| clients | fixed3 | planned |" in budget_table(report), "plain decoding verifies nothing"


def test_the_simulator_meets_the_same_points(report: LoadReport, folder: Path) -> None:
    options = SimulateOptions(tokens_per_point=400, num_drafts=64)
    simulation, agreement = simulate_against(report, folder, options)
    assert [(point.policy, point.load) for point in agreement.points] == [(name, load) for load in (1.0, 2.0) for name in SIMULATED]
    assert all(point.simulated > 0 for point in agreement.points)
    assert simulation.label == report.label
    assert report.of("fixed3")[0].prompt_rows_per_token >= 0
    for point in report.points:
        assert point.context_tokens is not None
        assert 1 < point.context_tokens < 1.5 * report.prompt_tokens + report.plan.max_tokens, "of this window's prompts"
    assert 0 <= agreement.num_within <= 6


def test_no_prompt_falls_into_a_window_where_only_decoding_is_to_be_compared() -> None:
    plan = LoadPlan(clients=(1, 3), tokens=8, turns=3, warmup_turns=0, max_tokens=60, decode_only=True)  # nobody lives for three turns
    target = TargetConfig(num_threads=1, profile=ProfileConfig(budget_s=0.2))
    local = LocalLoad(("plain", "fixed3"), target, DrafterConfig(num_threads=1), load_prompts(None, 8), plan, Patience())
    with local.started() as measurement:
        assert measurement.run()
        assert [point.prompt_share for point in measurement.points] == [0.0] * 4
        assert len({request for _, window in measurement.windows for request in window.requests}) > 4, "they asked anew between windows"


def test_turns_without_prompts_need_answers_longer_than_a_turn() -> None:
    with pytest.raises(ConfigError, match="more than twice as many"):
        LoadPlan(decode_only=True)
    with pytest.raises(ConfigError, match="more than twice as many"):
        LoadPlan(tokens=64, max_tokens=128, decode_only=True)


def test_commands_read_what_was_measured(folder: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    budget = runner.invoke(app, ["bench", "budget", "--from", str(folder)])
    assert budget.exit_code == 0, budget.output
    assert "verified candidates per request" in budget.output
    frontier = runner.invoke(app, ["bench", "frontier", "--from", str(folder / RESULT_FILE), "--out", str(tmp_path)])
    assert frontier.exit_code == 0, frontier.output
    assert "per-user speed at matched throughput" in frontier.output
    assert len(json.loads((tmp_path / "frontier.json").read_text())["loads"]) == 2
    assert (tmp_path / "frontier.png").read_bytes()[:4] == PNG
    nothing = runner.invoke(app, ["bench", "budget", "--from", str(tmp_path / "no.json")])
    assert nothing.exit_code == 2
    assert "cannot be read as a measurement under load" in re.sub(r"[\s│]+", " ", nothing.output), "in a box as wide as a terminal"


def test_a_measurement_without_costs_or_trace_needs_others_named(report: LoadReport, folder: Path) -> None:
    bare = LoadReport(report.label, report.plan, report.points)
    with pytest.raises(ConfigError, match="no costs"):
        simulate_against(bare, folder, SimulateOptions())
    with pytest.raises(ConfigError, match="without a trace"):
        simulate_against(bare, folder, SimulateOptions(), setup="qwen3-8b-h100")


class Clockwork:
    """A system whose turns are made up; it may ask for the end in one of them."""

    def __init__(self, name: str, log: list[str], on_turn: Callable[[int], None] = lambda _: None) -> None:
        self.name = name
        self._log = log
        self._on_turn = on_turn

    def turn(self, num_clients: int) -> Window:
        self._log.append(self.name)
        self._on_turn(len(self._log))
        return Window(seconds=1.0, tokens=10.0, rounds=5.0)


def test_the_order_rotates_and_what_was_learned_goes_on_from_load_to_load() -> None:
    log: list[str] = []
    plan = LoadPlan(clients=(1, 2), turns=2, warmup_turns=1)
    measurement = LoadMeasurement([Clockwork(name, log) for name in "abc"], plan, Patience())
    assert measurement.run()
    assert "".join(log) == "abcbcacab" * 2
    assert len(log) == measurement.num_turns
    assert [len(point.turns) for point in measurement.points] == [2] * 6


def test_a_turn_that_is_broken_off_is_left_out_and_whole_ones_are_kept() -> None:
    log: list[str] = []
    patience = Patience()

    def on_turn(number: int) -> None:
        if number == 6:  # the second of three in the second counted turn
            patience.stop()

    measurement = LoadMeasurement([Clockwork(name, log, on_turn) for name in ("plain", "b")], LoadPlan((1, 2), turns=3), patience)
    assert not measurement.run()
    assert [(point.policy, len(point.turns)) for point in measurement.points] == [("plain", 1), ("b", 1)]
    assert measurement.points[1].against_plain == 1.0


def test_there_is_room_for_all_clients_with_whole_trees() -> None:
    room = Room(num_sessions=64, session_tokens=483 + 256)
    assert room.max_batch_rows == 64 * 17
    assert room.kv_cache.num_tokens >= 64 * (483 + 256 + 1 + 16)
    assert room.limits.max_buffered_chunks == 1, "or resting clients would not stop their sessions"
    assert Room(1, 100).max_batch_rows == TargetConfig().max_batch_rows
    assert (limits_of("fixed5").max_depth, limits_of("fixed5").max_width) == (5, 1)
    assert limits_of("plain").skips
    assert limits_of("plain_again").skips
    with pytest.raises(ConfigError, match="fixedN"):
        limits_of("magic")
