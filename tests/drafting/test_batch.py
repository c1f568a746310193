"""Sessions of the drafters that read features: the chain of the training pass, alone or in a batch, however features arrive."""

import random
from dataclasses import replace

import numpy as np
import pytest

from dspark.drafting.growth import Draft
from dspark.messages import ContextFeatures, DraftRequest
from dspark.types import SamplingParams, SessionId
from tests.drafting.feature_drafters import (
    ALL_SPECS,
    DEPTH,
    GREEDY,
    MAX_LENGTH,
    NOISY,
    A,
    B,
    C,
    Desk,
    Text,
    best_by_teacher_forcing,
    chain_by_teacher_forcing,
    chain_of,
    desk_of,
    failures_of,
    text_of,
)

KINDS = ["vanilla", "reduced", "eagle"]
kinds = pytest.mark.parametrize("kind", KINDS)


def started(kind: str, length: int = 30, sampling: SamplingParams = NOISY) -> tuple[Desk, Text]:
    desk, text = desk_of(ALL_SPECS[kind]), text_of(ALL_SPECS[kind], length)
    desk.open(A, text, sampling)
    return desk, text


def expected(kind: str, text: Text, sampling: SamplingParams = NOISY, depth: int = DEPTH) -> list[int]:
    return chain_by_teacher_forcing(kind, text, sampling, depth)


@pytest.mark.parametrize("sampling", [GREEDY, NOISY], ids=["greedy", "sampled"])
@pytest.mark.parametrize("length", [2, 31])
@pytest.mark.parametrize("kind", ALL_SPECS)
def test_a_chain_is_what_the_training_pass_says_step_by_step(kind: str, length: int, sampling: SamplingParams) -> None:
    """Also in layers whose window is shorter than the context."""
    spec = ALL_SPECS[kind]
    desk, text = started(kind, length, sampling)
    report = desk.draft(A, text, depth=spec.block_size)
    assert chain_of(report) == expected(kind, text, sampling, spec.block_size)
    scores = report.results[0].tree.scores.tolist()
    assert scores == sorted(scores, reverse=True)
    assert 0 <= scores[-1] <= scores[0] <= 1


@pytest.mark.parametrize("sampling", [GREEDY, NOISY], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["vanilla", "gated", "rnn", "dflash", "reduced", "eagle"])
def test_a_tree_is_what_the_training_pass_says_on_every_path(kind: str, sampling: SamplingParams) -> None:
    """Siblings are the best of the processed, noised scores, in their order; two sessions grow in one batch."""
    desk, text = started(kind, 21, sampling)
    desk.open(B, text_of(ALL_SPECS[kind], 9, seed=4), sampling)
    requests = [desk.request(A, text, 0, nodes=14, width=3), desk.request(B, text_of(ALL_SPECS[kind], 9, seed=4), 0, nodes=5, width=2)]
    report = desk.drafter.draft(requests)
    tree = report.results[0].tree
    assert report.failures == ()
    assert 5 < len(tree) <= 14  # a filter may leave fewer tokens than there is room for
    assert not tree.is_chain
    assert len(report.results[1].tree) == 5
    for parent in range(-1, len(tree)):
        children = np.flatnonzero(tree.parents == parent)
        if len(children):
            path = [] if parent < 0 else tree.token_ids[tree.path(parent)].tolist()
            ranked = children[np.argsort(-tree.scores[children], kind="stable")]
            assert tree.token_ids[ranked].tolist() == best_by_teacher_forcing(kind, text, sampling, path, len(children))


@kinds
def test_a_batch_of_sessions_gives_each_what_it_gets_alone(kind: str) -> None:
    lengths, params, depths = (3, 25, 11), (GREEDY, NOISY, SamplingParams(seed=1)), (4, 2, 0)
    together = desk_of(ALL_SPECS[kind])
    texts = [text_of(ALL_SPECS[kind], length, seed=length) for length in lengths]
    requests = []
    for name, text, sampling, depth in zip((A, B, C), texts, params, depths, strict=True):
        together.open(name, text, sampling)
        requests.append(together.request(name, text, 0, depth=depth))
    report = together.drafter.draft(requests)
    for index, (text, sampling, depth) in enumerate(zip(texts, params, depths, strict=True)):
        alone = desk_of(ALL_SPECS[kind])
        alone.open(A, text, sampling)
        single = alone.draft(A, text, depth=depth)
        assert chain_of(report, index) == chain_of(single)
        assert len(chain_of(single)) == depth
        np.testing.assert_allclose(report.results[index].tree.scores, single.results[0].tree.scores, rtol=1e-3)


@kinds
def test_features_may_come_in_pieces_that_overlap(kind: str) -> None:
    desk, text = started(kind)
    for start, stop in ((0, 9), (5, 17), (2, 12), (17, 18), (18, 18)):
        assert chain_of(desk.draft(A, text, start, stop=stop, depth=0)) == []
    assert chain_of(desk.draft(A, text, 10)) == expected(kind, text)


@kinds
def test_raw_taps_give_the_drafts_of_projected_features(kind: str) -> None:
    desk, text = started(kind)
    assert chain_of(desk.draft(A, text, raw=True)) == expected(kind, text)


@kinds
def test_a_gap_in_the_features_is_a_stale_round_and_harms_nothing(kind: str) -> None:
    desk, text = started(kind)
    desk.draft(A, text, 0, stop=9, depth=0)
    assert failures_of(desk.draft(A, text, 10)) == [(A, "StaleRound")]
    assert chain_of(desk.draft(A, text, 9)) == expected(kind, text)


@kinds
def test_a_draft_without_all_features_is_a_stale_round(kind: str) -> None:
    desk, text = started(kind)
    assert failures_of(desk.draft(A, text, None)) == [(A, "StaleRound")]
    assert failures_of(desk.draft(A, text, 0, stop=len(text) - 2)) == [(A, "StaleRound")]
    assert chain_of(desk.draft(A, text)) == expected(kind, text)


@kinds
def test_features_of_the_anchor_and_beyond_are_not_used(kind: str) -> None:
    """A lost answer: the target is ahead of what the drafter is asked about."""
    desk, text = started(kind)
    request = replace(desk.request(A, text, 0), features=desk.features(text_of(ALL_SPECS[kind], 40), 0, 40))
    known = Text(text.token_ids, text_of(ALL_SPECS[kind], 40).taps[: len(text)])
    assert chain_of(desk.drafter.draft([request])) == expected(kind, known)


@kinds
@pytest.mark.parametrize("seed", range(3))
def test_after_any_rounds_the_drafter_says_what_a_fresh_one_says(kind: str, seed: int) -> None:
    """Rounds that draft, rounds that only feed, repeats of either, and deltas and features sent twice: it never goes stale."""
    draw = random.Random(seed)
    desk, text = desk_of(ALL_SPECS[kind]), text_of(ALL_SPECS[kind], 70, seed)
    length, fed = 5, 0
    desk.open(A, text, NOISY, length)
    for _ in range(14):
        news = draw.randint(1, 4)
        length += news
        depth = draw.choice([0, 0, 3, 4])
        report = desk.draft(A, text, max(0, fed - draw.randint(0, 2)), length=length, new=news + draw.randint(0, 2), depth=depth)
        if draw.random() < 0.3:
            report = desk.draft(A, text, max(0, length - 3), length=length, depth=depth)
        fed = length - 1
        here = Text(text.token_ids[:length], text.taps[:length])
        assert chain_of(report) == expected(kind, here, depth=depth)


@kinds
def test_a_session_whose_blocks_were_taken_says_so_and_recovers(kind: str) -> None:
    desk = desk_of(ALL_SPECS[kind], num_cache_tokens=56)  # room for one session
    text, other = text_of(ALL_SPECS[kind], 30), text_of(ALL_SPECS[kind], 33, seed=1)
    desk.open(A, text, NOISY, 29)
    desk.open(B, other, NOISY)
    chain_of(desk.draft(A, text, length=29))
    assert chain_of(desk.draft(B, other)) == expected(kind, other)
    assert failures_of(desk.draft(A, text, 28, new=1)) == [(A, "StaleRound")]
    assert chain_of(desk.draft(A, text)) == expected(kind, text)
    assert failures_of(desk.draft(B, other, None)) == [(B, "StaleRound")]


@kinds
def test_a_session_that_finds_no_room_beside_the_others_of_its_batch_fails_alone(kind: str) -> None:
    desk = desk_of(ALL_SPECS[kind], num_cache_tokens=56)
    text, other = text_of(ALL_SPECS[kind], 30), text_of(ALL_SPECS[kind], 33, seed=1)
    desk.open(A, text, NOISY)
    desk.open(B, other, NOISY)
    report = desk.drafter.draft([desk.request(A, text, 0), desk.request(B, other, 0)])
    assert failures_of(report) == [(B, "OutOfBlocks")]
    assert report.results[0].tree.token_ids.tolist() == expected(kind, text)


@kinds
def test_closing_a_session_frees_its_blocks(kind: str) -> None:
    desk = desk_of(ALL_SPECS[kind], num_cache_tokens=56)
    text = text_of(ALL_SPECS[kind], 30)
    for _ in range(3):
        desk.open(A, text, NOISY)
        assert chain_of(desk.draft(A, text)) == expected(kind, text)
        desk.drafter.close(A)
    assert desk.drafter.num_sessions == 0
    assert failures_of(desk.draft(A, text)) == [(A, "UnknownSession")]


@kinds
def test_the_length_limit_bounds_the_chain(kind: str) -> None:
    spec = ALL_SPECS[kind]
    desk, text = desk_of(spec, max_length=32), text_of(spec, 33)
    desk.open(A, text, NOISY, 30)
    assert len(chain_of(desk.draft(A, text, length=30))) == 2
    assert chain_of(desk.draft(A, text, 29, length=32, new=2)) == []
    assert failures_of(desk.draft(A, text, 31, length=33, new=1)) == [(A, "OutOfBlocks")]
    full = text_of(spec, MAX_LENGTH - 1)
    whole = desk_of(spec)
    whole.open(A, full)
    assert len(chain_of(whole.draft(A, full))) == 1


@kinds
def test_depth_and_nodes_bound_the_chain(kind: str) -> None:
    desk, text = started(kind)
    assert chain_of(desk.draft(A, text, depth=3)) == expected(kind, text)[:3]
    assert chain_of(desk.drafter.draft([replace(desk.request(A, text, 0), max_nodes=2)])) == expected(kind, text)[:2]


@kinds
def test_positions_that_hardly_survive_are_not_proposed(kind: str) -> None:
    desk, text = started(kind)
    scores = desk.draft(A, text).results[0].tree.scores.tolist()
    assert scores[0] > scores[-1], "the test needs scores that fall"
    wanted = (scores[0] + scores[-1]) / 2
    picky = desk_of(ALL_SPECS[kind], min_survival=wanted)
    picky.open(A, text, NOISY)
    tree = picky.draft(A, text).results[0].tree
    assert tree.scores.tolist() == [score for score in scores if score >= wanted]
    assert tree.token_ids.tolist() == expected(kind, text)[: len(tree)]


@kinds
@pytest.mark.parametrize("raw", [False, True], ids=["projected", "raw"])
def test_forged_features_are_refused_and_the_rest_of_the_batch_is_unharmed(kind: str, raw: bool) -> None:
    desk, text = started(kind)
    desk.open(B, text, NOISY)
    for shape in ((29, 5), (29,), (29, 0)):
        forged = replace(desk.request(B, text, None), features=ContextFeatures(0, np.zeros(shape, np.uint16), not raw))
        unknown = DraftRequest(SessionId("nobody"), 1, (3,), 4, 4)
        report = desk.drafter.draft([forged, desk.request(A, text, 0), unknown])
        assert failures_of(report) == [(B, "InvalidMessage"), (SessionId("nobody"), "UnknownSession")]
        assert "features must be [k, " in report.failures[0].message
        assert report.results[0].tree.token_ids.tolist() == expected(kind, text)
    assert chain_of(desk.draft(B, text)) == expected(kind, text)


@pytest.mark.parametrize("kind", ["vanilla", "dflash", "eagle"])
def test_a_listener_hears_all_that_calibration_is_fitted_on(kind: str) -> None:
    desk, text = started(kind)
    heard: list[tuple[SessionId, int, Draft]] = []
    quiet = desk.draft(A, text).results[0].tree
    desk.drafter.listener = lambda *told: heard.append(told)
    tree = desk.draft(A, text).results[0].tree
    assert tree.token_ids.tolist() == quiet.token_ids.tolist()
    ((session_id, base_length, draft),) = heard
    assert (session_id, base_length, draft.tree) == (A, len(text), tree)
    signals = draft.signals
    assert signals.depths.tolist() == [1, 2, 3, 4]
    assert all(gap > 0 for gap in signals.gaps)
    assert all(value < 0 for value in signals.log_draft_probs)
    assert bool(np.all(np.isnan(signals.confidence_logits))) == (kind != "vanilla")
