"""Ray Train starts the workers. The quick tests need no cluster; those marked `serve` start a real one, of two CPUs, and stop it."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from dspark.deepspec.job import JobOptions
from dspark.deepspec.launcher import a_worker_died, told, train_on_ray
from dspark.deepspec.run_state import RunFolder
from dspark.errors import ConfigError
from tests.deepspec.test_train_command import ENVIRONMENT, assert_one_line, command, completed
from tests.deepspec.tiny_training import losses_of, tiny_recipe, write_recipe, write_samples, write_target

RAY = pytest.importorskip("ray.train", reason="an optional library: pip install 'dspark[ray-train]'")


def test_more_workers_than_samples_in_a_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="below the number of workers"):
        train_on_ray(tiny_recipe(tmp_path, tmp_path), tmp_path, JobOptions(), 5)


def test_a_folder_of_another_run_is_refused_before_a_cluster_starts(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(tiny_recipe(tmp_path, tmp_path, seed=9).model_dump_json())
    with pytest.raises(ConfigError, match=r"different: training\.seed"):
        train_on_ray(tiny_recipe(tmp_path, tmp_path), tmp_path, JobOptions(), 2)


def failed(**failures: Exception) -> Any:
    return RAY.WorkerGroupError("all that happened", dict(enumerate(failures.values())))


def test_only_the_loss_of_a_worker_is_a_reason_to_start_again() -> None:
    from ray.exceptions import ActorDiedError

    peer = RuntimeError("Connection closed by peer")
    assert a_worker_died(failed(one=ActorDiedError(), other=peer))
    assert not a_worker_died(failed(one=peer))
    assert not a_worker_died(failed(one=ActorDiedError(), other=ConfigError("no such file")))


def test_the_error_that_explains_the_others_is_told(tmp_path: Path) -> None:
    peer, cause = RuntimeError("Connection closed by peer"), ConfigError("no such file")
    assert told(failed(one=peer, other=cause), RunFolder(tmp_path)) is cause
    assert list(tmp_path.iterdir()) == []
    assert "RuntimeError('Connection closed by peer')" in str(told(failed(one=peer), RunFolder(tmp_path)))
    assert "all that happened" in (tmp_path / "worker_error.txt").read_text()


@pytest.mark.serve
@pytest.mark.timeout(1800)
def test_two_workers_of_ray_take_over_from_one_and_show_how_far_they_are(tmp_path: Path) -> None:
    target, samples = write_target(tmp_path / "target"), write_samples(tmp_path / "samples.jsonl")
    recipe = write_recipe(tmp_path / "recipe.json", tiny_recipe(target, samples, num_steps=12))
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert completed(command(recipe, alone))[0] == 0
    with subprocess.Popen(command(recipe, shared), env=ENVIRONMENT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while not (shared / "metrics.jsonl").exists() or (shared / "metrics.jsonl").read_text().count('"loss"') < 4:
            assert process.poll() is None
        process.kill()
    ended = subprocess.run(
        [*command(recipe, shared), "--workers", "2"], env=ENVIRONMENT, capture_output=True, text=True, timeout=1500, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert [step for step, _ in losses_of(shared)] == list(range(1, 13))
    for (_, one), (_, found) in zip(losses_of(alone), losses_of(shared), strict=True):
        assert found == pytest.approx(one, abs=1e-4)
    assert (shared / "checkpoint" / "model.safetensors").exists()


@pytest.mark.serve
@pytest.mark.timeout(1800)
def test_what_a_worker_raises_is_one_line_here(tmp_path: Path) -> None:
    target = write_target(tmp_path / "target")
    recipe = write_recipe(tmp_path / "recipe.json", tiny_recipe(target, tmp_path / "nothing.jsonl"))
    code, errors = completed([*command(recipe, tmp_path / "run"), "--workers", "2"])
    assert code == 2
    assert_one_line(errors, "nothing.jsonl: no such file")
