"""Which segments of a batch attend in one call. Pure.

A call pads: all its segments to the longest context and the most rows among them. Another call costs its launches. Which is dearer
depends on the device: a core computes what is padded as slowly as everything else, a GPU computes it in passing but takes long to be told.

Symbols: r rows of a segment, L its slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_GROUPED_ROWS = 64
"""Segments of more rows (prompt chunks) attend alone: masks grow with the square."""


@dataclass(frozen=True, slots=True)
class CallCost:
    """Of attention in one layer, in units of what one row costs per slot that it sees."""

    per_call: float
    per_slot: float
    """Rows' worth of work for a slot's keys and values to be gathered."""

    def group_cost(self, num_segments: int, rows: int, slots: int) -> float:
        """Of one call, padded to `rows` and `slots`."""
        return self.per_call + num_segments * slots * (self.per_slot + rows)


ON_CPU = CallCost(per_call=1_800, per_slot=3.6)
"""Fitted to times of 1 to 16 segments of 1 to 16 rows with 100 to 600 slots: 0.05 ms a call, 0.028 microseconds a row and slot."""
ON_ACCELERATOR = CallCost(per_call=10_000_000, per_slot=200.0)
"""Some 0.2 ms of launches, in which an H100 computes far more than a batch of candidates; to read keys and values takes it longer than
to attend to them. An estimate: no more than that a call is dear there, and that a very long context should not pad many short ones."""


def call_cost(device_type: str) -> CallCost:
    """Of a torch device's type."""
    return ON_CPU if device_type == "cpu" else ON_ACCELERATOR


def group_segments(sizes: Sequence[tuple[int, int]], cost: CallCost) -> list[list[int]]:
    """Indices of `sizes`, (r, L) each, grouped: in order of rows, then of slots, a segment joins the last group wherever that costs less
    than beginning another one."""
    groups: list[list[int]] = []
    alone: list[list[int]] = []
    rows = slots = 0
    for index in sorted(range(len(sizes)), key=lambda index: sizes[index]):
        own_rows, own_slots = sizes[index]
        if own_rows > MAX_GROUPED_ROWS:
            alone.append([index])
            continue
        joined = (max(rows, own_rows), max(slots, own_slots))
        if groups and _joins(len(groups[-1]), (rows, slots), (own_rows, own_slots), joined, cost):
            groups[-1].append(index)
            rows, slots = joined
        else:
            groups.append([index])
            rows, slots = own_rows, own_slots
    return groups + alone


def _joins(
    num_members: int, group: tuple[int, int], own: tuple[int, int], joined: tuple[int, int], cost: CallCost
) -> bool:
    apart = cost.group_cost(num_members, *group) + cost.group_cost(1, *own)
    return cost.group_cost(num_members + 1, *joined) <= apart
