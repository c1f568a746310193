"""What a trained drafter takes from its target, token embedding and LM head, stored once, with the target; and how it takes over its own.

Symbols: V target vocabulary, Vd draft vocabulary, d hidden size.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from dspark.errors import ModelLoadError
from dspark.runtime.checkpoint import CONFIG, INDEX, SINGLE_FILE, check_folder, read_json

EMBEDDING_NAMES = ("model.embed_tokens.weight", "embed_tokens.weight", "transformer.wte.weight")
HEAD_NAMES = ("lm_head.weight",)


@dataclass(frozen=True, slots=True)
class SharedWeights:
    """Frozen; in the precision that the drafter computes in."""

    embedding: torch.Tensor  # [V, d]
    lm_head: torch.Tensor  # [Vd, d]

    @staticmethod
    def from_folder(folder: Path, dtype: torch.dtype, device: torch.device | str = "cpu") -> "SharedWeights":
        """Read just these two from a target's folder. Raises ModelLoadError where they are not found under their usual names."""
        check_folder(folder)
        embedding = _find(folder, EMBEDDING_NAMES)
        if embedding is None:
            raise ModelLoadError(f"{folder}: holds no token embedding named {' or '.join(EMBEDDING_NAMES)}")
        head = None if read_json(folder / CONFIG).get("tie_word_embeddings", False) else _find(folder, HEAD_NAMES)
        embedding = embedding.to(device, dtype)
        return SharedWeights(embedding, embedding if head is None else head.to(device, dtype))

    def replaced_by(self, tensors: Mapping[str, torch.Tensor]) -> "SharedWeights":
        """With those that a drafter's checkpoint brings itself: a reduced vocabulary has an LM head of its own."""
        return SharedWeights(
            tensors.get("embed_tokens.weight", self.embedding).to(self.embedding),
            tensors.get("lm_head.weight", self.lm_head).to(self.lm_head),
        )


def take_over(wanted: Mapping[str, torch.nn.Parameter], given: Mapping[str, torch.Tensor], folder: Path | str) -> None:
    """Copy a checkpoint's tensors into a drafter's parameters, in the parameters' precision.

    Raises ModelLoadError naming a tensor that is missing, unknown or misshapen; then nothing was copied.
    """
    for name in (*wanted, *given):
        if name not in given:
            raise ModelLoadError(f"{folder}: tensor {name!r} is missing")
        if name not in wanted:
            raise ModelLoadError(f"{folder}: tensor {name!r} is not part of this drafter")
        if given[name].shape != wanted[name].shape:
            raise ModelLoadError(f"{folder}: tensor {name!r} is {list(given[name].shape)}, not {list(wanted[name].shape)}")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(given[name])


def _find(folder: Path, names: tuple[str, ...]) -> torch.Tensor | None:
    """The first tensor of one of these names, from the single file or through the index."""
    places = dict.fromkeys(names, SINGLE_FILE)
    if not (folder / SINGLE_FILE).exists():
        weight_map = json.loads((folder / INDEX).read_text()).get("weight_map", {})
        places = {name: weight_map[name] for name in names if name in weight_map}
    for name, file in places.items():
        with safe_open(folder / file, framework="pt") as handle:
            if name in handle.keys():  # noqa: SIM118
                tensor: torch.Tensor = handle.get_tensor(name)
                return tensor
    return None
