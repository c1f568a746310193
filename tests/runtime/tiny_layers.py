"""Tiny draft layers of every family that is offered, and the plainest causal attention to run them with."""

import sys
from typing import Any

import torch
from transformers import AttentionInterface

from tests.runtime.tiny_drafters import LAYERS

CAUSAL = "test_causal"
WINDOW = 8
_GEMMA = {"query_pre_attn_scalar": 8, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}

FAMILY_LAYERS: dict[str, dict[str, Any]] = {
    "qwen3": LAYERS,
    "qwen2": LAYERS | {"model_type": "qwen2"},
    "qwen3_moe": LAYERS | {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "llama": LAYERS | {"model_type": "llama"},
    "mistral": LAYERS | {"model_type": "mistral", "sliding_window": WINDOW},
    "gemma": LAYERS | {"model_type": "gemma"},
    "gemma2": LAYERS | _GEMMA | {"model_type": "gemma2", "attn_logit_softcapping": 2.0, "final_logit_softcapping": 20.0},
    "gemma3": LAYERS | _GEMMA | {"model_type": "gemma3_text"},
}
WINDOWED = ("mistral", "gemma2", "gemma3")


def register_causal() -> None:
    """Make CAUSAL known to transformers."""
    AttentionInterface.register(CAUSAL, causal_attention)


def causal_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> Any:
    """The family's own eager attention under a causal mask, cut to the layer's window."""
    rows = torch.arange(query.shape[2])
    distance = rows.unsqueeze(1) - rows.unsqueeze(0)  # [R, R]
    hidden = (distance < 0) | (distance >= (options.get("sliding_window") or len(rows)))
    mask = torch.zeros(hidden.shape).masked_fill(hidden, float("-inf"))
    return sys.modules[type(module).__module__].eager_attention_forward(module, query, key, value, mask[None, None], **options)


def randomise(parameters: Any, seed: int = 0) -> None:
    """Numbers as large as those of a trained model; also where a family starts from ones or zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.5, generator=generator)
