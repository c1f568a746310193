"""The loop: gradients that do not depend on how a batch is cut, held-out looks, saving and going on, in one process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dspark.deepspec.run_state import RunFolder
from dspark.deepspec.train import RunOptions, expected_tau, run
from dspark.deepspec.workers import OneWorker
from dspark.errors import ConfigError, ModelLoadError
from tests.deepspec.tiny_training import losses_of, tiny_recipe, trainer_of, write_samples, write_target


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("samples") / "samples.jsonl")


def parameters_after(target: Path, samples: Path, steps: int, **training: Any) -> dict[str, torch.Tensor]:
    trainer = trainer_of(tiny_recipe(target, samples, **training))
    for _ in range(steps):
        trainer.train_step()
    return {name: p.detach() for name, p in trainer.trainee.trained()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_a_step_does_not_depend_on_the_size_of_micro_batches(
    target: Path, samples: Path, micro_batch_size: int, optimizer: str
) -> None:
    # Adam divides by the gradient's size: a small rate keeps the rounding of tiny gradients within the tolerance.
    whole, cut = (
        parameters_after(target, samples, 1, micro_batch_size=size, optimizer=optimizer, learning_rate=1e-4, warmup_fraction=0.0)
        for size in (None, micro_batch_size)
    )
    start = {name: p.detach() for name, p in trainer_of(tiny_recipe(target, samples)).trainee.trained()}
    for name, value in whole.items():
        assert torch.allclose(cut[name], value, rtol=0, atol=1e-5), name
    assert any(not torch.allclose(start[name], value, rtol=0, atol=5e-5) for name, value in whole.items())


def test_the_gradient_is_the_mean_over_all_valid_positions(target: Path, samples: Path) -> None:
    trainer = trainer_of(tiny_recipe(target, samples))
    chosen = trainer._batch(0)
    weights = trainer.trainee.weights.positions(3)
    valid = sum(batch.valid.sum((0, 1)) for batch in trainer._micro_batches(chosen))
    assert trainer._weight_of(chosen) == pytest.approx(float((valid * weights).sum()), rel=1e-6)


def go(target: Path, samples: Path, out: Path, options: RunOptions, **training: Any) -> None:
    recipe = tiny_recipe(target, samples, **training)
    folder = RunFolder(out)
    folder.claim(recipe)
    run(trainer_of(recipe), folder, recipe.training, OneWorker(), options)


class Stopped(Exception):
    """Stands for a kill."""


def stopping_at(step: int) -> RunOptions:
    def stop(record: Any) -> None:
        if record.step == step:
            raise Stopped

    return RunOptions(save_every_s=0.0, held_out_every=4, on_step=stop)


def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(target: Path, samples: Path, tmp_path: Path) -> None:
    whole = RunOptions(save_every_s=0.0, held_out_every=4)
    go(target, samples, tmp_path / "whole", whole, num_steps=12)
    with pytest.raises(Stopped):
        go(target, samples, tmp_path / "stopped", stopping_at(6), num_steps=12)
    go(target, samples, tmp_path / "stopped", whole, num_steps=12)
    assert losses_of(tmp_path / "stopped") == losses_of(tmp_path / "whole")
    for file in ("checkpoint/model.safetensors", "best/model.safetensors", "state.safetensors"):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_a_finished_run_is_left_alone(target: Path, samples: Path, tmp_path: Path) -> None:
    go(target, samples, tmp_path, RunOptions(), num_steps=3)
    (tmp_path / "checkpoint" / "calibration.json").write_text("{}")
    go(target, samples, tmp_path, RunOptions(), num_steps=3)
    assert (tmp_path / "checkpoint" / "calibration.json").exists()
    assert [step for step, _ in losses_of(tmp_path)] == [1, 2, 3]


def test_a_run_that_could_not_write_its_last_checkpoint_writes_it_when_it_goes_on(target: Path, samples: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "mine.txt").write_text("no checkpoint")
    with pytest.raises(ConfigError, match="something else than a checkpoint"):
        go(target, samples, tmp_path, RunOptions(), num_steps=3)
    (tmp_path / "checkpoint" / "mine.txt").unlink()
    (tmp_path / "checkpoint").rmdir()
    go(target, samples, tmp_path, RunOptions(), num_steps=3)
    assert (tmp_path / "checkpoint" / "model.safetensors").exists()
    assert [step for step, _ in losses_of(tmp_path)] == [1, 2, 3]


def test_held_out_acceptance_and_decoded_tau_are_logged_and_told(target: Path, samples: Path, tmp_path: Path) -> None:
    told: list[tuple[int, str]] = []
    options = RunOptions(
        held_out_every=2, decode=lambda folder: 2.5, on_value=lambda step, name, value: told.append((step, name))
    )
    go(target, samples, tmp_path, options, num_steps=4)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    looks = [record for record in records if "held_out_acceptance" in record]
    assert [record["step"] for record in looks] == [2, 4]
    assert all(record["held_out_expected_tau"] == expected_tau(record["held_out_acceptance"]) for record in looks)
    assert {"step": 4, "held_out_tau": 2.5} in records
    assert told == [(2, "held_out_expected_tau"), (4, "held_out_expected_tau"), (4, "held_out_tau")]


def test_held_out_samples_are_looked_at_in_pieces_no_larger_than_a_batch(target: Path, samples: Path) -> None:
    trainers = [trainer_of(tiny_recipe(target, samples, held_out_fraction=0.5, batch_size=size)) for size in (1, 16)]
    assert len(trainers[0].held_out_samples) > 4
    small, large = (trainer.held_out() for trainer in trainers)
    assert small == pytest.approx(large, abs=1e-5)


def test_expected_tau_adds_up_running_products() -> None:
    assert expected_tau([0.5, 0.5]) == 1.75
    assert expected_tau([]) == 1.0


def test_nothing_left_to_learn_from_is_refused(target: Path, samples: Path) -> None:
    with pytest.raises(ConfigError, match="held out"):
        trainer_of(tiny_recipe(target, write_samples(samples.with_name("one.jsonl"), 1), held_out_fraction=0.999999))


def test_the_state_of_another_drafter_is_refused(target: Path, samples: Path) -> None:
    tensors = trainer_of(tiny_recipe(target, samples)).tensors()
    with pytest.raises(ModelLoadError, match="not this drafter's"):
        trainer_of(tiny_recipe(target, samples, drafter={"num_layers": 2})).restore(1, tensors)
