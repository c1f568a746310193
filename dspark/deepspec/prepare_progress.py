"""What a `prepare` shows while it runs: a bar with rate and remaining time, or a line now and then where there is no terminal.

Knows counts and the clock. Does not know prompts or answers.
"""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dspark.deepspec.estimates import shown_seconds

LINE_EVERY_S = 30.0
FIRST_ANSWERS = 32
"""After so many answers their rate is told and extrapolated."""


class PrepareProgress:
    """Counts the samples of this run. Use as a context manager."""

    def __init__(self, console: Console, *, total: int, present: int) -> None:
        self.tokens = 0
        """Made in this run, prompts not counted."""
        self.samples = 0
        self._console = console
        self._total = total
        self._present = present
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[rate]}"))
        self._bar = Progress(TextColumn("{task.description}"), *columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("samples", total=total, completed=present, rate="")
        self._started_s = self._line_s = time.monotonic()

    def __enter__(self) -> Self:
        self._started_s = self._line_s = time.monotonic()
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
        self._console.print(f"{self._present + self.samples:,} samples; this run: {self._rates()}")

    @property
    def tokens_per_s(self) -> float:
        """Since the start of this run."""
        return self.tokens / max(1e-9, time.monotonic() - self._started_s)

    @property
    def remaining_s(self) -> float:
        """If the rest goes on like this."""
        seconds_per_sample = (time.monotonic() - self._started_s) / max(1, self.samples)
        return max(0, self._total - self._present - self.samples) * seconds_per_sample

    def add(self, num_tokens: int) -> None:
        """One sample more."""
        self.samples += 1
        self.tokens += num_tokens
        self._bar.update(self._task, advance=1, rate=f"{self.tokens_per_s:,.0f} tokens/s, {shown_seconds(self.remaining_s)} to go")
        if self.samples == FIRST_ANSWERS or (not self._console.is_terminal and time.monotonic() - self._line_s > LINE_EVERY_S):
            self._line_s = time.monotonic()
            done = f"{self._present + self.samples:,} of about {self._total:,} samples"
            self._console.print(f"{done}; {self._rates()}; about {shown_seconds(self.remaining_s)} to go")

    def _rates(self) -> str:
        mean = self.tokens / max(1, self.samples)
        return f"{self.samples:,} samples, {self.tokens:,} tokens, {self.tokens_per_s:,.0f} tokens/s, {mean:.0f} tokens per sample"
