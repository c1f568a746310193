"""From a drafter's configuration to a drafter that is ready to run."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dspark.config import FEATURE_KINDS, DrafterConfig, ModelSource, TargetConfig
from dspark.drafting.batch import CachedDrafter
from dspark.drafting.block import BlockDrafter
from dspark.drafting.block_model import BlockModel
from dspark.drafting.calibration_watch import WatchedCalibration
from dspark.drafting.eagle import EagleDrafter
from dspark.drafting.eagle_model import EagleModel
from dspark.drafting.language_model import BatchDrafter
from dspark.drafting.lookup import LookupDrafter
from dspark.drafting.profile import profile_drafter
from dspark.drafting.shared_weights import SharedWeights
from dspark.errors import ConfigError, FingerprintMismatch
from dspark.messages import ContextFeatures, DraftRequest, SessionOpen
from dspark.runtime.attention import ATTENTION_NAME, register
from dspark.runtime.draft_formats import DraftCheckpoint, check_target, read_draft_checkpoint
from dspark.runtime.fingerprints import model_fingerprint
from dspark.runtime.loading import dtype_of, load_causal_lm, load_tokenizer, model_card, resolve_folder
from dspark.runtime.model import PackedModel
from dspark.runtime.projection import FeatureProjection
from dspark.runtime.weight_layout import lay_out_linears
from dspark.scheduling.draft_cost import DraftCall
from dspark.types import ModelCard, SamplingParams, SessionId

WARM_UP_NODES = 2
"""The first comes from the features, the second from the first."""


@dataclass(frozen=True, slots=True)
class LoadedDrafter:
    """A drafting model in memory, and what to tell others of it."""

    drafter: CachedDrafter[Any]
    card: ModelCard
    config: DrafterConfig
    hidden_size: int | None = None
    """Of the features that it reads; None for one that reads tokens."""

    def profile(self) -> tuple[DraftCall, ...]:
        """What its calls take. Blocks for as long as that takes, a second or so; nobody else may use the drafter meanwhile."""
        return profile_drafter(self.drafter, self.config, self.hidden_size)


def load_drafter(config: DrafterConfig, target: ModelSource) -> LoadedDrafter:
    """Load the weights of a drafter that has some; block and eagle drafters take embedding and LM head from the target's folder.

    Raises ModelLoadError for a checkpoint, FingerprintMismatch for a drafter of another target, ConfigError for another kind.
    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    register()
    if config.kind == "language_model":
        return _load_language_model(config)
    if config.kind not in FEATURE_KINDS:
        raise ConfigError(f"a drafter of kind {config.kind!r} has no weights to load", "drafter.kind")
    checkpoint = read_draft_checkpoint(resolve_folder(config))
    if checkpoint.spec.kind != config.kind:
        raise ConfigError(f"{checkpoint.folder} holds a drafter of kind {checkpoint.spec.kind!r}", "drafter.kind")
    return drafter_of(checkpoint, config, resolve_folder(target))


def drafter_of(checkpoint: DraftCheckpoint, config: DrafterConfig, target: Path) -> LoadedDrafter:
    """A feature-reading drafter from a checkpoint in memory, for the target in a folder."""
    spec = checkpoint.spec
    if spec.target_fingerprint not in ("", model_fingerprint(target)):
        raise FingerprintMismatch(f"{checkpoint.folder} was trained for another target than {target}")
    check_target(checkpoint.folder, spec, target)
    dtype = dtype_of(config)
    shared = SharedWeights.from_folder(target, dtype, config.device)
    projection = FeatureProjection(spec, checkpoint.fingerprint)
    projection.load(checkpoint.tensors, checkpoint.folder)
    projection = projection.to(config.device).requires_grad_(False).eval()  # in float32, as the target has it
    card = _card(checkpoint, target)
    cache: dict[str, Any] = {
        "max_length": card.max_length,
        "num_cache_tokens": config.kv_cache.num_tokens,
        "block_tokens": config.kv_cache.block_tokens,
        "min_survival": config.min_survival,
    }
    calibration = WatchedCalibration(checkpoint.folder)
    drafter: CachedDrafter[Any]
    if spec.kind == "block":
        model = BlockModel.from_checkpoint(checkpoint, shared, ATTENTION_NAME).to(config.device, dtype)
        model.lay_out_for_serving()
        model.vocabulary = model.vocabulary.on(projection.fc.weight.device)
        drafter = BlockDrafter(model, projection, **cache)
    else:
        eagle = EagleModel.from_checkpoint(checkpoint, shared, ATTENTION_NAME).to(config.device, dtype)
        lay_out_linears(eagle)
        eagle.vocabulary = eagle.vocabulary.on(projection.fc.weight.device)
        drafter = EagleDrafter(eagle, projection, **cache)
    drafter.follow(calibration)
    warm_up(drafter, spec.hidden_size)
    return LoadedDrafter(drafter, card, config, spec.hidden_size)


def warm_up(drafter: CachedDrafter[Any], hidden_size: int) -> None:
    """Have a feature-reading drafter take its cache's memory and run once: the first draft of a session would take as long as a hundred
    later ones, and a router would believe that this is what it costs."""
    name, nothing = SessionId("warm-up"), ContextFeatures(0, np.zeros((1, hidden_size), np.uint16), projected=True)
    drafter.open(SessionOpen(name, (0, 0), SamplingParams(temperature=1.0)))
    drafter.draft([DraftRequest(name, 2, (), WARM_UP_NODES, WARM_UP_NODES, nothing, 1)])
    drafter.close(name)


def lookup_drafter(config: DrafterConfig) -> LookupDrafter:
    """The drafter that needs neither weights nor a replica."""
    return LookupDrafter(min_match=config.lookup_min_match, max_match=config.lookup_max_match)


def _load_language_model(config: DrafterConfig) -> LoadedDrafter:
    folder = resolve_folder(config)
    card = model_card(folder, config, load_tokenizer(folder))
    model = load_causal_lm(config, attention=ATTENTION_NAME, folder=folder)
    packed = PackedModel(model, num_cache_tokens=config.kv_cache.num_tokens, block_tokens=config.kv_cache.block_tokens)
    packed.warm_up()
    drafter = BatchDrafter(packed, max_length=card.max_length, min_survival=config.min_survival)
    drafter.follow(WatchedCalibration(folder))
    return LoadedDrafter(drafter, card, config)


def _card(checkpoint: DraftCheckpoint, target: Path) -> ModelCard:
    """Ids mean what the target's tokenizer says; the drafter has none of its own. It reaches as far as the target does."""
    card = model_card(target, TargetConfig(), load_tokenizer(target))
    return replace(
        card,
        name=checkpoint.folder.name,
        model_fingerprint=checkpoint.fingerprint,
        tap_layers=checkpoint.spec.tap_layers,
    )
