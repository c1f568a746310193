"""What plain decoding would have made in the meantime: the yardstick for drafted rounds.

A target's steps follow each other, and each took a time that is known. Plain decoding would have had the same prompts to read in them, so a
step that read prompts is compared with a plain step that reads them too: a newcomer's prompt slows everybody down, drafts or not.
Pure counting; the caller has the clock.
"""

from collections import deque

REMEMBERED_STEPS = 16
"""A round that lasts longer is judged by its last ones."""


class PlainPace:
    """Of one target, in plain rounds of all sessions that decode there."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float, float]] = deque(maxlen=REMEMBERED_STEPS)
        """(start, end, plain rounds per second) of each."""

    def step_done(self, end_s: float, plain_ms: float) -> None:
        """A step ended, for which a plain one would have taken `plain_ms`; what lies between two ends belongs to the later one."""
        start_s = self._steps[-1][1] if self._steps else end_s
        if plain_ms > 0:
            self._steps.append((start_s, end_s, 1e3 / plain_ms))

    def per_second(self, since_s: float) -> float:
        """Plain rounds per second from `since_s` to the end of the last step; 0 where that is not known."""
        covered_s, rounds = 0.0, 0.0
        for start_s, end_s, pace in self._steps:
            shared_s = max(0.0, end_s - max(start_s, since_s))
            covered_s += shared_s
            rounds += shared_s * pace
        return rounds / covered_s if covered_s > 0 else 0.0
