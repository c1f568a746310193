"""One session's features on their way from target to drafter: which are wanted, which are held, which have arrived.

Pure bookkeeping, no clock and no I/O. What the drafter has is known only by its answers, so rows are held until one comes; a request
without an answer is repeated, and its rows may then reach the drafter twice. Whatever is lost here can be had again: the target
keeps the features of every position.

Symbols: k rows, w width of a row.
"""

from collections import deque
from functools import partial
from itertools import takewhile

import numpy as np

from dspark.messages import NO_FEATURES, ContextFeatures


class FeatureFeed:
    """Rows of consecutive positions that the drafter has not confirmed yet."""

    def __init__(self) -> None:
        self._parts: deque[ContextFeatures] = deque()  # one after the other, the first starts at `_confirmed`
        self._confirmed = 0
        """The drafter has positions 0.._confirmed-1."""

    @property
    def stop(self) -> int:
        """Position after the last one that is held, or that the drafter has."""
        return self._parts[-1].stop if self._parts else self._confirmed

    @property
    def num_rows(self) -> int:
        """Rows held."""
        return self.stop - self._confirmed

    def wanted_from(self, base_length: int) -> int:
        """First position that is missing, of those that a round at this length brings; NO_FEATURES if none is."""
        return self.stop if self.stop < base_length else NO_FEATURES

    def add(self, features: ContextFeatures) -> int:
        """Take what continues the rows held; returns how many rows were new. Rows after a gap are left out."""
        new = _from(features, self.stop) if features.start <= self.stop else None
        if new is None:
            return 0
        self._parts.append(new)
        return len(new.values)

    def next_part(self, max_bytes: int) -> ContextFeatures | None:
        """As many of the held rows as fit and are of one form, from the first; at least one row. None if nothing is held."""
        if not self._parts:
            return None
        first = self._parts[0]
        rows_left = max(1, max_bytes // max(1, first.values[0].nbytes))
        taken = []
        for part in takewhile(partial(_alike, first), self._parts):
            taken.append(part.values[:rows_left])
            rows_left -= len(taken[-1])
            if rows_left == 0:
                break
        return ContextFeatures(first.start, taken[0] if len(taken) == 1 else np.concatenate(taken), first.projected)

    def acknowledged(self, stop: int) -> None:
        """The drafter has answered a request that ended at this position; what was never held cannot be confirmed."""
        self._confirmed = max(self._confirmed, min(stop, self.stop))
        while self._parts and self._parts[0].stop <= self._confirmed:
            self._parts.popleft()
        if self._parts:
            kept = _from(self._parts[0], self._confirmed)
            assert kept is not None, "a part that ends after the confirmed rows has rows left"
            self._parts[0] = kept

    def restart(self) -> None:
        """A drafter that has nothing: everything from position 0 on is to be sent. Rows held from there on still serve."""
        if self._confirmed > 0:
            self._parts.clear()
        self._confirmed = 0


def _alike(one: ContextFeatures, other: ContextFeatures) -> bool:
    return one.projected == other.projected and one.values.shape[1] == other.values.shape[1]


def _from(features: ContextFeatures, position: int) -> ContextFeatures | None:
    """The rows from this position on; None if there are none."""
    if features.stop <= position:
        return None
    skipped = max(0, position - features.start)
    return ContextFeatures(features.start + skipped, features.values[skipped:], features.projected)
