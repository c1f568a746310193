"""The packed forward says what transformers says: the same greedy text as `generate`, and along every path of a tree the same logits.

Float results depend on how many rows share a product (about 1e-5 here), so two texts may part where the two best logits are closer than
NEAR_TIE; everything before must be equal, and such places are counted.
"""

import random

import numpy as np
import pytest
import torch

from dspark.runtime.packed import Segment
from dspark.tree import ANCHOR, CandidateTree
from dspark.verifying.verifier import BatchVerifier
from tests.runtime.tiny_models import ARCHITECTURES, VOCAB_SIZE, generate, packed_model, plain_logits, random_prompts
from tests.verifying.rounds import Propose, Rounds, no_candidates

NUM_TOKENS = 64
LENGTHS = (5, 17, 40, 70)
"""The last two are longer than MAX_BATCH_ROWS: their prompts come in chunks, beside rounds of the others."""
MAX_BATCH_ROWS = 24
NEAR_TIE = 1e-4


def oracle_with_errors(references: list[list[int]], seed: int) -> Propose:
    """Chains of the right tokens, about a third of them spoiled."""
    draw = random.Random(seed)

    def propose(which: int, output: list[int]) -> CandidateTree:
        right = references[which][len(output) : len(output) + draw.randint(0, 6)]
        return CandidateTree.chain([draw.randrange(VOCAB_SIZE) if draw.random() < 0.3 else token for token in right])

    return propose  # type: ignore[return-value]


def count_near_ties(name: str, prompt: list[int], expected: list[int], actual: list[int]) -> int:
    """0 if the texts are equal, 1 if they part at a near tie of the reference; fails otherwise."""
    if actual == expected:
        return 0
    place = next(i for i in range(len(expected)) if actual[i] != expected[i])
    best = plain_logits(name, prompt + expected[:place])[-1].topk(2).values
    gap = float(best[0] - best[1])
    assert gap < NEAR_TIE, f"token {place} after a prompt of {len(prompt)}: {actual[place]}, not {expected[place]}; gap {gap:.2g}"
    return 1


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def references(architecture: str) -> list[list[int]]:
    return [generate(architecture, prompt, NUM_TOKENS) for prompt in random_prompts(LENGTHS)]


@pytest.mark.parametrize("drafted", [False, True], ids=["plain", "drafted"])
def test_a_mixed_batch_gives_the_text_of_generate(architecture: str, references: list[list[int]], drafted: bool) -> None:
    assert sum(len(set(text)) for text in references) > 40, "texts of few different tokens would prove little"
    prompts = random_prompts(LENGTHS)
    verifier = BatchVerifier(packed_model(architecture), max_length=512, max_batch_rows=MAX_BATCH_ROWS)
    rounds = Rounds(verifier, prompts, oracle_with_errors(references, seed=3) if drafted else no_candidates)
    outputs = rounds.run(NUM_TOKENS)
    cases = zip(prompts, references, outputs, strict=True)
    assert sum(count_near_ties(architecture, prompt, expected, actual) for prompt, expected, actual in cases) <= 1
    assert max(report.batch_rows for report in rounds.reports) <= MAX_BATCH_ROWS
    mixed = [r for r in rounds.reports if r.results and r.batch_rows == MAX_BATCH_ROWS]
    assert mixed, "some forwards carried prompt chunks beside finished rounds"
    if drafted:
        assert rounds.num_accepted > 100


def random_tree(draw: random.Random, num_nodes: int) -> CandidateTree:
    parents = [draw.randint(max(ANCHOR, node - 4), node - 1) for node in range(num_nodes)]
    ids = [draw.randrange(VOCAB_SIZE) for _ in range(num_nodes)]
    return CandidateTree(np.asarray(ids, np.int32), np.asarray(parents, np.int32), np.ones(num_nodes, np.float32))


def tree_segment(prompt: list[int], tree: CandidateTree, slots: list[int], num_cached: int) -> Segment:
    """The uncached end of the prompt and the tree below it, as a target session lays them out."""
    rest = prompt[num_cached:]
    parents = [*range(-1, len(rest) - 1), *(len(rest) + parent for parent in tree.parents.tolist())]
    positions = [*range(num_cached, len(prompt)), *(len(prompt) - 1 + depth for depth in tree.depths.tolist())]
    return Segment([*rest, *tree.token_ids.tolist()], positions, parents, slots, num_cached, 1 + len(tree))


@pytest.mark.parametrize(("num_nodes", "num_cached"), [(9, 29), (30, 29), (9, 0)])
def test_every_path_of_a_tree_has_the_logits_of_its_own_forward(architecture: str, num_nodes: int, num_cached: int) -> None:
    """Trees below and above the size up to which segments attend together, with and without cached slots, beside a neighbour."""
    prompt, neighbour = random_prompts((30, 11), seed=2)
    tree = random_tree(random.Random(num_nodes), num_nodes)
    model = packed_model(architecture)
    if num_cached:
        model.forward([Segment(prompt[:num_cached], list(range(num_cached)), None, list(range(num_cached)), 0, 0)])
    beside = Segment(neighbour, list(range(11)), None, list(range(200, 211)), 0, 1)
    logits = model.forward([beside, tree_segment(prompt, tree, list(range(30 + num_nodes)), num_cached)])
    assert max(tree.depths.tolist()) < num_nodes, "not a chain"
    torch.testing.assert_close(logits[0], plain_logits(architecture, neighbour)[-1], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(logits[1], plain_logits(architecture, prompt)[-1], atol=1e-3, rtol=1e-4)
    for node in range(num_nodes):
        path = [int(tree.token_ids[k]) for k in tree.path(node)]
        expected = plain_logits(architecture, prompt + path)[-1]
        torch.testing.assert_close(logits[2 + node], expected, atol=1e-3, rtol=1e-4)
        assert int(logits[2 + node].argmax()) == int(expected.argmax())


def test_an_accepted_branch_leaves_the_cache_as_if_it_had_been_a_chain(architecture: str, references: list[list[int]]) -> None:
    """Trees whose right path lies behind wrong siblings, so that every accepted slot has to move."""
    prompts = random_prompts(LENGTHS[:2])
    draw = random.Random(5)

    def propose(which: int, output: list[int]) -> CandidateTree:
        ids, parents, last = [], [], ANCHOR
        for token in references[which][len(output) : len(output) + 4]:
            for candidate in ((token + 1 + draw.randrange(VOCAB_SIZE - 1)) % VOCAB_SIZE, token):
                ids.append(candidate)
                parents.append(last)
            last = len(ids) - 1
        return CandidateTree(np.asarray(ids, np.int32), np.asarray(parents, np.int32), np.ones(len(ids), np.float32))

    verifier = BatchVerifier(packed_model(architecture), max_length=512, max_batch_rows=MAX_BATCH_ROWS)
    rounds = Rounds(verifier, prompts, propose)  # type: ignore[arg-type]
    cases = zip(prompts, references[:2], rounds.run(NUM_TOKENS), strict=True)
    assert sum(count_near_ties(architecture, prompt, expected, actual) for prompt, expected, actual in cases) <= 1
    assert rounds.num_accepted > 80
