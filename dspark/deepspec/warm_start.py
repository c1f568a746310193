"""First weights taken from the target instead of drawn at random: layers of the same family that already know its embeddings and its
features. On the shipped target this saved most of the first quarter of a run (docs/measurements.md).

Symbols: d hidden size, m taps.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from dspark.drafting.block_model import BlockModel
from dspark.drafting.eagle_model import EagleModel


def start_block(model: BlockModel, target: Any) -> None:
    """Draft layers from target layers evenly spread between the first and the last; features begin as the deepest tap's."""
    layers = target.get_decoder().layers
    chosen = [int(index) for index in np.linspace(0, len(layers) - 1, len(model.layers)).round()]
    for own, index in zip(model.layers, chosen, strict=True):
        _copy_where_shapes_agree(own, layers[index])
    _copy_where_shapes_agree(model.norm, target.get_decoder().norm)
    _read_deepest_tap(model.fc)
    _copy_where_shapes_agree(model.hidden_norm, layers[-1].input_layernorm)


def start_eagle(model: EagleModel, target: Any) -> None:
    """The layer from the target's last one: its attention reads the features as it read the hidden state, and not yet the token."""
    last = target.get_decoder().layers[-1]
    _copy_where_shapes_agree(model.midlayer, last)
    _copy_where_shapes_agree(model.midlayer.hidden_norm, last.input_layernorm)
    _copy_where_shapes_agree(model.norm, target.get_decoder().norm)
    _read_deepest_tap(model.fc)
    width = model.spec.hidden_size
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj"):
            own, theirs = getattr(model.midlayer.self_attn, name), getattr(last.self_attn, name)
            if own.out_features == theirs.out_features:
                own.weight[:, width:].copy_(theirs.weight)


def _read_deepest_tap(fc: nn.Linear) -> None:
    """[d, m * d]: the last tap as it is, the others at a fifth, so that they are heard from the first step on."""
    width, taps = fc.out_features, fc.in_features // fc.out_features
    with torch.no_grad():
        for tap in range(taps):
            fc.weight[:, tap * width : (tap + 1) * width] = torch.eye(width) * (1.0 if tap == taps - 1 else 0.2)


def _copy_where_shapes_agree(own: nn.Module, theirs: nn.Module) -> None:
    """A drafter may have wider or narrower MLPs than its target: those stay as they were drawn."""
    given = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            if name in given and given[name].shape == parameter.shape:
                parameter.copy_(given[name])
