"""A drafter's vocabulary: the target's, or a part of it that keeps the LM head small.

Symbols: V target vocabulary, Vd draft vocabulary.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class DraftVocabulary:
    """Which target token each draft token is."""

    target_ids: torch.Tensor | None  # [Vd] int64, growing; None: the two are the same
    vocab_size: int  # V

    @staticmethod
    def whole(vocab_size: int) -> "DraftVocabulary":
        """All of the target's tokens."""
        return DraftVocabulary(None, vocab_size)

    @staticmethod
    def from_offsets(d2t: torch.Tensor, vocab_size: int) -> "DraftVocabulary":
        """`d2t` [Vd] holds offsets: target id = draft id + d2t[draft id]."""
        return DraftVocabulary(torch.arange(len(d2t)) + d2t.long(), vocab_size)

    @staticmethod
    def of_tokens(target_ids: torch.Tensor, vocab_size: int) -> "DraftVocabulary":
        """The given target tokens, in growing order."""
        return DraftVocabulary(target_ids.long().sort().values, vocab_size)

    def on(self, device: torch.device) -> "DraftVocabulary":
        """The same, at hand on a device: else every use there brings the ids anew."""
        return self if self.target_ids is None else DraftVocabulary(self.target_ids.to(device), self.vocab_size)

    def offsets(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(d2t [Vd] int64, t2d [V] bool), as checkpoints store them."""
        ids = torch.arange(self.vocab_size) if self.target_ids is None else self.target_ids
        t2d = torch.zeros(self.vocab_size, dtype=torch.bool)
        t2d[ids] = True
        return ids - torch.arange(len(ids)), t2d

    def to_target_ids(self, draft_ids: torch.Tensor) -> torch.Tensor:
        """Token ids of the target for ids of the drafter, any shape."""
        return draft_ids if self.target_ids is None else self.target_ids.to(draft_ids.device)[draft_ids]

    def to_target_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """[..., V] from [..., Vd]; what the drafter cannot say is at minus infinity."""
        if self.target_ids is None:
            return logits
        full = logits.new_full((*logits.shape[:-1], self.vocab_size), float("-inf"))
        full[..., self.target_ids.to(logits.device)] = logits
        return full
