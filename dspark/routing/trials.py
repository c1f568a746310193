"""When all sessions of a target begin to draft.

What is expected before they did is a guess: few drafts were seen, calls for so many sessions and steps of so many rows perhaps never. While
nothing is drafted a guess that is too low stays as it is, and costs what drafts would win for ever; one that is too high is found out
within a few steps. So the first time it is enough that drafts are expected to win at all. Where drafting had to be stopped again, more is
asked, with each failure, and the longer ago that was, the less: texts and machines change. With each failure that takes twice as long too.

It goes on as long as it is expected to win at all. What is learned holds for about that number of sessions. Pure counting of steps.
"""

import math
from dataclasses import dataclass

DOUBT = 0.05
"""Of plain speed, that must be won beyond it right after a first failure, and as much again with each further one."""
MOST_FAILURES = 4
"""That are counted for it."""
RECOUPED_IN = 600
"""Plain rounds in which what is won must make good that drafters have to be told first what was committed meanwhile."""
RECOUPED_AGAIN_IN = 100
"""The same right after a failure."""
FIRST_DOUBT_STEPS = 300
"""After which half of a first failure is forgotten."""
MOST_DOUBT_STEPS = 32 * FIRST_DOUBT_STEPS
LASTING_STEPS = 128
"""Of drafting that paid for long; its end is like a first failure."""


@dataclass(frozen=True, slots=True)
class _Doubt:
    """After failures."""

    since_step: int
    num_failures: int

    def at(self, step: int) -> float:
        """1 right after the last one."""
        half_life_steps = min(MOST_DOUBT_STEPS, FIRST_DOUBT_STEPS * 2 ** (self.num_failures - 1))
        return float(0.5 ** ((step - self.since_step) / half_life_steps))


NO_DOUBT = _Doubt(-1_000_000, 1)


@dataclass(frozen=True, slots=True)
class _Begun:
    """Drafting that is under way."""

    step: int
    num_sessions: int


class Trials:
    """Of one kind of drafts on one target. Owner: its DraftDecisions."""

    def __init__(self) -> None:
        self._doubts: dict[int, _Doubt] = {}
        """By octave of the number of sessions."""
        self._begun: _Begun | None = None

    @property
    def is_under_way(self) -> bool:
        """True while drafts are asked for, as decided last."""
        return self._begun is not None

    def has_just_begun(self, step: int) -> bool:
        """True for its first rounds, in which drafters are told what they missed."""
        return self._begun is not None and step - self._begun.step <= 1

    def may_begin(self, gain: float, told_rounds: float, step: int, num_sessions: int) -> bool:
        """`gain`: expected speed over plain, above 1; `told_rounds`: what it costs to tell drafters what they missed, in plain rounds."""
        known = self._doubts.get(_octave(num_sessions), NO_DOUBT)
        doubt = known.at(step)
        asked = 1.0 + doubt * DOUBT * min(MOST_FAILURES, known.num_failures)
        return gain >= asked + told_rounds * ((1.0 - doubt) / RECOUPED_IN + doubt / RECOUPED_AGAIN_IN)

    def decided(self, drafts: bool, step: int, num_sessions: int) -> None:
        """Whether drafts are asked for from now on."""
        if drafts and self._begun is None:
            self._begun = _Begun(step, num_sessions)
        elif not drafts and self._begun is not None:
            lasted = step - self._begun.step >= LASTING_STEPS
            ended, began = _octave(num_sessions), _octave(self._begun.num_sessions)
            # About as many as it began with are the same; of many more or fewer it says nothing that these would do better.
            for octave in {ended, began} if abs(ended - began) <= 1 else {ended}:
                before = 0 if lasted or octave not in self._doubts else self._doubts[octave].num_failures
                self._doubts[octave] = _Doubt(step, before + 1)
            self._begun = None

    def nobody_left(self) -> None:
        """All its sessions are over, which is no failure."""
        self._begun = None


def _octave(num_sessions: int) -> int:
    return round(math.log2(max(1, num_sessions)))
