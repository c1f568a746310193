"""Speed as ratios: every system in turn on the same prompts, again and again, medians over the turns (DESIGN section 8)."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from dspark.bench.systems import System, Workload
from dspark.devices import finish
from dspark.engine import Completion
from dspark.runtime.model import PackedModel
from dspark.runtime.packed import Segment


@dataclass(slots=True)
class Timing:
    """One system's turns."""

    tokens_per_second: list[float] = field(default_factory=list)
    completion_tokens: int = 0
    rounds: int = 0
    selected: int = 0
    """Candidates sent to the target."""

    @property
    def median(self) -> float:
        """Tokens per second, all clients together, of the median turn."""
        return statistics.median(self.tokens_per_second)

    @property
    def tau(self) -> float:
        """Committed tokens per round; 0 for systems that do not tell."""
        return self.completion_tokens / self.rounds if self.rounds else 0.0

    @property
    def rows_per_round(self) -> int:
        """Rows of one client in the target's mean forward: the anchor and the candidates."""
        return 1 + round(self.selected / self.rounds) if self.rounds else 1


def interleave(systems: Sequence[System], prompts: list[list[int]], clients: int, workload: Workload) -> dict[str, Timing]:
    """Groups of `clients` prompts at a time; for each group every system runs once, in an order that rotates from group to group."""
    timings = {system.name: Timing() for system in systems}
    groups = [prompts[i : i + clients] for i in range(0, len(prompts) - clients + 1, clients)]
    for system in systems:
        system.run(groups[0], workload)  # the first run warms caches and allocators, and does not count
    for turn, group in enumerate(groups):
        for offset in range(len(systems)):
            system = systems[(turn + offset) % len(systems)]
            started = time.perf_counter()
            answers = system.run(group, workload)
            _record(timings[system.name], answers, time.perf_counter() - started)
    return timings


def ratios(timings: dict[str, Timing], base: str) -> dict[str, float]:
    """Median over the turns of each system's rate over the base's in the same turn."""
    reference = timings[base].tokens_per_second
    return {
        name: statistics.median(a / b for a, b in zip(timing.tokens_per_second, reference, strict=True)) for name, timing in timings.items()
    }


def forward_rate(model: PackedModel, clients: int, rows_per_client: int, context: int, repeats: int = 30) -> float:
    """Bare forwards per second of the target at this batch: what the model alone could do."""
    blocks = -(-(context + rows_per_client) // model.pool.block_tokens)
    taken = [model.pool.take(blocks) for _ in range(clients)]
    segments = [_segment(own, model.pool.block_tokens, context, rows_per_client) for own in taken]
    durations = []
    for _ in range(repeats):
        started = time.perf_counter()
        model.forward(segments)
        finish(model.device)
        durations.append(time.perf_counter() - started)
    for own in taken:
        model.pool.give_back(own)
    return 1.0 / statistics.median(durations)


def _segment(blocks: list[int], block_tokens: int, context: int, rows: int) -> Segment:
    slots = [block * block_tokens + i for block in blocks for i in range(block_tokens)][: context + rows]
    return Segment([1] * rows, list(range(context, context + rows)), None, slots, context, rows)


def _record(timing: Timing, answers: list[Completion] | list[list[int]], seconds: float) -> None:
    tokens = 0
    for answer in answers:
        if isinstance(answer, Completion):
            tokens += answer.usage.completion_tokens
            timing.rounds += answer.usage.rounds
            timing.selected += answer.usage.selected_tokens
        else:
            tokens += len(answer)
    timing.completion_tokens += tokens
    timing.tokens_per_second.append(tokens / seconds)
