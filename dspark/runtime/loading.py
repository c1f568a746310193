"""A model and its tokenizer in memory, from a folder that passed the checks.

    folder = resolve_folder(source)
    tokenizer = load_tokenizer(folder)
    model = load_causal_lm(source, attention="...", folder=folder)
    card = model_card(folder, source, tokenizer)

Only safetensors, never code from a checkpoint, never a tensor left at random. Does not know sessions, caches or the packed
forward.
"""

from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from dspark.config import ModelSource
from dspark.errors import ConfigError, ModelLoadError
from dspark.runtime.architecture import check_architecture, check_skeleton, load_config
from dspark.runtime.checkpoint import check_folder
from dspark.runtime.fingerprints import eos_token_ids, model_card, model_fingerprint, tokenizer_fingerprint
from dspark.runtime.hub import resolve_folder
from dspark.runtime.tokenizers import load_tokenizer
from dspark.runtime.weight_layout import multiplies_bfloat16

__all__ = [
    "check_folder",
    "dtype_of",
    "eos_token_ids",
    "load_causal_lm",
    "load_tokenizer",
    "model_card",
    "model_fingerprint",
    "resolve_folder",
    "tokenizer_fingerprint",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHOWN_TENSORS = 3


def load_causal_lm(source: ModelSource, *, attention: str, folder: Path | None = None) -> PreTrainedModel:
    """The model in eval mode, without gradients, on its device.

    `attention` is the name of an attention function known to transformers' AttentionInterface. `folder` saves a second look-up
    where the caller has resolved it. Raises UnsupportedModel, ModelLoadError naming file and tensor, ConfigError for the device.
    """
    device = torch_device(source.device)
    folder = folder or resolve_folder(source)
    weights = check_folder(folder)
    config = load_config(folder)
    check_architecture(folder, config)
    check_skeleton(folder, config, weights)
    model, report = _from_pretrained(folder, source, attention)
    _check_report(folder, report)
    if source.device_map is None and source.quantization is None:
        model.to(device)
    model.eval()
    model.requires_grad_(False)
    return cast(PreTrainedModel, model)


def _from_pretrained(folder: Path, source: ModelSource, attention: str) -> tuple[Any, dict[str, Any]]:
    """(model, loading report); the model is untyped because its class's methods are."""
    options: dict[str, Any] = {}
    if source.device_map is not None:
        options["device_map"] = source.device_map
    if source.quantization is not None:
        options["quantization_config"] = source.quantization
    load: Any = AutoModelForCausalLM.from_pretrained
    try:
        model, report = load(
            folder,
            dtype=dtype_of(source),
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # reported below, all of them and by name
            output_loading_info=True,
            **options,
        )
        return model, report
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, TypeError) as error:
        raise ModelLoadError(f"{folder}: transformers cannot load it ({type(error).__name__}: {error})") from error


def _check_report(folder: Path, report: dict[str, Any]) -> None:
    """Every tensor of the model came from the files, and every tensor of the files went into the model."""
    mismatched = [f"{name} ({list(found)} instead of {list(wanted)})" for name, found, wanted in report["mismatched_keys"]]
    problems = {
        "missing": sorted(report["missing_keys"]),
        "of the wrong shape": sorted(mismatched),
        "not part of the model": sorted(report["unexpected_keys"]),
        "not loaded": sorted(report["error_msgs"]),
    }
    for problem, names in problems.items():
        if names:
            more = f" and {len(names) - SHOWN_TENSORS} more" if len(names) > SHOWN_TENSORS else ""
            raise ModelLoadError(f"{folder}: tensors {problem}: {', '.join(names[:SHOWN_TENSORS])}{more}")


def dtype_of(source: ModelSource) -> torch.dtype:
    """The precision of its weights. Raises ConfigError for a device that is not there."""
    if source.dtype != "auto":
        return DTYPES[source.dtype]
    on_gpus = source.device_map is not None and torch.cuda.is_available()  # which the map is for, whatever `device` says
    device = torch.device("cuda") if on_gpus else torch_device(source.device)
    return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32


def torch_device(name: str) -> torch.device:
    """`name` as a device that is there. Raises ConfigError."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{name!r} is not a device of torch", "device") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{name!r} was asked for, but this machine shows no CUDA device", "device")
    return device
