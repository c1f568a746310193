"""What the router itself takes between two steps of a target that all its sessions share: to commit, to plan, to hand in, and for drafts to
ask, check and choose. On a small target that is a tenth of a round, and drafts double it.

Learned by number of sessions. Between two known numbers it is taken to be on a line; fewer sessions than were seen take their share, more
take as much as the most that were. While nothing is drafted, what drafts add fades: it is hoped to be less, and found out. Pure; no clock.
"""

import math
from collections import defaultdict

from dspark.scheduling.robust_mean import RobustMean

GAIN = 0.1
"""Of what a round differs from the mean."""
FADE = 0.999
"""Of what drafts add, with every round without them: half of it is forgotten after about 700."""
BUCKETS_PER_OCTAVE = 2


class RouterWork:
    """Of one router. Owner: its Economy."""

    def __init__(self) -> None:
        self._plain = _ByNumber()
        self._drafted: defaultdict[str, _ByNumber] = defaultdict(_ByNumber)
        """By drafter."""

    def plain_round(self, num_sessions: int, between_ms: float) -> None:
        """So long from a report to the next hand-in, nobody drafted."""
        self._plain.observe(num_sessions, between_ms)

    def drafted_round(self, drafter: str, num_sessions: int, num_drafted: int, between_ms: float) -> None:
        """The same without the drafting calls themselves, where so many sessions had drafts. No plain round can take longer."""
        added_ms = between_ms - self._plain.ms(num_sessions)
        if added_ms < 0:
            self._plain.observe(num_sessions, between_ms)
        self._drafted[drafter].observe(num_drafted, added_ms)

    def round_skipped(self, drafter: str) -> None:
        """A round of its sessions without a draft."""
        self._drafted[drafter].scale(FADE)

    def plain_ms(self, num_sessions: int) -> float:
        """What every round of so many sessions takes; 0 until one was seen."""
        return self._plain.ms(num_sessions)

    def drafted_ms(self, drafter: str, num_drafted: int) -> float:
        """What drafts of so many sessions add to that; 0 until some were seen."""
        return self._drafted[drafter].ms(num_drafted)


class _ByNumber:
    """Means by number of sessions, of about the same numbers together."""

    def __init__(self) -> None:
        self._means: dict[int, tuple[float, RobustMean]] = {}
        """By bucket: mean number of sessions, and their ms."""

    def observe(self, number: int, ms: float) -> None:
        bucket = round(BUCKETS_PER_OCTAVE * math.log2(number))
        mean_number, mean = self._means.get(bucket, (number, RobustMean(GAIN)))
        mean.observe(max(0.0, ms))
        self._means[bucket] = (mean_number + GAIN * (number - mean_number), mean)

    def scale(self, factor: float) -> None:
        for _, mean in self._means.values():
            mean.scale(factor)

    def ms(self, number: int) -> float:
        points = [(mean_number, mean.mean) for mean_number, mean in self._means.values()]
        below = max((point for point in points if point[0] <= number), default=(0.0, 0.0))
        above = min((point for point in points if point[0] > number), default=None)
        if above is None:
            return below[1]
        share = (number - below[0]) / (above[0] - below[0])
        return below[1] + share * (above[1] - below[1])
