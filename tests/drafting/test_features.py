"""What a request's features add to what a drafter has: overlaps are skipped, gaps refused, raw taps rounded as the target rounds."""

import pytest
import torch

from dspark.drafting.features import FeatureReader
from dspark.errors import StaleRound
from dspark.messages import ContextFeatures, DraftRequest
from dspark.runtime.projection import FeatureProjection
from tests.drafting.feature_drafters import A, bits_of, checkpoint_of
from tests.runtime.tiny_drafters import SPEC

ROWS = torch.randn(10, SPEC.hidden_size, generator=torch.Generator().manual_seed(1)).bfloat16()


def reader() -> tuple[FeatureReader, FeatureProjection]:
    projection = FeatureProjection(SPEC).requires_grad_(False)
    projection.load(checkpoint_of(SPEC).tensors, "tiny")
    return FeatureReader(projection, torch.float32), projection


def request(base_length: int, start: int | None, stop: int = 0, *, depth: int = 4) -> DraftRequest:
    features = None if start is None else ContextFeatures(start, bits_of(ROWS[start:stop]), True)
    return DraftRequest(A, base_length, (), depth, 4, features)


@pytest.mark.parametrize(("num_known", "start", "stop"), [(0, 0, 6), (4, 4, 6), (4, 0, 6), (4, 2, 9), (6, 3, 6), (6, 6, 6), (6, None, 0)])
def test_only_what_is_new_and_before_the_anchor_is_taken(num_known: int, start: int | None, stop: int) -> None:
    context = reader()[0].new_context(request(7, start, stop), num_known)
    assert (context.start, context.stop) == (num_known, 6)
    assert torch.equal(context.vectors, ROWS[num_known:6].float())


@pytest.mark.parametrize(
    ("num_known", "start", "stop", "message"),
    [(4, 5, 6, "start at position 5, this drafter knows 4"), (4, 4, 5, "positions 5 to 5 are missing"), (2, None, 0, "positions 2 to 5")],
)
def test_what_leaves_a_gap_before_the_anchor_is_stale(num_known: int, start: int | None, stop: int, message: str) -> None:
    with pytest.raises(StaleRound, match=message):
        reader()[0].new_context(request(7, start, stop), num_known)


def test_without_a_draft_the_features_may_end_early() -> None:
    context = reader()[0].new_context(request(7, 4, 5, depth=0), 4)
    assert (context.start, context.stop) == (4, 5)


def test_features_that_are_all_known_add_nothing() -> None:
    context = reader()[0].new_context(request(7, 1, 3, depth=0), 5)
    assert (context.start, context.stop) == (5, 5)


def test_raw_taps_become_what_the_target_would_have_sent() -> None:
    read, projection = reader()
    taps = torch.randn(6, projection.fc.in_features, generator=torch.Generator().manual_seed(2)).bfloat16()
    context = read.new_context(DraftRequest(A, 7, (), 4, 4, ContextFeatures(0, bits_of(taps), False)), 0)
    assert torch.equal(context.vectors, projection(taps).float())
    assert not torch.equal(context.vectors, projection.project(taps)), "the rounding shows"
