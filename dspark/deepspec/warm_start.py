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
from dspark.drafting.heads import W1_STD
from dspark.errors import ConfigError
from dspark.runtime.draft_spec import DraftSpec


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


def with_head(tensors: dict[str, torch.Tensor], before: DraftSpec, spec: DraftSpec) -> dict[str, torch.Tensor]:
    """A trained drafter's tensors for a specification with a larger sequential head: from vanilla to rnn, of no lower rank.

    The new head starts as the old one: its output is half of W1[x], small enough for tanh to leave it nearly alone, and W2 doubles it.
    Raises ConfigError for any other change.
    """
    if (before.head, before.markov_rank) == (spec.head, spec.markov_rank):
        return tensors
    if (before.head, spec.head) != ("vanilla", "rnn") or before.markov_rank > spec.markov_rank:
        raise ConfigError(
            f"a {before.head} head of rank {before.markov_rank} cannot go on as {spec.head} of rank {spec.markov_rank}", "drafter.head"
        )
    rank, added = spec.markov_rank, spec.markov_rank - before.markov_rank
    joint = torch.zeros(3 * rank, 2 * rank + spec.hidden_size)  # reads [s; W1[x]; h], gives (gate, candidate, output)
    nn.init.normal_(joint[: 2 * rank], std=joint.shape[1] ** -0.5)
    joint[2 * rank :, rank : 2 * rank] = 0.5 * torch.eye(rank)
    w1, w2 = (tensors[f"markov_head.{name}.weight"].float() for name in ("markov_w1", "markov_w2"))
    grown = dict(tensors)
    grown["markov_head.joint_proj.weight"] = joint
    grown["markov_head.joint_proj.bias"] = torch.zeros(3 * rank)
    grown["markov_head.markov_w1.weight"] = torch.cat((w1, W1_STD * torch.randn(len(w1), added)), dim=1)
    grown["markov_head.markov_w2.weight"] = torch.cat((2 * w2, torch.zeros(len(w2), added)), dim=1)
    return _with_confidence_input(grown, added) if spec.confidence_with_markov else grown


def _with_confidence_input(tensors: dict[str, torch.Tensor], added: int) -> dict[str, torch.Tensor]:
    """The confidence head reads W1[x] too: its new inputs start unheard."""
    weight = tensors["confidence_head.proj.weight"].float()
    return tensors | {"confidence_head.proj.weight": torch.cat((weight, torch.zeros(1, added)), dim=1)}
