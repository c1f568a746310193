"""One forward for many sessions: their rows (prompt chunks, anchors, candidates) as one flat sequence without padding.

A segment is what one session brings: `num_cached` slots already filled, and rows whose keys and values go to the slots after
them. A row sees the cached slots, and of the new rows only its ancestors and itself; in a chain or a prompt that is every
row before it, in the block of a drafter all of them. A drafter that grows a tree level by level has rows of earlier levels
between the two: of those, a row sees its ancestors.

Symbols: R rows of the batch, n rows of one segment, S segments of a group, L slots of a segment (cached, earlier and new),
r longest n in a group, E rows of earlier levels.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from dspark.devices import on_device
from dspark.runtime.grouping import CallCost, call_cost, group_segments


@dataclass(frozen=True, slots=True)
class Segment:
    """One session's part of a batch."""

    token_ids: list[int]  # [n]
    positions: list[int]  # [n] absolute
    parents: list[int] | None  # [n] row of the parent inside the segment, -1 = the last cached slot; None = a chain
    slots: list[int]  # [L] cache slots, cached ones first, then one per row
    num_cached: int
    num_logits: int
    """Logits are wanted for this many rows, counted from the end."""
    both_ways: bool = False
    """Every row sees every other: the rows of a block drafter."""
    earlier: "EarlierRows | None" = None
    """Rows of earlier levels of a tree under growth; then the new rows do not see each other."""


@dataclass(frozen=True, slots=True)
class EarlierRows:
    """Rows that were run before, of which a new row sees only its ancestors. Their slots stand after the cached ones."""

    positions: list[int]  # [E]
    ancestors: list[list[int]]  # [n] for each new row, the earlier rows on its path


@dataclass(frozen=True, slots=True)
class RowPlaces:
    """Where a group's rows stand in the batch."""

    gather: torch.Tensor  # [S * r] row of the batch, padded by repeating a segment's last row
    output_rows: torch.Tensor  # [sum n] index into S * r of each real row, in the order of `batch_rows`
    batch_rows: torch.Tensor  # [sum n] rows of the batch that this group fills

    def on(self, device: torch.device) -> "RowPlaces":
        """The same on another device, for models whose layers are spread over several."""
        if self.gather.device == device:
            return self
        return RowPlaces(self.gather.to(device), self.output_rows.to(device), self.batch_rows.to(device))


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Segments that attend in one call."""

    places: "RowPlaces | None"
    """None: one segment that is the whole batch, nothing to gather or scatter."""
    slots: torch.Tensor | slice  # [S * L] or a slice where one segment's slots are neighbours
    num_segments: int
    longest_context: int  # L
    longest_segment: int  # r
    query_positions: NDArray[np.int32]  # [S, r]
    key_positions: NDArray[np.int32]  # [S, L]
    visible: NDArray[np.bool_]  # [S, r, L] by ancestry alone; windows are cut per layer
    masks: dict[tuple[int, torch.device], torch.Tensor | None] = field(default_factory=dict)
    """Additive masks by window size and device, filled by the attention function as layers ask for them."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Everything one forward needs besides the weights and the cache."""

    input_ids: torch.Tensor  # [1, R]
    position_ids: torch.Tensor  # [1, R]
    write_slots: torch.Tensor  # [R]
    logit_rows: torch.Tensor  # rows whose logits are wanted, segment by segment
    groups: tuple[AttentionGroup, ...]
    segments: tuple[Segment, ...]


def pack(segments: list[Segment], device: torch.device) -> PackedBatch:
    """Lay the segments' rows one after the other and group them for attention."""
    batch = _packed(segments, call_cost(device.type))
    return batch if device.type == "cpu" else _sent(batch, device)


def _packed(segments: list[Segment], cost: CallCost) -> PackedBatch:
    starts = np.cumsum([0, *(len(segment.token_ids) for segment in segments)])
    tokens = [token for segment in segments for token in segment.token_ids]
    positions = [position for segment in segments for position in segment.positions]
    slots = [slot for segment in segments for slot in segment.slots[len(segment.slots) - len(segment.token_ids) :]]
    logit_rows = [
        row for segment, stop in zip(segments, starts[1:].tolist(), strict=True) for row in range(stop - segment.num_logits, stop)
    ]
    return PackedBatch(
        _integers([tokens]),
        _integers([positions]),
        _integers(slots),
        _integers(logit_rows),
        tuple(_groups(segments, starts.tolist(), cost)),
        tuple(segments),
    )


def _sent(batch: PackedBatch, device: torch.device) -> PackedBatch:
    """The same on a device, all numbers in one copy: one by one, their copies would cost more than many a small model's layer."""
    flat = [batch.input_ids[0], batch.position_ids[0], batch.write_slots, batch.logit_rows]
    for group in batch.groups:
        flat += [] if group.places is None else [group.places.gather, group.places.output_rows, group.places.batch_rows]
        flat += [group.slots] if isinstance(group.slots, torch.Tensor) else []
    parts = iter(torch.split(on_device(torch.cat(flat).numpy(), torch.int64, device), [len(part) for part in flat]))
    head = [next(parts) for _ in range(4)]
    groups = []
    for group in batch.groups:
        places = None if group.places is None else RowPlaces(next(parts), next(parts), next(parts))
        slots = next(parts) if isinstance(group.slots, torch.Tensor) else group.slots
        groups.append(replace(group, places=places, slots=slots))
    return PackedBatch(head[0].unsqueeze(0), head[1].unsqueeze(0), head[2], head[3], tuple(groups), batch.segments)


def _groups(segments: list[Segment], starts: list[int], cost: CallCost) -> list[AttentionGroup]:
    members = group_segments([(len(segment.token_ids), len(segment.slots)) for segment in segments], cost)
    return [_group([segments[i] for i in m], [starts[i] for i in m], starts[-1]) for m in members]


def _group(segments: list[Segment], starts: list[int], num_rows: int) -> AttentionGroup:
    longest_segment = max(len(s.token_ids) for s in segments)
    longest_context = max(len(s.slots) for s in segments)
    covers_batch = len(segments) == 1 and len(segments[0].token_ids) == num_rows
    return AttentionGroup(
        places=None if covers_batch else _row_places(segments, starts, longest_segment),
        slots=_group_slots(segments, longest_context),
        num_segments=len(segments),
        longest_context=longest_context,
        longest_segment=longest_segment,
        query_positions=_padded([s.positions for s in segments], longest_segment),
        key_positions=_padded([_key_positions(s) for s in segments], longest_context),
        visible=_visible(segments, longest_segment, longest_context),
    )


def _row_places(segments: list[Segment], starts: list[int], longest: int) -> RowPlaces:
    gather: list[int] = []
    output_rows: list[int] = []
    batch_rows: list[int] = []
    for index, (segment, start) in enumerate(zip(segments, starts, strict=True)):
        count = len(segment.token_ids)
        gather += [start + min(i, count - 1) for i in range(longest)]
        output_rows += range(index * longest, index * longest + count)
        batch_rows += range(start, start + count)
    return RowPlaces(_integers(gather), _integers(output_rows), _integers(batch_rows))


def _group_slots(segments: list[Segment], longest_context: int) -> torch.Tensor | slice:
    if len(segments) == 1:
        slots = segments[0].slots
        if slots[-1] - slots[0] == len(slots) - 1 and slots == list(range(slots[0], slots[-1] + 1)):
            return slice(slots[0], slots[-1] + 1)
    return _integers([slot for s in segments for slot in s.slots + [s.slots[0]] * (longest_context - len(s.slots))])


def _key_positions(segment: Segment) -> list[int]:
    """Cached slots hold positions 0, 1, 2, ...: rejected candidates never stay."""
    earlier = segment.earlier.positions if segment.earlier is not None else []
    return [*range(segment.num_cached), *earlier, *segment.positions]


def _visible(segments: list[Segment], longest_segment: int, longest_context: int) -> NDArray[np.bool_]:
    """[S, r, L]: cached slots and own ancestors; padding rows see one slot, so that their softmax stays finite."""
    visible = np.zeros((len(segments), longest_segment, longest_context), np.bool_)
    for index, segment in enumerate(segments):
        count, cached = len(segment.token_ids), segment.num_cached
        visible[index, :count, :cached] = True
        if segment.earlier is None:
            visible[index, :count, cached : cached + count] = _ancestry(segment)
        else:
            for row, ancestors in enumerate(segment.earlier.ancestors):
                visible[index, row, [*(cached + ancestor for ancestor in ancestors), len(segment.slots) - count + row]] = True
        visible[index, count:, 0] = True
    return visible


def _ancestry(segment: Segment) -> NDArray[np.bool_]:
    """[n, n]: row i sees row j if j is i or an ancestor of i."""
    count = len(segment.token_ids)
    if segment.both_ways:
        return np.ones((count, count), np.bool_)
    if segment.parents is None:
        return np.tri(count, dtype=np.bool_)
    seen = np.eye(count, dtype=np.bool_)
    for row, parent in enumerate(segment.parents):
        if parent >= 0:
            seen[row] |= seen[parent]
    return seen


def _padded(rows: list[list[int]], length: int) -> NDArray[np.int32]:
    return np.asarray([row + [row[-1]] * (length - len(row)) for row in rows], np.int32)


def _integers(values: list[int] | list[list[int]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)
