"""The frontier of throughput and per-user speed, and the two ratios that the method is known for. Pure.

    speed at matched throughput     both serve so many tokens per second together: how much faster is one user?
    throughput at a promised speed  every user gets at least so many tokens per second: how many are served together?

Between measured loads a frontier is a line, and it never rises: a load that is worse on both counts than another is never chosen.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dspark.bench.plots import Point
from dspark.deepspec.cards import markdown_table
from dspark.errors import ConfigError
from dspark.scheduling.costs import Floats


@dataclass(frozen=True, slots=True)
class Reading:
    """A value read off a frontier."""

    value: float
    """0 where the frontier does not reach so far."""
    is_least: bool = False
    """The frontier was not measured so far, and the truth is this or more."""

    def __str__(self) -> str:
        """>= 12.3, or - where it is out of reach."""
        return f"{'>= ' if self.is_least else ''}{self.value:.1f}" if self.value else "-"


@dataclass(frozen=True, slots=True, eq=False)
class Frontier:
    """The monotone hull of one system's points, fastest users first."""

    speeds: Floats  # [k] tokens/s of one user, falling
    throughputs: Floats  # [k] tokens/s of all, rising

    @staticmethod
    def of(points: Sequence[Point]) -> "Frontier":
        """Raises ConfigError without points."""
        if not points:
            raise ConfigError("a frontier needs points", "from")
        ranked = sorted(points, key=lambda point: (-point.user_tokens_per_second, -point.tokens_per_second))
        kept: list[Point] = []
        for point in ranked:
            if not kept or point.tokens_per_second > kept[-1].tokens_per_second:
                kept.append(point)
        speeds, throughputs = ([getattr(point, name) for point in kept] for name in ("user_tokens_per_second", "tokens_per_second"))
        return Frontier(np.asarray(speeds), np.asarray(throughputs))

    def throughput_at(self, speed: float) -> Reading:
        """The most tokens per second, with every user at this speed or better."""
        if speed > self.speeds[0]:
            return Reading(0.0)
        if speed < self.speeds[-1]:
            return Reading(float(self.throughputs[-1]), is_least=True)
        return Reading(float(np.interp(-speed, -self.speeds, self.throughputs)))

    def speed_at(self, throughput: float) -> Reading:
        """The fastest that users can be at this throughput."""
        if throughput > self.throughputs[-1]:
            return Reading(0.0)
        if throughput < self.throughputs[0]:
            return Reading(float(self.speeds[0]), is_least=True)
        return Reading(float(np.interp(throughput, self.throughputs, self.speeds)))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both frontiers at one load of the base system."""

    clients: float
    throughput: float
    """Of the base at this load, on its hull; so is the speed."""
    speed: float
    other_speed: Reading
    """At the same throughput."""
    other_throughput: Reading
    """At the same speed."""

    @property
    def speed_ratio(self) -> float:
        """Per-user speed at matched throughput; 0 where it is out of reach."""
        return self.other_speed.value / self.speed

    @property
    def throughput_ratio(self) -> float:
        """Throughput at the speed that the base holds with so many clients."""
        return self.other_throughput.value / self.throughput

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"speed_ratio": self.speed_ratio, "throughput_ratio": self.throughput_ratio}


def compare_frontiers(base: Sequence[Point], other: Sequence[Point]) -> list[Comparison]:
    """One comparison for each load of `base`, growing. A load that is not on its hull is read where the hull is at its throughput."""
    own, others = Frontier.of(base), Frontier.of(other)
    found = []
    for point in sorted(base, key=lambda point: point.load):
        speed = own.speed_at(point.tokens_per_second).value
        throughput = own.throughput_at(speed).value
        found.append(Comparison(point.load, throughput, speed, others.speed_at(throughput), others.throughput_at(speed)))
    return found


def frontier_table(comparisons: Sequence[Comparison], base: str, other: str) -> str:
    """Markdown, and the best of both ratios."""
    headers = [
        f"clients of {base}",
        f"{base} tokens/s",
        f"{base} per user",
        f"{other} per user at these tokens/s",
        "ratio",
        f"{other} tokens/s at this speed per user",
        "ratio",
    ]
    rows = [
        [
            f"{one.clients:g}",
            f"{one.throughput:.0f}",
            f"{one.speed:.1f}",
            str(one.other_speed),
            _ratio(one.speed_ratio),
            str(one.other_throughput),
            _ratio(one.throughput_ratio),
        ]
        for one in comparisons
    ]
    best_speed = max(comparisons, key=lambda one: one.speed_ratio)
    best_throughput = max(comparisons, key=lambda one: one.throughput_ratio)
    return "\n".join(
        [
            markdown_table(headers, rows),
            "",
            f"per-user speed at matched throughput: up to {best_speed.speed_ratio:.2f} times that of {base} "
            f"(at {best_speed.throughput:.0f} tokens/s)",
            f"throughput at a promised speed: up to {best_throughput.throughput_ratio:.2f} times that of {base} "
            f"(at {best_throughput.speed:.1f} tokens/s per user, which {base} holds with {best_throughput.clients:g} client(s))",
        ]
    )


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value else "-"
