"""Which of several drafters a session gets that asked for none: the one whose drafts the target has lately accepted best.

Pure counting, no clock and no I/O; the caller brings the randomness. What it counts is tau, committed tokens per round: the session's
own gain, as acceptance alone would reward a drafter that proposes little. It does not know what a draft costs.

Whatever this file decides costs speed only, never output (docs/losslessness.md).
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass

TRIAL_SESSIONS = 4
"""Sessions that each drafter gets before any is preferred."""
EXPLORED_SHARE = 1 / 20
"""Of the sessions after that: they go to the others, so that a change is noticed."""
MEMORY_ROUNDS = 5_000
"""Rounds of all drafters together after which an old round counts 1/e. Longer is more exact, shorter notices a dead drafter earlier."""


@dataclass(slots=True)
class _Record:
    """What one drafter did in one regime. Weights fade; the trial is once for all."""

    sessions: int = 0
    rounds: float = 0.0
    committed: float = 0.0

    @property
    def tau(self) -> float:
        """0 while nothing is known: a round commits at least one token."""
        return self.committed / self.rounds if self.rounds else 0.0


class DrafterChooser:
    """One per router. Greedy and sampled sessions are judged apart: a drafter can be good at one and poor at the other."""

    def __init__(self, names: Iterable[str], rng: random.Random) -> None:
        """`names` are the drafters to choose from, at least one."""
        self._rng = rng
        known = tuple(names)
        if not known:
            raise ValueError("there is no drafter to choose from")
        self._records = {greedy: {name: _Record() for name in known} for greedy in (True, False)}

    def choose(self, *, greedy: bool) -> str:
        """The drafter of a new session."""
        name = self._chosen(self._records[greedy])
        self._records[greedy][name].sessions += 1
        return name

    def take_back(self, name: str, *, greedy: bool) -> None:
        """The session that got it was refused before its first round."""
        self._records[greedy][name].sessions -= 1

    def record(self, name: str, *, greedy: bool, committed: int) -> None:
        """One round of a session that `choose` gave to `name`, also where no draft came: that is what the drafter was worth.

        Sessions that named their drafter do not belong here: who asks for the code drafter has code, and would flatter it for prose.
        """
        records = self._records[greedy]
        for record in records.values():  # all fade together, or one that is seldom tried would be judged by its past
            record.rounds *= 1 - 1 / MEMORY_ROUNDS
            record.committed *= 1 - 1 / MEMORY_ROUNDS
        records[name].rounds += 1
        records[name].committed += committed

    def tau(self, name: str, *, greedy: bool) -> float | None:
        """The drafter's measured committed tokens per round; None before its first."""
        return self._records[greedy][name].tau or None

    def _chosen(self, records: dict[str, _Record]) -> str:
        least_tried = min(records, key=lambda name: records[name].sessions)
        if records[least_tried].sessions < TRIAL_SESSIONS:
            return least_tried
        # Until the first rounds are done nobody is better; then the sessions are spread evenly.
        best = max(records, key=lambda name: (records[name].tau, -records[name].sessions))
        others = [name for name in records if name != best]
        if others and self._rng.random() < EXPLORED_SHARE:
            return self._rng.choice(others)
        return best
