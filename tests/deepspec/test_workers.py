"""Several workers without Ray, as real processes: the same losses as one, and a run that changes hands."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from dspark.deepspec.workers import OneWorker
from tests.deepspec.test_train_command import ENVIRONMENT, ROOT
from tests.deepspec.tiny_training import losses_of, tiny_recipe, write_recipe, write_samples, write_target

NUM_STEPS = 16


def test_one_worker_has_the_whole_batch() -> None:
    assert OneWorker().share([1, 2, 3]) == [1, 2, 3]
    assert (OneWorker().rank, OneWorker().size) == (0, 1)


def start(size: int, recipe: Path, out: Path) -> "list[subprocess.Popen[bytes]]":
    meeting = out.with_name(f"{out.name}.{size}.rendezvous")
    meeting.unlink(missing_ok=True)
    line = [sys.executable, "-m", "tests.deepspec.group_worker"]
    return [
        subprocess.Popen([*line, str(rank), str(size), str(meeting), str(recipe), str(out)], cwd=ROOT, env=ENVIRONMENT)
        for rank in range(size)
    ]


def wait(processes: "list[subprocess.Popen[bytes]]") -> None:
    assert [process.wait(timeout=600) for process in processes] == [0] * len(processes)


def kill_after(steps: int, processes: "list[subprocess.Popen[bytes]]", out: Path) -> None:
    metrics = out / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count('"loss"') < steps:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_learn_as_one_and_take_over_from_one_and_back(tmp_path: Path) -> None:
    target, samples = write_target(tmp_path / "target"), write_samples(tmp_path / "samples.jsonl")
    recipe = write_recipe(tmp_path / "recipe.json", tiny_recipe(target, samples, num_steps=NUM_STEPS, micro_batch_size=1))
    alone, two, changing = tmp_path / "alone", tmp_path / "two", tmp_path / "changing"
    wait(start(1, recipe, alone))
    wait(start(2, recipe, two))
    kill_after(4, start(1, recipe, changing), changing)
    kill_after(9, start(2, recipe, changing), changing)
    wait(start(1, recipe, changing))
    for other in (two, changing):
        assert [step for step, _ in losses_of(other)] == list(range(1, NUM_STEPS + 1))
        for (_, one), (_, found) in zip(losses_of(alone), losses_of(other), strict=True):
            assert found == pytest.approx(one, abs=1e-4)
