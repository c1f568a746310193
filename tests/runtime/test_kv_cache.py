"""The paged cache: every block has at most one owner, and slots keep what was written until they are moved or given back."""

import random

import pytest
import torch

from dspark.errors import OutOfBlocks
from dspark.runtime.kv_cache import BlockPool, BlockTable, KvTensors


def test_a_table_grows_by_whole_blocks_and_keeps_its_slots_in_order() -> None:
    pool = BlockPool(4, 8)
    table = BlockTable(pool)
    table.reserve(9)
    assert (len(table.blocks), pool.num_free) == (2, 2)
    before = table.slots(0, 9)
    table.reserve(16)
    assert pool.num_free == 2, "the second block still has room"
    table.reserve(17)
    assert table.slots(0, 9) == before
    assert len(set(table.slots(0, 24))) == 24


def test_a_table_that_cannot_grow_changes_nothing() -> None:
    pool = BlockPool(3, 4)
    table, other = BlockTable(pool), BlockTable(pool)
    table.reserve(4)
    other.reserve(4)
    with pytest.raises(OutOfBlocks, match="2 KV blocks wanted, 1 of 3 free"):
        table.reserve(12)
    assert (len(table.blocks), pool.num_free) == (1, 1)
    assert len(table.slots(0, 12)) == 4


def test_shrinking_gives_back_what_is_not_needed_and_keeps_the_rest() -> None:
    pool = BlockPool(4, 4)
    table = BlockTable(pool)
    table.reserve(16)
    before = table.slots(0, 16)
    table.shrink(5)
    assert pool.num_free == 2
    assert table.slots(0, 16) == before[:8]
    table.shrink(8)
    assert pool.num_free == 2
    table.release()
    assert pool.num_free == 4
    assert table.slots(0, 4) == []


def test_a_block_given_back_twice_raises() -> None:
    pool = BlockPool(2, 4)
    blocks = pool.take(1)
    pool.give_back(blocks)
    with pytest.raises(ValueError, match="twice"):
        pool.give_back(blocks)
    with pytest.raises(ValueError, match="twice"):
        pool.give_back([pool.take(1)[0]] * 2)


@pytest.mark.parametrize("seed", range(5))
def test_no_block_ever_has_two_owners_or_none(seed: int) -> None:
    draw = random.Random(seed)
    pool = BlockPool(20, 4)
    tables = [BlockTable(pool) for _ in range(5)]
    for _ in range(400):
        table = draw.choice(tables)
        size = draw.randint(0, 40)
        if draw.random() < 0.5:
            table.shrink(size)
        elif -(-size // 4) - len(table.blocks) <= pool.num_free:
            table.reserve(size)
        else:
            with pytest.raises(OutOfBlocks):
                table.reserve(size)
        owned = [block for t in tables for block in t.blocks]
        assert len(owned) == len(set(owned))
        assert len(owned) + pool.num_free == 20
    for table in tables:
        table.release()
    assert pool.num_free == 20


def filled(layer_sizes: dict[int, int], num_slots: int = 10) -> KvTensors:
    """Slot s of layer l holds keys l * 100 + s and values of the opposite sign."""
    cache = KvTensors(num_slots)
    for layer, size in layer_sizes.items():
        content = (layer * 100 + torch.arange(num_slots)).float().view(-1, 1, 1).expand(-1, 2, size).contiguous()
        cache.write(layer, torch.arange(num_slots), content, -content)
    return cache


def test_what_was_written_is_read_from_any_slots_of_layers_of_any_shape() -> None:
    cache = filled({0: 4, 3: 6})
    keys, values = cache.read(3, torch.tensor([7, 2, 2]))
    assert keys.shape == (3, 2, 6)
    assert keys[:, 0, 0].tolist() == [307, 302, 302]
    assert torch.equal(values, -keys)
    keys, _ = cache.read(0, slice(4, 6))
    assert keys[:, 1, 3].tolist() == [4, 5]
    assert cache.num_bytes == 4 * 2 * (10 * 2 * 4 + 10 * 2 * 6)


def test_a_move_reaches_every_layer_and_its_lists_may_overlap() -> None:
    cache = filled({0: 4, 1: 4})
    cache.move([5, 6, 7], [6, 7, 5])
    for layer in (0, 1):
        keys, values = cache.read(layer, slice(0, 10))
        assert keys[:, 0, 0].tolist() == [layer * 100 + s for s in (0, 1, 2, 3, 4, 7, 5, 6, 8, 9)]
        assert torch.equal(values, -keys)


def test_a_cache_filled_in_inference_mode_can_be_moved_outside_of_it() -> None:
    with torch.inference_mode():
        cache = filled({0: 4})
    cache.move([3], [1])
    assert cache.read(0, slice(1, 2))[0][0, 0, 0].item() == 3
