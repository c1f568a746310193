"""From a target's configuration to a verifier that is ready to run."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from dspark.config import TargetConfig
from dspark.errors import ConfigError
from dspark.runtime.attention import ATTENTION_NAME, register
from dspark.runtime.loading import load_causal_lm, load_tokenizer, model_card, resolve_folder
from dspark.runtime.model import PackedModel
from dspark.types import ModelCard
from dspark.verifying.verifier import BatchVerifier


@dataclass(frozen=True, slots=True)
class LoadedTarget:
    """A target in memory, and what to tell others of it."""

    verifier: BatchVerifier
    card: ModelCard
    packed_model: PackedModel
    config: TargetConfig
    _weights: PreTrainedModel

    def with_own_cache(self) -> "LoadedTarget":
        """The same weights with other sessions and another cache: two step loops must never share a verifier."""
        return _put_together(self.config, self.card, self._weights)


def load_target(config: TargetConfig) -> LoadedTarget:
    """Load weights, take the cache's memory, run one row. Takes seconds to minutes; blocks.

    Raises ModelLoadError for the checkpoint, ConfigError for lengths that do not fit together.
    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    register()
    folder = resolve_folder(config)  # once: for a hub name every look-up asks the hub
    weights = load_causal_lm(config, attention=ATTENTION_NAME, folder=folder)
    return _put_together(config, target_card(config, folder), weights)


def _put_together(config: TargetConfig, card: ModelCard, weights: PreTrainedModel) -> LoadedTarget:
    packed = PackedModel(
        weights,
        num_cache_tokens=config.kv_cache.num_tokens,
        block_tokens=config.kv_cache.block_tokens,
        deterministic=config.deterministic,
    )
    packed.warm_up()
    verifier = BatchVerifier(packed, max_length=card.max_length, max_batch_rows=config.max_batch_rows)
    return LoadedTarget(verifier, card, packed, config, weights)


def target_card(config: TargetConfig, folder: Path | None = None) -> ModelCard:
    """The card without the weights: what a router needs before it meets a replica.

    A request may use at most what the model, the configuration and the KV cache allow; the smallest of them is its `max_length`.
    `folder` saves a look-up where the caller has resolved it.
    """
    folder = folder or resolve_folder(config)
    card = model_card(folder, config, load_tokenizer(folder))
    block_tokens = config.kv_cache.block_tokens
    limits = [card.max_length, max(1, config.kv_cache.num_tokens // block_tokens) * block_tokens]
    if config.max_length is not None:
        if config.max_length > card.max_length:
            raise ConfigError(f"target.max_length {config.max_length} is above the model's {card.max_length}", "target.max_length")
        limits.append(config.max_length)
    name = config.served_name or card.name
    return ModelCard(name, card.vocab_size, min(limits), card.eos_token_ids, card.model_fingerprint, card.tokenizer_fingerprint)
