"""From a drafter's configuration to a drafter that is ready to run."""

from dataclasses import dataclass

import torch

from dspark.config import DrafterConfig
from dspark.drafting.language_model import BatchDrafter
from dspark.drafting.lookup import LookupDrafter
from dspark.errors import ConfigError
from dspark.runtime.attention import ATTENTION_NAME, register
from dspark.runtime.loading import load_causal_lm, load_tokenizer, model_card, resolve_folder
from dspark.runtime.model import PackedModel
from dspark.types import ModelCard


@dataclass(frozen=True, slots=True)
class LoadedDrafter:
    """A drafting model in memory, and what to tell others of it."""

    drafter: BatchDrafter
    card: ModelCard


def load_drafter(config: DrafterConfig) -> LoadedDrafter:
    """Load the weights of a drafter that has some. Raises ModelLoadError for the checkpoint, ConfigError for another kind."""
    if config.kind != "language_model":
        raise ConfigError(f"a drafter of kind {config.kind!r} has no weights to load", "drafter.kind")
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    register()
    folder = resolve_folder(config)
    card = model_card(folder, config, load_tokenizer(folder))
    model = load_causal_lm(config, attention=ATTENTION_NAME, folder=folder)
    packed = PackedModel(model, num_cache_tokens=config.kv_cache.num_tokens, block_tokens=config.kv_cache.block_tokens)
    packed.warm_up()
    return LoadedDrafter(BatchDrafter(packed, max_length=card.max_length), card)


def lookup_drafter(config: DrafterConfig) -> LookupDrafter:
    """The drafter that needs neither weights nor a replica."""
    return LookupDrafter(min_match=config.lookup_min_match, max_match=config.lookup_max_match)
