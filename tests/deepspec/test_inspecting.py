"""`inspect` tells all it can, even of a checkpoint that cannot be used; the two commands end with the right codes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from rich.console import Console
from safetensors.torch import save_file
from typer.testing import CliRunner

from dspark.deepspec import format_commands
from dspark.deepspec.checkpoints import target_copies, write_draft_checkpoint
from dspark.deepspec.inspecting import CheckpointReport, inspect_checkpoint, print_report
from dspark.runtime.draft_formats import read_draft_checkpoint
from tests.deepspec.tiny_pair import TinyPair, trained_pair
from tests.runtime.folders import edit_json, edit_weights
from tests.runtime.tiny_drafters import EAGLE, SPEC, SPECS, random_tensors

FIXTURE = Path(__file__).parents[1] / "fixtures" / "deepspec_checkpoint" / "vanilla"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return trained_pair(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def commands() -> typer.Typer:
    app = typer.Typer()
    app.command()(format_commands.inspect)
    app.command()(format_commands.convert)
    return app


def printed(report: CheckpointReport) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        print_report(console, report)
    return capture.get()


def test_a_sound_checkpoint_is_described() -> None:
    report = inspect_checkpoint(FIXTURE)
    text = printed(report)
    assert (report.format, report.problems, len(report.stored)) == ("deepspec", [], 31)
    assert report.num_bytes == pytest.approx(400_000, rel=0.02)
    for words in ("sequential head vanilla", "[1, 3, 5]", "mask token 159", "fc.weight", "[64, 192]", "no problems found"):
        assert words in text


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    write_draft_checkpoint(tmp_path / "drafter", SPEC, random_tensors(SPEC))

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["norm.weight"]
        tensors["extra"] = torch.zeros(1)
        tensors["fc.weight"].fill_(float("nan"))

    edit_weights(tmp_path / "drafter", spoil)
    report = inspect_checkpoint(tmp_path / "drafter")
    text = " ".join(report.problems)
    assert len(report.problems) == 3
    assert all(words in text for words in ("'norm.weight' [16] is missing", "'extra' is not part", "'fc.weight' holds NaN"))
    assert "problem" in printed(report)


def test_a_checkpoint_with_a_bad_configuration_still_shows_its_tensors(tmp_path: Path) -> None:
    write_draft_checkpoint(tmp_path / "drafter", SPEC, random_tensors(SPEC))
    edit_json(tmp_path / "drafter" / "config.json", target_layer_ids=[5])
    report = inspect_checkpoint(tmp_path / "drafter")
    assert "last layer" in report.problems[0]
    assert "markov_head.markov_w1.weight" in printed(report)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100])
def test_a_broken_weight_file_is_a_problem_and_no_crash(tmp_path: Path, content: bytes) -> None:
    write_draft_checkpoint(tmp_path / "drafter", SPEC, random_tensors(SPEC))
    (tmp_path / "drafter" / "model.safetensors").write_bytes(content)
    report = inspect_checkpoint(tmp_path / "drafter")
    assert any("not a sound safetensors file" in problem for problem in report.problems)
    assert report.spec == SPEC


def test_something_else_is_told_apart(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    report = inspect_checkpoint(tmp_path)
    assert report.format is None
    assert "config.json" in report.problems[0]
    assert "not a drafter" in printed(report)


def test_what_is_shared_with_the_target_is_told(pair: TinyPair, tmp_path: Path) -> None:
    own = target_copies(pair.target, ["embed_tokens.weight", "lm_head.weight"])
    tensors = pair.tensors | {"embed_tokens.weight": own["embed_tokens.weight"], "lm_head.weight": own["lm_head.weight"] * 2}
    write_draft_checkpoint(tmp_path / "drafter", pair.spec, tensors)
    assert inspect_checkpoint(tmp_path / "drafter", pair.target).shared == {
        "embed_tokens.weight": "a copy of the target's",
        "lm_head.weight": "its own: differs from the target's",
    }
    write_draft_checkpoint(tmp_path / "drafter", pair.spec, pair.tensors)
    report = inspect_checkpoint(tmp_path / "drafter", pair.target, pair.texts)
    assert set(report.shared.values()) == {"left out: the target's"}
    assert report.probe is not None
    assert report.probe.shift == 0
    assert "tap layers: as read" in printed(report)


def test_tap_layers_that_are_counted_differently_are_a_problem(pair: TinyPair, tmp_path: Path) -> None:
    write_draft_checkpoint(tmp_path / "drafter", replace(pair.spec, tap_layers=(2, 4)), pair.tensors)
    report = inspect_checkpoint(tmp_path / "drafter", pair.target, pair.texts)
    assert any("off by one: add -1" in problem for problem in report.problems)


def test_a_wrong_vocabulary_is_a_problem(pair: TinyPair, tmp_path: Path) -> None:
    write_draft_checkpoint(tmp_path / "drafter", SPECS["dflash"], random_tensors(SPECS["dflash"]))
    report = inspect_checkpoint(tmp_path / "drafter", pair.target)
    assert "vocab_size is 40, but the target" in report.problems[0]


def test_an_eagle_drafter_is_described_without_a_probe(tmp_path: Path) -> None:
    write_draft_checkpoint(tmp_path / "drafter", EAGLE, random_tensors(EAGLE))
    report = inspect_checkpoint(tmp_path / "drafter")
    assert (report.problems, report.probe) == ([], None)
    assert "12 of 40 tokens" in printed(report)


def test_inspect_ends_with_a_code_that_scripts_can_use(commands: typer.Typer, tmp_path: Path) -> None:
    assert CliRunner().invoke(commands, ["inspect", str(FIXTURE)]).exit_code == 0
    assert CliRunner().invoke(commands, ["inspect", str(tmp_path)]).exit_code == 1
    assert CliRunner().invoke(commands, ["inspect", "./no/such/folder"]).exit_code == 2


def test_convert_writes_a_folder_or_says_why_not(commands: typer.Typer, tmp_path: Path) -> None:
    arguments = ["convert", str(FIXTURE), str(tmp_path / "new"), "--to", "speculators"]
    result = CliRunner().invoke(commands, arguments)
    assert (result.exit_code, "deepspec -> speculators" in result.output) == (0, True)
    assert "assumed" not in result.output
    assert read_draft_checkpoint(tmp_path / "new").format == "speculators"
    again = CliRunner().invoke(commands, arguments)
    assert (again.exit_code, "exists already" in again.output) == (2, True)


@pytest.mark.parametrize(("options", "told"), [([], True), (["--tap-shift", "0"], False)])
def test_convert_tells_that_it_assumed_a_convention_which_it_did_not_probe(
    commands: typer.Typer, pair: TinyPair, tmp_path: Path, options: list[str], told: bool
) -> None:
    write_draft_checkpoint(tmp_path / "source", pair.spec, pair.tensors, "speculators")
    result = CliRunner().invoke(commands, ["convert", str(tmp_path / "source"), str(tmp_path / "new"), "--to", "deepspec", *options])
    assert result.exit_code == 0
    assert ("tap layers: [1, 3], assumed and not probed" in result.output) == told


def test_convert_tells_what_it_changed(commands: typer.Typer, pair: TinyPair, tmp_path: Path) -> None:
    write_draft_checkpoint(tmp_path / "source", replace(pair.spec, num_target_layers=0), pair.tensors, "speculators")
    arguments = ["convert", str(tmp_path / "source"), str(tmp_path / "new"), "--to", "deepspec", "--target", str(pair.target)]
    result = CliRunner().invoke(commands, [*arguments, "--tap-shift", "-1"])
    assert result.exit_code == 0
    assert "changed from [1, 3] to [0, 2]" in result.output
    assert "filled in from the target: embed_tokens.weight, lm_head.weight" in result.output
