"""A session's context features on their way into a drafter's cache: what a request brings, held against what is there.

Symbols: k positions, d hidden size, m taps.
"""

from dataclasses import dataclass

import numpy as np
import torch

from dspark.errors import InvalidMessage, StaleRound
from dspark.messages import ContextFeatures, DraftRequest
from dspark.runtime.projection import FeatureProjection


@dataclass(frozen=True, slots=True)
class NewContext:
    """Features of positions that follow those already cached."""

    start: int
    vectors: torch.Tensor  # [k, d]

    @property
    def stop(self) -> int:
        """Position after the last."""
        return self.start + len(self.vectors)


NO_CONTEXT = NewContext(0, torch.empty((0, 0)))


class FeatureReader:
    """Turns what travels (bits of bfloat16, projected or raw) into context vectors."""

    def __init__(self, projection: FeatureProjection, dtype: torch.dtype) -> None:
        """`dtype`: of the vectors that it gives."""
        self._projection = projection
        self._device = projection.fc.weight.device
        self._dtype = dtype

    def new_context(self, request: DraftRequest, num_known: int) -> NewContext:
        """What the request adds after the first `num_known` positions; an overlap is skipped, since an answer may have been lost.

        Raises StaleRound for a gap, and where a draft is wanted but some position before the anchor is missing: the router then
        asks the target for all of them again.
        """
        features = request.features
        start = num_known if features is None else features.start
        if start > num_known:
            raise StaleRound(f"features start at position {start}, this drafter knows {num_known}")
        vectors = torch.empty((0, self._projection.width)) if features is None else self._vectors(features)[num_known - start :]
        context = NewContext(num_known, vectors)
        wanted = request.base_length - 1
        if context.stop > wanted:
            context = NewContext(num_known, vectors[: max(0, wanted - num_known)])
        if request.max_depth > 0 and context.stop < wanted:
            raise StaleRound(f"features of positions {context.stop} to {wanted - 1} are missing")
        return context

    def _vectors(self, features: ContextFeatures) -> torch.Tensor:
        expected = self._projection.width if features.projected else self._projection.fc.in_features
        if features.values.ndim != 2 or features.values.shape[1] != expected:
            raise InvalidMessage(f"features must be [k, {expected}], not {list(features.values.shape)}", "features")
        values = torch.from_numpy(np.array(features.values)).view(torch.bfloat16).to(self._device)
        # Raw taps are rounded as the target rounds its projection, so that both ways give the same drafts.
        vectors = values if features.projected else self._projection(values)
        return vectors.to(self._dtype)
