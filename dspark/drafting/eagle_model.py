"""An EAGLE-3-style drafter as a network: one layer that runs over (next token, fused features) pairs and then over its own output
(Li et al., "EAGLE-3", arXiv 2503.01840; published names of the tensors).

Row t of the layer reads the features of position t and the token at t + 1, and predicts the token at t + 2. Knows tensors only.

Symbols: B batch, S context positions, A anchors, K draft positions, R rows, V / Vd target / draft vocabulary, d hidden size, m taps.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface

from dspark.drafting.shared_weights import SharedWeights, take_over
from dspark.drafting.vocabulary import DraftVocabulary
from dspark.errors import UnsupportedModel
from dspark.runtime.draft_formats import DraftCheckpoint
from dspark.runtime.draft_spec import DraftSpec
from dspark.runtime.layer_stack import LayerStack, family_norm, within_window

EAGLE_ATTENTION = "dspark_eagle"
NOT_PARAMETERS = ("d2t", "t2d", "embed_tokens.weight")


@dataclass(slots=True)
class ChainMemory:
    """Keys and values of the passes so far, for training: the context's rows, then one row per anchor and pass."""

    visible: torch.Tensor  # [B or 1, 1, R, all keys] bool of the coming pass
    positions: list[torch.Tensor] = field(default_factory=list)  # each [B, S or A], the coming pass's too
    keys: list[torch.Tensor] = field(default_factory=list)  # each [B, H_kv, S or A, D]
    values: list[torch.Tensor] = field(default_factory=list)


class EagleModel(nn.Module):
    """Parameters carry the canonical names of draft_spec.py."""

    def __init__(
        self, spec: DraftSpec, shared: SharedWeights, vocabulary: DraftVocabulary, attention: str = EAGLE_ATTENTION
    ) -> None:
        """New layer at random; the LM head starts as the target's rows of the draft vocabulary."""
        super().__init__()
        AttentionInterface.register(EAGLE_ATTENTION, eagle_attention)
        self.spec = spec
        self.vocabulary = vocabulary
        self.stack = LayerStack(spec.layers, attention)
        self.fc = nn.Linear(len(spec.tap_layers) * spec.hidden_size, spec.hidden_size, bias=False)
        self.midlayer: Any = _widened(self.stack, spec)
        self.norm = self.stack.norm
        head = shared.lm_head if vocabulary.target_ids is None else shared.lm_head[vocabulary.target_ids.to(shared.lm_head.device)]
        self.lm_head = nn.Linear(spec.hidden_size, len(head), bias=False)
        self.lm_head.weight = nn.Parameter(head.detach().clone())
        self.stack.embed_tokens.weight = nn.Parameter(shared.embedding, requires_grad=False)

    @classmethod
    def from_checkpoint(
        cls, checkpoint: DraftCheckpoint, shared: SharedWeights, attention: str = EAGLE_ATTENTION
    ) -> "EagleModel":
        """The trained drafter; an embedding of its own, where the checkpoint has one, replaces the shared one.

        Raises ModelLoadError naming a tensor that is missing, unknown or misshapen.
        """
        tensors = checkpoint.tensors
        vocabulary = DraftVocabulary.whole(checkpoint.spec.vocab_size)
        if "d2t" in tensors:
            vocabulary = DraftVocabulary.from_offsets(tensors["d2t"], checkpoint.spec.vocab_size)
        if "embed_tokens.weight" in tensors:
            shared = shared.replaced_by({"embed_tokens.weight": tensors["embed_tokens.weight"]})
        model = cls(checkpoint.spec, shared, vocabulary, attention)
        # Whoever has the whole vocabulary may leave the LM head out: then it is the target's, as it is already.
        model.load({"lm_head.weight": model.lm_head.weight} | tensors, checkpoint.folder)
        return model.eval().requires_grad_(False)

    def load(self, tensors: dict[str, torch.Tensor], folder: Path | str) -> None:
        """Take over all of this model's own tensors, in its own precision."""
        take_over(dict(self.own_parameters()), {name: t for name, t in tensors.items() if name not in NOT_PARAMETERS}, folder)

    def own_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Everything that is trained and saved, by canonical name."""
        return self.named_parameters()

    def own_tensors(self) -> dict[str, torch.Tensor]:
        """Copies of the own parameters, and the vocabulary map where there is one."""
        tensors = {name: parameter.detach().clone() for name, parameter in self.named_parameters()}
        if self.vocabulary.target_ids is not None:
            tensors["d2t"], tensors["t2d"] = self.vocabulary.offsets()
        return tensors

    def rows(
        self, token_ids: torch.Tensor, features: torch.Tensor, positions: torch.Tensor, **attention_arguments: Any
    ) -> torch.Tensor:
        """Layer output [B, R, d] for tokens [B, R] beside features [B, R, d]; the next row's features, and what `logits` reads."""
        layer = self.midlayer
        embedded = self.stack.embed_tokens(token_ids)
        rotations = self.stack.rotations(embedded, positions)[self.stack.layer_types[0]]
        pair = torch.cat((layer.input_layernorm(embedded), layer.hidden_norm(features)), dim=-1)
        attended, _ = layer.self_attn(
            hidden_states=pair, position_embeddings=rotations, attention_mask=None, position_ids=positions, **attention_arguments
        )
        hidden = features + attended
        output: torch.Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return output

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., Vd] of layer output [..., d]."""
        logits: torch.Tensor = self.lm_head(self.norm(hidden))
        return logits

    def teacher_forced(
        self, taps: torch.Tensor, token_ids: torch.Tensor, anchors: torch.Tensor, tokens_before: torch.Tensor
    ) -> torch.Tensor:
        """[B, A, K, Vd] for chains from `anchors` [B, A], each step fed with the text's own token `tokens_before` [B, A, K].

        `taps` [B, S, m * d] and `token_ids` [B, S] are the whole sequences. Training-time test as in EAGLE-3: after the first
        position the layer reads its own output instead of features.
        """
        num_positions = token_ids.shape[1]
        places = torch.arange(num_positions, device=token_ids.device).expand_as(token_ids)
        causal = torch.ones(num_positions, num_positions, dtype=torch.bool, device=token_ids.device).tril()
        memory = ChainMemory(causal[None, None], [places])
        next_tokens = torch.cat((token_ids[:, 1:], token_ids[:, -1:]), dim=1)
        output = self.rows(next_tokens, self.fc(taps), places, memory=memory)
        before = (anchors - 1).unsqueeze(-1)  # [B, A, 1] the row that predicts the first draft position
        hidden = output.gather(1, before.expand(-1, -1, output.shape[-1]))  # [B, A, d]
        pieces = [hidden]
        for k in range(1, self.spec.block_size):
            memory.visible = _chain_visible(anchors, num_positions, k)
            memory.positions.append(anchors - 1 + k)
            hidden = self.rows(tokens_before[:, :, k], hidden, memory.positions[-1], memory=memory)
            pieces.append(hidden)
        return self.logits(torch.stack(pieces, dim=2))


def eagle_attention(
    module: Any,
    query: torch.Tensor,  # [B, H, R, D]
    key: torch.Tensor,  # [B, H_kv, R, D]
    value: torch.Tensor,  # [B, H_kv, R, D]
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    *,
    memory: ChainMemory,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The new rows against all passes so far, differentiable; returns [B, R, H, D]."""
    memory.keys.append(key)
    memory.values.append(value)
    groups = query.shape[1] // key.shape[1]
    keys = torch.cat(memory.keys, dim=2).repeat_interleave(groups, 1)
    values = torch.cat(memory.values, dim=2).repeat_interleave(groups, 1)
    visible = within_window(memory.visible, memory.positions[-1], torch.cat(memory.positions, dim=1), sliding_window)
    attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=visible, scale=scaling)
    return attended.transpose(1, 2), None


def _chain_visible(anchors: torch.Tensor, num_positions: int, num_steps: int) -> torch.Tensor:
    """[B, 1, A, S + A * num_steps] bool: context rows before the anchor, and the chain's own earlier rows and this one."""
    places = torch.arange(num_positions, device=anchors.device)
    before = places < anchors.unsqueeze(-1)  # [B, A, S]; row t < anchor has seen nothing after the anchor
    own = torch.eye(anchors.shape[1], dtype=torch.bool, device=anchors.device).repeat(1, num_steps)
    return torch.cat((before, own.expand(len(anchors), -1, -1)), dim=-1).unsqueeze(1)


def _widened(stack: LayerStack, spec: DraftSpec) -> nn.Module:
    """The family's layer with attention inputs of 2d and a norm for the features."""
    layer: Any = stack.layers[0]
    if hasattr(layer, "pre_feedforward_layernorm"):
        raise UnsupportedModel(f"{stack.config.model_type}: an EAGLE-3 layer needs one norm before attention and one before the MLP")
    for name in ("q_proj", "k_proj", "v_proj"):
        old: nn.Linear = getattr(layer.self_attn, name)
        new = nn.Linear(2 * spec.hidden_size, old.out_features, bias=old.bias is not None)
        nn.init.normal_(new.weight, std=float(getattr(stack.config, "initializer_range", 0.02)))
        setattr(layer.self_attn, name, new)
    layer.hidden_norm = family_norm(spec.layers)
    widened: nn.Module = layer
    return widened
