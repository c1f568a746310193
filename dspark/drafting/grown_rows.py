"""Rows of trees under growth in a paged cache: for the drafters that run their model once per level.

A level's rows are the nodes of the frontier. Each gets the next slot after its session's committed positions and keeps it for the rest of
the round; it sees the committed positions, its ancestors and itself. After the round all of it is scratch.
"""

from collections.abc import Sequence
from typing import Protocol

from dspark.drafting.growth import Frontier
from dspark.runtime.kv_cache import BlockTable
from dspark.runtime.packed import EarlierRows, Segment


class RowOwner(Protocol):
    """A session as far as its rows matter."""

    table: BlockTable

    @property
    def num_committed_rows(self) -> int:
        """Rows of committed positions, which every node sees; the first level's nodes stand at the position after them."""
        ...


def most_rows(max_depth: int, max_nodes: int, max_width: int) -> int:
    """Slots that one session's growth can take: no node of the last level is run, and no level has more than the best `max_nodes`."""
    levels = [min(max_nodes, max_width**level) for level in range(1, max_depth)]
    return sum(levels)


class GrownRows:
    """The rows of one round's growth, for all sessions."""

    def __init__(self, owners: Sequence[RowOwner]) -> None:
        self._owners = owners
        self._depths: list[list[int]] = [[] for _ in owners]  # of each session's rows so far
        self._paths: dict[int, list[int]] = {}
        """Node -> rows of its session on its path, itself included."""

    def has_one_a_level(self, owner: int) -> bool:
        """True where the rows of that session are of nodes that follow each other; else some of them are of nodes that did not stay."""
        depths = self._depths[owner]
        return len(set(depths)) == len(depths)

    def segments(self, front: Frontier) -> list[Segment]:
        """One segment per session that has nodes in the frontier, in the order of its rows, with logits for all of them."""
        segments = []
        starts = [row for row in range(len(front)) if row == 0 or front.owners[row] != front.owners[row - 1]]
        for start, stop in zip(starts, [*starts[1:], len(front)], strict=True):
            segments.append(self._segment(int(front.owners[start]), front, range(start, stop)))
        return segments

    def _segment(self, owner: int, front: Frontier, places: range) -> Segment:
        depths, session = self._depths[owner], self._owners[owner]
        base, num_earlier = session.num_committed_rows, len(depths)
        ancestors = [self._paths.get(int(front.parents[place]), []) for place in places]
        for row, place in enumerate(places):
            self._paths[int(front.nodes[place])] = [*ancestors[row], num_earlier + row]
        earlier = EarlierRows([base + depth - 1 for depth in depths], ancestors)
        depths.extend([front.depth] * len(places))
        slots = session.table.slots(0, base + len(depths))
        tokens = [int(front.token_ids[place]) for place in places]
        return Segment(tokens, [base + front.depth - 1] * len(places), None, slots, base, len(places), earlier=earlier)
