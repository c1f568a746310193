"""Which segments attend together: as few calls as padding allows."""

import random

import pytest

from dspark.runtime.grouping import MAX_GROUPED_ROWS, ON_ACCELERATOR, ON_CPU, CallCost, call_cost, group_segments


def cost_of(groups: list[list[int]], sizes: list[tuple[int, int]], cost: CallCost) -> float:
    padded = ((len(group), max(sizes[i][0] for i in group), max(sizes[i][1] for i in group)) for group in groups)
    return sum(cost.group_cost(*one) for one in padded)


def test_on_a_cpu_a_few_large_trees_do_not_pad_many_single_rows() -> None:
    sizes = [(1, 300)] * 12 + [(16, 316)] * 4
    assert group_segments(sizes, ON_CPU) == [list(range(12)), [12, 13, 14, 15]]


def test_on_a_cpu_segments_of_like_size_go_together() -> None:
    assert group_segments([(8, 108), (7, 107), (8, 120)], ON_CPU) == [[1, 0, 2]]


def test_on_a_cpu_a_long_context_does_not_pad_short_ones() -> None:
    assert group_segments([(1, 900), (1, 40), (1, 44), (1, 41)], ON_CPU) == [[1, 3, 2], [0]]


def test_an_accelerator_takes_all_that_are_short_in_one_call() -> None:
    """Also full trees with their anchor, whatever their number of candidates within the limit."""
    sizes = [(1 + nodes, 200 + 10 * nodes) for nodes in range(MAX_GROUPED_ROWS)]
    assert len(group_segments(sizes, ON_ACCELERATOR)) == 1
    assert call_cost("cuda") == ON_ACCELERATOR
    assert call_cost("cpu") == ON_CPU


def test_prompt_chunks_attend_alone() -> None:
    long = MAX_GROUPED_ROWS + 1
    assert group_segments([(long, 512), (3, 50), (long, 512)], ON_ACCELERATOR) == [[1], [0], [2]]


@pytest.mark.parametrize("seed", range(20))
def test_every_segment_is_in_one_group_and_grouping_never_costs_more_than_each_alone(seed: int) -> None:
    draw = random.Random(seed)
    sizes = [(draw.choice((1, 1, 4, 8, 17)), draw.randint(20, 600)) for _ in range(draw.randint(1, 24))]
    for cost in (ON_CPU, ON_ACCELERATOR):
        groups = group_segments(sizes, cost)
        assert sorted(index for group in groups for index in group) == list(range(len(sizes)))
        assert cost_of(groups, sizes, cost) <= cost_of([[index] for index in range(len(sizes))], sizes, cost)
