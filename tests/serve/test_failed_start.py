"""`dspark serve` with a model that cannot be served: it ends, and says why."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serve.conftest import ROOT, START_TIMEOUT_S, free_port, serve_command, write_config
from tests.warm_drafters import write_drafter

pytestmark = [pytest.mark.serve, pytest.mark.slow]


def failure_of(tmp_path: Path, args: str, environment: dict[str, str]) -> str:
    """What the command writes when it ends, which it must."""
    config, _, _ = write_config(tmp_path, args)
    finished = subprocess.run(
        serve_command(config, free_port()),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    assert finished.returncode == 3, finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr
    return finished.stderr


def change_config(folder: Path, **changes: object) -> None:
    """Other values in a checkpoint's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def block(folder: Path) -> str:
    """Arguments for a service with this block drafter."""
    return f'      target: {{num_threads: 1}}\n      drafter: {{kind: block, model: "{folder}", num_threads: 1}}\n'


def test_a_broken_target_ends_the_command_with_its_reason(tmp_path: Path, tiny_folder: Path, ray_environment: dict[str, str]) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_folder, folder)
    change_config(folder, num_hidden_layers=3)
    reason = failure_of(tmp_path, f'      target: {{model: "{folder}"}}\n', ray_environment)
    assert "ModelLoadError" in reason
    assert str(folder) in reason


def test_a_missing_drafter_is_named(tmp_path: Path, ray_environment: dict[str, str]) -> None:
    folder = tmp_path / "nowhere"
    assert f"ModelLoadError: {folder}: no such folder" in failure_of(tmp_path, block(folder), ray_environment)


def test_a_drafter_of_another_target_is_refused(tmp_path: Path, ray_environment: dict[str, str]) -> None:
    folder = write_drafter(tmp_path / "other", "dspark")
    change_config(folder, dspark_target_fingerprint="0" * 64)
    reason = failure_of(tmp_path, block(folder), ray_environment)
    assert f"FingerprintMismatch: {folder}" in reason
    assert "was trained for another target" in reason


def test_a_drafter_with_layers_that_the_target_does_not_have_is_refused(tmp_path: Path, ray_environment: dict[str, str]) -> None:
    folder = write_drafter(tmp_path / "deep", "dspark")
    change_config(folder, num_target_layers=0, target_layer_ids=[0, 1, 2, 3, 40])
    reason = failure_of(tmp_path, block(folder), ray_environment)
    assert "config.json" in reason
    assert "40" in reason
