"""Tiny drafters with random weights: a specification, and the tensors that it asks for."""

from dataclasses import replace
from typing import Any

import torch

from dspark.runtime.draft_spec import DraftSpec
from dspark.runtime.draft_tensors import MAPS, required_tensors, shared_tensors

LAYERS: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128,
    "rope_parameters": {"rope_theta": 10_000.0, "rope_type": "default"},
}
SPEC = DraftSpec(
    kind="block",
    layers=LAYERS,
    num_target_layers=6,
    tap_layers=(-1, 1, 4),
    vocab_size=40,
    draft_vocab_size=40,
    block_size=4,
    mask_token_id=39,
    head="vanilla",
    markov_rank=4,
    confidence=True,
    confidence_with_markov=True,
    target_fingerprint="abc",
)
EAGLE = DraftSpec(
    kind="eagle",
    layers=LAYERS | {"num_hidden_layers": 1},
    num_target_layers=6,
    tap_layers=(0, 2, 4),
    vocab_size=40,
    draft_vocab_size=12,
    block_size=5,
)
SPECS: dict[str, DraftSpec] = {
    "vanilla": SPEC,
    "gated": replace(SPEC, head="gated"),
    "rnn": replace(SPEC, head="rnn", confidence_with_markov=False),
    "dflash": replace(SPEC, head="none", markov_rank=0, confidence=False, confidence_with_markov=False, target_fingerprint=""),
    "reduced": replace(SPEC, draft_vocab_size=12),
    "llama": replace(SPEC, layers=LAYERS | {"model_type": "llama", "num_hidden_layers": 1}),
    "gemma": replace(SPEC, layers=LAYERS | {"model_type": "gemma3_text", "sliding_window": 64, "query_pre_attn_scalar": 8}),
}


def random_tensors(spec: DraftSpec, *, shared: bool = False, seed: int = 0) -> dict[str, torch.Tensor]:
    """All that the drafter needs; with `shared` also what it could take from its target."""
    generator = torch.Generator().manual_seed(seed)
    shapes = required_tensors(spec) | (shared_tensors(spec) if shared else {})
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items() if name not in MAPS}
    return tensors | (vocabulary_maps(spec) if spec.draft_vocab_size < spec.vocab_size else {})


def vocabulary_maps(spec: DraftSpec) -> dict[str, torch.Tensor]:
    """Every third target token from the second on."""
    ids = torch.arange(spec.draft_vocab_size) * 3 + 1
    t2d = torch.zeros(spec.vocab_size, dtype=torch.bool)
    t2d[ids] = True
    return {"d2t": ids - torch.arange(len(ids)), "t2d": t2d}
