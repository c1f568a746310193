"""From a target's configuration to a verifier that is ready to run."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from dspark.config import FEATURE_KINDS, DrafterConfig, TargetConfig
from dspark.errors import ConfigError, InvalidMessage, ModelLoadError
from dspark.runtime.attention import ATTENTION_NAME, register
from dspark.runtime.loading import load_causal_lm, load_tokenizer, model_card, resolve_folder
from dspark.runtime.model import PackedModel
from dspark.runtime.projection import load_projection
from dspark.scheduling.curve import ThroughputCurve
from dspark.types import ModelCard
from dspark.verifying.feature_store import Projection
from dspark.verifying.profile import load_or_measure
from dspark.verifying.verifier import BatchVerifier

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedTarget:
    """A target in memory, and what to tell others of it."""

    verifier: BatchVerifier
    card: ModelCard
    packed_model: PackedModel
    config: TargetConfig
    _weights: PreTrainedModel
    _projections: tuple[Projection, ...] = ()

    def with_own_cache(self, drafters: Sequence[DrafterConfig] = ()) -> "LoadedTarget":
        """The same weights with other sessions and another cache: two step loops must never share a verifier.

        `drafters` are more of those that read hidden states.
        """
        projections = (*self._projections, *_load_projections(drafters, self.packed_model.device))
        return _put_together(self.config, self.card, self._weights, projections)

    def profile(self) -> ThroughputCurve | None:
        """What a step costs here and now (profile.py); None where the configuration says not to ask. Blocks for a few seconds.

        Before the first session only. Raises ModelLoadError if the file that `profile.path` names is no curve.
        """
        return load_or_measure(self.packed_model, self.config, self.card)


def load_target(config: TargetConfig, drafters: Sequence[DrafterConfig] = ()) -> LoadedTarget:
    """Load weights, take the cache's memory, run one row. Takes seconds to minutes; blocks.

    Of those `drafters` that read hidden states, the projection is loaded too, so that d numbers per token travel.
    Raises ModelLoadError for the checkpoint, ConfigError for lengths, and for a drafter's taps, that do not fit the model.
    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    register()
    folder = resolve_folder(config)  # once: for a hub name every look-up asks the hub
    weights = load_causal_lm(config, attention=ATTENTION_NAME, folder=folder)
    device = weights.get_input_embeddings().weight.device
    assert isinstance(device, torch.device)
    return _put_together(config, target_card(config, folder), weights, _load_projections(drafters, device))


def _load_projections(drafters: Sequence[DrafterConfig], device: torch.device) -> tuple[Projection, ...]:
    """A checkpoint that cannot be read here is its Draft replica's to complain of: its sessions get raw taps."""
    projections: list[Projection] = []
    for drafter in drafters:
        if drafter.kind not in FEATURE_KINDS:
            continue
        try:
            projections.append(load_projection(drafter, device))
        except ModelLoadError as error:
            logger.warning("the projection of drafter %s is not loaded, so raw taps will travel: %s", drafter.model, error)
    return tuple(projections)


def _put_together(
    config: TargetConfig, card: ModelCard, weights: PreTrainedModel, projections: tuple[Projection, ...]
) -> LoadedTarget:
    packed = PackedModel(
        weights,
        num_cache_tokens=config.kv_cache.num_tokens,
        block_tokens=config.kv_cache.block_tokens,
        deterministic=config.deterministic,
    )
    for projection in projections:
        _check_taps(packed, projection)
    packed.warm_up()
    verifier = BatchVerifier(packed, max_length=card.max_length, max_batch_rows=config.max_batch_rows, projections=projections)
    return LoadedTarget(verifier, card, packed, config, weights, projections)


def _check_taps(packed: PackedModel, projection: Projection) -> None:
    """Told when the target starts: later, it would fail every session that drafts."""
    try:
        packed.taps.check(projection.tap_layers)
    except InvalidMessage as error:
        raise ConfigError(
            f"the drafter reads layers {list(projection.tap_layers)} of a target with {packed.taps.num_layers}: {error.message}",
            "drafter.model",
        ) from error


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
