"""What a chain under rejection sampling could expect: 1 + sum over depths of the products of 1 - TV along the target's own text.

The bound that trees are compared with: rejection sampling accepts a position with probability 1 - TV of draft and target there
(Leviathan et al., "Fast inference from transformers via speculative decoding"). Every position of answers that the target decoded plainly
is an anchor once, and the drafter is fed their own tokens. At temperature 0 both are points: 1 - TV is 1 where the best tokens agree.

Symbols: A anchors of one answer, K draft positions, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dspark.config import DrafterConfig, TargetConfig
from dspark.deepspec.batches import AnchoredSample, Batch, collate
from dspark.deepspec.data import Sample
from dspark.deepspec.features import OnlineFeatures
from dspark.deepspec.metrics import resample_weights
from dspark.drafting.block_model import BlockModel
from dspark.drafting.shared_weights import SharedWeights
from dspark.errors import UnsupportedModel
from dspark.runtime.draft_formats import read_draft_checkpoint
from dspark.runtime.hub import resolve_folder


class RejectionBound:
    """Of one block drafter beside its target, in float32 on the CPU."""

    def __init__(self, target: TargetConfig, drafter: DrafterConfig) -> None:
        """Loads both. Raises UnsupportedModel for a drafter of another kind, or one with a draft vocabulary of its own."""
        if drafter.kind != "block":
            raise UnsupportedModel(f"the bound is for block drafters, not {drafter.kind!r}")
        checkpoint = read_draft_checkpoint(resolve_folder(drafter))
        self._features = OnlineFeatures(resolve_folder(target), checkpoint.spec.tap_layers, "cpu")
        self._model = BlockModel.from_checkpoint(checkpoint, SharedWeights(self._features.embedding, self._features.lm_head)).float()
        self._depth = checkpoint.spec.block_size
        if self._model.vocabulary.target_ids is not None:
            raise UnsupportedModel("the bound needs a drafter with the target's whole vocabulary")

    def taus(self, samples: Sequence[Sample], temperature: float) -> NDArray[np.float64]:  # [samples, K]
        """Expected committed tokens of a chain of depth 1 to K, mean over the anchors of each sample."""
        return 1.0 + np.cumsum([self._reach(sample, temperature) for sample in samples], axis=1)

    @torch.inference_mode()
    def _reach(self, sample: Sample, temperature: float) -> NDArray[np.float64]:  # [K]
        """Mean chance to get at least so far."""
        anchors = np.arange(sample.prompt_tokens - 1, len(sample.token_ids) - self._depth)
        batch = collate([AnchoredSample(sample, anchors)], len(anchors), self._depth, "cpu")
        overlaps = self._overlaps(batch, temperature)  # [A, K]
        reach: NDArray[np.float64] = overlaps.cumprod(-1).mean(0).double().numpy()
        return reach

    def _overlaps(self, batch: Batch, temperature: float) -> torch.Tensor:  # [A, K]
        view = self._features.view(batch.token_ids, batch.lengths)
        anchor_ids = batch.token_ids.gather(1, batch.anchors)
        draft = self._model.teacher_forced(view.taps, anchor_ids, batch.anchors, batch.tokens_before).draft[0]
        target = self._features.logits(batch.gather(view.hidden))[0]
        if temperature == 0:
            return (draft.argmax(-1) == target.argmax(-1)).float()
        return torch.minimum((draft / temperature).softmax(-1), (target / temperature).softmax(-1)).sum(-1)


def with_interval(taus: NDArray[np.float64], seed: int = 0) -> list[tuple[float, float, float]]:
    """By depth: mean over samples [samples, K] and its 95 % bootstrap interval over samples."""
    weights = resample_weights(len(taus), seed) / len(taus)
    low, high = np.quantile(weights @ taus, (0.025, 0.975), axis=0)
    return [(float(m), float(a), float(b)) for m, a, b in zip(taus.mean(axis=0), low, high, strict=True)]
