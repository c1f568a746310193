"""What a training run shows while it goes on: a progress bar, and TensorBoard where it is installed. metrics.jsonl is run_state.py's."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dspark.deepspec.train import StepRecord, expected_tau

SMOOTHING = 0.95
"""Of the numbers beside the bar; the logs have every step's own."""


class Board:
    """Shows steps as they are done. `step` is called once per step, on the writing worker only."""

    def __init__(self, progress: Progress, folder: Path, num_steps: int, done: int) -> None:
        self._progress = progress
        self._task = progress.add_task(folder.name, total=num_steps, completed=done)
        self._name = folder.name
        self._means: dict[str, float] = {}
        self._writer: Any = _tensorboard(folder)

    def step(self, record: StepRecord) -> None:
        """One more."""
        tokens_per_s = record.num_tokens / record.seconds
        tau = expected_tau(record.acceptance)
        shown = {"loss": record.loss, "tau": tau, "tokens/s": tokens_per_s}
        for name, value in shown.items():
            self._means[name] = SMOOTHING * self._means.get(name, value) + (1 - SMOOTHING) * value
        text = ", ".join(f"{name} {value:.4g}" for name, value in self._means.items())
        self._progress.update(self._task, completed=record.step, description=f"{self._name}: {text}")
        if self._writer is not None:
            for name, value in (*shown.items(), ("l1", record.l1), ("cross_entropy", record.cross_entropy)):
                self._writer.add_scalar(name, value, record.step)

    def close(self) -> None:
        """Flush."""
        if self._writer is not None:
            self._writer.close()


@contextmanager
def board(folder: Path, num_steps: int, done: int) -> Iterator[Board]:
    """A bar on the terminal for as long as the block runs."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        shown = Board(progress, folder, num_steps, done)
        try:
            yield shown
        finally:
            shown.close()


def _tensorboard(folder: Path) -> Any:
    """A writer, or None where the `train` extra is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter
    return writer(folder / "tensorboard")
