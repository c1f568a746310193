"""A reduced vocabulary: ids and logits on their way to the target's, and back from a checkpoint."""

import torch

from dspark.drafting.vocabulary import DraftVocabulary

TOKENS = torch.tensor([7, 2, 4])  # of nine


def test_draft_tokens_are_the_given_target_tokens_in_growing_order() -> None:
    vocabulary = DraftVocabulary.of_tokens(TOKENS, 9)
    assert vocabulary.to_target_ids(torch.tensor([[0, 1], [2, 0]])).tolist() == [[2, 4], [7, 2]]


def test_what_the_drafter_cannot_say_is_at_minus_infinity() -> None:
    logits = DraftVocabulary.of_tokens(TOKENS, 9).to_target_logits(torch.tensor([[0.5, -1.0, 2.0], [3.0, 4.0, 5.0]]))
    inf = float("inf")
    assert logits.tolist() == [
        [-inf, -inf, 0.5, -inf, -1.0, -inf, -inf, 2.0, -inf],
        [-inf, -inf, 3.0, -inf, 4.0, -inf, -inf, 5.0, -inf],
    ]


def test_maps_are_offsets_and_marks_and_read_back_as_the_same() -> None:
    d2t, t2d = DraftVocabulary.of_tokens(TOKENS, 9).offsets()
    assert (d2t.tolist(), d2t.dtype) == ([2, 3, 5], torch.int64)
    assert t2d.nonzero().flatten().tolist() == [2, 4, 7]
    again = DraftVocabulary.from_offsets(d2t, 9).target_ids
    assert again is not None
    assert again.tolist() == [2, 4, 7]


def test_the_whole_vocabulary_changes_nothing() -> None:
    whole = DraftVocabulary.whole(4)
    logits = torch.randn(2, 4)
    assert whole.to_target_logits(logits) is logits
    assert whole.to_target_ids(TOKENS) is TOKENS
    d2t, t2d = whole.offsets()
    assert not d2t.any()
    assert t2d.all()


def test_a_vocabulary_is_the_same_on_every_device() -> None:
    part = DraftVocabulary.of_tokens(torch.tensor([7, 2, 5]), 9)
    moved = part.on(torch.device("cpu"))
    assert moved.to_target_ids(torch.arange(3)).tolist() == [2, 5, 7]
    assert DraftVocabulary.whole(9).on(torch.device("cpu")).target_ids is None
