"""The `deepspec` command as a whole: help, exit codes, and wrong usage told in one line."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dspark.deepspec.cli import app
from tests.deepspec.tiny_training import tiny_recipe, write_recipe, write_samples, write_target

COMMANDS = ["prepare", "train", "evaluate", "calibrate", "inspect", "convert", "probe"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert command in result.output


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    target, samples = write_target(folder / "target"), write_samples(folder / "samples.jsonl")
    return write_recipe(folder / "recipe.json", tiny_recipe(target, samples, num_steps=2))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--device", "cuda:999"], 2, "CUDA"),
        (["--device", "nothing"], 2, "'nothing' is not a device"),
        (["--cache-gb", "1", "--cache-dtype", "int3"], 2, "--cache-dtype"),
        (["--data", "nowhere.jsonl"], 2, "nowhere.jsonl: no such file"),
        (["--kind", "medusa"], 2, "drafter.kind"),
        (["--set", "drafter.draft_vocab_size=5"], 2, "eagle3"),
        (["--set", "training.held_out_fraction=0.9999999"], 2, "held out"),
        (["--target", "{folder}"], 3, "holds no tokenizer"),
    ],
)
def test_what_does_not_fit_is_one_line(recipe: Path, tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    given = [argument.replace("{folder}", str(tmp_path)) for argument in arguments]
    result = CliRunner().invoke(app, ["train", str(recipe), "--out", str(tmp_path / "run"), *given])
    assert result.exit_code == code, (result.output, result.exception)
    assert message in result.output
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1


@pytest.mark.parametrize("option", [["--workers", "0"], ["--threads", "0"], ["--unknown"]])
def test_wrong_usage_is_refused(recipe: Path, option: list[str]) -> None:
    assert CliRunner().invoke(app, ["train", str(recipe), *option]).exit_code == 2


@pytest.mark.parametrize(("kind", "extra"), [("dspark", []), ("language_model", []), ("dflash", ["--cache-gb", "0.001"])])
def test_a_recipe_becomes_a_checkpoint(recipe: Path, tmp_path: Path, kind: str, extra: list[str]) -> None:
    out = tmp_path / "run"
    result = CliRunner().invoke(app, ["train", str(recipe), "--out", str(out), "--kind", kind, "--decode", "0", *extra])
    assert result.exit_code == 0, (result.output, result.exception)
    assert (out / "checkpoint" / "model.safetensors").exists()
    assert (out / "features").exists() == bool(extra)
