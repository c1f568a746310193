"""From a recipe to a drafter that can be trained: its specification, derived from the target's own configuration, and its weights.

Symbols: V target vocabulary, d hidden size.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from dspark.deepspec.data import SampleSet
from dspark.deepspec.features import OnlineFeatures
from dspark.deepspec.losses import LossWeights
from dspark.deepspec.recipe import DrafterShape, Recipe
from dspark.deepspec.trainees import BlockTrainee, EagleTrainee, LanguageModelTrainee, Trainee
from dspark.deepspec.warm_start import start_block, start_eagle, with_head
from dspark.drafting.block_model import BlockModel
from dspark.drafting.eagle_model import EagleModel
from dspark.drafting.shared_weights import SharedWeights
from dspark.drafting.vocabulary import DraftVocabulary
from dspark.errors import ConfigError
from dspark.runtime.checkpoint import CONFIG, check_folder, read_json
from dspark.runtime.draft_configs import layer_config
from dspark.runtime.draft_formats import read_draft_checkpoint
from dspark.runtime.draft_spec import DraftSpec
from dspark.runtime.fingerprints import model_fingerprint

DEFAULT_TAPS = 5
MASK_TOKENS = ("<|mask|>", "[MASK]", "<mask>")
VOCABULARY_SAMPLES = 4096
"""Samples counted to find the most frequent tokens."""


def draft_spec(shape: DrafterShape, target: Path, tokenizer: PreTrainedTokenizerFast) -> DraftSpec:
    """The specification of a drafter of this shape for the target in a folder. Raises ConfigError for what does not fit it."""
    config = read_json(target / CONFIG)
    num_target_layers = int(config["num_hidden_layers"])
    taps = default_taps(num_target_layers) if shape.tap_layers is None else shape.tap_layers
    if list(taps) != sorted(set(taps)) or not all(-1 <= tap < num_target_layers - 1 for tap in taps):
        raise ConfigError(f"tap_layers {taps} must grow and stay within -1..{num_target_layers - 2}", "drafter.tap_layers")
    is_block = shape.kind in ("dspark", "dflash")
    has_head = shape.kind == "dspark"
    return DraftSpec(
        kind="block" if is_block else "eagle",
        layers=_layers(config, shape),
        num_target_layers=num_target_layers,
        tap_layers=tuple(taps),
        vocab_size=int(config["vocab_size"]),
        draft_vocab_size=min(shape.draft_vocab_size or int(config["vocab_size"]), int(config["vocab_size"])),
        block_size=shape.block_size,
        mask_token_id=_mask_token_id(shape, tokenizer) if is_block else None,
        head=shape.head if has_head else "none",
        markov_rank=shape.markov_rank if has_head else 0,
        confidence=shape.confidence and is_block,
        confidence_with_markov=shape.confidence and has_head,
        target_fingerprint=model_fingerprint(target),
    )


def default_taps(num_target_layers: int) -> tuple[int, ...]:
    """Five layers evenly spread between the second and the last but two; of a shallow target, the layers before the last."""
    if num_target_layers < DEFAULT_TAPS + 3:
        return tuple(range(max(0, num_target_layers - 1 - DEFAULT_TAPS), num_target_layers - 1))
    return tuple(int(tap) for tap in np.linspace(1, num_target_layers - 3, DEFAULT_TAPS).round())


def build_trainee(recipe: Recipe, features: OnlineFeatures, spec: DraftSpec | None, samples: SampleSet) -> Trainee:
    """The drafter with its first weights: the target's, random ones, or those of `init_from`. A language model has no specification."""
    torch.manual_seed(recipe.training.seed)
    loss = recipe.training.loss
    weights = LossWeights(loss.cross_entropy, loss.l1, loss.confidence, loss.decay)
    if spec is None:
        return _language_model(recipe, features, weights)
    shared = SharedWeights(features.embedding, features.lm_head)
    start = None if recipe.init_from is None else read_draft_checkpoint(Path(recipe.init_from))
    if start is not None:
        check_start(start.folder, start.spec, spec)
    if spec.kind == "block":
        model = BlockModel(spec, shared)
        if start is not None:
            model.load(with_head(start.tensors, start.spec, spec), start.folder)
        elif recipe.drafter.start == "target":
            start_block(model, features.model)
        return BlockTrainee(model, weights)
    vocabulary = _vocabulary(spec, samples)
    if start is not None and "d2t" in start.tensors:
        vocabulary = DraftVocabulary.from_offsets(start.tensors["d2t"], spec.vocab_size)
    eagle = EagleModel(spec, shared, vocabulary)
    if start is not None:
        eagle.load(start.tensors, start.folder)
    elif recipe.drafter.start == "target":
        start_eagle(eagle, features.model)
    return EagleTrainee(eagle, weights)


def check_start(folder: Path, start: DraftSpec, wanted: DraftSpec) -> None:
    """Raise ConfigError naming the recipe's field if weights of the drafter in `folder` would mean something else in the wanted one.

    Its sequential head may grow (warm_start.with_head), its blocks may become longer or shorter, and another target of the same shape
    may take it over.
    """
    if start.kind != wanted.kind or start.layers != wanted.layers:
        keys = sorted(key for key in {*start.layers, *wanted.layers} if start.layers.get(key) != wanted.layers.get(key))
        differing = f"kind {start.kind!r}" if start.kind != wanted.kind else f"layers differ in {', '.join(keys)}"
        raise ConfigError(f"{folder} is another drafter than the recipe describes ({differing})", "init_from")
    if start.vocab_size != wanted.vocab_size:
        raise ConfigError(f"{folder} was made for a target of {start.vocab_size} tokens, not of {wanted.vocab_size}", "target")
    if start.num_target_layers not in (0, wanted.num_target_layers):
        raise ConfigError(
            f"{folder} was made for a target of {start.num_target_layers} layers, not of {wanted.num_target_layers}", "target"
        )
    if start.tap_layers != wanted.tap_layers:
        raise ConfigError(f"{folder} reads the layers {start.tap_layers}, not {wanted.tap_layers}", "drafter.tap_layers")
    if start.mask_token_id != wanted.mask_token_id:
        raise ConfigError(f"{folder} fills blocks with token {start.mask_token_id}, not {wanted.mask_token_id}", "drafter.mask_token")
    if start.confidence != wanted.confidence:
        raise ConfigError(f"{folder} has {'a' if start.confidence else 'no'} confidence head, unlike the recipe", "drafter.confidence")
    if start.draft_vocab_size != wanted.draft_vocab_size:
        sizes = f"{start.draft_vocab_size} tokens, not from {wanted.draft_vocab_size}"
        raise ConfigError(f"{folder} drafts from {sizes}", "drafter.draft_vocab_size")


def _language_model(recipe: Recipe, features: OnlineFeatures, weights: LossWeights) -> Trainee:
    """A smaller model of the target's own architecture."""
    if recipe.init_from is not None:
        folder = Path(recipe.init_from)
        check_folder(folder)
        load: Any = AutoModelForCausalLM.from_pretrained
        model = load(folder, dtype=torch.float32, local_files_only=True)
        own, wanted = int(model.config.vocab_size), int(read_json(features.folder / CONFIG)["vocab_size"])
        if own != wanted:
            raise ConfigError(f"{folder} has a vocabulary of {own} tokens, not the target's {wanted}", "target")
        return LanguageModelTrainee(model, features.folder, weights)
    config = read_json(features.folder / CONFIG)
    layers = config | _layers(config, recipe.drafter) | {"tie_word_embeddings": True}
    for key in ("architectures", "dtype", "transformers_version"):
        layers.pop(key, None)
    if recipe.drafter.hidden_size is not None:
        layers["hidden_size"] = recipe.drafter.hidden_size
    build: Any = AutoModelForCausalLM
    return LanguageModelTrainee(build.from_config(AutoConfig.for_model(**layers)), features.folder, weights)


def _layers(config: dict[str, Any], shape: DrafterShape) -> dict[str, Any]:
    layers = layer_config(config) | {"num_hidden_layers": shape.num_layers if shape.kind != "eagle3" else 1}
    for key in ("intermediate_size", "num_attention_heads", "num_key_value_heads"):
        if getattr(shape, key) is not None:
            layers[key] = getattr(shape, key)
    if "layer_types" in config:
        layers["layer_types"] = ["full_attention"] * layers["num_hidden_layers"]  # a block looks back as far as its context goes
    return layers


def _mask_token_id(shape: DrafterShape, tokenizer: PreTrainedTokenizerFast) -> int:
    vocabulary = tokenizer.get_vocab()
    if shape.mask_token is not None:
        if shape.mask_token not in vocabulary:
            raise ConfigError(f"the tokenizer has no token {shape.mask_token!r}", "drafter.mask_token")
        return int(vocabulary[shape.mask_token])
    known = [tokenizer.mask_token, *MASK_TOKENS, tokenizer.pad_token]
    found = next((token for token in known if token in vocabulary), None)
    if found is None:
        raise ConfigError("the tokenizer has neither a mask nor a pad token; name one that text never holds", "drafter.mask_token")
    return int(vocabulary[found])


def _vocabulary(spec: DraftSpec, samples: SampleSet) -> DraftVocabulary:
    """The tokens that the samples hold most often; all of them where the drafter's vocabulary is the target's."""
    if spec.draft_vocab_size == spec.vocab_size:
        return DraftVocabulary.whole(spec.vocab_size)
    counts = np.zeros(spec.vocab_size, np.int64)
    for index in range(min(len(samples), VOCABULARY_SAMPLES)):
        counts += np.bincount(samples[index].token_ids, minlength=spec.vocab_size)
    best = np.argsort(-counts, kind="stable")[: spec.draft_vocab_size]
    return DraftVocabulary.of_tokens(torch.from_numpy(best), spec.vocab_size)
