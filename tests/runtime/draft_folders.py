"""Folders with a drafter's checkpoint."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dspark.runtime.draft_configs import build_config
from dspark.runtime.draft_spec import DraftSpec
from tests.runtime.folders import WEIGHTS
from tests.runtime.tiny_drafters import SPEC, random_tensors

FIXTURE = Path(__file__).parents[1] / "fixtures" / "deepspec_checkpoint" / "vanilla"
Tensors = dict[str, torch.Tensor]


def write(folder: Path, spec: DraftSpec = SPEC, tensors: Tensors | None = None, draft_format: Any = "deepspec") -> Path:
    """A checkpoint without the writer's own checks."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(build_config(spec, draft_format)))
    save_file(random_tensors(spec) if tensors is None else tensors, folder / WEIGHTS)
    return folder
