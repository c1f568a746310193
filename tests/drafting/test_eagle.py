"""What only the EAGLE-3-style drafter does: chains longer than it was trained for, and rows of its own that never stay."""

import pytest

from tests.drafting.feature_drafters import (
    ALL_SPECS,
    DEPTH,
    GREEDY,
    NOISY,
    A,
    Text,
    chain_by_teacher_forcing,
    chain_of,
    desk_of,
    text_of,
)

SPEC = ALL_SPECS["eagle"]


def test_an_anchor_without_context_has_nothing_to_begin_with() -> None:
    desk, text = desk_of(SPEC), text_of(SPEC, 3)
    desk.open(A, text, GREEDY, 1)
    assert chain_of(desk.draft(A, text, None, length=1)) == []
    assert chain_of(desk.draft(A, text, 0, new=2)) == chain_by_teacher_forcing("eagle", text, GREEDY, DEPTH)


def test_only_tokens_of_the_draft_vocabulary_are_proposed() -> None:
    desk, text = desk_of(SPEC), text_of(SPEC, 30)
    desk.open(A, text, NOISY)
    assert all(token % 3 == 1 and token < 36 for token in chain_of(desk.draft(A, text, depth=12)))


def test_a_chain_may_be_longer_than_the_steps_of_training() -> None:
    desk, text = desk_of(SPEC), text_of(SPEC, 20)
    desk.open(A, text, NOISY)
    chain = chain_of(desk.draft(A, text, depth=9))
    assert len(chain) == 9
    assert chain[: SPEC.block_size] == chain_by_teacher_forcing("eagle", text, NOISY, SPEC.block_size)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_rows_of_a_draft_do_not_stay_whether_it_was_accepted_or_not(kept: int) -> None:
    """Accepted tokens are run again with the target's features, which the draft did not have."""
    desk, text = desk_of(SPEC), text_of(SPEC, 40)
    desk.open(A, text, NOISY, 20)
    chain = chain_of(desk.draft(A, text, length=20))
    tokens = [*text.token_ids[:20], *chain[:kept], 38]
    after = Text(tokens, text.taps[: len(tokens)])
    report = desk.draft(A, after, 19, new=kept + 1)
    assert chain_of(report) == chain_by_teacher_forcing("eagle", after, NOISY, DEPTH)


def test_an_older_request_again_asks_for_all_features_rather_than_guess_from_the_wrong_row() -> None:
    desk, text = desk_of(SPEC), text_of(SPEC, 30)
    desk.open(A, text, NOISY)
    chain_of(desk.draft(A, text))
    older = Text(text.token_ids[:25], text.taps[:25])
    assert [failure.error for failure in desk.draft(A, older, 20).failures] == ["StaleRound"]
    assert chain_of(desk.draft(A, older, 0)) == chain_by_teacher_forcing("eagle", older, NOISY, DEPTH)
