"""The block drafter as a network: a backbone that guesses all positions of a block at once, and the heads that tie them together
(paper: "Semi-autoregressive drafter"). Without a sequential head it is DFlash.

Knows tensors only: sessions, caches and sampling are block.py's, losses and anchors deepspec's. What it shares with the target
(embedding and LM head) is not its own and is never saved with it.

Symbols: B batch, S context positions, A anchors, K block size, R = A * K rows, V / Vd target / draft vocabulary, d hidden size, m taps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface

from dspark.drafting.heads import ConfidenceHead, build_head
from dspark.drafting.shared_weights import SharedWeights, take_over
from dspark.drafting.vocabulary import DraftVocabulary
from dspark.runtime.draft_formats import DraftCheckpoint
from dspark.runtime.draft_spec import DraftSpec
from dspark.runtime.layer_stack import LayerStack, within_window
from dspark.runtime.projection import FeatureProjection
from dspark.runtime.stacked_context import StackedContext
from dspark.runtime.weight_layout import PackedLinear, by_columns, lay_out_linears, linear, packed

BLOCK_ATTENTION = "dspark_block"
SHARED_TENSORS = ("embed_tokens.weight", "lm_head.weight")
VOCABULARY_TENSORS = ("d2t", "t2d")


@dataclass(frozen=True, slots=True)
class BlockContext:
    """What the rows of a whole batch of blocks attend to besides themselves, layer by layer."""

    keys_values: list[tuple[torch.Tensor, torch.Tensor]]  # per layer, each [B, H_kv, S, D]
    visible: torch.Tensor  # [B, 1, R, S + R] bool
    positions: torch.Tensor  # [B, R] of the rows
    key_positions: torch.Tensor  # [B, S + R]


@dataclass(frozen=True, slots=True)
class BlockLogits:
    """What a drafter says about blocks whose tokens are known (training, probing)."""

    base: torch.Tensor  # [B, A, K, Vd] of the backbone alone
    draft: torch.Tensor  # [B, A, K, Vd] with the sequential head's bias
    confidence: torch.Tensor | None  # [B, A, K] logits


class BlockModel(nn.Module):
    """Parameters carry the canonical names of draft_spec.py."""

    def __init__(self, spec: DraftSpec, shared: SharedWeights, attention: str = BLOCK_ATTENTION) -> None:
        """New weights at random; `attention` is BLOCK_ATTENTION to run whole batches, or a packed one for serving."""
        super().__init__()
        AttentionInterface.register(BLOCK_ATTENTION, block_attention)
        self.spec = spec
        self.stack = LayerStack(spec.layers, attention)
        projection = FeatureProjection(spec)
        self.fc, self.hidden_norm = projection.fc, projection.hidden_norm
        self.layers, self.norm = self.stack.layers, self.stack.norm
        self.markov_head = build_head(spec)
        self.confidence_head = ConfidenceHead(spec) if spec.confidence else None
        self.vocabulary = DraftVocabulary.whole(spec.vocab_size)
        self._softcap: float | None = getattr(self.stack.config, "final_logit_softcapping", None)
        self._shared = [shared]  # in a list, so that the target's weights do not become this module's parameters
        self._served_head: list[torch.Tensor | PackedLinear] = []
        """The LM head as laid out for serving."""
        self.stack.embed_tokens.weight = nn.Parameter(shared.embedding, requires_grad=False)

    @classmethod
    def from_checkpoint(
        cls, checkpoint: DraftCheckpoint, shared: SharedWeights, attention: str = BLOCK_ATTENTION
    ) -> "BlockModel":
        """The trained drafter; embedding and LM head of its own, where the checkpoint has some, replace the shared ones.

        Raises ModelLoadError naming a tensor that is missing, unknown or misshapen.
        """
        model = cls(checkpoint.spec, shared.replaced_by(checkpoint.tensors), attention)
        model.load(checkpoint.tensors, checkpoint.folder)
        if "d2t" in checkpoint.tensors:
            model.vocabulary = DraftVocabulary.from_offsets(checkpoint.tensors["d2t"], checkpoint.spec.vocab_size)
        return model.eval().requires_grad_(False)

    def load(self, tensors: dict[str, torch.Tensor], folder: Path | str) -> None:
        """Take over all of this model's own tensors, in its own precision."""
        others = (*SHARED_TENSORS, *VOCABULARY_TENSORS)
        take_over(dict(self.own_parameters()), {name: t for name, t in tensors.items() if name not in others}, folder)

    def lay_out_for_serving(self) -> None:
        """See weight_layout.py; not for training."""
        lay_out_linears(self)
        head = self._shared[0].lm_head
        self._served_head = [PackedLinear(head)] if packed(head) else [by_columns(head)]

    @cached_property
    def served_context(self) -> StackedContext:
        """What makes the context's keys and values in service: made when it is first asked for, as a drafter is when it warms up, of
        weights that do not change any more."""
        return StackedContext(self.stack)

    def own_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Everything that is trained and saved, by canonical name."""
        return self.named_parameters()

    def own_tensors(self) -> dict[str, torch.Tensor]:
        """Copies of the own parameters: what a checkpoint holds besides the vocabulary map."""
        return {name: parameter.detach().clone() for name, parameter in self.own_parameters()}

    def project(self, taps: torch.Tensor) -> torch.Tensor:
        """Context vectors [B, S, d] of raw taps [B, S, m * d]."""
        projected: torch.Tensor = self.hidden_norm(self.fc(taps))
        return projected

    def block_inputs(self, anchor_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings [..., K, d] of blocks that begin with `anchor_ids` [...]: the anchor, then masks."""
        assert self.spec.mask_token_id is not None, "a block drafter has a mask token"
        ids = anchor_ids.unsqueeze(-1).repeat_interleave(self.spec.block_size, -1)
        ids[..., 1:] = self.spec.mask_token_id
        embedded: torch.Tensor = self.stack.embed_tokens(ids)
        return embedded

    def base_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., Vd] logits of the backbone's output [..., d]."""
        if self._served_head:
            logits = linear(hidden, self._served_head[0])
        else:
            head = self._shared[0].lm_head
            # Autocast casts by itself, and not a whole vocabulary there and back.
            logits = functional.linear(hidden, head if torch.is_autocast_enabled(hidden.device.type) else head.to(hidden.dtype))
        return logits if self._softcap is None else torch.tanh(logits / self._softcap) * self._softcap

    def hidden(self, taps: torch.Tensor, anchor_ids: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
        """Backbone output [B, A, K, d] for blocks at positions `anchors` [B, A] of sequences with raw taps [B, S, m * d].

        A block sees the context before its anchor, and all of itself.
        """
        batch, num_positions = taps.shape[:2]
        block = torch.arange(self.spec.block_size, device=anchors.device)  # [K]
        inputs = self.block_inputs(anchor_ids).flatten(1, 2)  # [B, R, d]
        positions = (anchors.unsqueeze(-1) + block).flatten(1)  # [B, R]
        context = self._context(self.project(taps.to(inputs.dtype)), positions, _visible(anchors, len(block), num_positions))
        output = self.stack.run(inputs, positions, context=context)
        return output.view(batch, -1, self.spec.block_size, output.shape[-1])

    def teacher_forced(
        self, taps: torch.Tensor, anchor_ids: torch.Tensor, anchors: torch.Tensor, tokens_before: torch.Tensor
    ) -> BlockLogits:
        """Logits of all positions, given the token before each of them: `tokens_before` [B, A, K], its first the anchor."""
        hidden = self.hidden(taps, anchor_ids, anchors)
        base = self.base_logits(hidden)
        if self.markov_head is None:
            confidence = None if self.confidence_head is None else self.confidence_head(hidden, None)
            return BlockLogits(base, base, confidence)
        state, biases, embedded = None, [], []
        for k in range(self.spec.block_size):
            step = self.markov_head(hidden[:, :, k], tokens_before[:, :, k], state)
            state = step.state
            biases.append(step.bias)
            embedded.append(step.embedded)
        draft = base + torch.stack(biases, dim=2)
        confidence = None if self.confidence_head is None else self.confidence_head(hidden, torch.stack(embedded, dim=2))
        return BlockLogits(base, draft, confidence)

    @torch.inference_mode()
    def greedy(self, taps: torch.Tensor, anchor_id: int) -> tuple[BlockLogits, torch.Tensor]:
        """One block after context taps [S, m * d], tokens chosen greedily left to right; ids [K] of the target's vocabulary."""
        anchor_ids, anchors = torch.tensor([[[anchor_id]], [[len(taps)]]], device=taps.device)
        ids = anchor_ids.unsqueeze(-1).repeat(1, 1, self.spec.block_size)  # [1, 1, K] token before each position
        for k in range(self.spec.block_size):
            logits = self.teacher_forced(taps.unsqueeze(0), anchor_ids, anchors, ids)
            chosen = self.vocabulary.to_target_ids(logits.draft[0, 0, k].argmax())
            if k + 1 < self.spec.block_size:
                ids[0, 0, k + 1] = chosen
        return logits, self.vocabulary.to_target_ids(logits.draft[0, 0].argmax(-1))

    def _context(self, projected: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor) -> BlockContext:
        places = torch.arange(projected.shape[1], device=projected.device).expand(projected.shape[:2])
        rotations = self.stack.rotations(projected, places)
        per_layer = [self.stack.context_keys_values(layer, projected, rotations) for layer in range(len(self.layers))]
        return BlockContext(per_layer, visible, positions, torch.cat((places, positions), dim=1))


def block_attention(
    module: Any,
    query: torch.Tensor,  # [B, H, R, D]
    key: torch.Tensor,  # [B, H_kv, R, D]
    value: torch.Tensor,  # [B, H_kv, R, D]
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    *,
    context: BlockContext,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Blocks against their context and themselves, differentiable; returns [B, R, H, D]."""
    visible = within_window(context.visible, context.positions, context.key_positions, sliding_window)
    context_keys, context_values = context.keys_values[module.layer_idx]
    keys, values = torch.cat((context_keys, key), dim=2), torch.cat((context_values, value), dim=2)
    groups = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
    if softcap is None:
        attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=visible, scale=scaling)
    else:
        scores = query @ keys.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        scores = (torch.tanh(scores / softcap) * softcap).masked_fill(~visible, float("-inf"))
        attended = scores.softmax(-1) @ values
    return attended.transpose(1, 2), None


def _visible(anchors: torch.Tensor, block_size: int, num_positions: int) -> torch.Tensor:
    """[B, 1, R, S + R] bool: positions before the anchor, and rows of the same block."""
    num_anchors = anchors.shape[1]
    positions = torch.arange(num_positions, device=anchors.device)
    before = (positions < anchors.unsqueeze(-1)).repeat_interleave(block_size, 1)  # [B, R, S]
    blocks = torch.arange(num_anchors, device=anchors.device).repeat_interleave(block_size)
    same = (blocks.unsqueeze(0) == blocks.unsqueeze(1)).expand(len(anchors), -1, -1)  # [B, R, R]
    return torch.cat((before, same), dim=-1).unsqueeze(1)
