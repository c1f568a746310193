"""Model cards of evaluated drafters: what a checkpoint's own files say of it, beside what the evaluation measured.

A card goes into the report's folder, never into the checkpoint's. What no file tells is said to be unknown: a card invents nothing.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from dspark.config import FEATURE_KINDS, DrafterConfig
from dspark.deepspec.cards import CardFacts, model_card
from dspark.deepspec.files import write_atomically
from dspark.deepspec.recipe import Recipe
from dspark.deepspec.results import Report
from dspark.deepspec.run_state import RECIPE
from dspark.runtime.draft_formats import read_draft_config, stored_tensors
from dspark.runtime.draft_spec import DraftSpec
from dspark.runtime.hub import resolve_folder
from dspark.scheduling.calibration import CALIBRATION_FILE

CARDS = "cards"
CHECKPOINTS_OF_A_RUN = ("checkpoint", "best")
UNKNOWN = "not known: no recipe beside the checkpoint"


def write_cards(out: Path, drafters: Mapping[str, DrafterConfig], report: Report, target: str) -> list[Path]:
    """`out`/cards/NAME.md of each drafter that reads hidden states and lies in a folder of this machine; returns what was written."""
    written = []
    for name, config in drafters.items():
        if config.kind not in FEATURE_KINDS or not _is_here(config.model):
            continue
        results = [result for result in report.results if result.drafter == name]
        path = out / CARDS / (re.sub(r"[^\w.-]", "_", name).lstrip(".") + ".md")
        write_atomically(path, model_card(card_facts(name, config, target), results).encode())
        written.append(path)
    return written


def card_facts(name: str, config: DrafterConfig, target: str) -> CardFacts:
    """Read from the checkpoint's folder and, where it is part of a training run, from its recipe. Raises ModelLoadError."""
    folder = resolve_folder(config)
    stored_format, spec = read_draft_config(folder)
    recipe = _recipe(folder)
    return CardFacts(
        name=name,
        summary=_summary(spec, target),
        target=target,
        architecture=_architecture(folder, spec) | {"format": stored_format},
        training={"run": UNKNOWN} if recipe is None else _training(recipe),
        data=(UNKNOWN,) if recipe is None else tuple(f"{path} (licence: see its source)" for path in dict.fromkeys(recipe.data_paths)),
        drafter_kind=config.kind,
        drafter_path=config.model,
        depth=spec.block_size,
        licence="unknown",
    )


def _is_here(model: str) -> bool:
    return model.startswith("demo:") or Path(model).expanduser().is_dir()


def _summary(spec: DraftSpec, target: str) -> str:
    if spec.kind == "eagle":
        return f"An EAGLE-3-style drafter for {target}: one layer, run position by position over the target's hidden states."
    style = "DFlash-style" if spec.head == "none" else "DSpark"
    return f"A {style} drafter for {target}: {spec.block_size} tokens from one forward over the target's hidden states."


def _architecture(folder: Path, spec: DraftSpec) -> dict[str, str]:
    stored = stored_tensors(folder).values()
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in stored if tensor.dtype.is_floating_point})
    facts = {
        "Layers": f"{spec.num_draft_layers} of {spec.layers['model_type']}, hidden size {spec.hidden_size}",
        "Reads": f"target layers {', '.join(map(str, spec.tap_layers))} of {spec.num_target_layers or 'an unknown number'}",
        "Trained for": f"{spec.block_size} draft positions",
        "Sequential head": "none" if spec.head == "none" else f"{spec.head}, rank {spec.markov_rank}",
        "Confidence head": "yes" if spec.confidence else "no",
        "Calibration": f"{CALIBRATION_FILE} is stored" if (folder / CALIBRATION_FILE).is_file() else "none stored",
        "Stored": f"{sum(math.prod(tensor.shape) for tensor in stored):,} numbers, floats as {', '.join(dtypes)}",
    }
    reduced = spec.draft_vocab_size < spec.vocab_size
    return facts | ({"Draft vocabulary": f"{spec.draft_vocab_size:,} of {spec.vocab_size:,} tokens"} if reduced else {})


def _training(recipe: Recipe) -> dict[str, str]:
    training, loss = recipe.training, recipe.training.loss
    return {
        "Planned steps": f"{training.num_steps:,} of {training.batch_size} samples, cut at {training.max_length} tokens",
        "Optimizer": f"{training.optimizer}, learning rate {training.learning_rate:g}, {training.precision}",
        "Loss": f"cross-entropy {loss.cross_entropy:g}, L1 {loss.l1:g}, confidence {loss.confidence:g}, decay {loss.decay:g}",
        "Began from": recipe.init_from or recipe.drafter.start,
        "Seed": str(training.seed),
    }


def _recipe(folder: Path) -> Recipe | None:
    """Of the training run that the checkpoint lies in."""
    folder = folder.resolve()
    path = folder.parent / RECIPE
    if folder.name not in CHECKPOINTS_OF_A_RUN or not path.is_file():
        return None
    try:
        return Recipe.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
