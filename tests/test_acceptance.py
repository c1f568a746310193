"""The acceptance law: the walk gives what decoding one token at a time gives, whatever tree it walks."""

import random

import numpy as np
import pytest

from dspark.acceptance import walk
from dspark.tree import ANCHOR, CandidateTree

#  anchor                   the target says: 17 after the anchor, 9 after node 0, 8 after node 2
#  ├── 17 (0)
#  │   ├── 9 (2)
#  │   │   └── 5 (4)
#  │   └── 3 (3)
#  └── 4 (1)
TREE = CandidateTree(np.asarray([17, 4, 9, 3, 5], np.int32), np.asarray([-1, -1, 0, 0, 2], np.int32), np.ones(5, np.float32))


def test_the_walk_descends_while_a_child_carries_the_targets_token() -> None:
    accepted = walk(TREE, [17, 9, 0, 8, 0, 0])
    assert accepted.nodes == (0, 2)
    assert accepted.token_ids == (17, 9, 8)


def test_a_token_without_a_child_at_the_anchor_accepts_nothing() -> None:
    accepted = walk(TREE, [6, 9, 9, 9, 9, 9])
    assert accepted.nodes == ()
    assert accepted.token_ids == (6,)


def test_a_whole_path_may_be_accepted_and_the_bonus_comes_after_its_leaf() -> None:
    assert walk(TREE, [17, 9, 0, 5, 0, 2]).token_ids == (17, 9, 5, 2)


def test_a_right_token_below_a_wrong_parent_does_not_count() -> None:
    assert walk(TREE, [4, 9, 9, 9, 9, 9]).token_ids == (4, 9)


def test_an_empty_tree_is_one_step_of_plain_decoding() -> None:
    accepted = walk(CandidateTree.empty(), [3])
    assert (accepted.nodes, accepted.token_ids) == ((), (3,))


def random_tree(draw: random.Random, vocab_size: int, max_nodes: int) -> CandidateTree:
    count = draw.randint(0, max_nodes)
    parents = [draw.randint(ANCHOR, node - 1) for node in range(count)]
    ids = [draw.randrange(vocab_size) for _ in range(count)]  # equal siblings happen
    return CandidateTree(np.asarray(ids, np.int32), np.asarray(parents, np.int32), np.ones(count, np.float32))


def random_selection(draw: random.Random, tree: CandidateTree) -> CandidateTree:
    """Any set of nodes that holds every kept node's parent."""
    kept: list[int] = []
    for node, parent in enumerate(tree.parents.tolist()):
        if (parent == ANCHOR or parent in kept) and draw.random() < 0.8:
            kept.append(node)
    return tree.select(kept)


@pytest.mark.parametrize("seed", range(5))
def test_any_trees_and_any_selections_give_the_text_of_plain_decoding(seed: int) -> None:
    """A target function of the whole history, a vocabulary of 4 so that much is accepted; 40 texts of 50 tokens per seed."""
    draw = random.Random(seed)
    num_accepted = 0
    for text in range(40):
        law = random.Random(1000 * seed + text).randrange(2**30)

        def target(history: list[int], law: int = law) -> int:
            return hash((law, *history)) % 4

        prompt = [draw.randrange(4) for _ in range(3)]
        plain = list(prompt)
        while len(plain) < 50:
            plain.append(target(plain))
        tokens = list(prompt)
        while len(tokens) < 50:
            tree = random_selection(draw, random_tree(draw, 4, 12))
            paths = [[int(tree.token_ids[k]) for k in tree.path(node)] for node in range(len(tree))]
            accepted = walk(tree, [target(tokens), *(target(tokens + path) for path in paths)])
            assert [int(tree.token_ids[node]) for node in accepted.nodes] == list(accepted.token_ids[:-1])
            tokens += accepted.token_ids
            num_accepted += len(accepted.nodes)
        assert tokens[:50] == plain
    assert num_accepted > 300, "the property is about accepted tokens, so there must be many"
