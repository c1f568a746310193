"""What the frozen target says of a batch: taps for the drafter to read, and final hidden states for it to be judged by.

Computed online by default, nothing on disk; feature_cache.py keeps a bounded part of it.

Symbols: B samples, S positions, m taps, d hidden size, V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from dspark.runtime.checkpoint import check_folder

SDPA = "sdpa"


@dataclass(frozen=True, slots=True)
class TargetView:
    """Of every position of a batch; padding included, where it means nothing."""

    taps: torch.Tensor  # [B, S, m * d]
    hidden: torch.Tensor  # [B, S, d] after the final norm


class FeatureSource(Protocol):
    """Where views come from."""

    def view(self, token_ids: torch.Tensor, lengths: torch.Tensor) -> TargetView:
        """Of `token_ids` [B, S] whose first `lengths` [B] are text."""


class OnlineFeatures:
    """Implements FeatureSource by running the target each time."""

    def __init__(self, folder: Path, tap_layers: tuple[int, ...], device: str, dtype: torch.dtype = torch.float32) -> None:
        """Load the target. Raises ModelLoadError for a folder that must not be loaded."""
        check_folder(folder)
        self.folder = folder
        load: Any = AutoModelForCausalLM.from_pretrained
        self.model: Any = load(folder, dtype=dtype, attn_implementation=SDPA, use_safetensors=True, local_files_only=True)
        self.model.to(device).eval().requires_grad_(False)
        self.tap_layers = tap_layers
        self._softcap: float | None = getattr(self.model.config, "final_logit_softcapping", None)

    @property
    def embedding(self) -> torch.Tensor:
        """[V, d] the target's token embedding."""
        weight: torch.Tensor = self.model.get_input_embeddings().weight
        return weight

    @property
    def lm_head(self) -> torch.Tensor:
        """[V, d] the target's LM head."""
        weight: torch.Tensor = self.model.get_output_embeddings().weight
        return weight

    @torch.no_grad()
    def view(self, token_ids: torch.Tensor, lengths: torch.Tensor) -> TargetView:
        """See FeatureSource. Padding stands after the text, where causal attention keeps it out of sight."""
        output = self.model.get_decoder()(input_ids=token_ids, use_cache=False, output_hidden_states=True)
        taps = [output.hidden_states[layer + 1] for layer in self.tap_layers] or [output.last_hidden_state[..., :0]]
        return TargetView(torch.cat(taps, dim=-1), output.last_hidden_state)

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., V] of final hidden states [..., d]."""
        logits = functional.linear(hidden.to(self.lm_head.dtype), self.lm_head)
        return logits if self._softcap is None else torch.tanh(logits / self._softcap) * self._softcap
