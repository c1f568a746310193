"""Which steps are left plain though drafts pay, so that what drafts are judged by is measured: few, but whenever it is needed.

Soon at first, since what plain steps take is known worst where drafting has just begun, and ever more seldom where they are as expected.
They come in pairs. The first one may still find the target's memory cold, emptied out of the caches by drafting, and is not learned from.
Pure counting.
"""

PLAIN_STEPS = 2
"""In a row; the last one is what counts."""
PLAIN_LOSS = 0.003
"""Of the tokens, lost by them: what a plain step takes is what drafts are judged by, so it must be known of late, the more so the less
they seem to win."""
LEAST_PLAIN_EVERY = 32
"""Steps from a measurement to the next, at least."""
MOST_PLAIN_EVERY = 512
"""Where measurements fail, since sessions never go together, say."""
PLAIN_SURPRISE = 0.15
"""Of the expected time, by which such a step is not as expected."""
PLAIN_AGAIN = 4
"""Steps until it is measured again."""
MOST_SURPRISES = 4
"""In a row, until it is left at that."""


class PlainSteps:
    """Of one target. Owner: its DraftDecisions."""

    def __init__(self) -> None:
        self._num_steps = 0
        self._first = -PLAIN_STEPS
        """Of the last pair."""
        self._due = LEAST_PLAIN_EVERY
        """When the next one is to begin."""
        self._pause = LEAST_PLAIN_EVERY
        """After a pair that measured nothing."""
        self._spacing = LEAST_PLAIN_EVERY
        """After one that was as expected."""
        self._num_surprises = 0
        """In a row."""

    @property
    def is_now(self) -> bool:
        """True for rounds that are left plain to be measured."""
        return self._num_steps < self._first + PLAIN_STEPS

    def soon(self) -> None:
        """What was measured may not hold any more: many more sessions came, or went."""
        self._due = min(self._due, self._num_steps + PLAIN_AGAIN)
        self._spacing = LEAST_PLAIN_EVERY

    def step_done(self, surprise: float | None, *, may_begin: bool, gain: float) -> bool:
        """A step; True if it was the one of a pair that counts.

        `surprise`: if it was a plain step of all sessions behind another, how far it was from what was expected, as a share of that; None:
        no such step. `may_begin`: a pair would be of use. `gain`: expected speed over plain.
        """
        self._num_steps += 1
        is_pairs_end = self._num_steps == self._first + PLAIN_STEPS
        was_measured = is_pairs_end and surprise is not None
        if surprise is not None:
            if not was_measured:
                self._spacing = LEAST_PLAIN_EVERY  # nothing was drafted lately
            self._due = self._num_steps + (self._steps_until(surprise, gain) if was_measured else self._spacing)
        elif is_pairs_end:
            self._pause = min(2 * self._pause, MOST_PLAIN_EVERY)
            self._due = self._num_steps + self._pause
        if may_begin and self._num_steps >= self._due and not self.is_now:
            self._first = self._num_steps
        return was_measured

    def _steps_until(self, surprise: float, gain: float) -> int:
        """One measurement that was not as expected is not believed yet, so it is soon made again, a few times."""
        self._pause = LEAST_PLAIN_EVERY
        self._num_surprises = self._num_surprises + 1 if surprise > PLAIN_SURPRISE else 0
        if 0 < self._num_surprises <= MOST_SURPRISES:
            self._spacing = LEAST_PLAIN_EVERY
            return PLAIN_AGAIN
        self._num_surprises = 0
        most = max(LEAST_PLAIN_EVERY, round(PLAIN_STEPS * (1.0 - 1.0 / gain) / PLAIN_LOSS))
        steps, self._spacing = min(self._spacing, most), min(2 * self._spacing, most)
        return steps
