"""One training job from recipe to checkpoint: what `deepspec train` runs, in this process or in each worker of a launcher."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from dspark.config import DrafterConfig, ModelSource, TargetConfig
from dspark.deepspec.board import board
from dspark.deepspec.data import SampleSet
from dspark.deepspec.decoding import Decoder, DecodingPlan
from dspark.deepspec.feature_cache import CachedFeatures, CacheOptions
from dspark.deepspec.features import FeatureSource, OnlineFeatures
from dspark.deepspec.recipe import Recipe
from dspark.deepspec.run_state import RunFolder
from dspark.deepspec.setup import build_trainee, draft_spec
from dspark.deepspec.train import RunOptions, Trainer, run
from dspark.deepspec.workers import OneWorker, Workers
from dspark.runtime.checkpoint import CONFIG, read_json
from dspark.runtime.fingerprints import model_fingerprint, tokenizer_fingerprint
from dspark.runtime.loading import load_tokenizer, resolve_folder, torch_device

DECODED_PROMPT_TOKENS = 64
"""Of samples that have no prompt of their own."""
DECODED_TOKENS = 64
#: A drafter's kind in a recipe -> its `kind` in a configuration.
SERVED_KINDS = {"dspark": "block", "dflash": "block", "eagle3": "eagle", "language_model": "language_model"}


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What may differ between a run and its resumption."""

    device: str = "cpu"
    threads: int | None = None
    compile: bool = False
    cache: CacheOptions | None = None
    """None: features are computed online and nothing is kept on disk."""
    decode_prompts: int = 0
    """Held-out samples whose prompts are decoded at every save, for a tau that is no estimate."""
    run: RunOptions = field(default_factory=RunOptions)


def train(recipe: Recipe, out: Path, options: JobOptions, workers: Workers | None = None) -> None:
    """Run the recipe to its end, from where an earlier call stopped. Raises ConfigError or ModelLoadError for what does not fit."""
    workers = workers or OneWorker()
    torch_device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # young drafters make denormal gradients, which cost a CPU ten times a normal number
    folder = RunFolder(out)
    if workers.rank == 0:
        folder.claim(recipe)
    trainer = build_trainer(recipe, options, workers)
    if options.compile:
        trainer.trainee.compile()
    state = folder.load()
    done = 0 if state is None else state[0]
    if options.decode_prompts > 0 and len(trainer.held_out_samples) > 0:
        options = replace(options, run=replace(options.run, decode=_decode(recipe, options, trainer.held_out_samples)))
    if workers.rank > 0:
        run(trainer, folder, recipe.training, workers, options.run)
        return
    with board(out, recipe.training.num_steps, done) as shown:
        run(trainer, folder, recipe.training, workers, replace(options.run, on_step=shown.step, on_value=shown.value))


def _decode(recipe: Recipe, options: JobOptions, held_out: SampleSet) -> Callable[[Path], float]:
    """tau of a checkpoint on the beginnings of held-out samples at temperature 1, by the real engine."""
    prompts = []
    for index in range(min(options.decode_prompts, len(held_out))):
        sample = held_out[index]
        ids = sample.token_ids.tolist()
        prompts.append(ids[: sample.prompt_tokens] if sample.prompt_tokens > 1 else ids[:DECODED_PROMPT_TOKENS])
    source = {"model": recipe.target, "revision": recipe.target_revision, "device": options.device}
    plan = DecodingPlan(max_tokens=DECODED_TOKENS, depth=recipe.drafter.block_size)

    def tau(checkpoint: Path) -> float:
        # Loaded for each look: decoding is rare, and in between the memory is the training's.
        decoder = Decoder(TargetConfig.model_validate(source))
        drafter = DrafterConfig.model_validate(
            {"kind": SERVED_KINDS[recipe.drafter.kind], "model": str(checkpoint), "device": options.device}
        )
        trace, _ = decoder.trace(drafter, prompts, 1.0, plan)
        return float(1.0 + trace.num_accepted.mean())

    return tau


def build_trainer(recipe: Recipe, options: JobOptions, workers: Workers) -> Trainer:
    """Target, samples and drafter of a recipe, ready for the first step."""
    target = resolve_folder(ModelSource(model=recipe.target, revision=recipe.target_revision))
    tokenizer = load_tokenizer(target)
    spec = None if recipe.drafter.kind == "language_model" else draft_spec(recipe.drafter, target, tokenizer)
    samples = SampleSet.open(
        recipe.data_paths,
        max_length=recipe.training.max_length,
        tokenizer_fingerprint=tokenizer_fingerprint(target),
        vocab_size=int(read_json(target / CONFIG)["vocab_size"]),  # the tokenizer's own count leaves added tokens out
    )
    split = samples.split(recipe.training.held_out_fraction, recipe.training.seed)
    dtype = torch.bfloat16 if recipe.training.precision == "bfloat16" and options.device != "cpu" else torch.float32
    online = OnlineFeatures(target, () if spec is None else spec.tap_layers, options.device, dtype)
    source: FeatureSource = online
    if options.cache is not None:
        source = CachedFeatures(online, f"{model_fingerprint(target)} {online.tap_layers}", _own_part(options.cache, workers))
    trainee = build_trainee(recipe, online, spec, split[0])
    return Trainer(trainee, online, source, split, recipe.training, workers, options.device)


def _own_part(cache: CacheOptions, workers: Workers) -> CacheOptions:
    """Each worker has a folder and a share of the limit to itself."""
    if workers.size == 1:
        return cache
    return replace(cache, folder=cache.folder / f"worker{workers.rank}", limit_bytes=cache.limit_bytes // workers.size)
