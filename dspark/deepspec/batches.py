"""From samples to what one training step works on: padded token ids, and anchors drawn at random.

Everything depends on (seed, step) alone: a resumed run, and one with another number of workers, sees the same batches.

Symbols: B samples, S longest sample, A anchors per sample, K draft positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dspark.deepspec.data import Sample

ROUND_TO = 32
"""Lengths are padded to a multiple: few shapes suit torch.compile and the allocator."""


@dataclass(frozen=True, slots=True)
class AnchoredSample:
    """A sample and the positions at which blocks begin."""

    sample: Sample
    anchors: NDArray[np.int64]  # [a], a <= A, growing

    def num_valid(self, block_size: int) -> NDArray[np.int64]:
        """[K] anchors whose k-th draft position is still inside the sample."""
        left = len(self.sample.token_ids) - 1 - self.anchors  # draft positions after each anchor
        return np.asarray([(left > k).sum() for k in range(block_size)], np.int64)


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of one micro-batch."""

    token_ids: torch.Tensor  # [B, S]
    lengths: torch.Tensor  # [B]
    anchors: torch.Tensor  # [B, A]
    positions: torch.Tensor  # [B, A, K] position before each draft position: anchor, anchor + 1, ...
    valid: torch.Tensor  # [B, A, K] bool

    @property
    def tokens_before(self) -> torch.Tensor:
        """[B, A, K] token before each draft position; the first is the anchor."""
        return self._tokens_at(self.positions)

    @property
    def tokens_drafted(self) -> torch.Tensor:
        """[B, A, K] the text's own token at each draft position."""
        return self._tokens_at((self.positions + 1).clamp(max=self.token_ids.shape[1] - 1))

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """[B, A, K, w] rows of `values` [B, S, w] at `positions`."""
        index = self.positions.flatten(1).unsqueeze(-1).expand(-1, -1, values.shape[-1])
        return values.gather(1, index).view(*self.positions.shape, values.shape[-1])

    def _tokens_at(self, positions: torch.Tensor) -> torch.Tensor:
        return self.token_ids.gather(1, positions.flatten(1)).view(positions.shape)


def with_anchors(sample: Sample, num_anchors: int, seed: tuple[int, ...]) -> AnchoredSample:
    """Up to `num_anchors` positions of the answer, without repeats. The first possible one is the prompt's last token."""
    first, stop = max(1, sample.prompt_tokens - 1), len(sample.token_ids) - 1
    choices = np.arange(first, max(first, stop))
    draw = np.random.default_rng(seed)
    return AnchoredSample(sample, np.sort(draw.permutation(choices)[:num_anchors]))


def collate(samples: Sequence[AnchoredSample], num_anchors: int, block_size: int, device: torch.device | str) -> Batch:
    """Pad to one shape; a padded anchor has no valid position."""
    longest = max(len(s.sample.token_ids) for s in samples)
    length = -(-longest // ROUND_TO) * ROUND_TO
    token_ids = np.zeros((len(samples), length), np.int64)
    anchors = np.ones((len(samples), num_anchors), np.int64)
    valid = np.zeros((len(samples), num_anchors, block_size), np.bool_)
    for row, anchored in enumerate(samples):
        ids, count = anchored.sample.token_ids, len(anchored.anchors)
        token_ids[row, : len(ids)] = ids
        anchors[row, :count] = anchored.anchors
        valid[row, :count] = anchored.anchors[:, None] + 1 + np.arange(block_size) < len(ids)
    positions = np.minimum(anchors[:, :, None] + np.arange(block_size), length - 1)
    lengths = np.asarray([len(s.sample.token_ids) for s in samples])
    return Batch(*(torch.from_numpy(array).to(device) for array in (token_ids, lengths, anchors, positions, valid)))
