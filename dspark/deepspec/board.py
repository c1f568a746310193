"""What a training run shows while it goes on: a progress bar with the time left (a line now and then where there is no terminal), and
TensorBoard where it is installed. metrics.jsonl is run_state.py's.
"""

import importlib.util
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dspark.deepspec.estimates import shown_seconds
from dspark.deepspec.run_state import disk_errors_told
from dspark.deepspec.train import StepRecord, expected_tau

SMOOTHING = 0.95
"""Of the numbers beside the bar; the logs have every step's own."""
LINE_EVERY_S = 30.0
TENSORBOARD = "tensorboard"


class Board:
    """Shows steps as they are done. Used by one process only."""

    def __init__(self, console: Console, progress: Progress, folder: Path, num_steps: int, done: int, writer: Any) -> None:
        """`done` steps were there before; `writer` is TensorBoard's, or None."""
        self._console = console
        self._progress = progress
        self._task = progress.add_task(folder.name, total=num_steps, completed=done)
        self._folder, self._name, self._num_steps, self._done = folder, folder.name, num_steps, done
        self._means: dict[str, float] = {}
        self._writer = writer
        self._started_s = time.monotonic()
        self._line_s = self._started_s

    def step(self, record: StepRecord) -> None:
        """One more."""
        shown = {"loss": record.loss, "tau": expected_tau(record.acceptance), "tokens/s": record.num_tokens / record.seconds}
        for name, value in shown.items():
            self._means[name] = SMOOTHING * self._means.get(name, value) + (1 - SMOOTHING) * value
        text = ", ".join(f"{name} {value:.4g}" for name, value in self._means.items())
        self._progress.update(self._task, completed=record.step, description=f"{self._name}: {text}")
        self._line(record.step, text)
        for name, value in (*shown.items(), ("l1", record.l1), ("cross_entropy", record.cross_entropy)):
            self.value(record.step, name, value)

    def value(self, step: int, name: str, value: float) -> None:
        """A number for TensorBoard alone."""
        if self._writer is not None:
            with disk_errors_told(self._folder / TENSORBOARD):
                self._writer.add_scalar(name, value, step)

    def _line(self, step: int, text: str) -> None:
        now_s = time.monotonic()
        if self._console.is_terminal or now_s - self._line_s < LINE_EVERY_S:
            return
        self._line_s = now_s
        left_s = (self._num_steps - step) * (now_s - self._started_s) / max(1, step - self._done)
        self._console.print(f"step {step:,} of {self._num_steps:,}: {text}; about {shown_seconds(left_s)} to go", markup=False)


@contextmanager
def board(folder: Path, num_steps: int, done: int, *, tensorboard: bool = True) -> Iterator[Board]:
    """A bar on the terminal for as long as the block runs."""
    console = Console(highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with _writer(folder, done, tensorboard) as writer, Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Board(console, progress, folder, num_steps, done, writer)


@contextmanager
def _writer(folder: Path, done: int, wanted: bool) -> Iterator[Any]:
    """TensorBoard's, or None. Its thread prints a disk error in full, though the next call raises it once more: once is enough."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError):
            before(args)

    threading.excepthook = hook
    try:
        writer = _tensorboard(folder, done) if wanted else None
        try:
            yield writer
        finally:
            if writer is not None:
                with disk_errors_told(folder / TENSORBOARD):
                    writer.close()
    finally:
        threading.excepthook = before


def _tensorboard(folder: Path, done: int) -> Any:
    """A writer, or None where the `train` extra is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter
    with disk_errors_told(folder / TENSORBOARD):
        return writer(folder / TENSORBOARD, purge_step=done + 1)  # steps that a killed run did after its last state come again
