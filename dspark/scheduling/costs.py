"""What a round costs beyond its tokens: the target's step by rows, and what comes on top. Pure; no torch, no clock."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Milliseconds = NDArray[np.float64]
Floats = NDArray[np.float64]

NEAR_EQUAL = 1e-3
"""Rates that differ by less are the same: estimates are not better than that, and fewer rows leave room for others."""

LEAST_LEFT = 0.1
"""Of a step, whatever its sessions are said to add."""


@dataclass(frozen=True, slots=True, eq=False)
class RoundCosts:
    """Costs of one round at the present context length and load. Raises ValueError where a number makes no sense."""

    step_ms: Milliseconds  # [max_rows + 1] target step by rows in the batch; jagged as measured; index 0 is not read
    fixed_ms: float = 0.0
    """Router, wire and whatever else every round pays, drafted or not."""
    draft_ms: float = 0.0
    """Drafting that this round pays for, already spent or still to be spent; what another round's verification hides is left out."""
    num_sessions: int = 0
    """That share the steps of step_ms."""
    session_ms: float = 0.0
    """What each of them adds to a step, whatever its rows."""
    fixed_session_ms: float = 0.0
    """What each of them adds to fixed_ms."""

    def __post_init__(self) -> None:
        steps = self.step_ms[1:]
        if self.step_ms.ndim != 1 or not len(steps):
            raise ValueError("step_ms must be of shape [max_rows + 1], for one row at least")
        if not (steps.min() > 0 and steps.max() < np.inf):  # false for NaN too
            raise ValueError("step_ms must be positive and finite from one row on")
        if not (0 <= self.fixed_ms < np.inf and 0 <= self.draft_ms < np.inf):
            raise ValueError("fixed_ms and draft_ms must be finite and not negative")

    @property
    def max_rows(self) -> int:
        """Rows of the largest step that is known."""
        return len(self.step_ms) - 1

    def steps_ms(self, first_rows: int, last_rows: int) -> Milliseconds:  # [last_rows - first_rows + 1]
        """Steps of first_rows..last_rows rows. Beyond the largest known step, what several of them cost."""
        if last_rows <= self.max_rows:
            return self.step_ms[first_rows : last_rows + 1]
        rows = np.arange(first_rows, last_rows + 1)
        known = self.step_ms[np.minimum(rows, self.max_rows)]
        return known * np.maximum(1.0, rows / self.max_rows)

    def of_sessions(self, num_sessions: int) -> "RoundCosts":
        """The same where only so many of the sessions share a step."""
        if num_sessions >= self.num_sessions:
            return self
        step_ms, fixed_ms = self._shared_by(num_sessions, self.step_ms), self.fixed_of(num_sessions)
        return replace(self, step_ms=step_ms, fixed_ms=fixed_ms, num_sessions=num_sessions)

    def _shared_by(self, num_sessions: int, step_ms: Milliseconds) -> Milliseconds:
        """Steps without what the sessions add that have no part in them."""
        missing = max(0, self.num_sessions - num_sessions)
        return np.maximum(step_ms - missing * self.session_ms, LEAST_LEFT * step_ms)

    def fixed_of(self, num_sessions: int) -> float:
        """fixed_ms where so many sessions share a step."""
        return max(0.0, self.fixed_ms - max(0, self.num_sessions - num_sessions) * self.fixed_session_ms)

    def step_of(self, rows: float, num_sessions: int | None = None) -> float:
        """Step of so many rows, in ms; whole numbers of rows are looked up, others rounded up. `num_sessions` share it; None: all."""
        whole = max(1, int(np.ceil(rows)))
        known = self.step_ms[min(whole, self.max_rows)]
        shared = known if num_sessions is None else self._shared_by(num_sessions, known)
        return float(shared) * max(1.0, whole / self.max_rows)

    def round_of(self, rows: float) -> float:
        """Such a step with what every round costs beside it, in ms; without drafts."""
        return self.step_of(rows) + self.fixed_ms


def fewest_near_best(rates: Floats) -> int:
    """Index of the first rate that is within NEAR_EQUAL of the best. rates: [k], k > 0."""
    near: NDArray[np.bool_] = rates >= (1.0 - NEAR_EQUAL) * rates.max()
    return int(near.argmax())
