"""The loss against the paper's formula written out in numpy, row by row."""

import numpy as np
import pytest
import torch

from dspark.deepspec.losses import Judged, LossSums, LossWeights, loss_sums
from dspark.drafting.vocabulary import DraftVocabulary

ROWS, POSITIONS, VOCABULARY = 6, 4, 11
TOKENS = [1, 2, 5, 8, 10]


def judged(draft_vocabulary: int, *, confidence: bool = True) -> Judged:
    draw = torch.Generator().manual_seed(1)
    return Judged(
        draft_logits=2 * torch.randn(ROWS, POSITIONS, draft_vocabulary, generator=draw),
        confidence_logits=torch.randn(ROWS, POSITIONS, generator=draw) if confidence else None,
        target_logits=2 * torch.randn(ROWS, POSITIONS, VOCABULARY, generator=draw),
        token_ids=torch.randint(0, VOCABULARY, (ROWS, POSITIONS), generator=draw),
        valid=torch.rand(ROWS, POSITIONS, generator=draw) < 0.7,
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def by_hand(given: Judged, weights: LossWeights, tokens: list[int]) -> dict[str, float]:
    """The paper's loss. A token that the drafter cannot say has no cross entropy, and counts in full in the L1 distance."""
    sums = {"total": 0.0, "cross_entropy": 0.0, "l1": 0.0, "confidence": 0.0}
    for row in range(ROWS):
        for k in range(POSITIONS):
            if not given.valid[row, k]:
                continue
            target_probs = softmax(given.target_logits[row, k].double().numpy())
            draft_probs = np.zeros(VOCABULARY)
            draft_probs[tokens] = softmax(given.draft_logits[row, k].double().numpy())
            token = int(given.token_ids[row, k])
            cross_entropy = -np.log(draft_probs[token]) if token in tokens else 0.0
            l1 = np.abs(draft_probs - target_probs).sum()
            wanted, confidence = 1 - 0.5 * l1, 0.0
            if given.confidence_logits is not None:
                chance = 1 / (1 + np.exp(-float(given.confidence_logits[row, k])))
                confidence = -(wanted * np.log(chance) + (1 - wanted) * np.log(1 - chance))
            weight = np.exp(-k / weights.decay)
            parts = {"cross_entropy": cross_entropy, "l1": l1, "confidence": confidence}
            for name, part in parts.items():
                sums[name] += weight * part
                sums["total"] += getattr(weights, name) * weight * part
    return sums


@pytest.mark.parametrize("tokens", [list(range(VOCABULARY)), TOKENS], ids=["whole", "reduced"])
@pytest.mark.parametrize("confidence", [True, False])
@pytest.mark.parametrize("weights", [LossWeights(), LossWeights(0.5, 0.2, 2.0, 1.5)], ids=["paper", "other"])
def test_the_loss_is_the_papers(tokens: list[int], confidence: bool, weights: LossWeights) -> None:
    whole = len(tokens) == VOCABULARY
    vocabulary = DraftVocabulary.whole(VOCABULARY) if whole else DraftVocabulary.of_tokens(torch.tensor(tokens), VOCABULARY)
    given = judged(len(tokens), confidence=confidence)
    sums = loss_sums(given, weights, vocabulary)
    for name, value in by_hand(given, weights, tokens).items():
        assert getattr(sums, name).item() == pytest.approx(value, rel=1e-5), name


def test_the_default_weights_are_the_papers() -> None:
    assert LossWeights() == LossWeights(cross_entropy=0.1, l1=0.9, confidence=1.0, decay=4.0)


def test_acceptance_is_the_overlap_of_the_distributions_counted_by_position() -> None:
    given = judged(VOCABULARY)
    sums = loss_sums(given, LossWeights(), DraftVocabulary.whole(VOCABULARY))
    overlap = torch.minimum(given.draft_logits.softmax(-1), given.target_logits.softmax(-1)).sum(-1)
    assert torch.allclose(sums.acceptance, (overlap * given.valid).sum(0), atol=1e-5)
    assert torch.equal(sums.count, given.valid.sum(0))


def part_of(given: Judged, rows: slice) -> Judged:
    assert given.confidence_logits is not None
    return Judged(
        given.draft_logits[rows], given.confidence_logits[rows], given.target_logits[rows], given.token_ids[rows], given.valid[rows]
    )


def test_sums_of_parts_are_those_of_the_whole() -> None:
    given, vocabulary = judged(VOCABULARY), DraftVocabulary.whole(VOCABULARY)

    def sums_of(rows: slice) -> LossSums:
        return loss_sums(part_of(given, rows), LossWeights(), vocabulary)

    whole, parts = sums_of(slice(None)), [sums_of(slice(0, 1)), sums_of(slice(1, 4)), sums_of(slice(4, None))]
    for name in ("total", "cross_entropy", "l1", "confidence", "acceptance", "count"):
        assert torch.allclose(sum(getattr(part, name) for part in parts), getattr(whole, name), rtol=1e-5), name


def test_the_confidence_head_does_not_push_the_drafter() -> None:
    given = judged(VOCABULARY)
    given.draft_logits.requires_grad_(True)
    loss_sums(given, LossWeights(0.0, 0.0, 1.0), DraftVocabulary.whole(VOCABULARY)).total.backward()
    assert given.draft_logits.grad is None or not given.draft_logits.grad.any()


def test_rows_that_are_not_valid_count_nothing() -> None:
    given = judged(VOCABULARY)
    given.valid[:] = False
    assert loss_sums(given, LossWeights(), DraftVocabulary.whole(VOCABULARY)).total == 0
