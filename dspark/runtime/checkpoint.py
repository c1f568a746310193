"""What a model folder must be before anything of it is loaded: safetensors only, no code, no stray links, no NaN.

Knows files, JSON and tensors. Does not know architectures (architecture.py) nor how a model is built (loading.py).
The checks run before any of the folder's numbers is used to size something, so a forged folder costs little memory.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dspark.errors import ModelLoadError

CONFIG = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
MAX_JSON_BYTES = 64 * 1024 * 1024
MIN_LAYER_LIMIT = 1024
"""Some configurations carry layer counts of a larger relative; so many cost nothing."""
MAX_EXPERTS = 65_536


@dataclass(frozen=True, slots=True)
class WeightSummary:
    """What the weight files hold, read from their headers."""

    num_tensors: int
    num_elements: int


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object. Raises ModelLoadError naming the file."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelLoadError(f"{path}: larger than {MAX_JSON_BYTES} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path}: holds {type(value).__name__}, not an object")
    return value


def check_folder(folder: Path) -> WeightSummary:
    """Refuse a folder that cannot or must not be loaded; reads every weight once to look for NaN and infinity.

    Whether the tensors fit the model class is known only when the model is built: `load_causal_lm` checks that.
    Raises ModelLoadError naming file and tensor.
    """
    if not (folder / CONFIG).is_file():
        raise ModelLoadError(f"{folder}: holds no {CONFIG}")
    _check_links(folder)
    check_no_code(folder)
    if (folder / "adapter_config.json").exists():
        raise ModelLoadError(f"{folder / 'adapter_config.json'}: an adapter is not a model; merge it into its base first")
    files = weight_files(folder)
    tensors = {file: _check_tensors(file) for file in files}
    _check_index(folder, tensors)
    summary = WeightSummary(
        sum(len(shapes) for shapes in tensors.values()),
        sum(elements for shapes in tensors.values() for elements in shapes.values()),
    )
    _check_sizes(folder / CONFIG, read_json(folder / CONFIG), summary)
    return summary


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model, sorted by name; other files of that kind are not part of it."""
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    if (folder / INDEX).exists():
        return sorted({folder / name for name in _weight_map(folder / INDEX).values()})
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelLoadError(f"{folder / pickles[0]}: a pickle can run code and is never loaded; convert it to {SINGLE_FILE}")
    raise ModelLoadError(f"{folder}: holds neither {SINGLE_FILE} nor {INDEX}")


def _weight_map(path: Path) -> dict[str, str]:
    """tensor name -> file name, each a plain name in this folder."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadError(f"{path}: has no weight_map")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name.endswith(".safetensors") or name != Path(name).name or "\\" in name:
            raise ModelLoadError(f"{path}: tensor {tensor!r} is mapped to {name!r}, which is no safetensors file of this folder")
        if not (path.parent / name).is_file():
            raise ModelLoadError(f"{path}: tensor {tensor!r} is mapped to {name}, which is missing")
    return weight_map


def _check_links(folder: Path) -> None:
    """Links may point inside the folder; those of the hub's cache also into the blobs beside its snapshots."""
    root = folder.resolve()
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    for path in sorted(folder.rglob("*")):
        target = path.resolve()
        if path.is_symlink() and not any(target.is_relative_to(place) for place in allowed):
            raise ModelLoadError(f"{path}: a link that leaves the model's folder")


def check_no_code(folder: Path) -> None:
    """Refuse a folder whose configuration asks for Python code from the checkpoint."""
    for path in sorted(folder.glob("*config.json")):
        if _has_key(read_json(path), "auto_map"):
            raise ModelLoadError(f"{path}: `auto_map` asks for code from the checkpoint, which is never run")


def _has_key(value: Any, key: str) -> bool:
    if isinstance(value, dict):
        return key in value or any(_has_key(item, key) for item in value.values())
    return isinstance(value, list) and any(_has_key(item, key) for item in value)


def _check_tensors(file: Path) -> dict[str, int]:
    """Number of elements per tensor name, after a look at every value."""
    try:
        with safe_open(file, framework="pt") as handle:
            return {name: _check_tensor(file, name, handle.get_tensor(name)) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise ModelLoadError(f"{file}: not a sound safetensors file ({error})") from error


def _check_tensor(file: Path, name: str, tensor: torch.Tensor) -> int:
    if not name.isprintable() or "/" in name or "\\" in name or ".." in name:
        raise ModelLoadError(f"{file}: tensor {name!r} has a name like a path")
    if tensor.is_floating_point() and not _is_finite(tensor):
        raise ModelLoadError(f"{file}: tensor {name!r} holds NaN or infinity")
    return tensor.numel()


def _is_finite(tensor: torch.Tensor) -> bool:
    if tensor.numel() == 0:
        return True
    if tensor.element_size() == 1:  # 8-bit floats have no arithmetic of their own
        tensor = tensor.float()
    low, high = torch.aminmax(tensor)  # both are NaN if any element is; needs no second copy of the tensor
    return bool(torch.isfinite(low) and torch.isfinite(high))


def _check_index(folder: Path, tensors: dict[Path, dict[str, int]]) -> None:
    """Each tensor is where the index says. A single file needs no index, and then the index is not used."""
    if (folder / SINGLE_FILE).exists():
        return
    for tensor, name in _weight_map(folder / INDEX).items():
        if tensor not in tensors[folder / name]:
            raise ModelLoadError(f"{folder / name}: tensor {tensor!r} is missing, though {INDEX} places it there")


def _check_sizes(path: Path, config: dict[str, Any], summary: WeightSummary) -> None:
    """Counts of things that are built one by one must be in proportion to the weights: a layer has at least one tensor."""
    max_layers = max(MIN_LAYER_LIMIT, summary.num_tensors)
    for key, value in _integers(config):
        limit = max_layers if "layer" in key else MAX_EXPERTS if "expert" in key else None
        if limit is not None and value > limit:
            raise ModelLoadError(f"{path}: {key} is {value}, more than the weights can fill ({summary.num_tensors} tensors)")


def _integers(value: Any) -> Iterator[tuple[str, int]]:
    """(key, value) of every integer of a nested object."""
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, int) and not isinstance(item, bool):
                yield key, item
            yield from _integers(item)
    elif isinstance(value, list):
        for item in value:
            yield from _integers(item)
