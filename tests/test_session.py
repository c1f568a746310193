"""Session: commits up to the first stop, exact inside a block, and refuses what is not its round."""

import pytest

from dspark.errors import ProtocolError
from dspark.messages import VerifyResult
from dspark.session import Session
from dspark.tree import CandidateTree
from dspark.types import FinishReason, SamplingParams, SessionId, StopRules

NAME = SessionId("s")


def session_with(max_tokens: int = 10, stops: frozenset[int] = frozenset()) -> Session:
    return Session(NAME, (5, 6, 7), SamplingParams(), StopRules(max_tokens, stops))


def result_for(session: Session, tokens: list[int]) -> VerifyResult:
    return VerifyResult(NAME, session.round, session.base_length, tuple(range(len(tokens) - 1)), tuple(tokens))


def test_a_commit_appends_accepted_tokens_and_the_bonus() -> None:
    session = session_with()
    chunk = session.commit(result_for(session, [1, 2, 3]), num_drafted=4, num_selected=3)
    assert chunk.token_ids == (1, 2, 3)
    assert (chunk.num_drafted, chunk.num_selected, chunk.num_accepted) == (4, 3, 2)
    assert chunk.finish_reason is None
    assert (session.round, session.base_length, session.tokens_left) == (1, 6, 7)


def test_a_stop_token_inside_a_block_ends_the_answer_and_belongs_to_it() -> None:
    session = session_with(stops=frozenset({2}))
    chunk = session.commit(result_for(session, [1, 2, 3, 4]))
    assert chunk.token_ids == (1, 2)
    assert chunk.finish_reason is FinishReason.STOP
    assert chunk.num_accepted == 2, "both tokens that were kept had been drafted"
    assert session.finished
    assert session.output_ids == [1, 2]


def test_max_tokens_cuts_a_block() -> None:
    session = session_with(max_tokens=2)
    chunk = session.commit(result_for(session, [1, 3, 4]))
    assert chunk.token_ids == (1, 3)
    assert chunk.finish_reason is FinishReason.LENGTH


def test_a_stop_token_as_the_last_allowed_token_is_a_stop_not_a_length() -> None:
    session = session_with(max_tokens=2, stops=frozenset({2}))
    assert session.commit(result_for(session, [1, 2, 2])).finish_reason is FinishReason.STOP


def test_a_stop_token_behind_max_tokens_does_not_count() -> None:
    session = session_with(max_tokens=2, stops=frozenset({2}))
    assert session.commit(result_for(session, [1, 1, 2])).finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(("round_number", "base_length"), [(1, 3), (0, 4), (0, 2)])
def test_a_result_of_another_round_is_refused_and_changes_nothing(round_number: int, base_length: int) -> None:
    session = session_with()
    with pytest.raises(ProtocolError, match="does not continue"):
        session.commit(VerifyResult(NAME, round_number, base_length, (), (1,)))
    assert (session.output_ids, session.round) == ([], 0)


def test_a_result_is_committed_once() -> None:
    session = session_with()
    result = result_for(session, [1])
    session.commit(result)
    with pytest.raises(ProtocolError):
        session.commit(result)


def test_another_sessions_result_is_refused() -> None:
    session = session_with()
    with pytest.raises(ProtocolError):
        session.commit(VerifyResult(SessionId("t"), 0, 3, (), (1,)))


def test_the_delta_may_start_in_the_prompt_or_in_the_output() -> None:
    session = session_with()
    session.commit(result_for(session, [1, 2]))
    assert [session.tokens_since(length) for length in (0, 2, 3, 4, 5)] == [(5, 6, 7, 1, 2), (7, 1, 2), (1, 2), (2,), ()]


def test_the_smaller_of_two_caps_on_candidates_holds() -> None:
    session = session_with()
    assert session.node_cap(8) == 8
    session.max_nodes = 3
    assert [session.node_cap(most) for most in (8, 2)] == [3, 2]


def test_the_opening_and_the_question_carry_where_the_session_is() -> None:
    session = session_with()
    session.commit(result_for(session, [1, 2]))
    assert session.opening().token_ids == (5, 6, 7, 1, 2)
    tree = CandidateTree.chain([4])
    request = session.verify_request(tree)
    assert (request.round, request.base_length) == (1, 5)
    assert request.tree is tree
