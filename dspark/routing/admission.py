"""Whether a target can take one more session without breaking a promised speed. Pure: no clock, no I/O.

The estimate stands on two numbers that the router measures. Plain decoding gives every session one token per step of one row
for each of them, and the planner may always fall back to it, so nobody gets less. Speculation gives a session tau tokens per
step, which then also holds the rows of the candidates and comes after the draft. A session is counted with the better of the two.

A router knows its own sessions only: where several share a target, each of them judges by its part of the load.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dspark.errors import SpeedUnavailable
from dspark.session import Session


@dataclass(frozen=True, slots=True)
class SpeedPromise:
    """What one session is to get, and what speculation is known to give it."""

    min_tokens_per_second: float
    tau: float = 1.0
    """Committed tokens per round of its drafter, as measured; 1 where it has none or nothing is known yet."""


@dataclass(frozen=True, slots=True, eq=False)
class TargetLoad:
    """One target replica, as its router sees it now."""

    num_sessions: int
    """All that run there, with a promise or without."""
    promises: tuple[SpeedPromise, ...]
    """Of those that have one."""
    step_ms: NDArray[np.float64]  # [R + 1] of a step by its rows, never falling; index 0 is unused
    fixed_ms: float = 0.0
    """What every round costs beside the target's step: router and wire."""
    rows_per_session: float = 1.0
    """Anchor and verified candidates of a session in a mean round, at least 1: the rows that its tau was reached with."""
    draft_ms: float = 0.0
    """What a drafted round waits for its drafts; a plain one does not."""
    fixed_session_ms: float = 0.0
    """Of fixed_ms, what each session adds."""


def promise_of(session: Session, tau: float = 1.0) -> SpeedPromise | None:
    """The session's promise, if its request asked for one; `tau` is that of its drafter."""
    speed = session.min_tokens_per_second
    return None if speed is None else SpeedPromise(speed, 1.0 if session.drafter is None else tau)


def check_promises(load: TargetLoad | None, wanted: SpeedPromise | None = None) -> None:
    """Raises SpeedUnavailable if one more session, promised `wanted`, would leave its own or a running session's promise unkept.

    A promise that is broken already stops nobody: it would not be kept without the newcomer either. `load` is None while nothing
    is known of the target's steps: then nothing is refused.
    """
    if load is None:
        return
    if wanted is not None:
        _check_own(load, wanted)
    for promise in load.promises:
        with_one_more, now = (tokens_per_second(load, n, promise.tau) for n in (load.num_sessions + 1, load.num_sessions))
        if with_one_more < promise.min_tokens_per_second <= now:
            raise SpeedUnavailable("one more session would break a speed that another was promised; try again later")


def tokens_per_second(load: TargetLoad, num_sessions: int, tau: float) -> float:
    """What each of so many sessions gets whose drafter reaches `tau`."""
    fixed_ms = max(0.0, load.fixed_ms + (num_sessions - load.num_sessions) * load.fixed_session_ms)
    plain = 1e3 / (_step_ms(load, num_sessions) + fixed_ms)
    drafted_ms = _step_ms(load, math.ceil(num_sessions * load.rows_per_session)) + fixed_ms + load.draft_ms
    return max(plain, 1e3 * tau / drafted_ms)


def _check_own(load: TargetLoad, wanted: SpeedPromise) -> None:
    asked = f"speculation.min_tokens_per_second is {wanted.min_tokens_per_second:g}"
    alone = tokens_per_second(load, 1, wanted.tau)
    if alone < wanted.min_tokens_per_second:
        raise SpeedUnavailable(f"{asked}, but even alone a session reaches about {alone:.3g} here")
    shared = tokens_per_second(load, load.num_sessions + 1, wanted.tau)
    if shared < wanted.min_tokens_per_second:
        raise SpeedUnavailable(f"{asked}, but beside those that run now a session reaches about {shared:.3g}; try again later")


def _step_ms(load: TargetLoad, rows: int) -> float:
    """Rows that do not fit into one step take several, and a session waits for all of them."""
    full_steps, rest = divmod(rows, len(load.step_ms) - 1)
    return float(full_steps * load.step_ms[-1] + (load.step_ms[rest] if rest else 0.0))
