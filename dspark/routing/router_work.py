"""What the router itself takes between two steps of a target that all its sessions share: to commit, to plan, to hand in, and for drafts to
ask, check and choose. On a small target that is a tenth of a round, and drafts double it.

Learned by number of sessions. Between two known numbers it is taken to be on a line; fewer sessions than were seen take their share, more
take as much as the most that were: what is not known is hoped for, and so gets known. Pure; no clock.
"""

import math
from collections import defaultdict

GAIN = 0.1
"""Of what a round differs from the mean."""
MOST_SURPRISE = 1.0
"""Of the mean, as it is counted: a stall is no bookkeeping."""
LEAST_SURPRISE_MS = 0.5
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
        """The same without the drafting calls themselves, where so many sessions had drafts."""
        self._drafted[drafter].observe(num_drafted, between_ms - self._plain.ms(num_sessions))

    def plain_ms(self, num_sessions: int) -> float:
        """What every round of so many sessions takes; 0 until one was seen."""
        return self._plain.ms(num_sessions)

    def drafted_ms(self, drafter: str, num_drafted: int) -> float:
        """What drafts of so many sessions add to that; 0 until some were seen."""
        return self._drafted[drafter].ms(num_drafted)


class _ByNumber:
    """Means by number of sessions, of about the same numbers together."""

    def __init__(self) -> None:
        self._means: dict[int, tuple[float, float]] = {}
        """By bucket: mean number of sessions, mean ms."""

    def observe(self, number: int, ms: float) -> None:
        bucket = round(BUCKETS_PER_OCTAVE * math.log2(number))
        if bucket in self._means:
            mean_number, mean_ms = self._means[bucket]
            seen_ms = _counted(ms, mean_ms)
            self._means[bucket] = (mean_number + GAIN * (number - mean_number), mean_ms + GAIN * (seen_ms - mean_ms))
        else:
            share_ms = max((mean_ms * max(1.0, number / mean_number) for mean_number, mean_ms in self._means.values()), default=math.inf)
            self._means[bucket] = (number, _counted(ms, share_ms))

    def ms(self, number: int) -> float:
        below = max((point for point in self._means.values() if point[0] <= number), default=(0.0, 0.0))
        above = min((point for point in self._means.values() if point[0] > number), default=None)
        if above is None:
            return below[1]
        share = (number - below[0]) / (above[0] - below[0])
        return below[1] + share * (above[1] - below[1])


def _counted(ms: float, known_ms: float) -> float:
    """As it is believed beside what is known."""
    return max(0.0, min(ms, known_ms + max(LEAST_SURPRISE_MS, MOST_SURPRISE * known_ms)))
