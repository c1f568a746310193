"""Paged keys and values: a pool of fixed-size blocks, handed to sessions one by one, and the tensors behind them.

Who may hold how much is decided by the caller (verifying/, drafting/); this file only counts and copies.
Symbols: L slots of one session, R rows of a batch, H_kv key/value heads, D head size.
"""

from dataclasses import dataclass, field

import torch

from dspark.devices import on_device
from dspark.errors import OutOfBlocks


class BlockPool:
    """Block numbers 0..num_blocks-1, each free or owned by one session."""

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._free = list(range(num_blocks - 1, -1, -1))  # popped from the end: low numbers first, often neighbours

    @property
    def num_free(self) -> int:
        """Blocks that nobody owns."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold that many tokens."""
        return -(-num_tokens // self.block_tokens)

    def take(self, count: int) -> list[int]:
        """`count` blocks. Raises OutOfBlocks, and takes none, if there are fewer."""
        if count > len(self._free):
            raise OutOfBlocks(f"{count} KV blocks wanted, {len(self._free)} of {self.num_blocks} free")
        return [self._free.pop() for _ in range(count)]

    def give_back(self, blocks: list[int]) -> None:
        """Return blocks to the pool; giving one back twice is a bug and raises."""
        if set(blocks) & set(self._free) or len(set(blocks)) != len(blocks):
            raise ValueError("a KV block was given back twice")
        self._free.extend(sorted(blocks, reverse=True))


@dataclass(slots=True)
class BlockTable:
    """One session's blocks, in the order of its positions. One owner: the session's cache state."""

    pool: BlockPool
    blocks: list[int] = field(default_factory=list)
    _slots: list[int] = field(default_factory=list)

    def reserve(self, num_tokens: int) -> None:
        """Own enough blocks for `num_tokens` slots. Raises OutOfBlocks, and changes nothing, if the pool cannot."""
        wanted = self.pool.blocks_for(num_tokens) - len(self.blocks)
        if wanted <= 0:
            return
        for block in self.pool.take(wanted):
            self.blocks.append(block)
            start = block * self.pool.block_tokens
            self._slots.extend(range(start, start + self.pool.block_tokens))

    def slots(self, start: int, stop: int) -> list[int]:
        """Cache slots of logical indices start..stop-1."""
        return self._slots[start:stop]

    def shrink(self, num_tokens: int) -> None:
        """Give back the blocks that `num_tokens` slots do not need."""
        kept = self.pool.blocks_for(num_tokens)
        if kept < len(self.blocks):
            self.pool.give_back(self.blocks[kept:])
            del self.blocks[kept:]
            del self._slots[kept * self.pool.block_tokens :]

    def release(self) -> None:
        """Give everything back."""
        self.shrink(0)


class KvTensors:
    """The memory: one key and one value tensor per layer, made when the layer first writes, so that any layer shape fits."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # each [num_slots, H_kv, D]
        self._gathered: list[torch.Tensor] = [torch.empty(0), torch.empty(0)]
        """Memory of `read`, on a CPU: new memory of this size comes from the system page by page, at three times the cost of the copy."""

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store `keys`, `values` [R, H_kv, D] at `slots` [R]."""
        if layer not in self._layers:
            self._layers[layer] = (self._new(keys), self._new(values))
        stored_keys, stored_values = self._layers[layer]
        slots = slots.to(stored_keys.device)  # with a device map, layers live on several devices
        stored_keys.index_copy_(0, slots, keys)
        stored_values.index_copy_(0, slots, values)

    def read(self, layer: int, slots: torch.Tensor | slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [L, H_kv, D] at `slots`, good until the next call; a slice gives a view without a copy."""
        keys, values = self._layers[layer]
        if isinstance(slots, slice):
            return keys[slots], values[slots]
        slots = slots.to(keys.device)
        if keys.device.type != "cpu":
            return keys.index_select(0, slots), values.index_select(0, slots)
        return self._gather(0, keys, slots), self._gather(1, values, slots)

    @torch.inference_mode()  # whoever reads next may do so in this mode, and its memory may then not be written outside of it
    def _gather(self, place: int, stored: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        size = len(slots) * stored[0].numel()
        if self._gathered[place].numel() < size or self._gathered[place].dtype != stored.dtype:
            self._gathered[place] = stored.new_empty(size + size // 4)
        out = self._gathered[place][:size].view(len(slots), *stored.shape[1:])
        return torch.index_select(stored, 0, slots, out=out)

    @torch.inference_mode()  # the forward makes the tensors in this mode, and outside of it they may not be written
    def move(self, source: list[int], destination: list[int]) -> None:
        """Copy slots in every layer; reads all before it writes, so that the two lists may overlap."""
        sent: dict[torch.device, torch.Tensor] = {}  # with a device map, layers live on several devices
        for keys, values in self._layers.values():
            if keys.device not in sent:
                sent[keys.device] = on_device([source, destination], torch.int64, keys.device)
            index, target = sent[keys.device]
            keys.index_copy_(0, target, keys[index])
            values.index_copy_(0, target, values[index])

    @property
    def num_bytes(self) -> int:
        """Memory held by all layers so far."""
        return sum(t.numel() * t.element_size() for pair in self._layers.values() for t in pair)

    def _new(self, like: torch.Tensor) -> torch.Tensor:
        return torch.zeros((self.num_slots, *like.shape[1:]), dtype=like.dtype, device=like.device)
