"""The files of a training run: recipe, state, metrics. A kill at any moment leaves the last complete state, and a full disk too."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dspark.deepspec.recipe import Recipe
from dspark.errors import ConfigError, DSparkError, ModelLoadError

STATE = "state.safetensors"
RECIPE = "recipe.json"
METRICS = "metrics.jsonl"


class RunFolder:
    """One run's folder. Written by one worker only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def claim(self, recipe: Recipe) -> None:
        """Make the folder this recipe's. Raises ConfigError if it is another's, naming what differs, DSparkError if the disk refuses."""
        path = self.folder / RECIPE
        with disk_errors_told(path):
            self.folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            self._write_text(path, recipe.model_dump_json(indent=2) + "\n")
            return
        mine, other = json.loads(recipe.model_dump_json()), _read_recipe(path)
        if mine != other:
            differing = ", ".join(sorted(_differences(mine, other)))
            raise ConfigError(f"{path} is of another run (different: {differing}); choose another folder or remove it")

    def save(self, step: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write the state after `step` steps beside the old one and rename it. Raises DSparkError where the disk refuses."""
        with self._replaced(self.folder / STATE) as partial:
            save_file(dict(tensors), partial, metadata={"step": str(step)})

    def load(self) -> tuple[int, dict[str, torch.Tensor]] | None:
        """(steps done, tensors) of the last complete state; None at the beginning. Raises ModelLoadError for a file that is none."""
        path = self.folder / STATE
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as handle:
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
                return int(handle.metadata()["step"]), tensors
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ModelLoadError(f"{path} is no state of a training run ({error}); remove it to begin again") from error

    def log(self, record: dict[str, Any]) -> None:
        """One line of metrics. Raises DSparkError where the disk refuses; the lines before stay whole."""
        path = self.folder / METRICS
        with disk_errors_told(path), path.open("ab", buffering=0) as file:
            end = file.tell()
            line = json.dumps(record).encode() + b"\n"
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(end)
                raise

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
        with self._replaced(path) as partial:
            partial.write_text(text)

    @contextmanager
    def _replaced(self, path: Path) -> Iterator[Path]:
        """A file to write to; it takes the place of `path` when all of it is on the disk, and is removed if anything fails."""
        partial = path.with_name(f"{path.name}.partial")
        try:
            with disk_errors_told(path):
                yield partial
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                partial.replace(path)
        finally:
            with suppress(OSError):
                partial.unlink()


class MetricsReader:
    """Follows the metrics that another process writes."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.folder / METRICS
        self._inode, self._offset = 0, 0

    def new_records(self) -> list[dict[str, Any]]:
        """Whole lines since the last call; all of them again once another file has taken the place of this one."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:
                self._inode, self._offset = inode, 0
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return [json.loads(line) for line in whole.splitlines()]


@contextmanager
def disk_errors_told(path: Path) -> Iterator[None]:
    """A disk that is full or may not be written to, as a DSparkError that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DSparkError(
            f"{path} cannot be written ({error}); the last saved state and checkpoint are whole, and the same command goes on from there "
            "once that is mended"
        ) from error


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); remove it if the folder is this run's") from error
    return values


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
