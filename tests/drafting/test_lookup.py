"""The lookup drafter: the longest earlier match, of equals the latest, checked against a search that knows no index."""

import random

import pytest

from dspark.drafting.lookup import MAX_CANDIDATES, LookupDrafter
from dspark.messages import DraftRequest, SessionOpen
from dspark.tree import CandidateTree
from dspark.types import SamplingParams, SessionId

NAME = SessionId("s")


async def continuation(tokens: list[int], max_depth: int = 4, *, min_match: int = 2, max_match: int = 16) -> list[int]:
    drafter = LookupDrafter(min_match=min_match, max_match=max_match)
    drafter.open(SessionOpen(NAME, tuple(tokens), SamplingParams()))
    report = await drafter.draft([DraftRequest(NAME, len(tokens), (), max_depth, 64)])
    report.results[0].tree.check(1000, max_depth)
    return report.results[0].tree.token_ids.tolist()


def searched(tokens: list[int], max_depth: int, min_match: int, max_match: int) -> list[int]:
    """By comparing the end of the text with every earlier place."""
    best, best_end = 0, 0
    for end in range(1, len(tokens)):
        length = 0
        while length < min(max_match, end) and tokens[end - 1 - length] == tokens[-1 - length]:
            length += 1
        if length >= max(best, min_match):
            best, best_end = length, end
    return tokens[best_end : best_end + max_depth] if best else []


async def test_the_longest_match_wins_over_a_later_shorter_one() -> None:
    assert await continuation([1, 2, 3, 50, 9, 2, 3, 60, 1, 2, 3]) == [50, 9, 2, 3]


async def test_of_equal_matches_the_latest_wins() -> None:
    assert await continuation([2, 3, 50, 7, 2, 3, 60, 8, 2, 3], 2) == [60, 8]


async def test_a_match_shorter_than_the_least_is_none() -> None:
    assert await continuation([3, 50, 7, 3]) == []
    assert await continuation([3, 50, 7, 3], 2, min_match=1) == [50, 7]


async def test_matches_count_up_to_the_longest_that_is_told_apart() -> None:
    text = [1, 2, 3, 50, 9, 2, 3, 60, 1, 2, 3]
    assert (await continuation(text, 1, max_match=2)) == [60], "both match two tokens, so the latest"


async def test_a_repeating_text_goes_on_repeating() -> None:
    assert await continuation([5, 6, 7] * 4, 3) == [5, 6, 7]
    assert await continuation([4] * 10, 3) == [4]


async def test_a_text_shorter_than_a_match_has_no_continuation() -> None:
    assert await continuation([4]) == []


async def test_scores_fall_with_depth_and_rise_with_the_match() -> None:
    drafter = LookupDrafter(min_match=1, max_match=16)
    scores = []
    for tokens in ([3, 50, 7, 3], [1, 2, 3, 50, 7, 1, 2, 3]):
        drafter.open(SessionOpen(NAME, tuple(tokens), SamplingParams()))
        scores.append((await drafter.draft([DraftRequest(NAME, len(tokens), (), 2, 4)])).results[0].tree.scores.tolist())
    assert scores[0] == pytest.approx([0.5, 0.25])
    assert scores[1] == pytest.approx([0.75, 0.5625])


@pytest.mark.parametrize("seed", range(10))
async def test_a_growing_text_always_gives_what_a_full_search_gives(seed: int) -> None:
    draw = random.Random(seed)
    min_match, max_match = draw.choice(((1, 3), (2, 16), (3, 5)))
    drafter = LookupDrafter(min_match=min_match, max_match=max_match)
    tokens = [draw.randrange(5) for _ in range(draw.randint(1, 8))]
    drafter.open(SessionOpen(NAME, tuple(tokens), SamplingParams()))
    known = len(tokens)
    while len(tokens) < MAX_CANDIDATES:  # within this the bound on places cannot cut anything off
        tokens += [draw.randrange(5) for _ in range(draw.randint(1, 4))]
        depth = draw.randint(0, 5)
        overlap = draw.randint(0, 1) * min(2, known)
        report = await drafter.draft([DraftRequest(NAME, len(tokens), tuple(tokens[known - overlap :]), depth, 5)])
        assert report.results[0].tree.token_ids.tolist() == searched(tokens, depth, min_match, max_match)
        known = len(tokens)


async def test_sessions_do_not_see_each_other_and_closed_ones_are_unknown() -> None:
    drafter = LookupDrafter(min_match=2, max_match=8)
    other = SessionId("t")
    drafter.open(SessionOpen(NAME, (1, 2, 3, 1, 2), SamplingParams()))
    drafter.open(SessionOpen(other, (1, 2), SamplingParams()))
    report = await drafter.draft([DraftRequest(NAME, 5, (), 1, 1), DraftRequest(other, 2, (), 1, 1)])
    assert [result.tree.token_ids.tolist() for result in report.results] == [[3], []]
    drafter.close(NAME)
    drafter.close(NAME)
    report = await drafter.draft([DraftRequest(NAME, 5, (), 1, 1), DraftRequest(other, 9, (4,), 1, 1)])
    assert report.results == ()
    assert [failure.error for failure in report.failures] == ["UnknownSession", "StaleRound"]


async def tree_of(tokens: list[int], max_depth: int, max_nodes: int, max_width: int) -> CandidateTree:
    drafter = LookupDrafter(min_match=2, max_match=16)
    drafter.open(SessionOpen(NAME, tuple(tokens), SamplingParams()))
    report = await drafter.draft([DraftRequest(NAME, len(tokens), (), max_depth, max_nodes, max_width=max_width)])
    tree = report.results[0].tree
    tree.check(1000, max_nodes)
    return tree


async def test_several_matches_make_a_tree_that_shares_what_they_begin_with() -> None:
    text = [1, 2, 3, 50, 60, 7, 8, 2, 3, 50, 61, 9, 4, 1, 2, 3]
    tree = await tree_of(text, 3, 16, 4)
    paths = {tuple(tree.token_ids[tree.path(node)].tolist()): float(tree.scores[node]) for node in range(len(tree))}
    assert set(paths) == {(50,), (50, 60), (50, 60, 7), (50, 61), (50, 61, 9)}
    assert paths[50, 60] > paths[50, 61], "the longer match is the likelier one"
    for path, survival in paths.items():
        below = [paths[other] for other in paths if len(other) == len(path) + 1 and other[:-1] == path]
        assert sum(below) <= survival


async def test_a_small_tree_keeps_the_likeliest_nodes() -> None:
    text = [1, 2, 3, 50, 60, 7, 8, 2, 3, 50, 61, 9, 4, 1, 2, 3]
    tree = await tree_of(text, 3, 3, 4)
    assert tree.token_ids.tolist() == [50, 60, 7]
