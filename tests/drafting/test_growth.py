"""Growth: the trees that best-first growth over every candidate would find, for all sessions together."""

import functools
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from dspark.drafting.growth import MAX_GAP, Draft, Growth, Stem
from dspark.sampling import RowSampling, Sampler
from dspark.scheduling.signals import NodeSignals, sigmoid_of_gaps
from dspark.tree import ANCHOR
from dspark.types import SamplingParams

VOCAB = 13
GREEDY = SamplingParams(temperature=0.0)
NOISY = SamplingParams(temperature=0.8, seed=5)
FILTERED = SamplingParams(temperature=1.0, top_k=3, seed=6)
CPU = torch.device("cpu")


@functools.cache
def logits_after(session: int, path: tuple[int, ...]) -> torch.Tensor:
    """[V] a drafter that answers every path differently."""
    return 2 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(hash((session, *path)) % 2**31))


def grown(stems: Sequence[Stem], estimate=sigmoid_of_gaps) -> list[Draft]:
    """All levels; the paths are kept by the frontier's own words."""
    growth = Growth(stems, Sampler(VOCAB, CPU), estimate, wants_log_probs=True)
    paths: list[tuple[int, ...]] = []
    while len(front := growth.frontier):
        if front.depth == 0:
            paths = [() for _ in front.owners]
        else:
            paths = [(*paths[row], token) for row, token in zip(front.parent_rows.tolist(), front.token_ids.tolist(), strict=True)]
        growth.extend(torch.stack([logits_after(s, path) for s, path in zip(front.owners.tolist(), paths, strict=True)]))
    return growth.drafts()


def nodes_of(draft: Draft) -> dict[tuple[int, ...], float]:
    """Path of tokens -> survival."""
    tree = draft.tree
    return {tuple(tree.token_ids[tree.path(node)].tolist()): float(tree.scores[node]) for node in range(len(tree))}


def every_candidate(session: int, stem: Stem) -> dict[tuple[int, ...], float]:
    """Path -> survival of the whole tree of the stem's depth and width, path by path, by the definition alone."""
    sampler = Sampler(VOCAB, CPU)
    found: dict[tuple[int, ...], float] = {}
    open_paths: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    while open_paths:
        path, survival = open_paths.pop()
        row = RowSampling(stem.sampling, stem.base_length + len(path))
        scores = sampler.noised_scores(logits_after(session, path)[None], [row])[0]
        ranked = scores.sort(descending=True)
        for rank in range(stem.max_width):
            if not torch.isfinite(ranked.values[rank]):
                continue
            gap = ranked.values[rank] - ranked.values[1 if rank == 0 else 0]
            child = ((*path, int(ranked.indices[rank])), survival * float(gap.clamp(-MAX_GAP, MAX_GAP).sigmoid()))
            found[child[0]] = child[1]
            if len(child[0]) < stem.max_depth:
                open_paths.append(child)
    return found


@pytest.mark.parametrize("seed", range(6))
def test_a_tree_holds_the_best_candidates_of_all_there_are(seed: int) -> None:
    draw = random.Random(seed)
    stems = [
        Stem(draw.choice((GREEDY, NOISY, FILTERED)), draw.randint(1, 50), draw.randint(1, 4), draw.randint(1, 12), draw.randint(1, 4))
        for _ in range(4)
    ]
    for session, (stem, draft) in enumerate(zip(stems, grown(stems), strict=True)):
        candidates, nodes = every_candidate(session, stem), nodes_of(draft)
        best = sorted(candidates.values(), reverse=True)[: stem.max_nodes]
        assert sorted(nodes.values(), reverse=True) == pytest.approx(best, rel=1e-4)
        assert all(survival == pytest.approx(candidates[path], rel=1e-4) for path, survival in nodes.items())


def frontiers(stem: Stem, chances: Sequence[float]) -> list[int]:
    """Rows of each frontier where a candidate survives its parent with `chances[rank]`."""
    growth = Growth([stem], Sampler(VOCAB, CPU), lambda signals: np.asarray(chances, np.float32)[signals.ranks], wants_log_probs=False)
    rows = []
    while count := len(growth.frontier):
        rows.append(count)
        growth.extend(torch.randn((count, VOCAB), generator=torch.Generator().manual_seed(count)))
    return rows


def test_a_node_whose_children_would_have_to_give_way_is_not_grown_on() -> None:
    assert frontiers(Stem(GREEDY, 1, 3, 3, 3), (0.8, 0.1, 0.05)) == [1, 1, 1], "three that stay are the chain's"
    assert frontiers(Stem(GREEDY, 1, 2, 12, 3), (0.8, 0.1, 0.05)) == [1, 3], "there is room for all of them"
    assert frontiers(Stem(GREEDY, 1, 3, 6, 2), (0.5, 0.45)) == [1, 2, 3], "the least of four has no better child to come"


def test_no_session_stops_growing_for_anothers_sake() -> None:
    growth = Growth(
        [Stem(GREEDY, 1, 3, 3, 3), Stem(GREEDY, 1, 3, 30, 3)],
        Sampler(VOCAB, CPU),
        lambda signals: np.asarray((0.8, 0.1, 0.05), np.float32)[signals.ranks],
        wants_log_probs=False,
    )
    growth.extend(torch.zeros((2, VOCAB)))
    assert growth.frontier.owners.tolist() == [0, 1, 1, 1]


def test_width_one_is_the_chain_of_the_noised_best_tokens() -> None:
    stem = Stem(NOISY, 9, 5, 64, 1)
    (draft,) = grown([stem])
    assert draft.tree.is_chain
    sampler, path = Sampler(VOCAB, CPU), ()
    for token in draft.tree.token_ids.tolist():
        assert token == int(sampler.choose(logits_after(0, path)[None], [RowSampling(NOISY, 9 + len(path))]))
        path = (*path, token)
    assert len(path) == 5


def test_a_session_gets_the_tree_beside_others_that_it_gets_alone() -> None:
    stems = [Stem(NOISY, 3, 4, 9, 3), Stem(GREEDY, 7, 0, 9, 3), Stem(FILTERED, 11, 2, 5, 2), Stem(NOISY, 2, 4, 0, 2)]
    drafts = grown(stems)
    assert [len(draft.tree) for draft in drafts] == [9, 0, 5, 0]
    assert nodes_of(drafts[0]) == nodes_of(grown(stems[:1])[0])


def test_parents_stand_before_their_children_and_survival_never_rises_on_a_path() -> None:
    (draft,) = grown([Stem(NOISY, 4, 4, 16, 4)])
    tree = draft.tree
    tree.check(VOCAB, 16)
    for node, parent in enumerate(tree.parents.tolist()):
        assert parent == ANCHOR or tree.scores[node] <= tree.scores[parent]
    assert draft.signals.depths.tolist() == tree.depths.tolist()


def test_candidates_below_the_least_survival_are_not_proposed() -> None:
    nodes = nodes_of(grown([Stem(NOISY, 4, 4, 16, 4)])[0])
    kept = nodes_of(grown([Stem(NOISY, 4, 4, 16, 4, min_survival=0.2)])[0])
    assert kept == {path: survival for path, survival in nodes.items() if survival >= 0.2}
    assert 0 < len(kept) < len(nodes)


def test_tokens_that_a_filter_removed_are_never_candidates() -> None:
    (draft,) = grown([Stem(SamplingParams(temperature=1.0, top_k=1, seed=1), 4, 3, 16, 4)])
    assert draft.tree.is_chain
    assert len(draft.tree) == 3
    assert draft.signals.gaps.tolist() == [MAX_GAP] * 3


def test_what_the_drafter_knew_of_each_node_is_told_with_it() -> None:
    (draft,) = grown([Stem(NOISY, 4, 3, 8, 3)])
    sampler = Sampler(VOCAB, CPU)
    for node in range(len(draft.tree)):
        path = tuple(draft.tree.token_ids[draft.tree.path(node)].tolist())
        logits = logits_after(0, path[:-1])
        scores = sampler.noised_scores(logits[None], [RowSampling(NOISY, 4 + len(path) - 1)])[0].sort(descending=True)
        rank = scores.indices.tolist().index(path[-1])
        gap = scores.values[rank] - scores.values[1 if rank == 0 else 0]
        signals = draft.signals
        assert signals.ranks[node] == rank
        assert signals.gaps[node] == pytest.approx(float(gap), abs=1e-5)
        assert signals.log_draft_probs[node] == pytest.approx(float(logits.log_softmax(-1)[path[-1]]), abs=1e-5)
        assert signals.temperatures[node] == np.float32(0.8)
        assert np.isnan(signals.confidence_logits[node])


def test_an_estimate_that_is_no_number_counts_as_hopeless_and_one_above_one_as_certain() -> None:
    def estimate(signals: NodeSignals) -> np.ndarray:
        return np.where(signals.ranks == 0, 7.0, np.nan).astype(np.float32)

    (draft,) = grown([Stem(NOISY, 4, 3, 4, 2)], estimate)
    assert sorted(draft.tree.scores.tolist()) == [0.0, 1.0, 1.0, 1.0]
