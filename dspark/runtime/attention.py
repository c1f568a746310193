"""Attention of a packed batch over the paged cache, as an attention function that transformers models can be told to use.

Works for every model whose attention goes through the interface: grouped queries, sliding windows, logit soft-capping (Gemma
2) and attention sinks (gpt-oss). The batch and the cache come in as one keyword argument of the model call, `packed`.

Symbols: R rows, H query heads, H_kv key/value heads, G = H / H_kv, D head size; S, r, L as in packed.py.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from dspark.devices import on_device
from dspark.runtime.deterministic import attend_rows
from dspark.runtime.kv_cache import KvTensors
from dspark.runtime.packed import AttentionGroup, PackedBatch

ATTENTION_NAME = "dspark_packed"


@dataclass(frozen=True, slots=True)
class PackedContext:
    """What travels through the model to its attention layers."""

    batch: PackedBatch
    cache: KvTensors
    deterministic: bool = False


@dataclass(frozen=True, slots=True)
class LayerRules:
    """How one layer attends, beyond the plain softmax."""

    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None  # [H]


def register() -> None:
    """Make the name known to transformers; calling it again changes nothing.

    cuDNN's attention is switched off in this process: it makes a plan for every new shape, and here each step's contexts are a token
    longer than the last one's. On an H100 that was 40 ms of a step of 50 (docs/measurements.md).
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, H, R, D]
    key: torch.Tensor,  # [1, H_kv, R, D]
    value: torch.Tensor,  # [1, H_kv, R, D]
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    *,
    packed: PackedContext,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Store the batch's keys and values, then attend group by group; returns [1, R, H, D].

    `attention_mask` says nothing: masks are made here from ancestry and positions.
    """
    layer: int = module.layer_idx  # type: ignore[assignment]
    packed.cache.write(layer, packed.batch.write_slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
    rules = LayerRules(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap, s_aux)
    rows = query[0].transpose(0, 1)  # [R, H, D]
    if packed.deterministic:
        return _attend_deterministically(rows, packed, layer, rules).unsqueeze(0), None
    output: torch.Tensor | None = None
    for group in packed.batch.groups:
        attended = _attend_group(group, rows, packed, layer, rules)  # [S * r, H, D_v]
        if group.places is None:
            return attended.unsqueeze(0), None
        if output is None:
            output = attended.new_empty(rows.shape[0], *attended.shape[1:])
        places = group.places.on(attended.device)
        output.index_copy_(0, places.batch_rows, attended.index_select(0, places.output_rows))
    assert output is not None, "a packed batch has at least one group"
    return output.unsqueeze(0), None


def _attend_deterministically(rows: torch.Tensor, packed: PackedContext, layer: int, rules: LayerRules) -> torch.Tensor:
    """[R, H, D_v]: every row by itself, segment after segment."""
    pieces = []
    start = 0
    for segment in packed.batch.segments:
        stop = start + len(segment.token_ids)
        pieces.append(
            attend_rows(
                segment,
                rows[start:stop],
                packed.cache,
                layer,
                scaling=rules.scaling,
                window=rules.window,
                softcap=rules.softcap,
                sinks=rules.sinks,
            )
        )
        start = stop
    return torch.cat(pieces)


def _attend_group(
    group: AttentionGroup, rows: torch.Tensor, packed: PackedContext, layer: int, rules: LayerRules
) -> torch.Tensor:
    """[S * r, H, D_v]: the group's rows against their own segments' slots."""
    keys, values = packed.cache.read(layer, group.slots)  # [S * L, H_kv, D]
    segments, longest, context = group.num_segments, group.longest_segment, group.longest_context
    keys = keys.view(segments, context, *keys.shape[1:]).transpose(1, 2)  # [S, H_kv, L, D]
    values = values.view(segments, context, *values.shape[1:]).transpose(1, 2)
    queries = rows if group.places is None else rows.index_select(0, group.places.on(rows.device).gather)
    # Query heads that share a key head are laid beside its rows: [S, H_kv, G * r, D], no repeated keys.
    kv_heads = keys.shape[1]
    queries = queries.view(segments, longest, kv_heads, -1, queries.shape[-1]).permute(0, 2, 3, 1, 4)
    shape = queries.shape[:4]  # (S, H_kv, G, r)
    mask = _mask(group, rules.window, queries, shape[2])
    attended = _attend(queries.flatten(2, 3), keys, values, mask, rules, shape)
    return attended.view(*shape, -1).permute(0, 3, 1, 2, 4).reshape(segments * longest, -1, attended.shape[-1])


def _attend(
    queries: torch.Tensor,  # [S, H_kv, G * r, D]
    keys: torch.Tensor,  # [S, H_kv, L, D]
    values: torch.Tensor,  # [S, H_kv, L, D]
    mask: torch.Tensor | None,  # [S, 1, G * r, L] additive
    rules: LayerRules,
    shape: torch.Size,
) -> torch.Tensor:
    """[S, H_kv, G * r, D]: softmax attention with the layer's extras."""
    if rules.softcap is None and rules.sinks is None:
        return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=rules.scaling)
    scores = (queries @ keys.transpose(-1, -2)).float() * rules.scaling
    if rules.softcap is not None:
        scores = torch.tanh(scores / rules.softcap) * rules.softcap
    if mask is not None:
        scores = scores + mask
    if rules.sinks is not None:
        scores = torch.cat((scores, _sink_column(rules.sinks, shape)), dim=-1)
    weights = scores.softmax(-1)[..., : keys.shape[2]]
    return weights.to(values.dtype) @ values


def _sink_column(sinks: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """[S, H_kv, G * r, 1]: each head's learned score of attending to nothing."""
    segments, kv_heads, group_size, longest = shape
    column = sinks.float().view(1, kv_heads, group_size, 1).expand(segments, -1, -1, longest)
    return column.reshape(segments, kv_heads, group_size * longest, 1)


def _mask(group: AttentionGroup, window: int | None, like: torch.Tensor, group_size: int) -> torch.Tensor | None:
    """Additive mask of the group for one window size, made once per step; None where every row sees every slot."""
    cache_key = (window or 0, like.device)
    if cache_key not in group.masks:
        visible = group.visible
        if window is not None:
            distance = group.query_positions[:, :, None] - group.key_positions[:, None, :]
            visible = visible & (distance < window)
        if visible.all():
            group.masks[cache_key] = None
        else:
            allowed = on_device(visible, torch.bool, like.device).unsqueeze(1)  # [S, 1, r, L]
            mask = torch.zeros(allowed.shape, dtype=like.dtype, device=like.device).masked_fill_(~allowed, float("-inf"))
            group.masks[cache_key] = mask.repeat(1, 1, group_size, 1)
    return group.masks[cache_key]


def _no_mask(*_: Any, **__: Any) -> None:
    """Models ask for a mask of their own; there is none to give."""
