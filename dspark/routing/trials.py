"""How much drafting must be expected to win before all sessions of a target begin with it, and before they stop.

What is expected before they did is a guess: few drafts were seen, calls for so many sessions and steps of so many rows perhaps never. While
nothing is drafted a guess that is too low stays as it is, and costs what drafts would win for ever; one that is too high is found out
within a few steps. So little is asked for the first time. Where drafting had to be stopped again more is asked, and the longer ago that
was, the less: texts and machines change. With each failure that takes twice as long, so trying is a part of the time that goes to nothing.

What is learned holds for about that number of sessions. Pure counting of steps; no clock.
"""

import math
from dataclasses import dataclass

WORTH_TRYING = 1.0
"""Expected speed over plain that is worth beginning with where nothing speaks against it but the expectation."""
WORTH_TRYING_AGAIN = 1.05
"""The same right after a failure."""
WORTH_STAYING = 1.0
"""The same for going on."""
RECOUPED_IN = 600
"""Plain rounds in which what is won must make good that drafters have to be told first what was committed meanwhile."""
RECOUPED_AGAIN_IN = 100
"""The same right after a failure."""
FIRST_DOUBT_STEPS = 300
"""After which half of a first failure is forgotten."""
MOST_DOUBT_STEPS = 32 * FIRST_DOUBT_STEPS
LASTING_STEPS = 128
"""Of drafting that ended, but was no failure."""


@dataclass(slots=True)
class _Doubt:
    """After a failure."""

    since_step: int
    half_life_steps: int

    def at(self, step: int) -> float:
        return float(0.5 ** ((step - self.since_step) / self.half_life_steps))


class Trials:
    """Of one kind of drafts on one target. Owner: its DraftDecisions."""

    def __init__(self) -> None:
        self._doubts: dict[int, _Doubt] = {}
        """By octave of the number of sessions."""
        self._began: int | None = None
        """Step; None while nothing is drafted."""

    @property
    def is_under_way(self) -> bool:
        """True while drafts are asked for, as decided last."""
        return self._began is not None

    def has_just_begun(self, step: int) -> bool:
        """True for its first rounds, in which drafters are told what they missed."""
        return self._began is not None and step - self._began <= 1

    def may_begin(self, gain: float, told_rounds: float, step: int, num_sessions: int) -> bool:
        """`gain`: expected speed over plain; `told_rounds`: what it costs to tell drafters what they missed, in plain rounds."""
        doubt = self._doubt(_octave(num_sessions), step)
        asked = WORTH_TRYING + doubt * (WORTH_TRYING_AGAIN - WORTH_TRYING)
        return gain >= asked + told_rounds * ((1.0 - doubt) / RECOUPED_IN + doubt / RECOUPED_AGAIN_IN)

    def goes_on(self, gain: float) -> bool:
        """The same while it is under way."""
        return gain >= WORTH_STAYING

    def decided(self, drafts: bool, step: int, num_sessions: int) -> None:
        """Whether drafts are asked for from now on."""
        if drafts and self._began is None:
            self._began = step
        elif not drafts and self._began is not None:
            self._failed(_octave(num_sessions), self._began, step)
            self._began = None

    def _failed(self, octave: int, began_step: int, step: int) -> None:
        known = self._doubts.get(octave)
        half_life = FIRST_DOUBT_STEPS
        if known is not None and step - began_step < LASTING_STEPS:
            half_life = min(MOST_DOUBT_STEPS, 2 * known.half_life_steps)
        self._doubts[octave] = _Doubt(step, half_life)

    def _doubt(self, octave: int, step: int) -> float:
        """1 right after a failure; 0 where there was none."""
        return self._doubts[octave].at(step) if octave in self._doubts else 0.0


def _octave(num_sessions: int) -> int:
    return round(math.log2(max(1, num_sessions)))
