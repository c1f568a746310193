"""How long a `prepare` will take, told before it starts: a few real answers of few tokens, as many at once as there will be, and no
longer than a few seconds. Nothing of them is kept.

Knows who answers and the clock. Does not know samples or folders.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dspark.deepspec.answers import Answerer, Job
from dspark.deepspec.estimates import shown_seconds
from dspark.errors import InvalidRequest

PROBE_TOKENS = 16
"""Per answer."""
PROBE_S = 5.0
"""What is not answered by then is given up."""


@dataclass(frozen=True, slots=True)
class TimeProbe:
    """What the trial saw."""

    tokens: int
    """Answered in time."""
    asked_tokens: int
    seconds: float

    def summary(self, max_tokens: int) -> str:
        """For a run that makes up to `max_tokens` of answers."""
        if not self.tokens:
            least = max_tokens * self.seconds / max(1, self.asked_tokens)
            trial = f"a trial of {self.asked_tokens} tokens gave none in {self.seconds:.1f} s"
            return f"estimated time: more than {shown_seconds(least)}; {trial}"
        most = shown_seconds(max_tokens * self.seconds / self.tokens)
        rate = f"{self.tokens:,} tokens in {self.seconds:.1f} s"
        return f"estimated time: about {most} if no answer ends early; extrapolated from a trial of {rate}"


async def probe_time(answerer: Answerer, jobs: Sequence[Job], limit_s: float = PROBE_S) -> TimeProbe:
    """Have all jobs answered at once, with few tokens each. The first one alone before, so that no one-time cost is counted.

    A prompt that is refused counts nothing: the run itself will tell. Raises DSparkError if nobody answers.
    """
    short = [replace(job, max_tokens=min(job.max_tokens, PROBE_TOKENS)) for job in jobs]
    asked_tokens = sum(job.max_tokens for job in short)
    started_s = time.monotonic()
    if not await _answered([replace(job, max_tokens=1) for job in short[:1]], answerer, limit_s):
        return TimeProbe(0, asked_tokens, time.monotonic() - started_s)
    started_s = time.monotonic()
    tokens = sum(await _answered(short, answerer, limit_s))
    return TimeProbe(tokens, asked_tokens, time.monotonic() - started_s)


async def _answered(jobs: Sequence[Job], answerer: Answerer, limit_s: float) -> list[int]:
    """Tokens of each answer that came in time; the others are cancelled."""
    tasks = [asyncio.create_task(answerer.answer(job)) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, timeout=limit_s)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [len(task.result()) for task in done if not isinstance(task.exception(), InvalidRequest)]
