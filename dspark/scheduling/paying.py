"""Is it paying? Measured speed with a drafter against the plain-decoding speed that the target's curve predicts for the same
sessions. A drafter that does not pay is switched off, and tried again after pauses that grow. Pure counting: the caller
feeds measured times.

    paying -- it loses --> off
    off -- after `pause` rounds --> probing
    probing -- it wins: ratio >= ON_FROM after PROBE_ROUNDS --> paying (and the next pause is the first again)
    probing -- it loses, or PROBE_ROUNDS are over --> off, the pause doubled

It loses if the ratio is below OFF_BELOW after MIN_ROUNDS, or sooner where the loss is clear: from CLEAR_ROUNDS on, if what a round
commits is less than CLEAR_BELOW of what plain decoding would have by more than CLEAR_ERRORS standard errors of their difference. (Rounds
of one text are alike, so a few of them say less than their number; hence the distance.)

Sessions that share a step wait for the same drafts and rows, at the same moment of the machine: together they make one round, to which
each of them comes with its share.

The gap between OFF_BELOW and ON_FROM keeps a drafter at break-even from going on and off. An account belongs to a drafter on one
kind of text: what pays on greedy text may lose on sampled.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import StrEnum

OFF_BELOW = 0.98
ON_FROM = 1.02
MIN_ROUNDS = 50
CLEAR_ROUNDS = 8
CLEAR_BELOW = 0.9
CLEAR_ERRORS = 2.5
PROBE_ROUNDS = 20
FIRST_PAUSE_ROUNDS = 50
MAX_PAUSE_ROUNDS = 12_800
MEMORY_ROUNDS = 100
"""Rounds that the ratio remembers, about."""
WHOLE = 1.0 - 1e-6
"""Shares do not add up to one exactly."""
OUTLIER = 4.0
"""A round longer than this many usual ones counts as so many: one stall of the machine says nothing of the drafter."""


class PayState(StrEnum):
    """Where a drafter stands."""

    PAYING = "paying"
    OFF = "off"
    PROBING = "probing"


class Paying:
    """The books of one router. An account's name is whatever tells drafters and kinds of text apart."""

    def __init__(self) -> None:
        self._accounts: dict[Hashable, _Account] = {}

    def round_done(
        self,
        account: Hashable,
        committed_tokens: int,
        round_ms: float,
        plain_tokens_per_second: float,
        *,
        explored: bool = False,
        share: float = 1.0,
    ) -> None:
        """A drafted round: what its sessions committed, how long it lasted, drafting and waiting included, and what the curve
        promises the same sessions without drafting (`Plan.plain_tokens_per_second`). ValueError where a time or speed is not positive.

        `explored`: drafted although a loss was expected; it shows in the ratio, but switches nothing. `share`: how much of a
        round it counts for.
        """
        if not (round_ms > 0 and plain_tokens_per_second > 0):
            raise ValueError(f"a round of {round_ms} ms at {plain_tokens_per_second} plain tokens per second cannot be judged")
        found = self._accounts.setdefault(account, _Account())
        found.drafted(committed_tokens, round_ms, plain_tokens_per_second, explored, share)

    def round_skipped(self, account: Hashable) -> None:
        """A round of its sessions in which nothing was drafted: of a drafter that is off, the pause goes by."""
        if (found := self._accounts.get(account)) is not None:
            found.skipped()

    def may_draft(self, account: Hashable) -> bool:
        """False while it is switched off."""
        return self.state(account) is not PayState.OFF

    def pays(self, account: Hashable) -> bool:
        """True unless it was found not to pay; a probe has still to show that it does."""
        return self.state(account) is PayState.PAYING

    def state(self, account: Hashable) -> PayState:
        """A drafter that nobody has seen is taken to pay."""
        found = self._accounts.get(account)
        return PayState.PAYING if found is None else found.state

    def ratio(self, *accounts: Hashable) -> float:
        """Measured over plain speed of late, of these accounts together; of those that are off, what it was last. NaN at first."""
        found = [self._accounts[account].shown for account in accounts if account in self._accounts]
        plain = sum(tally.plain for tally in found)
        return sum(tally.committed for tally in found) / plain if plain else float("nan")


@dataclass(slots=True)
class _Tally:
    """Tokens of late rounds, older ones faded: committed, and what plain decoding would have made in the same time."""

    committed: float = 0.0
    plain: float = 0.0

    def add(self, committed: float, plain: float, share: float = 1.0) -> None:
        fade = (1.0 - 1.0 / MEMORY_ROUNDS) ** share
        self.committed = fade * self.committed + committed
        self.plain = fade * self.plain + plain


@dataclass(slots=True)
class _Account:
    state: PayState = PayState.PAYING
    shown: _Tally = field(default_factory=_Tally)
    """For those who look; outlives changes of the state."""
    judged: _Tally = field(default_factory=_Tally)
    """Since the state was entered."""
    num_rounds: int = 0
    """Since the state was entered."""
    pause_rounds: int = FIRST_PAUSE_ROUNDS
    usual_ms: float = 0.0
    mean_gain: float = 0.0
    """Of the rounds since the state was entered: committed tokens over CLEAR_BELOW of the plain ones."""
    squares: float = 0.0
    """Sum of the squared differences from that mean."""
    begun: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Committed and plain tokens, and the share of a whole, of a round of which not all sessions have been told yet."""

    def drafted(self, committed_tokens: int, round_ms: float, plain_tokens_per_second: float, explored: bool, share: float) -> None:
        if self.state is PayState.OFF:
            return  # a draft that was under way when it was switched off
        counted_ms = min(round_ms, OUTLIER * self.usual_ms) if self.num_rounds else round_ms
        plain = plain_tokens_per_second * counted_ms / 1e3
        self.shown.add(committed_tokens, plain, share)
        if explored:
            return
        committed, plain, share = (one + new for one, new in zip(self.begun, (committed_tokens, plain, share), strict=True))
        self.begun = (committed, plain, share)
        if share >= WHOLE:
            self.begun = (0.0, 0.0, 0.0)
            self._whole_round(committed, plain, counted_ms)

    def _whole_round(self, committed: float, plain: float, counted_ms: float) -> None:
        self.num_rounds += 1
        self.usual_ms += (counted_ms - self.usual_ms) / min(self.num_rounds, MEMORY_ROUNDS)
        self.judged.add(committed, plain)
        gain = committed - CLEAR_BELOW * plain
        before, self.mean_gain = self.mean_gain, self.mean_gain + (gain - self.mean_gain) / self.num_rounds
        self.squares += (gain - before) * (gain - self.mean_gain)
        self._judge()

    def skipped(self) -> None:
        if self.state is not PayState.OFF:
            return
        self.num_rounds += 1
        if self.num_rounds >= self.pause_rounds:
            self._enter(PayState.PROBING)

    def _judge(self) -> None:
        ratio = self.judged.committed / self.judged.plain
        loses = self._loses_clearly() or (self.num_rounds >= MIN_ROUNDS and ratio < OFF_BELOW)
        if self.state is PayState.PAYING and loses:
            self._enter(PayState.OFF)
        elif self.state is PayState.PROBING and (loses or self.num_rounds >= PROBE_ROUNDS):
            self._end_probe(won=not loses and ratio >= ON_FROM)

    def _loses_clearly(self) -> bool:
        if not CLEAR_ROUNDS <= self.num_rounds < MIN_ROUNDS:
            return False
        standard_error = math.sqrt(self.squares / (self.num_rounds - 1) / self.num_rounds)
        return self.mean_gain + CLEAR_ERRORS * standard_error < 0

    def _end_probe(self, *, won: bool) -> None:
        if won:
            self.pause_rounds = FIRST_PAUSE_ROUNDS
            self._enter(PayState.PAYING)
        else:
            self.pause_rounds = min(2 * self.pause_rounds, MAX_PAUSE_ROUNDS)
            self._enter(PayState.OFF)

    def _enter(self, state: PayState) -> None:
        """With empty books: what was measured before does not judge the new state."""
        self.state, self.judged = state, _Tally()
        self.num_rounds, self.usual_ms, self.mean_gain, self.squares, self.begun = 0, 0.0, 0.0, 0.0, (0.0, 0.0, 0.0)
