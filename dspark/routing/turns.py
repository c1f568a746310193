"""Whose turn it is to draft only to find out what that brings (explorers.py tells how many, and what).

Turns are for the next round and are not kept: who did not ask then has no draft to give. A session whose draft came too late tries again,
since another one would have to get a place at the drafter first; after a while its turn goes on to another. Pure counting of steps.
"""

from dataclasses import dataclass

from dspark.routing.economy import Regime
from dspark.routing.explorers import ToTry
from dspark.types import SessionId

MOST_TRIES = 8
"""Rounds without a draft after which a session's turn goes to another: it may have asked never to draft."""
WAITED_STEPS = 12 * MOST_TRIES
"""For explorers, until others may explore: those that are there are done or given up by then."""
GIVEN_UP_STEPS = 200
"""Steps until such a session may have a turn again: its drafter may only have been away."""


@dataclass(slots=True)
class _Asked:
    """What sessions of one regime are asked to try."""

    to_try: ToTry
    num_open: int
    """Turns that nobody has taken yet."""
    step: int
    """When they were last asked."""


@dataclass(slots=True)
class _Turn:
    """Of a session whose round in hand is one to find out."""

    regime: Regime
    num_missed: int = 0
    """Rounds in which it had no draft in time."""


class Turns:
    """To explore, of one target's sessions. Owner: its DraftDecisions."""

    def __init__(self) -> None:
        self._asked: dict[Regime, _Asked] = {}
        self._taken: dict[SessionId, _Turn] = {}
        self._given_up: dict[SessionId, int] = {}
        """Sessions that get no turn, until that many steps were done."""

    def ask(self, regime: Regime, to_try: ToTry, step: int) -> None:
        """Have it tried in the coming round."""
        self._asked[regime] = _Asked(to_try, to_try.num_sessions, step)

    def is_asked(self, regime: Regime, step: int) -> bool:
        """True where turns are open, in the round that they were meant for."""
        asked = self._asked.get(regime)
        return asked is not None and asked.num_open > 0 and step <= asked.step + 1

    def is_busy(self, regime: Regime, step: int) -> bool:
        """True while turns are open or taken; not by sessions that rest, or have no draft to give, since long ago."""
        is_taken = any(turn.regime == regime for turn in self._taken.values())
        return self.is_asked(regime, step) or (is_taken and step < self._asked[regime].step + WAITED_STEPS)

    def has(self, session_id: SessionId) -> bool:
        """True while the session's round in hand is one to find out."""
        return session_id in self._taken

    def take(self, session_id: SessionId, regime: Regime, step: int) -> ToTry | None:
        """What the session is to try in its coming round; None: nothing."""
        if session_id not in self._taken:
            if not self.is_asked(regime, step) or step < self._given_up.get(session_id, 0):
                return None
            self._asked[regime].num_open -= 1
            self._taken[session_id] = _Turn(regime)
        return self._asked[self._taken[session_id].regime].to_try

    def round_done(self, session_id: SessionId, step: int, *, drafted: bool) -> bool:
        """The session's round in hand is over; True if it was one to find out."""
        if (turn := self._taken.get(session_id)) is None:
            return False
        turn.num_missed += not drafted
        if drafted:
            del self._taken[session_id]
        elif turn.num_missed >= MOST_TRIES:
            self._hand_on(session_id, step)
            self._given_up[session_id] = step + GIVEN_UP_STEPS
        return True

    def leave(self, session_id: SessionId, step: int) -> None:
        """A session is over."""
        if session_id in self._taken:
            self._hand_on(session_id, step)
        self._given_up.pop(session_id, None)

    def nobody_left(self, regime: Regime) -> None:
        """Of its sessions."""
        if regime in self._asked:
            self._asked[regime].num_open = 0

    def price_rounds(self, regime: Regime) -> float:
        """What exploring was expected to lose when it was last decided on, in plain rounds."""
        return self._asked[regime].to_try.price_rounds if regime in self._asked else 0.0

    def _hand_on(self, session_id: SessionId, step: int) -> None:
        """Its turn goes to another session."""
        asked = self._asked[self._taken.pop(session_id).regime]
        asked.num_open += 1
        asked.step = step
