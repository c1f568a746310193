"""`deepspec train` as users run it: a process of its own, killed, short of room, called wrongly."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.deepspec.tiny_training import losses_of, tiny_recipe, write_recipe, write_samples, write_target

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
KILLS, SEED = 5, 20261125
NUM_STEPS = 40


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("samples") / "samples.jsonl")


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    """States after every step: a kill then falls into the writing of one more often than not."""
    line = ["train", str(recipe), "--out", str(out), "--save-every-s", "0", "--held-out-every", "10", "--decode", "0", *more]
    return [sys.executable, "-m", "dspark.deepspec.cli", *line]


def started(line: list[str], before: Callable[[], None] | None = None) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        line, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=before, start_new_session=True
    )


def completed(line: list[str], before: Callable[[], None] | None = None) -> tuple[int, str]:
    """Exit code and what stands on stderr."""
    with started(line, before) as process:
        errors = process.communicate(timeout=600)[1]
        return process.returncode, errors


def killed_after(line: list[str], out: Path, steps: int, wait_s: float) -> None:
    """SIGKILL a moment after so many steps are logged in all."""
    with started(line) as process:
        while process.poll() is None and (not (out / "metrics.jsonl").exists() or len(losses_of_cut(out)) < steps):
            time.sleep(0.02)
        time.sleep(wait_s)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL


def losses_of_cut(out: Path) -> list[str]:
    return [line for line in (out / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_killed_five_times_is_the_run_that_was_not_killed(
    target: Path, samples: Path, tmp_path: Path, optimizer: str
) -> None:
    recipe = write_recipe(tmp_path / "recipe.json", tiny_recipe(target, samples, optimizer=optimizer, num_steps=NUM_STEPS))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert completed(command(recipe, whole))[0] == 0
    draw = random.Random(SEED)
    for moment in sorted(draw.sample(range(1, NUM_STEPS - 4), KILLS)):
        killed_after(command(recipe, killed), killed, moment, draw.uniform(0, 0.03))
    assert completed(command(recipe, killed))[0] == 0
    assert losses_of(killed) == losses_of(whole)
    assert [step for step, _ in losses_of(whole)] == list(range(1, NUM_STEPS + 1))
    for folder in ("checkpoint", "best"):
        one, other = (load_file(out / folder / "model.safetensors") for out in (killed, whole))
        assert one.keys() == other.keys()
        assert all(one[name].equal(other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_files_that_may_not_grow_end_training_with_one_line_and_it_goes_on_later(target: Path, samples: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.json", tiny_recipe(target, samples, num_steps=20))
    out = tmp_path / "run"
    short = completed(command(recipe, out, "--set", "training.num_steps=20"), lambda: limit_files(60_000))
    assert short[0] == 3
    assert_one_line(short[1], "cannot be written")
    assert completed(command(recipe, out))[0] == 0
    whole = tmp_path / "whole"
    assert completed(command(recipe, whole))[0] == 0
    assert losses_of(out) == losses_of(whole)


def limit_files(num_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


@pytest.fixture
def small_disk(tmp_path: Path) -> "object":
    """A file system of 3 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True, text=True, check=False)
    if mount.returncode != 0:
        pytest.skip(f"no file system may be mounted here: {mount.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_full_disk_leaves_state_and_checkpoint_whole(target: Path, samples: Path, tmp_path: Path, small_disk: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.json", tiny_recipe(target, samples, num_steps=20))
    out, whole = small_disk / "run", tmp_path / "whole"
    assert completed(command(recipe, whole))[0] == 0
    killed_after(command(recipe, out), out, 6, 0.0)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    kept = [out / "state.safetensors", out / "checkpoint" / "model.safetensors"]
    before = [path.read_bytes() for path in kept]
    code, errors = completed(command(recipe, out))
    assert code == 3
    assert_one_line(errors, "cannot be written")
    assert [path.read_bytes() for path in kept] == before
    filler.unlink()
    assert completed(command(recipe, out))[0] == 0
    assert losses_of(out) == losses_of(whole)


def assert_one_line(errors: str, text: str) -> None:
    told = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(told) == 1, errors
    assert text in told[0]
    assert "Traceback" not in errors, errors


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_changed_recipe_is_refused_and_decoding_and_tensorboard_are_real(target: Path, samples: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.json", tiny_recipe(target, samples, num_steps=3, held_out_fraction=0.3))
    out = tmp_path / "run"
    assert completed(command(recipe, out, "--decode", "2"))[0] == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    taus = [record["held_out_tau"] for record in records if "held_out_tau" in record]
    assert len(taus) == 3
    assert all(1 <= tau <= 4 for tau in taus)
    assert any((out / "tensorboard").iterdir())
    code, errors = completed(command(recipe, out, "--set", "training.learning_rate=0.5"))
    assert code == 2
    assert_one_line(errors, "different: training.learning_rate")
