"""Is it paying? Measured speed with a drafter against the plain-decoding speed that the target's curve predicts for the same
sessions. A drafter that does not pay is switched off, and tried again after pauses that grow. Pure counting: the caller
feeds measured times.

    paying -- after MIN_ROUNDS, ratio < OFF_BELOW --> off
    off -- after `pause` rounds --> probing
    probing -- after PROBE_ROUNDS, ratio >= ON_FROM --> paying (and the next pause is the first again)
    probing -- after PROBE_ROUNDS, ratio < ON_FROM --> off, the pause doubled

The gap between OFF_BELOW and ON_FROM keeps a drafter at break-even from going on and off.
"""

from dataclasses import dataclass, field
from enum import StrEnum

OFF_BELOW = 0.98
ON_FROM = 1.02
MIN_ROUNDS = 50
PROBE_ROUNDS = 20
FIRST_PAUSE_ROUNDS = 200
MAX_PAUSE_ROUNDS = 12_800
MEMORY_ROUNDS = 100
"""Rounds that the ratio remembers, about."""
OUTLIER = 4.0
"""A round longer than this many usual ones counts as so many: one stall of the machine says nothing of the drafter."""


class PayState(StrEnum):
    """Where a drafter stands."""

    PAYING = "paying"
    OFF = "off"
    PROBING = "probing"


class Paying:
    """The books of one router, one account per drafter."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}

    def round_done(self, drafter: str, committed_tokens: int, round_ms: float, plain_tokens_per_second: float) -> None:
        """A drafted round: what its sessions committed, how long it lasted, drafting and waiting included, and what the curve
        promises the same sessions without drafting (`Plan.plain_tokens_per_second`). ValueError where a time or speed is not positive.
        """
        if not (round_ms > 0 and plain_tokens_per_second > 0):
            raise ValueError(f"a round of {round_ms} ms at {plain_tokens_per_second} plain tokens per second cannot be judged")
        self._account(drafter).drafted(committed_tokens, round_ms, plain_tokens_per_second)

    def round_skipped(self, drafter: str) -> None:
        """A round of its sessions in which the drafter was off: its pause goes by."""
        self._account(drafter).skipped()

    def may_draft(self, drafter: str) -> bool:
        """False while it is switched off."""
        return self.state(drafter) is not PayState.OFF

    def pays(self, drafter: str) -> bool:
        """True unless it was found not to pay; a probe has still to show that it does."""
        return self.state(drafter) is PayState.PAYING

    def state(self, drafter: str) -> PayState:
        """A drafter that nobody has seen is taken to pay."""
        account = self._accounts.get(drafter)
        return PayState.PAYING if account is None else account.state

    def ratio(self, drafter: str) -> float:
        """Measured over plain speed of late; of a drafter that is off, what it was last. NaN before the first round."""
        account = self._accounts.get(drafter)
        return float("nan") if account is None else account.ratio

    def _account(self, drafter: str) -> "_Account":
        return self._accounts.setdefault(drafter, _Account())


@dataclass(slots=True)
class _Account:
    state: PayState = PayState.PAYING
    ratio: float = field(default=float("nan"))
    num_rounds: int = 0
    """Since the state was entered."""
    pause_rounds: int = FIRST_PAUSE_ROUNDS
    committed: float = 0.0
    """Tokens, older ones faded."""
    plain: float = 0.0
    """Tokens that plain decoding would have committed in the same time, faded alike."""
    usual_ms: float = 0.0

    def drafted(self, committed_tokens: int, round_ms: float, plain_tokens_per_second: float) -> None:
        if self.state is PayState.OFF:
            return  # a draft that was under way when it was switched off
        self.num_rounds += 1
        counted_ms = min(round_ms, OUTLIER * self.usual_ms) if self.num_rounds > 1 else round_ms
        self.usual_ms += (counted_ms - self.usual_ms) / min(self.num_rounds, MEMORY_ROUNDS)
        fade = 1.0 - 1.0 / MEMORY_ROUNDS
        self.committed = fade * self.committed + committed_tokens
        self.plain = fade * self.plain + plain_tokens_per_second * counted_ms / 1e3
        self.ratio = self.committed / self.plain
        self._judge()

    def skipped(self) -> None:
        if self.state is not PayState.OFF:
            return
        self.num_rounds += 1
        if self.num_rounds >= self.pause_rounds:
            self._enter(PayState.PROBING)

    def _judge(self) -> None:
        if self.state is PayState.PAYING and self.num_rounds >= MIN_ROUNDS and self.ratio < OFF_BELOW:
            self._enter(PayState.OFF)
        elif self.state is PayState.PROBING and self.num_rounds >= PROBE_ROUNDS:
            self._end_probe()

    def _end_probe(self) -> None:
        if self.ratio >= ON_FROM:
            self.pause_rounds = FIRST_PAUSE_ROUNDS
            self._enter(PayState.PAYING)
        else:
            self.pause_rounds = min(2 * self.pause_rounds, MAX_PAUSE_ROUNDS)
            self._enter(PayState.OFF)

    def _enter(self, state: PayState) -> None:
        """With empty books: what was measured before does not judge the new state."""
        self.state = state
        self.num_rounds, self.committed, self.plain, self.usual_ms = 0, 0.0, 0.0, 0.0
