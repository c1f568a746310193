"""When to draft at an expected loss, to find out what drafts are worth. Pure counting; no clock, the caller feeds measured times.

A purse holds what may be lost, counted in plain rounds of the target, so that it means the same on a fast target and on a slow one.
It starts with FIRST_ROUNDS, earns SHARE of every round that goes by without drafts, and pays what explored rounds lose. A draft is
tried only if the purse can pay for it. So exploring costs FIRST_ROUNDS once and SHARE of the time for ever, whatever a draft costs.

Where what was tried goes on to lose, the purse earns half as much each time, down to LEAST_EARNING of the first: pauses grow. A
draft that won something puts that in, and the earning back.
"""

SHARE = 0.01
FIRST_ROUNDS = 16.0
MOST_ROUNDS = 4.0
"""Saved up later: what a long pause has saved, spent all at once, would be seen by whoever measures just then."""
MOST_LOST_ROUNDS = 3.0
"""By one exploration, as it is counted: one stall of the machine, or a drafter's first call, must not end all exploring."""
LEAST_EARNING = 1 / 8


class Exploration:
    """The purse of one drafter on one kind of text. Belongs to one router."""

    def __init__(self) -> None:
        self.purse_rounds = FIRST_ROUNDS
        """In plain rounds; below 0 where the last exploration lost more than was there."""
        self._earning = 1.0
        self._is_first = True
        """Until the first purse is spent, or holds too little for what is to be tried; what it finds is no reason for longer pauses yet."""

    def affords(self, price_rounds: float) -> bool:
        """True if an exploration that may lose so much can be paid. One that costs more than any purse holds waits for a full one."""
        most = FIRST_ROUNDS if self._is_first else MOST_ROUNDS
        affordable = self.purse_rounds > 0 and self.purse_rounds >= min(price_rounds, most)
        if self._is_first and not affordable:
            self._is_first = False
            self.purse_rounds = min(0.0, self.purse_rounds)
        return affordable

    def round_passed(self) -> None:
        """A round of the target in which nothing was drafted."""
        self._put_in(SHARE * self._earning)

    def explored(self, lost_rounds: float, expected_rounds: float = 0.0) -> None:
        """What an explored round lost against a plain one; below 0 where it won. `expected_rounds` of it were to be expected, when
        it was decided on or for what drafters had to be told first."""
        if lost_rounds <= 0:
            self._put_in(-lost_rounds)
            self._earning = 1.0
            return
        self.purse_rounds -= min(lost_rounds, MOST_LOST_ROUNDS + expected_rounds)
        if not self._is_first:
            self._earning = max(LEAST_EARNING, self._earning / 2)

    def _put_in(self, rounds: float) -> None:
        """What the first purse holds above the most stays in it."""
        self.purse_rounds = max(self.purse_rounds, min(MOST_ROUNDS, self.purse_rounds + rounds))
