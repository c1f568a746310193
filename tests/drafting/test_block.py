"""What only the block drafter does: drafts without context, survival by its confidence head, one backbone forward for all."""

import numpy as np
import pytest
import torch

from dspark.drafting import block
from dspark.drafting.block_model import BLOCK_ATTENTION, BlockModel
from dspark.scheduling.calibration import Calibration, TemperatureFit
from dspark.types import SamplingParams
from tests.drafting.feature_drafters import (
    ALL_SPECS,
    DEPTH,
    GREEDY,
    NOISY,
    A,
    B,
    Text,
    chain_by_teacher_forcing,
    chain_of,
    desk_of,
    model_of,
    reference_model,
    text_of,
)

CALIBRATION = Calibration((TemperatureFit(0.0, (3.0, 2.0), (True, True)), TemperatureFit(0.9, (0.5, 0.7, 4.0), (True, True, True))))


def confidence_logits(kind: str, text: Text, chain: list[int]) -> torch.Tensor:
    """[K] by the training pass, given the chain's own tokens."""
    model = reference_model(kind)
    assert isinstance(model, BlockModel)
    before = torch.tensor([[[text.token_ids[-1], *chain[:-1]]]])
    logits = model.teacher_forced(
        text.taps[:-1].float()[None], before[..., 0], torch.tensor([[len(text) - 1]]), before
    ).confidence
    assert logits is not None
    return logits[0, 0]


@pytest.mark.parametrize("kind", ["vanilla", "rnn", "dflash"])
def test_the_first_token_of_all_is_an_anchor_without_context(kind: str) -> None:
    desk, text = desk_of(ALL_SPECS[kind]), text_of(ALL_SPECS[kind], 1)
    desk.open(A, text)
    assert chain_of(desk.draft(A, text, None)) == chain_by_teacher_forcing(kind, text, GREEDY, DEPTH)


def test_a_block_is_as_deep_as_it_was_trained() -> None:
    desk, text = desk_of(ALL_SPECS["vanilla"]), text_of(ALL_SPECS["vanilla"], 9)
    desk.open(A, text)
    assert len(chain_of(desk.draft(A, text, depth=64))) == ALL_SPECS["vanilla"].block_size


@pytest.mark.parametrize("kind", ["vanilla", "gated", "rnn"])
@pytest.mark.parametrize("sampling", [GREEDY, NOISY], ids=["greedy", "sampled"])
@torch.inference_mode()
def test_survival_is_the_calibrated_confidence_at_the_sessions_temperature(kind: str, sampling: SamplingParams) -> None:
    desk, text = desk_of(ALL_SPECS[kind], estimator=CALIBRATION), text_of(ALL_SPECS[kind], 17)
    desk.open(A, text, sampling)
    tree = desk.draft(A, text).results[0].tree
    logits = confidence_logits(kind, text, tree.token_ids.tolist())
    temperatures = [3, 2, 2, 2] if sampling is GREEDY else [0.5, 0.7, 4, 4]
    expected = torch.cumprod((logits / torch.tensor(temperatures)).sigmoid(), -1)
    np.testing.assert_allclose(tree.scores, expected.numpy(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["vanilla", "dflash"])
def test_without_an_estimator_or_a_confidence_head_survival_comes_from_how_clear_the_choices_were(kind: str) -> None:
    estimator = CALIBRATION if kind == "dflash" else None
    desk, text = desk_of(ALL_SPECS[kind], estimator=estimator), text_of(ALL_SPECS[kind], 17)
    desk.open(A, text, NOISY)
    drafts = []
    desk.drafter.listener = lambda _session, _length, draft: drafts.append(draft)
    tree = desk.draft(A, text).results[0].tree
    expected = np.cumprod(1 / (1 + np.exp(-drafts[0].signals.gaps)))
    np.testing.assert_allclose(tree.scores, expected, rtol=1e-5)


def test_sessions_of_different_depth_share_a_forward_and_none_gets_more_than_it_asked_for() -> None:
    desk, text = desk_of(ALL_SPECS["vanilla"], estimator=CALIBRATION), text_of(ALL_SPECS["vanilla"], 12)
    for name in (A, B):
        desk.open(name, text, NOISY)
    report = desk.drafter.draft([desk.request(A, text, 0, depth=1), desk.request(B, text, 0)])
    short, long = (result.tree for result in report.results)
    assert (len(short), len(long)) == (1, DEPTH)
    for tree, depth in ((short, 1), (long, DEPTH)):
        assert tree.token_ids.tolist() == chain_by_teacher_forcing("vanilla", text, NOISY, depth)
        desk.open(A, text, NOISY)
        alone = desk.draft(A, text, depth=depth).results[0].tree
        np.testing.assert_allclose(tree.scores, alone.scores, rtol=1e-4)


def test_a_session_that_only_reads_beside_one_that_drafts_is_read() -> None:
    kind = "vanilla"
    desk, text, other = desk_of(ALL_SPECS[kind]), text_of(ALL_SPECS[kind], 12), text_of(ALL_SPECS[kind], 20, seed=1)
    desk.open(A, text)
    desk.open(B, other)
    report = desk.drafter.draft([desk.request(A, text, 0), desk.request(B, other, 0, depth=0)])
    assert [len(result.tree) for result in report.results] == [DEPTH, 0]
    assert chain_of(desk.draft(B, other, None)) == chain_by_teacher_forcing(kind, other, GREEDY, DEPTH)


def test_contexts_that_are_read_in_parts_say_what_they_say_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "PART_ROWS", 7)  # parts end in the middle of a session
    kind = "vanilla"
    desk, texts = desk_of(ALL_SPECS[kind]), {name: text_of(ALL_SPECS[kind], 12 + seed, seed=seed) for seed, name in enumerate((A, B))}
    for name, text in texts.items():
        desk.open(name, text)
    report = desk.drafter.draft([desk.request(name, text, 0) for name, text in texts.items()])
    found = [result.tree.token_ids.tolist() for result in report.results]
    assert found == [chain_by_teacher_forcing(kind, text, GREEDY, DEPTH) for text in texts.values()]


def test_a_backbone_for_training_is_not_the_one_for_serving() -> None:
    """The attention's name is in the configuration: a model built for one must not run in the other by accident."""
    model = model_of(ALL_SPECS["vanilla"], BLOCK_ATTENTION)
    embedded = torch.zeros(1, 4, model.spec.hidden_size)
    with pytest.raises(TypeError, match="context"):
        model.stack.run(embedded, torch.arange(4)[None], packed=None)
