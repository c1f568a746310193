"""Drafter checkpoints, written and converted: the other direction of runtime/draft_formats.py.

    write_draft_checkpoint(folder, spec, tensors)
    conversion = convert(source, destination, "speculators", target=target_folder)

Knows which copies of the target's tensors a format wants, and that a checkpoint is replaced as a whole or not at all. Does not know
how a drafter runs; whether the tap layers are counted as the file says is asked of tap_probe.py.
"""

import errno
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dspark.deepspec.folder_swap import replaced_folder
from dspark.deepspec.tap_probe import TapProbe, probe_taps
from dspark.errors import ConfigError, DSparkError, ModelLoadError
from dspark.runtime.architecture import load_config
from dspark.runtime.checkpoint import CONFIG, INDEX, SINGLE_FILE, check_folder, read_json, weight_files
from dspark.runtime.draft_configs import FORMATS, DraftFormat, build_config, check_spec, check_taps
from dspark.runtime.draft_formats import VERIFIER_HEAD, VERIFIER_NORM, DraftCheckpoint, check_target, read_draft_checkpoint
from dspark.runtime.draft_spec import DraftSpec
from dspark.runtime.draft_tensors import MAPS, StoredTensor, check_tensors, check_vocabulary_map

EMBEDDING = "embed_tokens.weight"
HEAD = "lm_head.weight"

#: What other readers of a format expect to find in it, though it is the target's.
COPIES: dict[DraftFormat, tuple[str, ...]] = {
    "deepspec": (EMBEDDING, HEAD),
    "specforge": (),
    "speculators": (EMBEDDING, HEAD, VERIFIER_HEAD, VERIFIER_NORM),
    "eagle": (),
}
PROBED_FORMATS: tuple[DraftFormat, ...] = ("specforge", "speculators")
"""Written by several programs, which do not count tap layers alike; DeepSpec and this project's own format have one convention."""
_TARGET_NAMES = {
    EMBEDDING: ("model.embed_tokens.weight", "embed_tokens.weight"),
    HEAD: ("lm_head.weight",),
    VERIFIER_NORM: ("model.norm.weight", "norm.weight"),
}


@dataclass(frozen=True, slots=True)
class Conversion:
    """What `convert` did."""

    source: DraftCheckpoint
    spec: DraftSpec
    """As written."""
    copied: tuple[str, ...]
    """Tensors that were filled in from the target."""
    tap_shift: int
    """What was added to the tap layers as read."""
    probe: TapProbe | None


def write_draft_checkpoint(
    folder: Path,
    spec: DraftSpec,
    tensors: Mapping[str, torch.Tensor],
    format: str | None = None,  # noqa: A002 - the word that users type
    *,
    companions: Iterable[Path] = (),
    verifier: Mapping[str, Any] | None = None,
) -> None:
    """Write `tensors` (canonical names, in their dtypes) as a checkpoint; `companions` are small files that go with it.

    Without a format it is the plainest of the drafter's kind: deepspec, or eagle. `verifier`: see `build_config`.
    What `folder` held before is replaced as a whole, and stays whole if anything fails. Raises ModelLoadError naming the tensor for
    a drafter that could not be read back, ConfigError for a folder that is no checkpoint, DSparkError if the disk refuses.
    """
    draft_format = format_named(format or ("eagle" if spec.kind == "eagle" else "deepspec"))
    _check_place(folder)
    _check_content(folder, spec, tensors, draft_format)
    config = json.dumps(build_config(spec, draft_format, verifier), indent=2, sort_keys=True) + "\n"
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    try:
        with replaced_folder(folder) as staging:
            save_file(_storable(tensors), staging / SINGLE_FILE, metadata={"format": "pt"})
            (staging / SINGLE_FILE).chmod(0o644)  # safetensors makes files that only their owner can read
            (staging / CONFIG).write_text(config, encoding="utf-8")
            for path in companions:
                shutil.copyfile(path, staging / path.name)
    except (OSError, SafetensorError) as error:
        raise DSparkError(_disk_message(folder, num_bytes, error)) from error


def convert(
    source: Path,
    destination: Path,
    draft_format: DraftFormat,
    *,
    target: Path | None = None,
    target_name: str | None = None,
    tap_shift: int | None = None,
    texts: Sequence[Sequence[int]] | None = None,
) -> Conversion:
    """Write the drafter in `source` once more, to a new folder and in another format.

    With a target, missing copies of its tensors are filled in, and the tap layers are probed (with `texts`, see `probe_taps`) unless
    `tap_shift` states what is to be added to them. `target_name` is what the file calls the target, by default its path.
    Raises ModelLoadError for a source that is unsound, that does not fit the target, or whose tap layers the probe does not confirm;
    ConfigError for a destination that exists.
    """
    if destination.exists():
        raise ConfigError(f"{destination}: exists already; give a new folder", "destination")
    checkpoint = read_draft_checkpoint(source)
    if target is not None:
        check_target(source, checkpoint.spec, target)
    spec = _with_target_layers(checkpoint, target, draft_format)
    probe = _probe(checkpoint, target, texts) if tap_shift is None else None
    shift = tap_shift if tap_shift is not None else _confirmed_shift(source, probe)
    spec = replace(spec, tap_layers=tuple(layer + shift for layer in spec.tap_layers))
    check_taps(source / CONFIG, spec.tap_layers, spec.num_target_layers)
    copies = _missing_copies(checkpoint, target, draft_format)
    verifier = None if target is None else _verifier(target, target_name or str(target))
    tensors = checkpoint.tensors | copies
    write_draft_checkpoint(destination, spec, tensors, draft_format, companions=_companions(source), verifier=verifier)
    return Conversion(checkpoint, spec, tuple(copies), shift, probe)


def format_named(name: str) -> DraftFormat:
    """Raises ConfigError for a word that is no format."""
    for draft_format in FORMATS:
        if name == draft_format:
            return draft_format
    raise ConfigError(f"{name!r} is no checkpoint format; there are {', '.join(FORMATS)}", "format")


def target_copies(target: Path, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Tensors of the target by the drafter's names for them, as stored. Raises ModelLoadError naming one that is not found."""
    check_folder(target)
    tied = bool(getattr(load_config(target), "tie_word_embeddings", False))
    copies = {}
    for name in names:
        own = EMBEDDING if name in (HEAD, VERIFIER_HEAD) and tied else HEAD if name == VERIFIER_HEAD else name
        copies[name] = _target_tensor(target, _TARGET_NAMES[own])
    return copies


def _target_tensor(target: Path, names: tuple[str, ...]) -> torch.Tensor:
    for file in weight_files(target):
        with safe_open(file, framework="pt") as handle:
            for name in names:
                if name in handle.keys():  # noqa: SIM118
                    tensor: torch.Tensor = handle.get_tensor(name)
                    return tensor
    raise ModelLoadError(f"{target}: tensor {' or '.join(repr(name) for name in names)} is missing")


def _check_place(folder: Path) -> None:
    """Only a checkpoint is ever replaced: a mistyped path must not cost a folder of something else."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"{folder}: is not a folder of its own", "folder")
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder}: holds something else than a checkpoint; it is not replaced", "folder")


def _check_content(folder: Path, spec: DraftSpec, tensors: Mapping[str, torch.Tensor], draft_format: DraftFormat) -> None:
    """The reader's checks, before anything is written."""
    check_spec(folder / CONFIG, spec)
    file = folder / SINGLE_FILE
    extra = (VERIFIER_HEAD, VERIFIER_NORM) if draft_format == "speculators" else ()
    stored = {name: StoredTensor(file, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items() if name not in extra}
    check_tensors(spec, stored, file)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise ModelLoadError(f"{file}: tensor {name!r} holds NaN or infinity; the checkpoint is not written")
    if spec.draft_vocab_size < spec.vocab_size:
        d2t, t2d = (tensors[name].cpu() for name in MAPS)
        check_vocabulary_map(spec, d2t, t2d, file)


def _storable(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On the CPU, each with memory of its own: safetensors refuses tensors that share it."""
    storable: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        storable[name] = plain.clone() if storage in seen else plain
        seen.add(storage)
    return storable


def _disk_message(folder: Path, num_bytes: int, error: Exception) -> str:
    free = shutil.disk_usage(folder.parent).free if folder.parent.is_dir() else 0
    is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    reason = "the disk is full" if is_full else str(error)
    kept = "what was there before is unchanged" if folder.exists() else "nothing was left behind"
    return f"{folder}: cannot be written: {reason} (needs {num_bytes / 1e6:.1f} MB, {free / 1e6:.1f} MB are free); {kept}"


def _with_target_layers(checkpoint: DraftCheckpoint, target: Path | None, draft_format: DraftFormat) -> DraftSpec:
    """With the number of target layers, which speculators leaves out and the others need."""
    spec = checkpoint.spec
    if spec.num_target_layers:
        return spec
    if target is not None:
        return replace(spec, num_target_layers=int(load_config(target).num_hidden_layers))
    if draft_format == "speculators":
        return spec
    raise ModelLoadError(f"{checkpoint.folder / CONFIG}: does not say how many layers the target has; name the target")


def _probe(checkpoint: DraftCheckpoint, target: Path | None, texts: Sequence[Sequence[int]] | None) -> TapProbe | None:
    if target is None or checkpoint.format not in PROBED_FORMATS:
        return None
    return probe_taps(checkpoint, target, texts)


def _confirmed_shift(source: Path, probe: TapProbe | None) -> int:
    if probe is None:
        return 0
    if probe.shift != 0:  # evidence is not proof: a wrong shift would spoil a sound checkpoint without a word
        raise ModelLoadError(
            f"{source / CONFIG}: the tap layers as read are not confirmed: {probe.summary()}; "
            "state what is to be added to them (tap shift; 0 keeps them)"
        )
    return 0


def _missing_copies(checkpoint: DraftCheckpoint, target: Path | None, draft_format: DraftFormat) -> dict[str, torch.Tensor]:
    """Copies that the format wants and the source lacks; without a target only what can be left out is left out."""
    if target is None:
        return {}
    missing = [name for name in COPIES[draft_format] if name not in checkpoint.tensors]
    copies = target_copies(target, missing)
    t2d = checkpoint.tensors.get("t2d")
    if t2d is not None and VERIFIER_HEAD in copies:
        copies[VERIFIER_HEAD] = copies[VERIFIER_HEAD][t2d]  # [Vd, d]: the rows that the drafter can say
    return copies


def _verifier(target: Path, name: str) -> dict[str, Any]:
    return {"name_or_path": name, "architectures": read_json(target / CONFIG).get("architectures") or []}


def _companions(source: Path) -> list[Path]:
    """Tokenizer, calibration and other small files that go with the weights."""
    return sorted(path for path in source.glob("*.json") if path.name not in (CONFIG, INDEX))
