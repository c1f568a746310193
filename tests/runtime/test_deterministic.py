"""Deterministic mode: a row's logits are the same to the last bit whatever else is in its batch, and however it got there."""

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional

from dspark.runtime.deterministic import TILE_ROWS, FixedRowTiles, folded
from dspark.runtime.model import PackedModel
from dspark.runtime.packed import Segment
from dspark.tree import CandidateTree
from dspark.verifying.verifier import BatchVerifier
from tests.runtime.tiny_models import ARCHITECTURES, VOCAB_SIZE, generate, packed_model, plain_logits, random_prompts
from tests.verifying.rounds import Rounds

LENGTH = 75
"""More positions than one attention block of 64 has, and far more than a window."""


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> PackedModel:
    return packed_model(request.param, num_cache_tokens=1024, deterministic=True)


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    return random_prompts((LENGTH,), seed=4)[0]


@pytest.fixture(scope="module")
def alone(model: PackedModel, prompt: list[int]) -> torch.Tensor:
    """[LENGTH, V]: all rows of the prompt in one forward, nobody else there."""
    return model.forward([segment(prompt, 0, LENGTH, first_slot=0)])


def segment(tokens: list[int], start: int, stop: int, first_slot: int) -> Segment:
    """Rows start..stop-1 of a text whose slots are neighbours; all their logits are wanted."""
    slots = list(range(first_slot, first_slot + stop))
    return Segment(tokens[start:stop], list(range(start, stop)), None, slots, start, stop - start)


@pytest.mark.parametrize("chunks", [(1, 74), (8, 33, 34), (64, 65), (10, 20, 30, 40, 50, 60, 70)], ids=str)
def test_chunks_give_the_rows_of_the_whole(model: PackedModel, prompt: list[int], alone: torch.Tensor, chunks: tuple[int, ...]) -> None:
    edges = [0, *chunks, LENGTH]
    rows = [model.forward([segment(prompt, a, b, 100)]) for a, b in itertools.pairwise(edges)]
    assert torch.equal(torch.cat(rows), alone)


@pytest.mark.parametrize("num_neighbours", [1, 3, 9])
def test_neighbours_do_not_change_a_row(model: PackedModel, prompt: list[int], alone: torch.Tensor, num_neighbours: int) -> None:
    others = random_prompts(tuple(range(3, 3 + 5 * num_neighbours, 5)), seed=num_neighbours)
    segments = [segment(tokens, 0, len(tokens), 200 + 50 * index) for index, tokens in enumerate(others)]
    place = num_neighbours // 2
    logits = model.forward([*segments[:place], segment(prompt, 0, LENGTH, 0), *segments[place:]])
    start = sum(len(tokens) for tokens in others[:place])
    assert torch.equal(logits[start : start + LENGTH], alone)


def test_scattered_slots_do_not_change_a_row(model: PackedModel, prompt: list[int], alone: torch.Tensor) -> None:
    slots = random.Random(1).sample(range(200, 900), LENGTH)
    assert torch.equal(model.forward([Segment(prompt, list(range(LENGTH)), None, slots, 0, LENGTH)]), alone)


def test_a_tree_node_equals_the_same_token_as_a_chain_node_and_as_a_prompt_row(
    model: PackedModel, prompt: list[int], alone: torch.Tensor
) -> None:
    """The right continuation is hidden in a tree: every second node is a wrong sibling."""
    base = LENGTH - 6
    ids, parents, right = [], [], -1
    for token in prompt[base:]:
        ids += [(token + 1) % VOCAB_SIZE, token]
        parents += [right, right]
        right = len(ids) - 1
    tree = CandidateTree(np.asarray(ids, np.int32), np.asarray(parents, np.int32), np.ones(len(ids), np.float32))
    model.forward([segment(prompt, 0, base, 0)])
    slots = [*range(base), *range(500, 500 + len(tree))]
    positions = [base - 1 + depth for depth in tree.depths.tolist()]
    logits = model.forward([Segment(ids, positions, parents, slots, base, len(tree))])
    assert torch.equal(logits[1::2], alone[base:])


def test_a_single_row_equals_the_row_in_a_batch_of_many_decoders(model: PackedModel, prompt: list[int], alone: torch.Tensor) -> None:
    model.forward([segment(prompt, 0, LENGTH - 1, 0)])
    others = random_prompts((9,) * 20, seed=8)
    model.forward([segment(tokens, 0, 8, 200 + 10 * index) for index, tokens in enumerate(others)])
    decoders = [segment(tokens, 8, 9, 200 + 10 * index) for index, tokens in enumerate(others)]
    last = segment(prompt, LENGTH - 1, LENGTH, 0)
    assert torch.equal(model.forward([last])[0], alone[-1])
    assert torch.equal(model.forward([*decoders, last])[-1], alone[-1])
    assert torch.equal(model.forward([last, *decoders])[0], alone[-1])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_mode_says_what_the_plain_model_says(name: str) -> None:
    tokens = random_prompts((LENGTH,), seed=4)[0]
    logits = packed_model(name, deterministic=True).forward([segment(tokens, 0, LENGTH, 0)])
    torch.testing.assert_close(logits, plain_logits(name, tokens), atol=1e-3, rtol=1e-4)


def test_a_batch_of_sessions_gives_exactly_the_text_of_each_session_alone() -> None:
    """No near ties to allow for: with candidates, in chunks and beside others, the text is the same one."""
    prompts = random_prompts((5, 30, 50), seed=6)

    def decode(prompts: list[list[int]], max_batch_rows: int, guess: bool) -> list[list[int]]:
        known = [generate("qwen3", prompt, 40) for prompt in prompts] if guess else [[]]
        verifier = BatchVerifier(packed_model("qwen3", deterministic=True), max_length=512, max_batch_rows=max_batch_rows)

        def propose(which: int, output: object) -> CandidateTree:
            done = len(output)  # type: ignore[arg-type]
            return CandidateTree.chain(known[which][done : done + 3]) if guess else CandidateTree.empty()

        return Rounds(verifier, prompts, propose).run(40)

    apart = [decode([prompt], 512, False)[0] for prompt in prompts]
    assert decode(prompts, 16, True) == apart


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 40])
def test_tiles_pad_the_last_and_cut_it_again(rows: int) -> None:
    left, weight = torch.randn(rows, 33), torch.randn(20, 33)
    bias = torch.randn(20)
    seen: list[tuple[int, ...]] = []
    original = torch.mm

    with FixedRowTiles():
        product = functional.linear(left, weight, bias)
        matmul = left @ weight.T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "mm", lambda a, b: seen.append(tuple(a.shape)) or original(a, b))
        with FixedRowTiles():
            torch.matmul(left.view(1, rows, 33), weight.T)
    assert {shape[0] for shape in seen} <= {TILE_ROWS} or rows == 0
    torch.testing.assert_close(product, functional.linear(left, weight, bias))
    torch.testing.assert_close(matmul, left @ weight.T)


ACTIVATIONS = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu of tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "method": lambda x: x.sigmoid(),
}


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_activations_of_a_row_do_not_depend_on_where_it_lies(
    activation: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype
) -> None:
    """Rows of 47 elements: torch's own kernels treat the last elements of a tensor differently."""
    values = (4 * torch.randn(75, 47, generator=torch.Generator().manual_seed(3))).to(dtype)
    with FixedRowTiles():
        together = activation(values)
        apart = [torch.cat([activation(part) for part in values.split(size)]) for size in (1, 2, 5, 33, 74)]
    assert all(torch.equal(rows, together) for rows in apart)
    torch.testing.assert_close(together, activation(values))
    with FixedRowTiles():
        extremes = activation(torch.tensor([-1e4, 1e4, 0.0], dtype=dtype))
    assert bool(torch.isfinite(extremes).all())


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 75])
def test_folding_sums_and_sees_no_neighbour(size: int) -> None:
    """What a GPU does instead of sums whose order depends on how many rows there are."""
    values = torch.randn(9, size, 4, generator=torch.Generator().manual_seed(size))
    summed = folded(values, 1)
    torch.testing.assert_close(summed, values.sum(1))
    assert torch.equal(folded(values[3:5], 1, keepdim=True), summed[3:5].unsqueeze(1))
