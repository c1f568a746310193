"""Keys and values of all draft layers for new context positions at once, for serving.

Each layer makes its own from the same vectors (layer_stack.py). A round brings a few positions, for which telling a product costs more
than doing it: so the layers' weights stand one above the other, one product makes everything, and layers that rotate alike rotate
together.

Symbols: C positions, N layers, d hidden size, H_kv key/value heads, D head size.
"""

from collections.abc import Iterator
from typing import Any

import torch

from dspark.runtime.layer_stack import LayerStack, Rotations, normed_keys, rotated_keys
from dspark.runtime.weight_layout import PackedLinear, by_columns, linear, packed


class StackedContext:
    """Of one stack whose weights will not change any more; they may be laid out for serving already."""

    def __init__(self, stack: LayerStack) -> None:
        self._attentions: list[Any] = [layer.self_attn for layer in stack.layers]
        self._layer_types = stack.layer_types
        projections = [part for attention in self._attentions for part in (attention.k_proj, attention.v_proj)]
        weight = torch.cat([part.weight.detach() for part in projections])  # [N * 2 * H_kv * D, d]
        biases = [part.bias.detach() for part in projections if part.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        self._weight: torch.Tensor | PackedLinear = PackedLinear(weight) if packed(weight) else by_columns(weight)

    def keys_values(self, context: torch.Tensor, rotations: Rotations) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Of each layer in turn: rotated keys and values, each [C, H_kv, D], for context vectors [1, C, d] at the rotations' positions."""
        made = linear(context[0], self._weight)
        if self._bias is not None:
            made = made + self._bias
        by_layer = made.view(len(made), len(self._attentions), 2, -1, self._attentions[0].head_dim)  # [C, N, 2, H_kv, D]
        keys = [normed_keys(attention, by_layer[:, n, 0]).transpose(0, 1) for n, attention in enumerate(self._attentions)]  # [H_kv, C, D]
        rotated: dict[int, torch.Tensor] = {}
        for kind in rotations:
            alike = [n for n, own in enumerate(self._layer_types) if own == kind]
            together = rotated_keys(self._attentions[0], torch.stack([keys[n] for n in alike]), rotations[kind])
            rotated |= zip(alike, together, strict=True)
        for n in range(len(self._attentions)):
            yield rotated[n].transpose(0, 1), by_layer[:, n, 1]
