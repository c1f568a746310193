"""A verifier that gives features, a projection for them, and how answers are put together."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dspark.messages import ContextFeatures, FeatureSpec, VerifyRequest, VerifyResult
from dspark.runtime.model import PackedModel
from dspark.tree import CandidateTree
from dspark.types import SessionId
from dspark.verifying.verifier import BatchVerifier
from tests.runtime.tiny_models import packed_model, random_prompts

TAPS = (-1, 0)
SPEC = FeatureSpec("drafter-1", TAPS)
WIDTH = 32
"""d of the tiny models."""
PROMPTS = random_prompts((5, 17, 33, 9))
A, B = SessionId("0"), SessionId("1")


class Projected:
    """A projection like the real one: fixed random weights, a norm, bfloat16."""

    fingerprint = SPEC.drafter_fingerprint
    tap_layers = TAPS
    width = 16

    def __init__(self, factor: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(3)
        self._weight = torch.randn(self.width, len(TAPS) * WIDTH, generator=generator)
        self.factor = factor
        self.error: Exception | None = None
        self.num_rows = 0

    def __call__(self, taps: torch.Tensor) -> torch.Tensor:
        if self.error is not None:
            raise self.error
        self.num_rows += len(taps)
        rows = torch.nn.functional.linear(taps, self._weight)
        return (self.factor * torch.nn.functional.rms_norm(rows, (self.width,))).to(torch.bfloat16)


def model_of(num_cache_tokens: int = 1024) -> PackedModel:
    """Deterministic, so that equal really means equal."""
    return packed_model("qwen3", num_cache_tokens=num_cache_tokens, block_tokens=8, deterministic=True)


def verifier_on(model: PackedModel, *projections: Projected, max_batch_rows: int = 64) -> BatchVerifier:
    return BatchVerifier(model, max_length=512, max_batch_rows=max_batch_rows, projections=projections)


def joined(parts: Sequence[ContextFeatures | None]) -> NDArray[np.uint16]:
    """The rows of all answers, which must continue each other from position 0."""
    stop = 0
    for part in parts:
        assert part is not None
        assert part.start == stop
        stop = part.stop
    return np.concatenate([part.values for part in parts if part is not None])


def floats(bits: NDArray[np.uint16]) -> torch.Tensor:
    return torch.from_numpy(bits.copy()).view(torch.bfloat16).float()


def ask(number: int, base_length: int, features_from: int, tree: CandidateTree | None = None, name: SessionId = A) -> VerifyRequest:
    return VerifyRequest(name, number, base_length, CandidateTree.empty() if tree is None else tree, features_from)


def answer(verifier: BatchVerifier, request: VerifyRequest) -> VerifyResult:
    verifier.submit(request)
    (result,) = verifier.step().results
    return result
