"""Which tensors a drafter's checkpoint must hold, of which shape, and whether the ones it holds fit.

Knows shapes and the vocabulary map; no files but the names it gives in errors, and no configuration keys (draft_configs.py).
Names, shapes and their symbols: draft_spec.py. Those of a draft layer come from the target family's own class in transformers,
built without memory for its weights, so that a forged size costs nothing.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel

from dspark.errors import ModelLoadError, UnsupportedModel
from dspark.runtime.draft_spec import DraftSpec

Shape = tuple[int, ...]

DRAFT_TO_TARGET = "d2t"
TARGET_TO_DRAFT = "t2d"
MAPS = (DRAFT_TO_TARGET, TARGET_TO_DRAFT)

_DOUBLED = ("q_proj.weight", "k_proj.weight", "v_proj.weight")


def required_tensors(spec: DraftSpec) -> dict[str, Shape]:
    """Canonical name -> shape of everything that must be there. Raises ModelLoadError if the layers cannot be built."""
    d, m = spec.hidden_size, len(spec.tap_layers)
    shapes: dict[str, Shape] = {"fc.weight": (d, m * d), "norm.weight": (d,)}
    if spec.kind == "eagle":
        shapes |= _eagle_layer(spec)
    else:
        shapes |= {"hidden_norm.weight": (d,)} | layer_shapes(spec) | _head_shapes(spec)
    if spec.draft_vocab_size < spec.vocab_size:
        shapes |= {"lm_head.weight": (spec.draft_vocab_size, d)}
        shapes |= {DRAFT_TO_TARGET: (spec.draft_vocab_size,), TARGET_TO_DRAFT: (spec.vocab_size,)}
    return shapes


def shared_tensors(spec: DraftSpec) -> dict[str, Shape]:
    """Canonical name -> shape of what may be left out, because it is the target's own then."""
    shapes: dict[str, Shape] = {"embed_tokens.weight": (spec.vocab_size, spec.hidden_size)}
    if spec.draft_vocab_size == spec.vocab_size:
        shapes["lm_head.weight"] = (spec.vocab_size, spec.hidden_size)
    return shapes


def layer_shapes(spec: DraftSpec) -> dict[str, Shape]:
    """`layers.i.*` as the target's family builds them."""
    options = {key: value for key, value in spec.layers.items() if key != "model_type"}
    model_type = spec.layers["model_type"]
    if model_type not in transformers.CONFIG_MAPPING:
        raise UnsupportedModel(f"draft layers: transformers {transformers.__version__} has no model type {model_type!r}")
    build: Any = AutoModel
    try:
        config = AutoConfig.for_model(model_type, **options)
        with torch.device("meta"):
            model = build.from_config(config, trust_remote_code=False)
        return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name.startswith("layers.")}
    except Exception as error:  # nonsense sizes fail wherever the model's code meets them
        raise ModelLoadError(f"draft layers: no {model_type} can be built from the configuration ({error})") from error


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a weight file, by its header."""

    file: Path
    shape: Shape
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size of the numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


def check_tensors(spec: DraftSpec, stored: Mapping[str, StoredTensor], place: Path) -> None:
    """Raise ModelLoadError for the first of `tensor_problems`."""
    for problem in tensor_problems(spec, stored, place):
        raise ModelLoadError(problem)


def tensor_problems(spec: DraftSpec, stored: Mapping[str, StoredTensor], place: Path) -> Iterator[str]:
    """Tensors that are missing, unknown, or of a wrong shape or kind of number. `place`: the file that should hold them."""
    required = required_tensors(spec)
    known = required | shared_tensors(spec)
    for name in required:
        if name not in stored:
            yield f"{place}: tensor {name!r} {list(required[name])} is missing"
    for name, tensor in stored.items():
        if name not in known:
            yield f"{tensor.file}: tensor {name!r} is not part of this drafter ({describe_heads(spec)})"
        elif tensor.shape != known[name]:
            yield f"{tensor.file}: tensor {name!r} is {list(tensor.shape)} instead of {list(known[name])}"
        elif problem := dtype_problem(name, tensor):
            yield problem


def dtype_problem(name: str, tensor: StoredTensor) -> str | None:
    """d2t counts, t2d tells, all others are weights."""
    wanted = {DRAFT_TO_TARGET: torch.int64, TARGET_TO_DRAFT: torch.bool}.get(name)
    if tensor.dtype == wanted or (wanted is None and tensor.dtype.is_floating_point):
        return None
    return f"{tensor.file}: tensor {name!r} holds {tensor.dtype}, not {wanted or 'floating-point numbers'}"


def describe_heads(spec: DraftSpec) -> str:
    """What a message says about the kind of drafter."""
    confidence = ", confidence head" if spec.confidence else ""
    return f"{spec.kind}, {spec.num_draft_layers} layers, sequential head {spec.head}{confidence}"


def check_vocabulary_map(spec: DraftSpec, d2t: torch.Tensor, t2d: torch.Tensor, file: Path) -> None:
    """The offsets d2t [Vd] lead to ascending target ids in range, and t2d [V] marks exactly these."""
    ids = target_ids(d2t)  # [Vd]
    outside = torch.nonzero((ids < 0) | (ids >= spec.vocab_size)).flatten()
    if outside.numel():
        draft_id = int(outside[0])
        raise ModelLoadError(
            f"{file}: tensor 'd2t' maps draft id {draft_id} to {int(ids[draft_id])}, not a target id 0..{spec.vocab_size - 1}"
        )
    falling = torch.nonzero(ids[1:] <= ids[:-1]).flatten()
    if falling.numel():
        raise ModelLoadError(f"{file}: tensor 'd2t' maps draft id {int(falling[0]) + 1} no higher than the one before it")
    if not torch.equal(torch.nonzero(t2d).flatten(), ids):
        raise ModelLoadError(f"{file}: tensor 't2d' marks other target ids than 'd2t' leads to")


def target_ids(d2t: torch.Tensor) -> torch.Tensor:
    """[Vd] target id of each draft id: d2t holds offsets."""
    return torch.arange(len(d2t), dtype=torch.int64, device=d2t.device) + d2t


def _eagle_layer(spec: DraftSpec) -> dict[str, Shape]:
    """One layer whose queries, keys and values are made from embedding and feature side by side, each with a norm of its own."""
    shapes: dict[str, Shape] = {"midlayer.hidden_norm.weight": (spec.hidden_size,)}
    for name, shape in layer_shapes(spec).items():
        doubled = (shape[0], 2 * shape[1]) if name.endswith(_DOUBLED) else shape
        shapes[name.replace("layers.0.", "midlayer.", 1)] = doubled
    return shapes


def _head_shapes(spec: DraftSpec) -> dict[str, Shape]:
    d, r = spec.hidden_size, spec.markov_rank
    shapes: dict[str, Shape] = {}
    if spec.head != "none":
        shapes |= {"markov_head.markov_w1.weight": (spec.vocab_size, r), "markov_head.markov_w2.weight": (spec.draft_vocab_size, r)}
    if spec.head == "gated":
        shapes |= {"markov_head.gate_proj.weight": (r, d + r), "markov_head.gate_proj.bias": (r,)}
    if spec.head == "rnn":
        shapes |= {"markov_head.joint_proj.weight": (3 * r, 2 * r + d), "markov_head.joint_proj.bias": (3 * r,)}
    if spec.confidence:
        width = d + (r if spec.confidence_with_markov else 0)
        shapes |= {"confidence_head.proj.weight": (1, width), "confidence_head.proj.bias": (1,)}
    return shapes
