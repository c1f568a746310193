"""Feature-reading drafters for any target, made in a second: the target's own layers as first weights, not trained. They guess a little."""

from pathlib import Path
from typing import Any, Literal

import torch

from dspark.config import ModelSource
from dspark.deepspec.features import OnlineFeatures
from dspark.deepspec.recipe import DrafterShape
from dspark.deepspec.setup import draft_spec
from dspark.deepspec.trainees import save_drafter
from dspark.deepspec.warm_start import start_block, start_eagle
from dspark.drafting.block_model import BlockModel
from dspark.drafting.eagle_model import EagleModel
from dspark.drafting.shared_weights import SharedWeights
from dspark.drafting.vocabulary import DraftVocabulary
from dspark.runtime.hub import resolve_folder
from dspark.runtime.loading import load_tokenizer

TrainedKind = Literal["dspark", "dflash", "eagle3"]
SEED = 20261125


def write_drafter(folder: Path, kind: TrainedKind, target: str = "demo:target") -> Path:
    """A checkpoint of this kind in `folder`, for the target."""
    target_folder = resolve_folder(ModelSource(model=target))
    spec = draft_spec(DrafterShape(kind=kind, markov_rank=16), target_folder, load_tokenizer(target_folder))
    features = OnlineFeatures(target_folder, spec.tap_layers, "cpu")
    shared = SharedWeights(features.embedding, features.lm_head)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model: Any
        if kind == "eagle3":
            model = EagleModel(spec, shared, DraftVocabulary.whole(spec.vocab_size))
            start_eagle(model, features.model)
        else:
            model = BlockModel(spec, shared)
            start_block(model, features.model)
    save_drafter(folder, spec, model.own_tensors(), torch.bfloat16)
    return folder
