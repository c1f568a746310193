"""More workers than one: Ray Train starts them, each runs the same job (job.py), and they add up their gradients.

The only file of the core that knows Ray; it needs the `ray-train` extra.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from dspark.deepspec.board import Board, board
from dspark.deepspec.job import JobOptions, train
from dspark.deepspec.recipe import Recipe
from dspark.deepspec.run_state import MetricsReader, RunFolder, disk_errors_told
from dspark.deepspec.train import StepRecord
from dspark.deepspec.workers import ProcessGroup
from dspark.errors import ConfigError, DSparkError

MAX_RESTARTS = 3
"""After workers that died (a node went away, memory ran out). An error that one of them raised would only come again."""
FOLLOW_EVERY_S = 0.5
WORKER_ERROR = "worker_error.txt"


def train_on_ray(recipe: Recipe, out: Path, options: JobOptions, num_workers: int) -> None:
    """Run the job on `num_workers` workers of the Ray cluster at RAY_ADDRESS, or of one started here. `out` must be seen by all of them.

    Raises ConfigError where Ray Train is missing or the recipe does not fit, and whatever DSparkError a worker met.
    """
    if recipe.training.batch_size < num_workers:
        raise ConfigError(
            f"training.batch_size ({recipe.training.batch_size}) is below the number of workers ({num_workers})", "training.batch_size"
        )
    folder = RunFolder(out.resolve())
    folder.claim(recipe)  # here too: what does not fit is told before a cluster is started
    with _cluster(num_workers), _shown(folder, recipe.training.num_steps):
        for restarts_left in reversed(range(MAX_RESTARTS + 1)):
            if _finished(recipe, folder, options, num_workers, restarts_left):
                return


def _finished(recipe: Recipe, folder: RunFolder, options: JobOptions, num_workers: int, restarts_left: int) -> bool:
    """Run workers until they are done or fail; False if they died and may be started anew."""
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    job = {"recipe": recipe.model_dump_json(), "out": str(folder.folder), "options": options, "cwd": str(Path.cwd())}
    trainer: Any = TorchTrainer(
        _worker,
        train_loop_config=job,
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=options.device.startswith("cuda")),
        run_config=RunConfig(storage_path=str(folder.folder / "ray")),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        if restarts_left > 0 and a_worker_died(error):
            return False
        raise told(error, folder) from None
    return True


def _worker(job: dict[str, Any]) -> None:
    """One worker, inside the process group that Ray Train made."""
    os.chdir(job["cwd"])  # relative paths of the recipe are the caller's
    train(Recipe.model_validate_json(job["recipe"]), Path(job["out"]), job["options"], ProcessGroup())


def a_worker_died(error: Any) -> bool:
    """Whether nothing but the loss of a worker explains the failure: Ray reports that as an error of its own, and what peers of a dead
    worker raise is that it no longer answers."""
    failures = getattr(error, "worker_failures", {}).values()
    own = any(type(failure).__module__.startswith("ray.") for failure in failures)
    return own and not any(isinstance(failure, DSparkError) for failure in failures)


def told(error: Any, folder: RunFolder) -> DSparkError:
    """The one error that explains the others."""
    failures: list[Exception] = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        if isinstance(failure, DSparkError):
            return failure
    path = folder.folder / WORKER_ERROR
    with disk_errors_told(path):
        path.write_text(f"{error}\n")
    reason = repr(failures[0]) if failures else str(error).strip().splitlines()[-1]
    return DSparkError(f"training workers failed ({reason}); {path} has all of it. The same command goes on from the last saved state")


@contextmanager
def _cluster(num_workers: int) -> Iterator[None]:
    """A connection to Ray. Raises ConfigError where Ray Train is missing."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.train
    except ImportError as error:
        raise ConfigError(f"several workers need Ray Train: pip install 'dspark[ray-train]' ({error})", "workers") from error
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get("RAY_ADDRESS")
    if address is not None:
        ray.init(address=address, **quiet)
    else:
        ray.init(address="local", num_cpus=max(num_workers, os.cpu_count() or 1), include_dashboard=False, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _shown(folder: RunFolder, num_steps: int) -> Iterator[None]:
    """A bar here, from what the first worker writes; TensorBoard is that worker's."""
    state = folder.load()
    done, stop = 0 if state is None else state[0], Event()
    with board(folder.folder, num_steps, done, tensorboard=False) as shown:
        thread = Thread(target=_follow, args=(folder, shown, done, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _follow(folder: RunFolder, shown: Board, done: int, stop: Event) -> None:
    """Show each step as it is logged, and at the end those that are left."""
    reader, stopped = MetricsReader(folder), False
    while not stopped:
        stopped = stop.wait(FOLLOW_EVERY_S)
        for record in reader.new_records():
            if "loss" in record and record["step"] > done:
                done = record["step"]
                shown.step(StepRecord(**record))
