"""Packing: rows one after the other, who sees whom, and slots for everything, without a model."""

import random

import numpy as np
import pytest
import torch

from dspark.runtime.grouping import MAX_GROUPED_ROWS, ON_CPU, group_segments
from dspark.runtime.packed import AttentionGroup, Segment, _sent, pack

CPU = torch.device("cpu")

PROMPT = Segment([5, 6, 7], [0, 1, 2], None, [10, 11, 12], 0, 0)
#  3 cached slots, the anchor, and below it   0 ── 2
#                                             1
TREE = Segment([1, 2, 3, 4], [3, 4, 4, 5], [-1, 0, 0, 1], [20, 21, 22, 30, 31, 32, 33], 3, 4)
LONG = Segment(list(range(70)), list(range(4, 74)), None, list(range(40, 114)), 4, 1)


def test_rows_lie_one_after_the_other_and_logits_are_wanted_from_the_end() -> None:
    batch = pack([PROMPT, TREE, LONG], CPU)
    assert batch.input_ids.tolist() == [[5, 6, 7, 1, 2, 3, 4, *range(70)]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 4, 5, *range(4, 74)]]
    assert batch.write_slots.tolist() == [10, 11, 12, 30, 31, 32, 33, *range(44, 114)]
    assert batch.logit_rows.tolist() == [3, 4, 5, 6, 76]


def test_short_segments_attend_together_and_each_long_one_alone() -> None:
    batch = pack([PROMPT, LONG, TREE], CPU)
    together, alone = batch.groups
    assert (together.num_segments, together.longest_segment, together.longest_context) == (2, 4, 7)
    assert (alone.num_segments, alone.longest_segment) == (1, 70)
    assert len(LONG.token_ids) > MAX_GROUPED_ROWS
    assert together.places is not None
    assert together.places.gather.tolist() == [0, 1, 2, 2, 73, 74, 75, 76]
    assert together.places.batch_rows.tolist() == [0, 1, 2, 73, 74, 75, 76]
    assert together.places.output_rows.tolist() == [0, 1, 2, 4, 5, 6, 7]


def test_a_row_sees_the_cache_its_ancestors_and_itself() -> None:
    (group,) = pack([TREE], CPU).groups
    assert group.visible[0].astype(int).tolist() == [
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 1, 0],
        [1, 1, 1, 1, 1, 0, 1],
    ]


def test_a_single_segment_needs_no_gathering_and_neighbouring_slots_no_copy() -> None:
    (group,) = pack([LONG], CPU).groups
    assert group.places is None
    assert group.slots == slice(40, 114)
    (scattered,) = pack([TREE], CPU).groups
    assert isinstance(scattered.slots, torch.Tensor)
    assert scattered.slots.tolist() == TREE.slots


def test_a_gap_in_the_slots_is_not_taken_for_a_slice() -> None:
    swapped = Segment([1, 2, 3, 4], [0, 1, 2, 3], None, [8, 10, 9, 11], 0, 0)
    (group,) = pack([swapped], CPU).groups
    assert isinstance(group.slots, torch.Tensor)
    assert group.slots.tolist() == [8, 10, 9, 11]


def random_segment(draw: random.Random, first_slot: int) -> Segment:
    count, cached = draw.randint(1, 22), draw.randint(0, 9)
    parents = [draw.randint(-1, row - 1) for row in range(count)]
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    slots = draw.sample(range(first_slot, first_slot + 40), cached + count)
    chain = draw.random() < 0.4
    positions = [cached + (row if chain else depth) for row, depth in enumerate(depths)]
    ids = [draw.randrange(50) for _ in range(count)]
    return Segment(ids, positions, None if chain else parents, slots, cached, draw.randint(0, count))


def ancestors(segment: Segment, row: int) -> set[int]:
    """Rows that `row` sees, itself included, by walking up."""
    if segment.parents is None:
        return set(range(row + 1))
    seen = set()
    while row >= 0:
        seen.add(row)
        row = segment.parents[row]
    return seen


def check_group(group: AttentionGroup, members: list[Segment]) -> None:
    slots = group.slots if isinstance(group.slots, torch.Tensor) else torch.arange(group.slots.start, group.slots.stop)
    table = slots.view(len(members), group.longest_context).numpy()
    for index, segment in enumerate(members):
        for row in range(len(segment.token_ids)):
            seen = np.flatnonzero(group.visible[index, row])
            own = [*segment.slots[: segment.num_cached], *(segment.slots[segment.num_cached + a] for a in ancestors(segment, row))]
            assert sorted(table[index, seen].tolist()) == sorted(own)
            assert group.query_positions[index, row] == segment.positions[row]
            positions = group.key_positions[index, seen]
            assert sorted(positions.tolist()) == list(range(segment.positions[row] + 1)), "a path has every position once"
        assert bool((group.visible[index].sum(-1) > 0).all()), "padding rows see something, else their softmax is not finite"
        assert set(table[index].tolist()) <= set(segment.slots), "padding reads only the session's own slots"


@pytest.mark.parametrize("seed", range(20))
def test_random_batches_show_every_row_exactly_its_own_path(seed: int) -> None:
    draw = random.Random(seed)
    segments = [random_segment(draw, 100 * index) for index in range(draw.randint(1, 6))]
    batch = pack(segments, CPU)
    grouped = group_segments([(len(s.token_ids), len(s.slots)) for s in segments], ON_CPU)
    members = [[segments[index] for index in group] for group in grouped]
    assert len(batch.groups) == len(members)
    filled: list[int] = []
    for group, owners in zip(batch.groups, members, strict=True):
        check_group(group, owners)
        filled += range(batch.input_ids.shape[1]) if group.places is None else group.places.batch_rows.tolist()
    assert sorted(filled) == list(range(batch.input_ids.shape[1])), "every row is filled by exactly one group"


@pytest.mark.parametrize("segments", [[PROMPT, TREE, LONG], [LONG], [TREE]], ids=["several", "one chunk", "scattered"])
def test_what_is_sent_in_one_copy_is_what_was_packed(segments: list[Segment]) -> None:
    packed = pack(segments, CPU)
    sent = _sent(packed, CPU)
    for name in ("input_ids", "position_ids", "write_slots", "logit_rows"):
        assert torch.equal(getattr(sent, name), getattr(packed, name)), name
    assert sent.segments == packed.segments
    for ours, theirs in zip(sent.groups, packed.groups, strict=True):
        assert str(ours.slots) == str(theirs.slots)
        assert str(ours.places) == str(theirs.places)
        assert ours.visible is theirs.visible
