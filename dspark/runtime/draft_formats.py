"""A drafter's checkpoint, read from its folder whatever format it has: one record, tensors under canonical names.

    checkpoint = read_draft_checkpoint(folder)
    checkpoint.spec, checkpoint.tensors["fc.weight"]

Knows folders and safetensors files. The configuration is draft_configs.py's, names and shapes are draft_tensors.py's; how a drafter
runs is drafting/'s. Nothing of a checkpoint is run or unpickled, and a folder that does not fit in every part is refused.
"""

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from dspark.config import FEATURE_KINDS, DrafterConfig
from dspark.errors import ModelLoadError
from dspark.messages import FeatureSpec
from dspark.runtime.architecture import load_config
from dspark.runtime.checkpoint import CONFIG, INDEX, PICKLES, SINGLE_FILE, check_folder, check_no_code, read_json, weight_files
from dspark.runtime.draft_configs import DraftFormat, check_taps, parse_config
from dspark.runtime.draft_spec import DraftSpec
from dspark.runtime.draft_tensors import MAPS, Shape, StoredTensor, check_tensors, check_vocabulary_map, dtype_problem
from dspark.runtime.fingerprints import model_fingerprint
from dspark.runtime.hub import resolve_folder

VERIFIER_HEAD = "verifier_lm_head.weight"
VERIFIER_NORM = "verifier_norm.weight"


@dataclass(frozen=True)
class DraftCheckpoint:
    """What a drafter's folder holds."""

    folder: Path
    format: DraftFormat
    spec: DraftSpec
    tensors: dict[str, torch.Tensor]
    """Under their canonical names (draft_spec.py), in the stored dtype. Without the copies that only other programs want."""
    fingerprint: str


def read_draft_checkpoint(folder: Path, *, tensors: Container[str] | None = None) -> DraftCheckpoint:
    """Read and check a drafter. `tensors` restricts what is kept in memory to these canonical names; everything is checked all the same.

    Raises ModelLoadError naming file and key or tensor.
    """
    draft_format, spec = read_draft_config(folder)
    check_folder(folder)
    stored = stored_tensors(folder)
    drop_copies(draft_format, spec, stored)
    check_tensors(spec, stored, weights_place(folder))
    _check_maps(spec, stored)
    loaded = {name: _load(name, place) for name, place in stored.items() if tensors is None or name in tensors}
    return DraftCheckpoint(folder, draft_format, spec, loaded, model_fingerprint(folder))


def read_draft_spec(folder: Path) -> DraftSpec:
    """The record alone, from config.json; the weights are not looked at."""
    return read_draft_config(folder)[1]


def feature_spec(config: DrafterConfig) -> FeatureSpec | None:
    """Which hidden states this drafter reads from the target; None for a kind that needs nothing but tokens."""
    if config.kind not in FEATURE_KINDS:
        return None
    folder = resolve_folder(config)
    spec = read_draft_spec(folder)
    if spec.kind != config.kind:
        raise ModelLoadError(f"{folder / CONFIG}: holds a drafter of kind {spec.kind!r}, not {config.kind!r}", "kind")
    return FeatureSpec(drafter_fingerprint=model_fingerprint(folder), tap_layers=spec.tap_layers)


def check_target(folder: Path, spec: DraftSpec, target: Path) -> None:
    """Raise ModelLoadError if the drafter in `folder` cannot draft for the model in `target`, or says that it was made for another."""
    path, config = folder / CONFIG, load_config(target)
    if spec.vocab_size != config.vocab_size:
        raise ModelLoadError(f"{path}: vocab_size is {spec.vocab_size}, but the target {target} has {config.vocab_size} tokens")
    if spec.hidden_size != config.hidden_size:
        raise ModelLoadError(f"{path}: hidden_size is {spec.hidden_size}, but that of the target {target} is {config.hidden_size}")
    if spec.num_target_layers not in (0, config.num_hidden_layers):
        raise ModelLoadError(
            f"{path}: num_target_layers is {spec.num_target_layers}, but the target {target} has {config.num_hidden_layers} layers"
        )
    check_taps(path, spec.tap_layers, int(config.num_hidden_layers))
    if spec.target_fingerprint and spec.target_fingerprint != model_fingerprint(target):
        raise ModelLoadError(f"{path}: was trained for another target than {target}: the fingerprints differ")


def read_draft_config(folder: Path) -> tuple[DraftFormat, DraftSpec]:
    """Format and record from config.json, in a folder without pickles and without a wish for code. Raises ModelLoadError."""
    if not (folder / CONFIG).is_file():
        raise ModelLoadError(f"{folder}: holds no {CONFIG}")
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelLoadError(f"{folder / pickles[0]}: a pickle can run code; a drafter's folder holds safetensors only")
    config = read_json(folder / CONFIG)
    if "auto_map" in config:
        raise ModelLoadError(
            f"{folder / CONFIG}: `auto_map` asks for code from the checkpoint, which is never run; remove that key, "
            "the weights are read without it"
        )
    check_no_code(folder)
    return parse_config(folder / CONFIG, config)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Everything in the weight files, by their headers and under the stored names."""
    found: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118
                if name in found:
                    raise ModelLoadError(f"{file}: tensor {name!r} is in {found[name].file.name} too")
                view = handle.get_slice(name)
                first = handle.get_tensor(name) if not view.get_shape() else view[:0]
                found[name] = StoredTensor(file, tuple(view.get_shape()), first.dtype)
    return found


def weights_place(folder: Path) -> Path:
    """The file that says where tensors are: what an error about a missing one names."""
    return folder / SINGLE_FILE if (folder / SINGLE_FILE).exists() else folder / INDEX


def _check_maps(spec: DraftSpec, stored: dict[str, StoredTensor]) -> None:
    if spec.draft_vocab_size < spec.vocab_size:
        d2t, t2d = (_load(name, stored[name]) for name in MAPS)
        check_vocabulary_map(spec, d2t, t2d, stored[MAPS[0]].file)


def drop_copies(draft_format: DraftFormat, spec: DraftSpec, stored: dict[str, StoredTensor]) -> None:
    """Take out what speculators keeps for its own trainer, and a map that maps every id to itself. Raises ModelLoadError."""
    if draft_format != "speculators":
        return
    d = spec.hidden_size
    wanted: dict[str, tuple[Shape, ...]] = {
        VERIFIER_HEAD: ((spec.vocab_size, d), (spec.draft_vocab_size, d)),
        VERIFIER_NORM: ((d,),),
    }
    if spec.draft_vocab_size == spec.vocab_size:
        wanted |= dict.fromkeys(MAPS, ((spec.vocab_size,),))
        _check_identity(spec, stored)
    for name, shapes in wanted.items():
        place = stored.pop(name, None)
        if place is not None and place.shape not in shapes:
            raise ModelLoadError(f"{place.file}: tensor {name!r} is {list(place.shape)} instead of {list(shapes[0])}")


def _check_identity(spec: DraftSpec, stored: dict[str, StoredTensor]) -> None:
    neutral = {MAPS[0]: torch.zeros(spec.vocab_size, dtype=torch.int64), MAPS[1]: torch.ones(spec.vocab_size, dtype=torch.bool)}
    for name, value in neutral.items():
        if name not in stored:
            continue
        if problem := dtype_problem(name, stored[name]):
            raise ModelLoadError(problem)
        if stored[name].shape == (spec.vocab_size,) and not torch.equal(_load(name, stored[name]), value):
            raise ModelLoadError(f"{stored[name].file}: tensor {name!r} leaves ids out, though the draft vocabulary is the target's")


def _load(name: str, place: StoredTensor) -> torch.Tensor:
    with safe_open(place.file, framework="pt") as handle:
        tensor: torch.Tensor = handle.get_tensor(name)
    return tensor
