"""A drafter's view of its target: tapped hidden states, projected to one vector per token (paper: H_ctx = RMSNorm(W_c [H^(l1); ...])).

It runs on the target, so that d numbers per token travel and not m * d; the drafter has it too, for targets that do not.

Symbols: R rows, m taps, d hidden size.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from dspark.config import DrafterConfig
from dspark.errors import ModelLoadError
from dspark.runtime.draft_formats import read_draft_checkpoint
from dspark.runtime.draft_spec import DraftSpec
from dspark.runtime.hub import resolve_folder
from dspark.runtime.layer_stack import family_norm

PROJECTION_TENSORS = ("fc.weight", "hidden_norm.weight")


class FeatureProjection(nn.Module):
    """`fc` and, for block drafters, `hidden_norm`: from taps side by side to one context vector."""

    def __init__(self, spec: DraftSpec, fingerprint: str = "") -> None:
        super().__init__()
        self.fingerprint = fingerprint
        self.tap_layers = spec.tap_layers
        self.width = spec.hidden_size
        self.fc = nn.Linear(len(spec.tap_layers) * spec.hidden_size, spec.hidden_size, bias=False)
        self.hidden_norm = family_norm(spec.layers) if spec.kind == "block" else nn.Identity()

    def project(self, taps: torch.Tensor) -> torch.Tensor:
        """[..., d] from [..., m * d], in the weights' own precision: what training differentiates."""
        projected: torch.Tensor = self.hidden_norm(self.fc(taps.to(self.fc.weight.dtype)))
        return projected

    @torch.inference_mode()
    def forward(self, taps: torch.Tensor) -> torch.Tensor:
        """[R, d] bfloat16, what travels, from taps [R, m * d] of any floating type."""
        return self.project(taps).to(torch.bfloat16)

    def load(self, tensors: dict[str, torch.Tensor], folder: Path | str) -> None:
        """Take over the tensors that are this module's. Raises ModelLoadError naming a missing one."""
        own: dict[str, Any] = dict(self.named_parameters())
        for name, parameter in own.items():
            if name not in tensors or tensors[name].shape != parameter.shape:
                raise ModelLoadError(f"{folder}: tensor {name!r} is missing or not {list(parameter.shape)}")
            parameter.data = tensors[name].to(parameter.dtype)


def load_projection(config: DrafterConfig, device: torch.device) -> FeatureProjection:
    """From a drafter's checkpoint, only the tensors needed, in float32. Raises ModelLoadError."""
    folder = resolve_folder(config)
    checkpoint = read_draft_checkpoint(folder, tensors=PROJECTION_TENSORS)
    projection = FeatureProjection(checkpoint.spec, checkpoint.fingerprint)
    projection.load(checkpoint.tensors, folder)
    return projection.to(device).requires_grad_(False).eval()
