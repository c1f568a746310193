"""What a trained drafter is, whatever format its checkpoint has: the record that reading (draft_formats.py), serving (drafting/)
and training (deepspec/) share. Knows no file and no tensor.

Symbols: V target vocabulary, Vd draft vocabulary, d hidden size, m taps, L draft layers, r rank of the sequential head.

Canonical tensor names of a `block` drafter (those of the DeepSpec format):
    fc.weight [d, m*d]; hidden_norm.weight, norm.weight [d]; layers.i.* as in the target's family
    markov_head.markov_w1.weight [V, r], markov_head.markov_w2.weight [Vd, r]
    markov_head.gate_proj.{weight [r, d+r], bias [r]} (gated), markov_head.joint_proj.{weight [3r, 2r+d], bias [3r]} (rnn)
    confidence_head.proj.{weight [1, d (+r)], bias [1]}
    embed_tokens.weight [V, d], lm_head.weight [Vd, d]: absent where they are the target's own
    d2t [Vd] int64 (offset: target id = draft id + d2t[draft id]), t2d [V] bool: only where Vd < V
An `eagle` drafter: fc.weight, midlayer.* (q, k and v projections take 2d), norm.weight, lm_head.weight, d2t, t2d.
"""

from dataclasses import dataclass
from typing import Any, Literal

DraftKind = Literal["block", "eagle"]
HeadKind = Literal["none", "vanilla", "gated", "rnn"]

EMBEDDING = -1
"""As a tap: the target's token embeddings."""


@dataclass(frozen=True, slots=True)
class DraftSpec:
    """Configuration of one trained drafter."""

    kind: DraftKind
    layers: dict[str, Any]
    """Configuration of the draft layers in transformers' own keys: `model_type` of the target's family, `num_hidden_layers` = L.
    Made by `draft_configs.layer_config`: without keys of the vocabulary or of the file, so that every format reads back the same."""
    num_target_layers: int
    """0 where the checkpoint does not say."""
    tap_layers: tuple[int, ...]
    """Target layers whose outputs are read: l means the output of decoder layer l (`hidden_states[l + 1]`), -1 the embeddings."""
    vocab_size: int
    draft_vocab_size: int
    block_size: int = 1
    """Draft positions of one round; of an `eagle` drafter, the number of steps it was trained for."""
    mask_token_id: int | None = None
    head: HeadKind = "none"
    markov_rank: int = 0
    confidence: bool = False
    confidence_with_markov: bool = False
    target_fingerprint: str = ""
    """`model_fingerprint` of the target it was trained for; empty where the checkpoint does not say."""

    @property
    def hidden_size(self) -> int:
        """d"""
        return int(self.layers["hidden_size"])

    @property
    def num_draft_layers(self) -> int:
        """L"""
        return int(self.layers["num_hidden_layers"])
