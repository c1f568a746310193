"""The commands that need Ray, as far as they go without starting it."""

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

import dspark
from deployments.cli import main
from deployments.launcher import drafters_told
from deployments.ports import check_free, is_free
from dspark.config import ServeArgs
from dspark.errors import ConfigError

SHIPPED = Path(__file__).resolve().parents[2] / "serve_config.yaml"
runner = CliRunner()


@pytest.fixture
def config(tmp_path: Path, tiny_folder: Path) -> Path:
    """A configuration with the tests' own tiny model, on ports that are free."""
    path = tmp_path / "serve.yaml"
    path.write_text(
        f"http_options: {{port: {free_port()}}}\ngrpc_options: {{port: {free_port()}}}\n"
        "applications:\n  - name: small\n    import_path: deployments.app:build\n"
        f"    args:\n      target: {{model: {tiny_folder}}}\n      drafter: {{kind: lookup}}\n"
    )
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_version_is_told() -> None:
    result = runner.invoke(main, ["--version"])
    assert (result.exit_code, result.output) == (0, f"dspark {dspark.__version__}\n")


def test_validate_is_fine_with_the_shipped_file() -> None:
    result = runner.invoke(main, ["validate", str(SHIPPED)])
    assert (result.exit_code, result.output) == (0, f"{SHIPPED}: fine\n")


@pytest.mark.parametrize("command", ["validate", "serve", "doctor"])
def test_a_mistake_ends_every_command_with_code_2(command: str, config: Path) -> None:
    config.write_text(config.read_text().replace("drafter:", "dafter:"))
    result = runner.invoke(main, [command, str(config)])
    assert result.exit_code == 2
    assert f"{config}:8: applications[0].args.dafter: unknown key; did you mean 'drafter'?" in result.output
    assert "Traceback" not in result.output


def test_doctor_reads_the_model_without_loading_it(config: Path, tiny_folder: Path) -> None:
    result = runner.invoke(main, ["doctor", str(config), "--metrics-port", str(free_port())])
    assert result.exit_code == 0, result.output
    assert f"target {tiny_folder}: " in result.output
    assert "context 256 tokens" in result.output


def test_doctor_finds_a_port_in_use_and_a_missing_model(config: Path, tiny_folder: Path) -> None:
    config.write_text(config.read_text().replace(str(tiny_folder), "/no/such/model"))
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = runner.invoke(main, ["doctor", str(config), "--metrics-port", str(port)])
    assert result.exit_code == 4
    assert f"failure  metrics port {port} is in use" in result.output
    assert "failure  target: /no/such/model: no such folder" in result.output


def test_doctor_looks_at_every_drafter_that_runs_a_model(config: Path, tiny_folder: Path) -> None:
    kinds = {"small": "language_model", "trained": "block"}
    models = ", ".join(f"{name}: {{kind: {kind}, model: {tiny_folder}}}" for name, kind in kinds.items())
    drafters = f"drafters: {{{models}, copy: {{kind: lookup}}}}"
    config.write_text(config.read_text().replace("drafter: {kind: lookup}", drafters))
    result = runner.invoke(main, ["doctor", str(config), "--metrics-port", str(free_port())])
    assert f"ok       drafter small {tiny_folder}: " in result.output
    assert f"failure  drafter trained: {tiny_folder}" in result.output, "a language model is no block drafter"
    assert "copy" not in result.output
    assert result.exit_code == 4


def test_doctor_reads_what_the_shipped_configuration_names() -> None:
    """Its ports may be in use here; its models must be sound."""
    result = runner.invoke(main, ["doctor", str(SHIPPED), "--metrics-port", str(free_port())])
    assert "ok       target demo:target: 68 tensors" in result.output
    assert "ok       drafter demo:dspark: block, 4 layers, reads target layers 0, 1, 2, 3, 4" in result.output


def test_doctor_refuses_a_drafter_of_another_target(config: Path, tiny_folder: Path) -> None:
    config.write_text(config.read_text().replace("{kind: lookup}", "{kind: block}"))
    result = runner.invoke(main, ["doctor", str(config), "--metrics-port", str(free_port())])
    assert result.exit_code == 4
    assert f"config.json: vocab_size is 4096, but the target {tiny_folder} has" in result.output


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({}, "demo:dspark (depth 7)"),
        ({"drafter": {"kind": "lookup", "max_depth": 2}}, "lookup (depth 2)"),
        ({"drafter": {"kind": "block", "max_depth": 7}}, "demo:dspark (depth 7)"),
        ({"drafter": {"kind": "none"}}, "none"),
        ({"drafters": {"a": {}, "b": {"kind": "lookup"}}}, "a: demo:dspark (depth 7), b: lookup (depth 7)"),
    ],
)
def test_the_banner_tells_who_drafts(args: dict[str, object], told: str) -> None:
    assert drafters_told(ServeArgs.model_validate(args)) == told


def test_serve_says_which_port_is_taken_before_it_starts_anything(config: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = runner.invoke(main, ["serve", str(config), "--metrics-port", str(port)])
    assert result.exit_code == 2
    assert f"--metrics-port: port {port} is in use on this machine" in result.output


def test_serve_leaves_deployment_overrides_to_serve_run(config: Path) -> None:
    config.write_text(config.read_text() + "    deployments: [{name: Target, max_ongoing_requests: 3}]\n")
    result = runner.invoke(main, ["serve", str(config)])
    assert result.exit_code == 2
    assert "or start the file with `serve run`" in result.output


def test_two_services_cannot_have_one_port() -> None:
    port = free_port()
    assert is_free(port)
    with pytest.raises(ConfigError, match=f"b and a are both {port}"):
        check_free({"a": port, "b": port})
