"""Bitwise the same result for a row whatever else is in its batch (DESIGN section 8).

A matrix product's rounding depends on how many rows share it, so every product runs on tiles of a fixed number of rows, the
last one padded; and attention sums a row's own context in blocks of fixed size, in the order of positions, wherever the
slots lie. Reductions over one row never see the neighbours, and of the elementwise operations only activations do. It costs
speed (docs/measurements.md), so it is a choice.

On a GPU also the order of a sum over one row, and of a batched product, depends on how many there are. There both are folded: halves are
added to each other until one number is left, which takes elementwise operations alone.

Symbols: R rows, H query heads, H_kv key/value heads, G = H / H_kv, D head size, C block size, P padded context length.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from dspark.runtime.kv_cache import KvTensors
from dspark.runtime.packed import Segment

TILE_ROWS = 8
BLOCK_POSITIONS = 64
ROWS_AT_ONCE = 64
"""Only bounds memory: rows do not see each other."""

_SIGMOIDS = (torch.sigmoid, torch.Tensor.sigmoid, functional.sigmoid)
_MEANS = (torch.mean, torch.Tensor.mean)
_SUMS = (torch.sum, torch.Tensor.sum)
_MATMULS = (torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__)


class FixedRowTiles(TorchFunctionMode):
    """While active, every product of rows with a weight matrix runs on tiles of TILE_ROWS rows."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Intercept `linear`, matrix products with a two-dimensional right side, and activations; pass everything else on."""
        kwargs = kwargs or {}
        if func is functional.linear:
            return _linear(*args, **kwargs)
        if func in _MATMULS and args[1].ndim == 2 and args[0].ndim >= 2 and not kwargs:
            return _tiled(args[0], lambda tile: torch.mm(tile, args[1]))
        if func is functional.silu:
            return _silu(*args, **kwargs)
        if func is functional.gelu:
            return _gelu(*args, **kwargs)
        if func in _SIGMOIDS and not kwargs:
            return _sigmoid(args[0].float()).to(args[0].dtype)
        if func in _MEANS and _folds(*args, **kwargs):
            return folded(*args, **kwargs) / args[0].shape[-1]
        if func in _SUMS and _folds(*args, **kwargs):
            return folded(*args, **kwargs)
        return func(*args, **kwargs)


def _folds(values: Any = None, dim: Any = None, keepdim: bool = False, **others: Any) -> bool:
    """Whether this is a sum or mean over rows, whose order a GPU makes depend on how many rows there are."""
    return values is not None and values.is_cuda and values.is_floating_point() and dim in (-1, values.ndim - 1) and not others


def folded(values: torch.Tensor, dim: int, keepdim: bool = False) -> torch.Tensor:
    """Sum over `dim`, in an order that its length alone decides."""
    while (size := values.shape[dim]) > 1:
        half = size // 2
        halves = values.narrow(dim, 0, half) + values.narrow(dim, half, half)
        values = halves if size == 2 * half else torch.cat((halves, values.narrow(dim, size - 1, 1)), dim)
    return values if keepdim else values.squeeze(dim)


# Torch's own activations take vectors of elements and then the rest one by one, with another exponential: the last row of an
# odd batch rounds differently. `exp`, `tanh` and `erf` themselves do not, nor do sums and products.


def _sigmoid(values: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-values))


def _silu(values: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    wide = values.float()
    return (wide * _sigmoid(wide)).to(values.dtype)


def _gelu(values: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    wide = values.float()
    if approximate == "tanh":
        inner = torch.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * (wide * wide * wide)))
    else:
        inner = torch.erf(wide * math.sqrt(0.5))
    return (0.5 * wide * (1 + inner)).to(values.dtype)


def _linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return _tiled(rows, lambda tile: functional.linear(tile, weight, bias))


def _tiled(rows: torch.Tensor, product: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """[..., K] -> [..., M] by products of exactly TILE_ROWS rows each."""
    flat = rows.reshape(-1, rows.shape[-1])
    padding = -len(flat) % TILE_ROWS
    padded = functional.pad(flat, (0, 0, 0, padding)) if padding else flat
    with torch._C.DisableTorchFunction():  # the tiles themselves must not be tiled again
        tiles = [product(tile.contiguous()) for tile in torch.split(padded, TILE_ROWS)]
    joined = torch.cat(tiles)[: len(flat)]
    return joined.reshape(*rows.shape[:-1], joined.shape[-1])


def attend_rows(
    segment: Segment,
    queries: torch.Tensor,  # [n, H, D] the segment's rows
    cache: KvTensors,
    layer: int,
    *,
    scaling: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,  # [H]
) -> torch.Tensor:
    """[n, H, D_v]: each row against its own path's slots, in the order of positions."""
    slots, visible = _paths(segment, window)
    pieces = []
    for start in range(0, len(queries), ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, len(queries))
        index = torch.from_numpy(slots[start:stop].ravel()).to(queries.device)
        keys, values = (part.view(stop - start, slots.shape[1], *part.shape[1:]) for part in cache.read(layer, index))
        mask = torch.from_numpy(visible[start:stop]).to(queries.device)
        pieces.append(_attend_blocks(queries[start:stop], keys, values, mask, scaling, softcap, sinks))
    return torch.cat(pieces)


def _paths(segment: Segment, window: int | None) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """[n, P] slots of each row's path by position (padded with the first slot), and [n, P] which of them it sees."""
    count, cached = len(segment.token_ids), segment.num_cached
    paths = _own_slots(segment)
    longest = cached + max(len(path) for path in paths)
    padded = -(-longest // BLOCK_POSITIONS) * BLOCK_POSITIONS
    slots = np.full((count, padded), segment.slots[0], np.int64)
    slots[:, :cached] = segment.slots[:cached]
    for row, path in enumerate(paths):
        slots[row, cached : cached + len(path)] = path
    positions = np.asarray(segment.positions)[:, None]
    order = np.arange(padded)[None, :]
    visible = order <= positions
    return slots, visible if window is None else visible & (positions - order < window)


def _own_slots(segment: Segment) -> list[list[int]]:
    """[n] slots of each row's ancestors among the rows after the cached ones, and its own."""
    count = len(segment.token_ids)
    own = segment.slots[len(segment.slots) - count :]
    if segment.earlier is not None:
        after = segment.slots[segment.num_cached :]
        return [[*(after[row] for row in path), slot] for path, slot in zip(segment.earlier.ancestors, own, strict=True)]
    parents = segment.parents if segment.parents is not None else list(range(-1, count - 1))
    paths: list[list[int]] = []
    for slot, parent in zip(own, parents, strict=True):
        paths.append([*(paths[parent] if parent >= 0 else []), slot])
    return paths


def _attend_blocks(
    queries: torch.Tensor,  # [R, H, D]
    keys: torch.Tensor,  # [R, P, H_kv, D]
    values: torch.Tensor,  # [R, P, H_kv, D_v]
    visible: torch.Tensor,  # [R, P]
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """[R, H, D_v]: softmax block by block with a running maximum; a block that a row does not see changes nothing, to the last bit."""
    num_rows, num_heads, _ = queries.shape
    kv_heads, value_size = keys.shape[2], values.shape[3]
    grouped = queries.reshape(num_rows * kv_heads, num_heads // kv_heads, -1)  # [R * H_kv, G, D]
    shape = (num_rows, kv_heads, num_heads // kv_heads)
    if sinks is None:
        maximum = torch.full((*shape, 1), torch.finfo(torch.float32).min, device=queries.device)
        total = torch.zeros_like(maximum)
    else:
        maximum = sinks.float().view(1, kv_heads, -1, 1).expand(*shape, 1).contiguous()
        total = torch.ones_like(maximum)
    attended = torch.zeros((*shape, value_size), device=queries.device)
    for start in range(0, keys.shape[1], BLOCK_POSITIONS):
        block = slice(start, start + BLOCK_POSITIONS)
        block_keys = keys[:, block].permute(0, 2, 3, 1).flatten(0, 1).contiguous()  # [R * H_kv, D, C]
        scores = _batched(grouped, block_keys).float().view(*shape, -1) * scaling  # [R, H_kv, G, C]
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores.masked_fill(~visible[:, None, None, block], float("-inf"))
        new_maximum = torch.maximum(maximum, scores.amax(-1, keepdim=True))
        weights = torch.exp(scores - new_maximum)
        shrink = torch.exp(maximum - new_maximum)
        block_values = values[:, block].transpose(1, 2).flatten(0, 1).contiguous()  # [R * H_kv, C, D_v]
        summed = _batched(weights.flatten(0, 1).to(values.dtype), block_values).float().view(*shape, value_size)
        attended = attended * shrink + summed
        total = total * shrink + weights.sum(-1, keepdim=True)
        maximum = new_maximum
    return (attended / total).to(values.dtype).flatten(1, 2).contiguous()


def _batched(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """[B, G, C]: products of `left` [B, G, K] and `right` [B, K, C]."""
    if not left.is_cuda:
        return torch.bmm(left, right)
    return folded(left.float().unsqueeze(-1) * right.float().unsqueeze(1), dim=-2)
