"""One worker of a process group without Ray: `python -m tests.deepspec.group_worker RANK SIZE RENDEZVOUS RECIPE OUT`."""

import sys
from dataclasses import replace
from pathlib import Path

from torch import distributed

from dspark.deepspec.job import JobOptions, train
from dspark.deepspec.recipe import Recipe
from dspark.deepspec.train import RunOptions
from dspark.deepspec.workers import OneWorker, ProcessGroup


def main(rank: int, size: int, rendezvous: str, recipe: Path, out: Path) -> None:
    options = replace(JobOptions(), run=RunOptions(save_every_s=0.0, held_out_every=5), threads=1)
    chosen = Recipe.model_validate_json(recipe.read_text())
    if size == 1:
        train(chosen, out, options, OneWorker())
        return
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    train(chosen, out, options, ProcessGroup())
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), Path(sys.argv[5]))
