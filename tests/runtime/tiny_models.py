"""Tiny random models of every architecture that is served, each as transformers runs it and as the packed forward runs it."""

from functools import cache
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from dspark.runtime.attention import ATTENTION_NAME, register
from dspark.runtime.model import PackedModel

VOCAB_SIZE = 96
WINDOW = 16
"""Of the sliding layers: shorter than every sequence that the tests decode."""

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,  # tied random weights repeat the last token for ever
    "initializer_range": 0.3,  # the default of 0.02 makes nearly flat logits: all text alike and full of ties
}
HEADS = {"head_dim": 16}

CONFIGS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, HEADS),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, HEADS),
    "qwen3_moe": (Qwen3MoeConfig, HEADS | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}),
    "mistral": (MistralConfig, HEADS | {"sliding_window": WINDOW}),
    "gemma2": (Gemma2Config, HEADS | {"sliding_window": WINDOW, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0}),
    "gemma3": (
        Gemma3TextConfig,
        HEADS
        | {
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "phi3": (Phi3Config, {}),
    "gpt_oss": (
        GptOssConfig,
        HEADS
        | {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": WINDOW,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
            },
        },
    ),
}
ARCHITECTURES = list(CONFIGS)


@cache
def plain_model(name: str, seed: int = 0) -> Any:
    """The reference: transformers with its own eager attention. Shared; do not change it."""
    return _build(name, seed, "eager")


def packed_model(
    name: str, *, seed: int = 0, num_cache_tokens: int = 1024, block_tokens: int = 8, deterministic: bool = False
) -> PackedModel:
    """The same weights behind the packed forward."""
    register()
    model = _build(name, seed, ATTENTION_NAME)
    return PackedModel(model, num_cache_tokens=num_cache_tokens, block_tokens=block_tokens, deterministic=deterministic)


def _build(name: str, seed: int, attention: str) -> Any:
    kind, changes = CONFIGS[name]
    factory: Any = AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return factory.from_config(kind(**(COMMON | changes)), attn_implementation=attention).eval()


@torch.inference_mode()
def plain_logits(name: str, token_ids: list[int], seed: int = 0) -> torch.Tensor:
    """[n, V] after each of the tokens, in one ordinary forward."""
    logits: torch.Tensor = plain_model(name, seed)(torch.tensor([token_ids]), use_cache=False).logits[0]
    return logits


def generate(name: str, prompt: list[int], num_tokens: int) -> list[int]:
    """What transformers' own greedy decoding appends to the prompt."""
    ids = torch.tensor([prompt])
    output = plain_model(name).generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_tokens)
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


def random_prompts(lengths: tuple[int, ...], seed: int = 1) -> list[list[int]]:
    """Token ids, one prompt for each length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]
