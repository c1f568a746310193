"""More workers than one: Ray Train starts them, each runs the same job (job.py), and they add up their gradients.

The only file of the core that knows Ray; it needs the `ray-train` extra.
"""

import os
from pathlib import Path
from typing import Any

from dspark.deepspec.job import JobOptions, train
from dspark.deepspec.recipe import Recipe
from dspark.deepspec.workers import ProcessGroup
from dspark.errors import ConfigError


def train_on_ray(recipe: Recipe, out: Path, options: JobOptions, num_workers: int) -> None:
    """Run the job on `num_workers` workers of the Ray cluster at RAY_ADDRESS, or of one started here. `out` must be seen by all of them.

    Raises ConfigError where Ray Train is missing or the batch is smaller than the number of workers.
    """
    if recipe.training.batch_size < num_workers:
        raise ConfigError(
            f"training.batch_size ({recipe.training.batch_size}) is below the number of workers ({num_workers})", "training.batch_size"
        )
    try:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError as error:
        raise ConfigError(f"several workers need Ray Train: pip install 'dspark[ray-train]' ({error})", "workers") from error
    trainer: Any = TorchTrainer(
        _worker,
        train_loop_config={"recipe": recipe.model_dump_json(), "out": str(out.resolve()), "options": options, "folder": str(Path.cwd())},
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=options.device.startswith("cuda")),
        run_config=RunConfig(storage_path=str((out / "ray").resolve())),
    )
    trainer.fit()


def _worker(config: dict[str, Any]) -> None:
    """One worker, inside the process group that Ray Train made."""
    os.chdir(config["folder"])  # relative paths of the recipe are the caller's
    train(Recipe.model_validate_json(config["recipe"]), Path(config["out"]), config["options"], ProcessGroup())
