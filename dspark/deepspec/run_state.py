"""The files of a training run: recipe, state, metrics. A kill at any moment leaves the last complete state, and a full disk too."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dspark.deepspec.recipe import Recipe
from dspark.errors import ConfigError

STATE = "state.safetensors"
RECIPE = "recipe.json"
METRICS = "metrics.jsonl"


class RunFolder:
    """One run's folder. Written by one worker only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def claim(self, recipe: Recipe) -> None:
        """Make the folder this recipe's. Raises ConfigError if it is another's, naming what differs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / RECIPE
        if not path.exists():
            self._write_text(path, recipe.model_dump_json(indent=2) + "\n")
            return
        mine, other = json.loads(recipe.model_dump_json()), json.loads(path.read_text())
        if mine != other:
            differing = ", ".join(sorted(_differences(mine, other)))
            raise ConfigError(f"{path} is of another run (different: {differing}); choose another folder or remove it")

    def save(self, step: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write the state after `step` steps beside the old one and rename it. Raises ConfigError where the disk is full."""
        partial = self.folder / f"{STATE}.partial"
        try:
            save_file(dict(tensors), partial, metadata={"step": str(step)})
            partial.replace(self.folder / STATE)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                partial.unlink()
            raise ConfigError(
                f"{self.folder}: the state of step {step} cannot be written ({error}); the one before it is whole, and the same command "
                "goes on from there once there is room"
            ) from error

    def load(self) -> tuple[int, dict[str, torch.Tensor]] | None:
        """(steps done, tensors) of the last complete state; None at the beginning."""
        path = self.folder / STATE
        if not path.exists():
            return None
        with safe_open(path, "pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            return int(handle.metadata()["step"]), tensors

    def log(self, record: dict[str, Any]) -> None:
        """One line of metrics."""
        with (self.folder / METRICS).open("a") as file:
            file.write(json.dumps(record) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the lines of steps that a killed run did after its last state: they are done again."""
        path = self.folder / METRICS
        if not path.exists():
            return
        kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
        self._write_text(path, "".join(line + "\n" for line in kept))

    def records(self) -> list[dict[str, Any]]:
        """All metrics so far."""
        path = self.folder / METRICS
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def _write_text(self, path: Path, text: str) -> None:
        partial = path.with_name(f"{path.name}.partial")
        try:
            partial.write_text(text)
            partial.replace(path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            raise ConfigError(f"{path} cannot be written ({error})") from error


def _step_of(line: str) -> float:
    """Of a line of metrics; one that a kill cut off is of no step."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _differences(mine: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in {*mine, *other}:
        one, two = mine.get(key), other.get(key)
        if isinstance(one, dict) and isinstance(two, dict):
            found += _differences(one, two, f"{prefix}{key}.")
        elif one != two:
            found.append(prefix + key)
    return found
