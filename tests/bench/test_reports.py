"""The tables on the shipped pair, with a drafter of each kind: small, but through the real engine."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dspark.bench.drafters import listed_drafters
from dspark.bench.reports import LosslessPlan, SpeedPlan, accept_table, lossless_report, speed_table
from dspark.cli import app
from dspark.config import EngineConfig, TargetConfig
from tests.warm_drafters import write_drafter

pytestmark = pytest.mark.filterwarnings("ignore:The following generation flags")
NAMES = ("lookup", "language_model", "mine", "e3")


@pytest.fixture(scope="module")
def drafters(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("drafters")
    block, eagle = write_drafter(folder / "block", "dspark"), write_drafter(folder / "eagle", "eagle3")
    return f"lookup,language_model,mine=block:{block},e3=eagle:{eagle}"


@pytest.fixture(scope="module")
def config(drafters: str) -> EngineConfig:
    return EngineConfig(target=TargetConfig(num_threads=1), drafters=listed_drafters(drafters, 4))


def rows_of(table: str) -> dict[str, list[str]]:
    """First cell -> cells of the last row that starts with it."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")]
    return {row[0]: row for row in rows}


def test_acceptance_has_a_row_for_each_drafter_and_temperature(config: EngineConfig) -> None:
    table = accept_table(config, None, count=2, max_tokens=8)
    for name in NAMES:
        assert sum(line.startswith(f"| {name} |") for line in table.splitlines()) == 3
    assert float(rows_of(table)["mine"][4]) > 2, "a block drafter proposes its whole chain nearly every round"


def test_speed_says_of_each_drafter_what_the_system_loses(config: EngineConfig) -> None:
    plan = SpeedPlan(None, 2, 8, clients=1, temperature=0.7, transformers=False, deterministic=False)
    rows = rows_of(speed_table(config, plan))
    assert set(rows) >= {"plain (same stack)", *NAMES}
    for name in ("plain (same stack)", *NAMES):
        tau, bare, efficiency = map(float, rows[name][3:6])
        assert tau >= 1
        assert bare > 0
        assert 0 < efficiency < 1.5


@pytest.mark.slow
def test_losslessness_is_asked_of_every_drafter_and_of_a_liar(config: EngineConfig) -> None:
    report, wrong = lossless_report(config, LosslessPlan(None, count=2, max_tokens=6))
    assert not wrong, report
    for name in ("none", *NAMES, "lying"):
        assert report.count(f"drafter {name},") == 8, "two workloads in two modes at two batch sizes"


@pytest.mark.slow
def test_losslessness_of_trees_with_lookup_is_asked_at_the_temperature_wanted(drafters: str) -> None:
    listed = ",".join(part for part in drafters.split(",") if "=" in part)
    arguments = ["--nodes", "16", "--width", "4", "--depth", "7", "--with-lookup", "--temperature", "0.7"]
    result = CliRunner().invoke(app, ["bench", "lossless", "--drafters", listed, *arguments, "--count", "2", "--max-tokens", "6"])
    assert result.exit_code == 0, result.output
    for name in ("mine", "e3"):
        (line,) = [line for line in result.output.splitlines() if f"temperature 0.7 against plain, drafter {name}, batch 8:" in line]
        assert "2 of 2 equal" in line
        assert int(line.split("; ")[1].split()[0]) > 4 * 7, "trees, not chains, were verified"


def test_the_command_refuses_lookup_beside_nothing() -> None:
    result = CliRunner().invoke(app, ["bench", "lossless", "--drafters", "lookup", "--with-lookup"])
    assert result.exit_code == 2
    assert "has a model" in result.output


def test_the_command_refuses_what_is_no_drafter() -> None:
    result = CliRunner().invoke(app, ["bench", "accept", "--drafters", "magic"])
    assert result.exit_code == 2
    assert "NAME=KIND:CHECKPOINT" in result.output


def test_generate_drafts_with_a_checkpoint(drafters: str) -> None:
    folder = Path(drafters.split("mine=block:")[1].split(",")[0])
    result = CliRunner().invoke(
        app, ["generate", "def add(", "--drafter", "block", "--draft", str(folder), "--max-tokens", "8", "--max-depth", "7"]
    )
    assert result.exit_code == 0, result.output
    assert "drafted, seed" in result.output
    assert "of 0 drafted" not in result.output


def test_generate_names_the_checkpoint_that_is_not_there() -> None:
    result = CliRunner().invoke(app, ["generate", "def add(", "--drafter", "eagle", "--draft", "/no/such/drafter"])
    assert result.exit_code == 2
    assert "/no/such/drafter: no such folder" in result.output + result.stderr
