"""`deepspec probe`: run a drafter once on given features, so that two implementations can be compared number by number.

Cases of a file are named case0, case1, ...: `caseN.taps` [S, m * d] raw taps of the positions before the anchor and `caseN.anchor_id`
[1] give `base_logits`, `draft_logits` [K, Vd], `draft_ids` [K] (greedy, left to right) and `confidence_logits` [K]. Always in float32.
"""

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from dspark.deepspec.files import write_atomically
from dspark.drafting.block_model import BlockModel
from dspark.drafting.shared_weights import SharedWeights
from dspark.errors import ConfigError, ModelLoadError
from dspark.runtime.draft_formats import DraftCheckpoint, read_draft_checkpoint

TAPS_NAME = re.compile(r"(case\d+)\.taps")


def load_block_model(folder: Path, target: Path | None) -> BlockModel:
    """A block drafter in float32, embedding and LM head from itself or from the target's folder. Raises ModelLoadError."""
    checkpoint = read_draft_checkpoint(folder)
    if checkpoint.spec.kind != "block":
        raise ModelLoadError(f"{folder}: only block drafters can be run on features alone; this one is of kind {checkpoint.spec.kind!r}")
    return BlockModel.from_checkpoint(checkpoint, _shared(checkpoint, target))


def probe(model: BlockModel, inputs: Path, out: Path) -> int:
    """Run every case of `inputs` and write the results to `out`, whole or not at all; returns how many.

    Raises ConfigError naming file and tensor.
    """
    try:
        given = load_file(inputs)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{inputs}: cannot be read as safetensors ({error})", "inputs") from error
    cases = sorted(match.group(1) for name in given if (match := TAPS_NAME.fullmatch(name)))
    if not cases:
        raise ConfigError(f"{inputs}: holds no tensor caseN.taps", "inputs")
    results: dict[str, torch.Tensor] = {}
    for case in cases:
        results |= {f"{case}.{name}": value for name, value in _run(model, inputs, case, given).items()}
    try:
        write_atomically(out, save(results))
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error})", "out") from error
    return len(cases)


def _run(model: BlockModel, inputs: Path, case: str, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    taps, anchor = given[f"{case}.taps"], given.get(f"{case}.anchor_id")
    if anchor is None or anchor.numel() != 1 or anchor.is_floating_point() or not 0 <= int(anchor) < model.spec.vocab_size:
        raise ConfigError(f"{inputs}: {case}.anchor_id must be one token id below {model.spec.vocab_size}", f"{case}.anchor_id")
    width = model.fc.in_features
    if taps.ndim != 2 or taps.shape[1] != width or not torch.isfinite(taps.float()).all():
        raise ConfigError(f"{inputs}: {case}.taps must be finite and of shape [positions, {width}], not {list(taps.shape)}", f"{case}.taps")
    logits, ids = model.greedy(taps.float(), int(anchor))
    results = {"base_logits": logits.base[0, 0], "draft_logits": logits.draft[0, 0], "draft_ids": ids}
    if logits.confidence is not None:
        results["confidence_logits"] = logits.confidence[0, 0]
    return {name: value.clone().contiguous() for name, value in results.items()}


def _shared(checkpoint: DraftCheckpoint, target: Path | None) -> SharedWeights:
    own = [checkpoint.tensors.get(name) for name in ("embed_tokens.weight", "lm_head.weight")]
    if own[0] is not None and own[1] is not None:
        return SharedWeights(own[0].float(), own[1].float())
    if target is None:
        raise ModelLoadError(f"{checkpoint.folder}: embedding and LM head are the target's; name it with --target")
    return SharedWeights.from_folder(target, torch.float32)
