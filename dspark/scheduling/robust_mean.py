"""A mean of times that stalls do not move."""

import math
import statistics

FIRST_VALUES = 5
GAIN = 0.05
"""Of what a value differs from the mean."""


class RobustMean:
    """Exponential mean. It starts as a median, because first rounds warm caches; later, one very long value counts as twice the mean."""

    def __init__(self, gain: float = GAIN) -> None:
        self.mean = 0.0
        self._gain = gain
        self._first: list[float] = []

    def observe(self, value: float) -> None:
        """What is not finite is passed over."""
        if not math.isfinite(value):
            return
        if len(self._first) < FIRST_VALUES:
            self._first.append(value)
            self.mean = statistics.median_low(self._first)
        else:
            self.mean += self._gain * (min(value, 2.0 * self.mean + 0.1) - self.mean)

    def scale(self, factor: float) -> None:
        """What was seen counts for that share of what it was."""
        self.mean *= factor
        self._first = [value * factor for value in self._first]
