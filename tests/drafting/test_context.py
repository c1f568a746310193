"""DraftContext: deltas may overlap what is known, they may not leave a gap."""

import pytest

from dspark.drafting.context import DraftContext
from dspark.errors import StaleRound
from dspark.messages import DraftRequest, SessionOpen
from dspark.types import SamplingParams, SessionId

NAME = SessionId("s")


def context_of(*token_ids: int) -> DraftContext:
    return DraftContext.from_open(SessionOpen(NAME, token_ids, SamplingParams(seed=4)))


def request_for(base_length: int, *new: int) -> DraftRequest:
    return DraftRequest(NAME, base_length, new, 4, 4)


def test_an_opening_is_where_a_context_begins() -> None:
    context = context_of(1, 2)
    assert (context.token_ids, context.sampling.seed) == ([1, 2], 4)


def test_new_tokens_are_appended() -> None:
    context = context_of(1, 2)
    context.bring_up_to(request_for(4, 3, 4))
    assert context.token_ids == [1, 2, 3, 4]


def test_a_delta_that_was_already_known_changes_nothing() -> None:
    context = context_of(1, 2, 3)
    context.bring_up_to(request_for(3, 2, 3))
    context.bring_up_to(request_for(3))
    assert context.token_ids == [1, 2, 3]


def test_an_overlapping_delta_brings_only_what_is_new() -> None:
    context = context_of(1, 2, 3)
    context.bring_up_to(request_for(5, 3, 4, 5))
    assert context.token_ids == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("request_", [request_for(5, 5), request_for(9), request_for(1, 7, 8)], ids=["gap", "ahead", "before the start"])
def test_a_delta_that_does_not_fit_is_stale_and_changes_nothing(request_: DraftRequest) -> None:
    context = context_of(1, 2, 3)
    with pytest.raises(StaleRound):
        context.bring_up_to(request_)
    assert context.token_ids == [1, 2, 3]


def test_nothing_at_all_is_no_context_to_draft_on() -> None:
    with pytest.raises(StaleRound):
        context_of().bring_up_to(request_for(0))
