"""Larger copies of a target that say exactly the same: `python -m dspark.demo.enlarge --parameters 60e6 --out build/demo-60m`.

On the shipped target the fixed costs of a round hide what drafting is worth. A copy has the same logits up to float rounding, but a
forward of it does the work of a model of its size:

    wider MLPs     gate and up rows drawn at random, read by down-projection columns that are zero
    more layers    attention and MLP drawn at random, run as all others, with output projections that are zero

Extra layers stand evenly between the old ones, so a drafter of the original finds its tap layers at other places:
`retarget_drafter` writes it for the copy, with the same weights. For measurements only; nothing of it ships.

Symbols: d hidden size, w intermediate size, L layers.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dspark.config import ModelSource
from dspark.errors import ConfigError, FingerprintMismatch, ModelLoadError, UnsupportedModel
from dspark.runtime.architecture import load_config
from dspark.runtime.checkpoint import CONFIG, INDEX, SINGLE_FILE, check_folder, read_json, weight_files
from dspark.runtime.draft_configs import build_config
from dspark.runtime.draft_formats import read_draft_config
from dspark.runtime.draft_spec import EMBEDDING
from dspark.runtime.fingerprints import model_fingerprint
from dspark.runtime.hub import resolve_folder

ENLARGED = "enlarged.json"
"""Beside the copy's weights: which model it is a copy of, and where that model's layers are in it."""
FAMILIES = ("qwen3", "llama")
"""Gated MLPs and output projections without bias; norms that multiply by their weight."""
WIDTH_STEP = 64
DEPTH_EXPONENT = 0.25
"""Layers grow with this power of the parameters, the MLP takes the rest: a few large products, so that what a layer costs whatever its
size stays small beside them."""
MOST_DRAWN_ROWS = 4096
"""Of a matrix; beyond it the same rows come again. They are there for their work, and drawing billions of numbers takes minutes."""
COPIED = ("*.json", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True, slots=True)
class Enlargement:
    """Shape of a copy."""

    num_layers: int
    intermediate_size: int
    num_parameters: int
    layer_indices: tuple[int, ...]
    """Old layer -> its index in the copy. Ascending; the first and the last layer stay first and last."""


def main() -> None:
    """Parse the command line, write the copy and, if asked, a drafter for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="demo:target", help="folder or name of the model to copy")
    parser.add_argument("--parameters", type=float, required=True, help="size of the copy, about: 25e6, 60e6, 120e6")
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--drafter", help="folder or name of a drafter of the original, such as demo:dspark")
    parser.add_argument("--drafter-out", type=Path, help="new folder for that drafter; default: OUT-drafter")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    shape = enlarge(resolve_folder(ModelSource(model=arguments.target)), arguments.parameters, arguments.out, arguments.seed)
    print(
        f"{arguments.out}: {shape.num_parameters / 1e6:.1f} M parameters, {shape.num_layers} layers, MLP width {shape.intermediate_size}; "
        f"the original's layers are {list(shape.layer_indices)}"
    )
    if arguments.drafter is not None:
        out = arguments.drafter_out or arguments.out.with_name(f"{arguments.out.name}-drafter")
        taps = retarget_drafter(resolve_folder(ModelSource(model=arguments.drafter)), arguments.out, out)
        print(f"{out}: {arguments.drafter} for it, reading layers {list(taps)}")


def enlarge(source: Path, num_parameters: float, out: Path, seed: int = 0) -> Enlargement:
    """Write a copy of the model in `source` with about `num_parameters` parameters to the new folder `out`.

    Raises UnsupportedModel for another family, ConfigError for a size below the original's or a folder that exists.
    """
    check_folder(source)
    config = read_json(source / CONFIG)
    if config.get("model_type") not in FAMILIES:
        raise UnsupportedModel(f"{source}: can enlarge {', '.join(FAMILIES)}, not {config.get('model_type')!r}")
    tensors = _read_tensors(source)
    if biased := [name for name in tensors if name.endswith(".bias")]:
        raise UnsupportedModel(f"{source}: {biased[0]} would have to be zero in a layer that says nothing; not supported")
    shape = plan_enlargement(tensors, int(config["num_hidden_layers"]), int(config["intermediate_size"]), num_parameters)
    _make_folder(out)
    save_file(dict(_enlarged_tensors(tensors, shape, torch.Generator().manual_seed(seed))), out / SINGLE_FILE, metadata={"format": "pt"})
    (out / SINGLE_FILE).chmod(0o644)  # safetensors makes files that only their owner can read
    (out / CONFIG).write_text(json.dumps(_enlarged_config(config, shape), indent=2, sort_keys=True) + "\n")
    record = {"format_version": 1, "original_fingerprint": model_fingerprint(source), "layer_indices": list(shape.layer_indices)}
    (out / ENLARGED).write_text(json.dumps(record, indent=2) + "\n")
    _copy_small_files(source, out)
    return shape


def plan_enlargement(
    tensors: Mapping[str, torch.Tensor], num_layers: int, intermediate_size: int, num_parameters: float
) -> Enlargement:
    """Depth and width of a copy: see DEPTH_EXPONENT. Raises ConfigError for a size that the original has already."""
    total = sum(tensor.numel() for tensor in tensors.values())
    per_layer = sum(tensor.numel() for name, tensor in tensors.items() if _layer_of(name) == 0)
    per_width = sum(tensor.numel() for name, tensor in tensors.items() if _layer_of(name) == 0 and ".mlp." in name) // intermediate_size
    if not total < num_parameters:
        raise ConfigError(f"the original has {total / 1e6:.1f} M parameters already; ask for more", "parameters")
    layers = max(num_layers, round(num_layers * (num_parameters / total) ** DEPTH_EXPONENT))
    outside, narrow = total - num_layers * per_layer, per_layer - per_width * intermediate_size
    wanted = ((num_parameters - outside) / layers - narrow) / per_width
    width = max(intermediate_size, WIDTH_STEP * round(wanted / WIDTH_STEP))
    size = outside + layers * (narrow + per_width * width)
    return Enlargement(layers, width, size, spread_layers(num_layers, layers))


def spread_layers(num_old: int, num_new: int) -> tuple[int, ...]:
    """[num_old] places of the old layers among the new ones, evenly spread from the first to the last."""
    return tuple(round(old * (num_new - 1) / max(1, num_old - 1)) for old in range(num_old))


def retarget_drafter(checkpoint: Path, target: Path, out: Path) -> tuple[int, ...]:
    """Write the drafter in `checkpoint`, made for the original of the copy in `target`, as one for that copy; returns its tap layers.

    Same weights and calibration, so it drafts the same. Raises FingerprintMismatch for the drafter of another target, ModelLoadError for
    a target that is no copy, ConfigError for a folder that exists.
    """
    original, layer_indices = _read_record(target)
    draft_format, spec = read_draft_config(checkpoint)
    if spec.target_fingerprint not in ("", original):
        raise FingerprintMismatch(f"{checkpoint} was trained for another target than the original of {target}")
    if spec.num_target_layers not in (0, len(layer_indices)) or spec.tap_layers[-1] >= len(layer_indices):
        raise ModelLoadError(f"{checkpoint / CONFIG}: reads a target of other than {len(layer_indices)} layers", "num_target_layers")
    changed = replace(
        spec,
        tap_layers=tuple(EMBEDDING if tap == EMBEDDING else layer_indices[tap] for tap in spec.tap_layers),
        num_target_layers=int(load_config(target).num_hidden_layers) if spec.num_target_layers else 0,
        target_fingerprint=model_fingerprint(target),
    )
    verifier = read_json(checkpoint / CONFIG).get("speculators_config", {}).get("verifier")
    _make_folder(out)
    (out / CONFIG).write_text(json.dumps(build_config(changed, draft_format, verifier), indent=2, sort_keys=True) + "\n")
    for file in weight_files(checkpoint):
        shutil.copyfile(file, out / file.name)
    if not (checkpoint / SINGLE_FILE).exists():
        shutil.copyfile(checkpoint / INDEX, out / INDEX)
    _copy_small_files(checkpoint, out)
    return changed.tap_layers


def _enlarged_tensors(
    tensors: Mapping[str, torch.Tensor], shape: Enlargement, generator: torch.Generator
) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor of everything in the copy. A layer that is new has the sizes of the old one before it."""
    yield from ((name, tensor) for name, tensor in tensors.items() if _layer_of(name) is None)
    old = -1
    for index in range(shape.num_layers):
        is_new = index not in shape.layer_indices
        old += not is_new
        for name, tensor in tensors.items():
            if _layer_of(name) == old:
                own = name.replace(f".layers.{old}.", f".layers.{index}.", 1)
                wide = _widened(name, tensor, shape.intermediate_size, generator)
                yield own, _silent(name, wide, generator) if is_new else wide


def _widened(name: str, tensor: torch.Tensor, width: int, generator: torch.Generator) -> torch.Tensor:
    """Gate and up [w, d] get rows at random, as large as the others; down [d, w] gets columns of zeros."""
    if name.endswith("mlp.down_proj.weight"):
        return torch.cat((tensor, torch.zeros(tensor.shape[0], width - tensor.shape[1], dtype=tensor.dtype)), dim=1)
    if ".mlp." in name:
        return torch.cat((tensor, _random_like(tensor, (width - tensor.shape[0], tensor.shape[1]), generator)), dim=0)
    return tensor


def _silent(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The tensor in a layer that adds nothing to the residual stream: no output, neutral norms, everything else at random."""
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return torch.zeros_like(tensor)
    return torch.ones_like(tensor) if tensor.ndim == 1 else _random_like(tensor, tuple(tensor.shape), generator)


def _random_like(tensor: torch.Tensor, size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    num_drawn = min(size[0], MOST_DRAWN_ROWS)
    drawn = (torch.randn((num_drawn, *size[1:]), generator=generator) * tensor.float().std()).to(tensor.dtype)
    return drawn[torch.arange(size[0]) % num_drawn]


def _enlarged_config(config: Mapping[str, Any], shape: Enlargement) -> dict[str, Any]:
    sizes: dict[str, Any] = {"num_hidden_layers": shape.num_layers, "intermediate_size": shape.intermediate_size}
    if config.get("layer_types"):
        kinds = dict(zip(shape.layer_indices, config["layer_types"], strict=True))
        sizes["layer_types"] = [kinds.get(index, "full_attention") for index in range(shape.num_layers)]
    return {**config, **sizes}


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as handle:
            tensors |= {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    return tensors


def _read_record(target: Path) -> tuple[str, list[int]]:
    """Fingerprint of the original, and where its layers are."""
    if not (target / ENLARGED).is_file():
        raise ModelLoadError(f"{target}: holds no {ENLARGED}; it is no copy made by this script")
    record = read_json(target / ENLARGED)
    return str(record["original_fingerprint"]), [int(index) for index in record["layer_indices"]]


def _layer_of(name: str) -> int | None:
    """Number in `model.layers.3.mlp.up_proj.weight`; None for tensors outside the layers."""
    _, found, rest = name.partition(".layers.")
    return int(rest.split(".", 1)[0]) if found else None


def _make_folder(out: Path) -> None:
    if out.exists():
        raise ConfigError(f"{out}: exists already; give a new folder", "out")
    out.mkdir(parents=True)


def _copy_small_files(source: Path, out: Path) -> None:
    """Tokenizer, generation settings, calibration: all but the configuration, the weights and the card."""
    for pattern in COPIED:
        for path in sorted(source.glob(pattern)):
            if path.name not in (CONFIG, INDEX, ENLARGED):
                shutil.copyfile(path, out / path.name)


if __name__ == "__main__":
    main()
