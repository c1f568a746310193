"""Which positions a step learns from: chosen by seed and step alone, inside the answer, never past the end."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dspark.deepspec.batches import ROUND_TO, collate, with_anchors
from dspark.deepspec.data import Sample
from tests.deepspec.tiny_training import tiny_recipe, trainer_of, write_samples, write_target

BLOCK = 3


def sample(length: int, prompt_tokens: int = 1) -> Sample:
    return Sample("s", np.arange(100, 100 + length, dtype=np.int32), prompt_tokens)


@pytest.mark.parametrize(("length", "prompt_tokens"), [(20, 1), (20, 7), (9, 8), (3, 1)])
def test_anchors_stand_in_the_answer_and_have_a_token_after_them(length: int, prompt_tokens: int) -> None:
    for seed in range(20):
        anchors = with_anchors(sample(length, prompt_tokens), 5, (seed,)).anchors
        first = max(1, prompt_tokens - 1)
        assert len(anchors) == min(5, length - 1 - first)
        assert len(set(anchors)) == len(anchors)
        assert all(first <= anchor <= length - 2 for anchor in anchors)


def test_every_position_of_an_answer_can_be_an_anchor() -> None:
    seen = {int(anchor) for seed in range(200) for anchor in with_anchors(sample(12, 5), 2, (seed,)).anchors}
    assert seen == set(range(4, 11))  # a position is missed 200 times with chance (5/7)^200


def test_anchors_depend_on_the_seed_alone() -> None:
    same = [with_anchors(sample(60), 8, (3, 5)).anchors.tolist() for _ in range(2)]
    assert same[0] == same[1] != with_anchors(sample(60), 8, (3, 6)).anchors.tolist()


def test_a_batch_holds_tokens_before_and_at_each_draft_position() -> None:
    anchored = [with_anchors(sample(20), 4, (1,)), with_anchors(sample(10, 4), 4, (2,))]
    batch = collate(anchored, 4, BLOCK, "cpu")
    assert batch.token_ids.shape == (2, ROUND_TO)
    for row, one in enumerate(anchored):
        ids = one.sample.token_ids.tolist()
        for column, anchor in enumerate(one.anchors):
            for k in range(BLOCK):
                inside = anchor + 1 + k < len(ids)
                assert bool(batch.valid[row, column, k]) == inside
                if inside:
                    assert int(batch.tokens_before[row, column, k]) == ids[anchor + k]
                    assert int(batch.tokens_drafted[row, column, k]) == ids[anchor + 1 + k]


def test_anchors_that_only_pad_are_not_valid() -> None:
    anchored = with_anchors(sample(4, 3), 6, (1,))
    batch = collate([anchored], 6, BLOCK, "cpu")
    assert len(anchored.anchors) == 1
    assert batch.valid[0].sum() == 1


def test_counts_of_valid_positions_are_those_of_the_masks() -> None:
    for length in (3, 5, 9, 30):
        anchored = with_anchors(sample(length), 6, (length,))
        assert anchored.num_valid(BLOCK).tolist() == collate([anchored], 6, BLOCK, "cpu").valid[0].sum(0).tolist()


def test_rows_are_gathered_at_each_position() -> None:
    batch = collate([with_anchors(sample(20), 4, (1,))], 4, BLOCK, "cpu")
    values = torch.arange(ROUND_TO).view(1, -1, 1).expand(1, -1, 2)
    assert torch.equal(batch.gather(values)[..., 0], batch.positions)


def test_the_batch_of_a_step_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    target, samples = write_target(tmp_path / "target"), write_samples(tmp_path / "samples.jsonl")
    first, second = (trainer_of(tiny_recipe(target, samples, seed=5)) for _ in range(2))
    other = trainer_of(tiny_recipe(target, samples, seed=6))

    def batches(trainer: object, steps: list[int]) -> list[list[tuple[str, list[int]]]]:
        return [[(a.sample.sample_id, a.anchors.tolist()) for a in trainer._batch(step)] for step in steps]  # type: ignore[attr-defined]

    forward = batches(first, list(range(15)))
    assert batches(second, list(range(14, -1, -1)))[::-1] == forward  # over two epochs, and whatever was asked before
    assert batches(other, list(range(15))) != forward
    epoch = [name for step in forward for name, _ in step][: len(first._samples)]
    assert len(set(epoch)) == len(epoch)
