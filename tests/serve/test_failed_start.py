"""`dspark serve` with a model that cannot be served: it ends, and says why."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serve.conftest import CONFIG, ROOT, SERVICER, START_TIMEOUT_S, free_port, serve_command

pytestmark = [pytest.mark.serve, pytest.mark.slow]


def test_a_broken_checkpoint_ends_the_command_with_its_reason(tmp_path: Path, tiny_folder: Path, ray_environment: dict[str, str]) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_folder, folder)
    sizes = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(sizes | {"num_hidden_layers": 3}))
    config = tmp_path / "serve.yaml"
    config.write_text(CONFIG.format(http_port=free_port(), grpc_port=free_port(), servicer=SERVICER, target=folder))
    finished = subprocess.run(
        serve_command(config, free_port()),
        cwd=ROOT,
        env=ray_environment,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    assert finished.returncode == 3, finished.stdout + finished.stderr
    assert "ModelLoadError" in finished.stderr
    assert str(folder) in finished.stderr
