"""Sharing rows: decoding first and whole, prompts in chunks, and nobody waits for ever."""

import random

import pytest

from dspark.types import SessionId
from dspark.verifying.rows import Work, share_rows

A, B, C, D = (SessionId(name) for name in "abcd")


def test_everything_that_fits_goes_whole() -> None:
    assert share_rows([Work(A, 1, 4), Work(B, 20, 3)], 100) == {A: 5, B: 23}


def test_decoding_sessions_come_before_older_prompts() -> None:
    assert share_rows([Work(A, 30, 0), Work(B, 1, 4), Work(C, 1, 2)], 20) == {B: 5, C: 3, A: 12}


def test_what_is_left_goes_to_the_oldest_prompt_first() -> None:
    assert share_rows([Work(A, 30, 0), Work(B, 30, 0)], 40) == {A: 30, B: 10}


def test_a_chunk_stops_before_the_anchor_unless_the_whole_round_fits() -> None:
    """The anchor's row gives logits, and its candidates must be in the same forward."""
    assert share_rows([Work(A, 10, 4)], 12) == {A: 9}
    assert share_rows([Work(A, 10, 4)], 14) == {A: 14}


def test_a_session_without_room_waits() -> None:
    assert share_rows([Work(A, 1, 7), Work(B, 1, 7), Work(C, 9, 0)], 8) == {A: 8}


def test_a_smaller_round_may_pass_a_larger_one_that_does_not_fit() -> None:
    assert share_rows([Work(A, 1, 3), Work(B, 1, 7), Work(C, 1, 1)], 8) == {A: 4, C: 2}


def test_a_tree_larger_than_the_batch_still_gets_its_turn() -> None:
    assert share_rows([Work(A, 1, 50), Work(B, 1, 0)], 8) == {A: 51}


def test_nobody_waiting_needs_no_rows() -> None:
    assert share_rows([], 8) == {}


@pytest.mark.parametrize("seed", range(20))
def test_shares_never_pass_the_limit_and_never_cut_a_round(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(50):
        waiting = [Work(SessionId(str(i)), draw.choice((1, 1, draw.randint(2, 60))), draw.randint(0, 9)) for i in range(draw.randint(1, 8))]
        limit = draw.randint(1, 60)
        shares = share_rows(waiting, limit)
        assert sum(shares.values()) <= limit or (len(shares) == 1 and next(iter(shares.values())) <= 10)
        assert shares or all(work.num_uncached > 1 for work in waiting)
        for work in waiting:
            rows = shares.get(work.session_id, 0)
            assert rows in (0, work.num_rows) or rows < work.num_uncached


def test_streams_cannot_hold_up_the_first_prompt_for_ever() -> None:
    streams = [Work(SessionId(f"s{index}"), 1, 3) for index in range(30)]
    shares = share_rows([*streams, Work(SessionId("prompt"), 100, 0)], 64)
    assert shares[SessionId("prompt")] >= 16
    assert sum(shares.values()) <= 64
