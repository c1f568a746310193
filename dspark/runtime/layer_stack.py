"""Decoder layers of a model family taken out of their model: what trained drafters are built from.

The layers are transformers' own, so norms, rotary embedding, activation and scaling are the family's as the configuration says. What
this file adds is a loop over them, and keys and values made from a context vector instead of a hidden state
(paper, "Semi-autoregressive drafter": K = [W_K H_ctx; W_K H_block]).

Symbols: B batch, R rows, L keys, d hidden size, H_kv key/value heads, D head size.
"""

import inspect
import sys
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from dspark.errors import UnsupportedModel

FAMILIES = frozenset({"gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3", "qwen3_moe"})
"""Whose layers `LayerStack` runs as their own model does, by test. Others scale embeddings or logits, clip or join projections, norm
values, leave out rotation in some layers or have attention sinks: nothing would fail, and drafts would be worse than trained."""

Rotations = dict[str | None, tuple[torch.Tensor, torch.Tensor]]
"""(cos, sin), each [B, R, D], by layer type; None where all layers rotate alike."""


def layers_config(layers: dict[str, Any], attention: str) -> PreTrainedConfig:
    """The configuration object of `DraftSpec.layers`. Raises UnsupportedModel for a family whose layers cannot be draft layers."""
    if layers["model_type"] not in FAMILIES:
        raise UnsupportedModel(f"draft layers of type {layers['model_type']!r} are not offered; those of {', '.join(sorted(FAMILIES))} are")
    values = {key: value for key, value in layers.items() if key not in ("model_type", "vocab_size", "pad_token_id")}
    try:
        # The embedding is the target's: a table of one row keeps its place until then.
        config: PreTrainedConfig = AutoConfig.for_model(layers["model_type"], **values, vocab_size=1, pad_token_id=None)
    except Exception as error:  # each family's own configuration class raises what it likes
        raise UnsupportedModel(f"no draft layers of type {layers['model_type']!r} can be built ({error})") from error
    config._attn_implementation = attention
    return config


class LayerStack:
    """The parts of a family's base model, and one way through them. Not a module: its parts belong to whoever holds them."""

    def __init__(self, layers: dict[str, Any], attention: str) -> None:
        """New layers at random. `attention` is the name of a registered attention function. Raises UnsupportedModel."""
        self.config = layers_config(layers, attention)
        build: Any = AutoModel
        model = build.from_config(self.config)
        self.embed_tokens: nn.Embedding = model.embed_tokens
        self.layers: nn.ModuleList = model.layers
        self.norm: nn.Module = model.norm
        self.rotary: nn.Module = model.rotary_emb
        self._rotary_device = torch.device("cpu")
        self.layer_types: list[str | None] = [None] * len(self.layers)
        if "layer_type" in inspect.signature(self.rotary.forward).parameters:
            self.layer_types = list(self.config.layer_types)

    def rotations(self, like: torch.Tensor, positions: torch.Tensor) -> Rotations:
        """Of `positions` [B, R], in the dtype of `like`."""
        if self._rotary_device != like.device:
            # Nobody's submodule, so nobody moved it; nor may it ever leave float32.
            self.rotary.to(like.device)
            self._rotary_device = like.device
        kinds = dict.fromkeys(self.layer_types)
        return {kind: self.rotary(like, positions, *([kind] if kind else [])) for kind in kinds}

    def run(self, hidden: torch.Tensor, positions: torch.Tensor, **attention_arguments: Any) -> torch.Tensor:
        """[B, R, d] after all layers and the final norm, from embeddings [B, R, d]; the arguments reach the attention function."""
        rotations = self.rotations(hidden, positions)
        for kind, layer in zip(self.layer_types, self.layers, strict=True):
            output = layer(
                hidden, attention_mask=None, position_ids=positions, position_embeddings=rotations[kind], **attention_arguments
            )
            hidden = output[0] if isinstance(output, tuple) else output
        normed: torch.Tensor = self.norm(hidden)
        return normed

    def context_keys_values(
        self, layer: int, context: torch.Tensor, rotations: Rotations
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated keys and values [B, H_kv, R, D] of one layer for context vectors [B, R, d] at the rotations' positions."""
        attention: Any = self.layers[layer].self_attn
        heads = (-1, attention.head_dim)
        keys, values = attention.k_proj(context).unflatten(-1, heads), attention.v_proj(context).unflatten(-1, heads)
        keys = normed_keys(attention, keys).transpose(1, 2)
        return rotated_keys(attention, keys, rotations[self.layer_types[layer]]), values.transpose(1, 2)


def normed_keys(attention: Any, keys: torch.Tensor) -> torch.Tensor:
    """[..., D] as the family's attention norms them, if it does."""
    normed: torch.Tensor = attention.k_norm(keys) if hasattr(attention, "k_norm") else keys
    return normed


def rotated_keys(attention: Any, keys: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """[..., H_kv, R, D] as the family rotates them."""
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb  # each family has its own, which wants queries too
    rotated: torch.Tensor = rotate(keys[:, :0], keys, *rotation)[1]
    return rotated


def family_norm(layers: dict[str, Any]) -> nn.Module:
    """A norm over d of the family's own kind, as new."""
    with torch.device("meta"):
        stack = LayerStack(layers | {"num_hidden_layers": 1, "layer_types": None}, "eager")
    norm: Any = type(stack.norm)
    made: nn.Module = norm(stack.config.hidden_size, eps=stack.config.rms_norm_eps)
    return made


def within_window(
    visible: torch.Tensor,  # [B or 1, 1, R, L] bool
    query_positions: torch.Tensor,  # [B, R]
    key_positions: torch.Tensor,  # [B, L]
    window: int | None,
) -> torch.Tensor:
    """[B, 1, R, L] `visible` as a layer with that sliding window sees it: the rule that serving has in runtime/attention.py."""
    if window is None:
        return visible
    distances = query_positions.unsqueeze(-1) - key_positions.unsqueeze(1)  # [B, R, L]
    return visible & (distances < window).unsqueeze(1)
