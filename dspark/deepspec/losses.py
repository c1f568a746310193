"""What drafters are trained to do (paper, "Loss"): a weighted sum over draft positions of cross entropy, L1 distance to the target's
distribution, and the confidence head's binary cross entropy.

Sums, never means: whoever adds them up over micro-batches and workers divides once, by the weight of the whole batch.

Symbols: N rows (anchors of a batch), K draft positions, V target vocabulary, Vd draft vocabulary.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from dspark.drafting.vocabulary import DraftVocabulary


@dataclass(frozen=True, slots=True)
class LossWeights:
    """How much each part counts."""

    cross_entropy: float = 0.1
    l1: float = 0.9
    confidence: float = 1.0
    decay: float = 4.0
    """gamma_w: position k counts exp(-(k - 1) / decay)."""

    def positions(self, block_size: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """[K] weight of each draft position."""
        return torch.exp(-torch.arange(block_size, device=device) / self.decay)


@dataclass(frozen=True, slots=True)
class LossSums:
    """Of some rows; `total` carries the gradient, the others are for the log."""

    total: torch.Tensor  # []
    cross_entropy: torch.Tensor  # []
    l1: torch.Tensor  # []
    confidence: torch.Tensor  # []
    acceptance: torch.Tensor  # [K] sum over valid rows of 1 - TV: what rejection sampling would accept
    count: torch.Tensor  # [K] valid rows


@dataclass(frozen=True, slots=True)
class Judged:
    """A drafter's guesses beside what the target says of the same positions."""

    draft_logits: torch.Tensor  # [N, K, Vd]
    confidence_logits: torch.Tensor | None  # [N, K]
    target_logits: torch.Tensor  # [N, K, V]
    token_ids: torch.Tensor  # [N, K] the tokens that the text really has there
    valid: torch.Tensor  # [N, K] bool


def loss_sums(judged: Judged, weights: LossWeights, vocabulary: DraftVocabulary) -> LossSums:
    """The paper's loss; the confidence head learns 1 - 0.5 * ||draft_probs - target_probs||_1, which it does not push back on."""
    draft_logits = judged.draft_logits.float()
    target_probs = judged.target_logits.float().softmax(-1)
    draft_ids, sayable = _in_draft_vocabulary(judged.token_ids, vocabulary)
    if vocabulary.target_ids is not None:
        target_probs = target_probs[..., vocabulary.target_ids.to(target_probs.device)]
    unsayable_mass = 1 - target_probs.sum(-1)
    distance = (draft_logits.softmax(-1) - target_probs).abs().sum(-1) + unsayable_mass  # [N, K]
    overlap = (1 - 0.5 * distance).detach().clamp(0, 1)
    cross_entropy = functional.cross_entropy(draft_logits.flatten(0, 1), draft_ids.flatten(), reduction="none")
    cross_entropy = cross_entropy.view_as(draft_ids) * sayable
    confidence = torch.zeros_like(distance)
    if judged.confidence_logits is not None:
        confidence = functional.binary_cross_entropy_with_logits(judged.confidence_logits, overlap, reduction="none")
    position_weights = judged.valid * weights.positions(judged.valid.shape[1], judged.valid.device)
    parts = [(part * position_weights).sum() for part in (cross_entropy, distance, confidence)]
    total = weights.cross_entropy * parts[0] + weights.l1 * parts[1] + weights.confidence * parts[2]
    logged = [part.detach() for part in parts]
    return LossSums(total, logged[0], logged[1], logged[2], (overlap * judged.valid).sum(0), judged.valid.sum(0))


def _in_draft_vocabulary(token_ids: torch.Tensor, vocabulary: DraftVocabulary) -> tuple[torch.Tensor, torch.Tensor]:
    """(draft ids [N, K], whether the drafter has the token [N, K])."""
    if vocabulary.target_ids is None:
        return token_ids, torch.ones_like(token_ids, dtype=torch.bool)
    target_ids = vocabulary.target_ids.to(token_ids.device)
    draft_ids = torch.searchsorted(target_ids, token_ids).clamp(max=len(target_ids) - 1)
    return draft_ids, target_ids[draft_ids] == token_ids
