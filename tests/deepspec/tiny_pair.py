"""A tiny random target, and a drafter that has really learned to read its layers (1, 3): about three seconds on one core."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from dspark.deepspec.features import OnlineFeatures
from dspark.drafting.block_model import BlockModel
from dspark.drafting.shared_weights import SharedWeights
from dspark.runtime.draft_configs import layer_config
from dspark.runtime.draft_spec import DraftSpec

VOCAB_SIZE = 48
NUM_LAYERS = 6
NUM_TEXTS, TEXT_LENGTH = 32, 64
FIRST_ANCHOR = 2
STEPS = 120


@dataclass(frozen=True, slots=True)
class TinyPair:
    """Drafter, its target, and the text it was trained on."""

    target: Path
    spec: DraftSpec
    tensors: dict[str, torch.Tensor]
    texts: list[list[int]]


def write_target(folder: Path, seed: int = 1, **changes: Any) -> Qwen3Config:
    """Weights large enough that neighbouring layers differ as they do in a trained model."""
    options: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "tie_word_embeddings": False}
    config = Qwen3Config(
        intermediate_size=64,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.3,
        **(options | changes),
    )
    build: Any = AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        build.from_config(config).save_pretrained(folder)
    return config


@cache
def trained_pair(folder: Path) -> TinyPair:
    """Made once for each folder; seeds are fixed."""
    config = write_target(folder / "target")
    layers = layer_config(config.to_dict()) | {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    spec = DraftSpec("block", layers, NUM_LAYERS, (1, 3), VOCAB_SIZE, VOCAB_SIZE, block_size=2, mask_token_id=3)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        texts = torch.randint(0, VOCAB_SIZE, (NUM_TEXTS, TEXT_LENGTH))  # [B, S]
        model = BlockModel(spec, SharedWeights.from_folder(folder / "target", torch.float32))
        _train(model, OnlineFeatures(folder / "target", spec.tap_layers, "cpu"), texts)
    return TinyPair(folder / "target", spec, model.own_tensors(), texts.tolist())


def _train(model: BlockModel, features: OnlineFeatures, texts: torch.Tensor) -> None:
    """Every block of all texts at once, cross-entropy against target_probs."""
    view = features.view(texts, torch.full((NUM_TEXTS,), TEXT_LENGTH))
    anchors = torch.arange(FIRST_ANCHOR, TEXT_LENGTH - model.spec.block_size).expand(NUM_TEXTS, -1)  # [B, A]
    places = anchors.unsqueeze(-1) + torch.arange(model.spec.block_size)  # [B, A, K]
    rows = torch.arange(NUM_TEXTS).view(-1, 1, 1)
    target_probs = features.logits(view.hidden).softmax(-1)[rows, places]  # [B, A, K, V]
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=5e-3)
    for _ in range(STEPS):
        logits = model.teacher_forced(view.taps, texts.gather(1, anchors), anchors, texts[rows, places]).draft
        loss = -(target_probs * logits.log_softmax(-1)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
