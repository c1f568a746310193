"""Waves: how drafting and verifying of many sessions overlap, decided from measured costs. Pure; no torch, no clock.

With S sessions of one target, n verified candidates each, d(s) ms to draft for s sessions, t(s) = step_ms[s (1 + n)] ms to verify
them, f(s) ms of router and wire for their step, and tau committed tokens per session and round, both ways commit S tau tokens
per cycle and differ in its length. If drafting and verifying do not slow each other down:

one          one after the other:                        d(S) + f(S) + t(S)
two          half drafts while the other half verifies:  max(2 t(S/2), 2 d(S/2), d(S/2) + f(S/2) + t(S/2))

Where they share processors the work adds up: then `two` takes 2 (d(S/2) + f(S/2) + t(S/2)). `overlap` says how much of the hiding
really happens: 1 on separate devices, 0 on one core; between them the lengths are mixed in this proportion.

A third way would be to draft on, guessing that the block in flight is accepted whole and what the target's next token is. It is
never chosen: drafters that read the target's hidden states lack them until the verdict. `draft_ahead_ms` says what it could bring.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from dspark.scheduling.costs import Floats, RoundCosts

WORTH_A_CHANGE = 1.02
"""A less simple way must be faster by so much."""


class Wave(StrEnum):
    """How a lane lets drafting and verifying follow each other."""

    ONE = "one"
    TWO = "two"


@dataclass(frozen=True, slots=True, eq=False)
class WaveCosts:
    """What was measured. Nodes and tau are means over sessions and rounds."""

    costs: RoundCosts
    """Target step by rows, and what every step pays beside; its own draft_ms is not read."""
    draft_ms: Floats  # [most sessions + 1] by number of sessions drafted together; index 0 is not read
    nodes_per_session: float
    """Verified candidates."""
    tau: float
    overlap: float = 1.0

    def step_of(self, num_sessions: int) -> float:
        """t(s) in ms."""
        return self.costs.step_of(num_sessions * (1.0 + self.nodes_per_session), num_sessions)

    def fixed_of(self, num_sessions: int) -> float:
        """f(s) in ms."""
        return self.costs.fixed_of(num_sessions)

    def draft_of(self, num_sessions: int) -> float:
        """d(s) in ms; beyond the table, several drafts one after the other."""
        most = len(self.draft_ms) - 1
        return float(self.draft_ms[min(num_sessions, most)]) * max(1.0, num_sessions / most)


@dataclass(frozen=True, slots=True)
class WaveChoice:
    """The choice and what it was made from."""

    wave: Wave
    tokens_per_second: dict[Wave, float]
    """Predicted rate of each way that is possible."""

    @property
    def gain_of_two(self) -> float:
        """Rate of two waves over that of one; 1 where one session is alone."""
        return self.tokens_per_second.get(Wave.TWO, self.tokens_per_second[Wave.ONE]) / self.tokens_per_second[Wave.ONE]


def choose_wave(num_sessions: int, costs: WaveCosts, costs_of_two: WaveCosts | None = None) -> WaveChoice:
    """The way with the highest predicted rate, the less simple one only if it gains WORTH_A_CHANGE. num_sessions > 0.

    `costs_of_two` where two waves would draft and verify another number of candidates.
    """
    one, two = costs, costs_of_two or costs
    rates = {Wave.ONE: 1e3 * num_sessions * one.tau / cycles_ms(num_sessions, one)[Wave.ONE]}
    if num_sessions > 1:
        rates[Wave.TWO] = 1e3 * num_sessions * two.tau / cycles_ms(num_sessions, two)[Wave.TWO]
    worth_it = rates.get(Wave.TWO, 0.0) >= WORTH_A_CHANGE * rates[Wave.ONE]
    return WaveChoice(Wave.TWO if worth_it else Wave.ONE, rates)


def cycles_ms(num_sessions: int, costs: WaveCosts) -> dict[Wave, float]:
    """Length in ms of the cycle in which every session commits once; two waves need two sessions."""
    cycles = {Wave.ONE: _one(num_sessions, costs)}
    if num_sessions > 1:
        cycles[Wave.TWO] = _two(num_sessions, costs)
    return cycles


def draft_ahead_ms(num_sessions: int, costs: WaveCosts, guess_rate: float) -> float:
    """Length in ms of a cycle in which all draft on before the verdict, a bound for what that could bring.

    With h = `guess_rate` the chance that a block is accepted whole and the token after it guessed right, all are right with h^S; else
    those that were wrong draft again: f + max(t(S), d(S)) + (1 - h^S) d(max(1, S (1 - h))); all terms one after the other where
    nothing overlaps.
    """
    some_wrong = 1.0 - guess_rate**num_sessions
    num_wrong = max(1, round(num_sessions * (1.0 - guess_rate)))
    again_ms = some_wrong * costs.draft_of(num_wrong)
    step_ms, draft_ms, fixed_ms = costs.step_of(num_sessions), costs.draft_of(num_sessions), costs.costs.fixed_ms
    return _mixed(fixed_ms + max(step_ms, draft_ms) + again_ms, fixed_ms + step_ms + draft_ms + again_ms, costs.overlap)


def by_whole_and_half(num_sessions: int, whole_ms: float, half_ms: float) -> Floats:
    """`draft_ms` of WaveCosts for a choice of waves, which looks at all sessions and at halves of them only."""
    by_sessions = np.full(num_sessions + 1, half_ms)
    by_sessions[num_sessions] = whole_ms
    return by_sessions


def visible_draft_ms(draft_ms: Floats, step_of_others_ms: float, overlap: float) -> Floats:
    """What drafting [D + 1] adds to the rounds of half the sessions while the others are verified for `step_of_others_ms`."""
    return np.asarray(draft_ms - overlap * np.minimum(draft_ms, step_of_others_ms))


def _one(num_sessions: int, costs: WaveCosts) -> float:
    return costs.draft_of(num_sessions) + costs.fixed_of(num_sessions) + costs.step_of(num_sessions)


def _two(num_sessions: int, costs: WaveCosts) -> float:
    larger = (num_sessions + 1) // 2
    sizes = (larger, num_sessions - larger)
    steps_ms, drafts_ms, fixed_ms = (sum(map(of, sizes)) for of in (costs.step_of, costs.draft_of, costs.fixed_of))
    hidden = max(steps_ms, drafts_ms, _one(larger, costs))
    return _mixed(hidden, drafts_ms + steps_ms + fixed_ms, costs.overlap)


def _mixed(hidden_ms: float, serial_ms: float, overlap: float) -> float:
    return overlap * hidden_ms + (1.0 - overlap) * serial_ms


def should_wait(num_ready: int, num_drafting: int, remaining_ms: float, costs: WaveCosts) -> bool:
    """The target is free and some sessions are ready: wait `remaining_ms` for the drafts in flight, or fire now?

    The rule: sessions go round and round, so throughput is their number over their mean cycle time; choose what makes the sum of
    their finishing times smaller. With r ready and q drafting, firing now ends at t(r) for the ready ones and at
    max(t(r), remaining) + t(q) for the others; waiting ends at remaining + t(r + q) for all. f comes with every step, and what
    does not overlap slows step and drafts alike while both run.
    """
    if num_ready == 0 or num_drafting == 0:
        return num_ready == 0
    first_ms = costs.fixed_of(num_ready) + costs.step_of(num_ready)
    slower_ms = (1.0 - costs.overlap) * min(first_ms, remaining_ms)
    second_ms = slower_ms + max(first_ms, remaining_ms) + costs.fixed_of(num_drafting) + costs.step_of(num_drafting)
    num_all = num_ready + num_drafting
    together_ms = remaining_ms + costs.fixed_of(num_all) + costs.step_of(num_all)
    return num_all * together_ms < num_ready * (first_ms + slower_ms) + num_drafting * second_ms
