"""The block drafter's network: the numbers of the published implementation, who sees what, and only whole checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dspark.drafting.block_model import BLOCK_ATTENTION, BlockModel
from dspark.drafting.shared_weights import SharedWeights
from dspark.errors import ModelLoadError
from dspark.runtime.draft_formats import read_draft_checkpoint
from tests.drafting.feature_drafters import ALL_SPECS, checkpoint_of, model_of, shared_weights, text_of
from tests.runtime.tiny_drafters import SPEC, SPECS, random_tensors

FIXTURES = Path(__file__).parents[1] / "fixtures" / "deepspec_checkpoint"
NUM_POSITIONS = 24


def block_model(name: str) -> BlockModel:
    model = model_of(ALL_SPECS[name], BLOCK_ATTENTION)
    assert isinstance(model, BlockModel)
    return model


@pytest.mark.parametrize("case", ["case0", "case1"])
def test_a_published_checkpoint_gives_the_numbers_of_the_published_implementation(case: str) -> None:
    checkpoint = read_draft_checkpoint(FIXTURES / "vanilla")
    blank = torch.zeros(checkpoint.spec.vocab_size, checkpoint.spec.hidden_size)
    model = BlockModel.from_checkpoint(checkpoint, SharedWeights(blank, blank))
    golden = load_file(FIXTURES / "vanilla_golden.safetensors")
    logits, ids = model.greedy(golden[f"{case}.taps"].float(), int(golden[f"{case}.anchor_id"]))
    assert ids.tolist() == golden[f"{case}.draft_ids"].tolist()
    assert logits.confidence is not None
    for name, value in (("base_logits", logits.base), ("draft_logits", logits.draft), ("confidence_logits", logits.confidence)):
        torch.testing.assert_close(value[0, 0], golden[f"{case}.{name}"].float(), rtol=1e-4, atol=1e-4)


def batch_of(name: str, taps_seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(taps [2, S, m * d], anchor_ids, anchors [2, 3], tokens_before [2, 3, K])"""
    spec = ALL_SPECS[name]
    texts = [text_of(spec, NUM_POSITIONS, seed=taps_seed + i) for i in range(2)]
    anchors = torch.tensor([[1, 9, 20], [5, 6, 23]])
    before = torch.randint(0, spec.vocab_size, (2, 3, spec.block_size), generator=torch.Generator().manual_seed(2))
    return torch.stack([text.taps.float() for text in texts]), before[..., 0], anchors, before


@pytest.mark.parametrize("name", [name for name in ALL_SPECS if not name.startswith("eagle")])
@torch.inference_mode()
def test_blocks_in_one_pass_say_what_each_says_alone_with_only_the_context_before_its_anchor(name: str) -> None:
    model, (taps, anchor_ids, anchors, before) = block_model(name), batch_of(name)
    together = model.teacher_forced(taps, anchor_ids, anchors, before)
    for row in range(2):
        for index, anchor in enumerate(anchors[row].tolist()):
            here = (slice(row, row + 1), slice(index, index + 1))
            alone = model.teacher_forced(taps[row : row + 1, :anchor], anchor_ids[here], anchors[here], before[here])
            torch.testing.assert_close(together.base[here], alone.base, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(together.draft[here], alone.draft, rtol=1e-3, atol=1e-3)
            if together.confidence is not None:
                torch.testing.assert_close(together.confidence[here], alone.confidence, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_the_context_is_really_read() -> None:
    model, (taps, anchor_ids, anchors, before) = block_model("vanilla"), batch_of("vanilla")
    plain = model.teacher_forced(taps, anchor_ids, anchors, before).base
    changed = model.teacher_forced(taps + torch.eye(NUM_POSITIONS)[:, :1], anchor_ids, anchors, before).base
    assert ((plain - changed).abs().amax((-1, -2)) > 1e-3).all()


@pytest.mark.parametrize("name", ["vanilla", "gated", "rnn", "reduced"])
@torch.inference_mode()
def test_a_token_before_moves_the_draft_and_never_the_base(name: str) -> None:
    model, (taps, anchor_ids, anchors, before) = block_model(name), batch_of(name)
    other = before.clone()
    other[..., 2] = (other[..., 2] + 1) % ALL_SPECS[name].vocab_size
    first, second = (model.teacher_forced(taps, anchor_ids, anchors, tokens) for tokens in (before, other))
    assert torch.equal(first.base, second.base)
    moved = (first.draft != second.draft).flatten(0, 1).any(0).any(-1).tolist()
    assert moved[:3] == [False, False, True]
    assert moved[3] == (name == "rnn"), "only a state carries it further"


@torch.inference_mode()
def test_greedy_ids_are_the_targets_and_those_of_the_draft_logits() -> None:
    model, text = block_model("reduced"), text_of(ALL_SPECS["reduced"], 12)
    logits, ids = model.greedy(text.taps.float(), 4)
    chosen = model.vocabulary.to_target_ids(logits.draft[0, 0].argmax(-1))
    assert ids.tolist() == chosen.tolist()
    assert all(token % 3 == 1 for token in ids.tolist())
    before = torch.tensor([[[4, *ids[:-1].tolist()]]])
    again = model.teacher_forced(text.taps.float()[None], torch.tensor([[4]]), torch.tensor([[12]]), before)
    torch.testing.assert_close(again.draft, logits.draft)


def test_logits_are_capped_where_the_family_caps_them() -> None:
    name = "vanilla gemma2"
    model, hidden = block_model(name), torch.full((1, SPEC.hidden_size), 30.0)
    raw = hidden @ shared_weights(SPEC).lm_head.T
    torch.testing.assert_close(model.base_logits(hidden), 20 * torch.tanh(raw / 20))
    assert raw.abs().max() > 20


@torch.inference_mode()
def test_an_embedding_and_a_head_of_its_own_replace_the_shared_ones() -> None:
    own = checkpoint_of(SPEC)
    others = random_tensors(SPEC, shared=True, seed=4)
    embedding, head = others["embed_tokens.weight"], others["lm_head.weight"]
    own.tensors.update({"embed_tokens.weight": embedding, "lm_head.weight": head})
    model = BlockModel.from_checkpoint(own, shared_weights(SPEC))
    assert torch.equal(model.block_inputs(torch.tensor([3]))[0, 0], embedding[3])
    assert torch.equal(model.block_inputs(torch.tensor([3]))[0, 1:], embedding[39].expand(3, -1))
    torch.testing.assert_close(model.base_logits(torch.ones(1, SPEC.hidden_size)), head.sum(-1, keepdim=True).T)


def test_what_is_the_targets_is_neither_trained_nor_saved_with_the_drafter() -> None:
    model = BlockModel(SPEC, shared_weights(SPEC))
    names = {name for name, _ in model.own_parameters()}
    assert names == set(random_tensors(SPEC)) == set(model.own_tensors())
    logits = model.teacher_forced(*batch_of("vanilla"))
    assert logits.confidence is not None
    (logits.draft.square().sum() + logits.confidence.sum()).backward()  # type: ignore[no-untyped-call]
    assert model.stack.embed_tokens.weight.grad is None
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == set(), "everything else learns"


SPOILT: dict[str, tuple[dict[str, torch.Tensor | None], str]] = {
    "missing": ({"fc.weight": None}, "'fc.weight' is missing"),
    "unknown": ({"layers.7.extra": torch.zeros(2)}, "'layers.7.extra' is not part"),
    "misshapen": ({"norm.weight": torch.zeros(3)}, r"'norm.weight' is \[3\], not \[16\]"),
}


@pytest.mark.parametrize(("change", "message"), SPOILT.values(), ids=SPOILT)
def test_only_a_whole_checkpoint_is_loaded(change: dict[str, Any], message: str) -> None:
    tensors = {name: tensor for name, tensor in (random_tensors(SPEC) | change).items() if tensor is not None}
    with pytest.raises(ModelLoadError, match=f"tiny: tensor {message}"):
        BlockModel(SPEC, shared_weights(SPEC)).load(tensors, "tiny")


def test_a_drafter_without_a_sequential_head_may_still_be_sure_of_itself() -> None:
    spec = replace(SPECS["dflash"], confidence=True)
    model = BlockModel.from_checkpoint(checkpoint_of(spec), shared_weights(spec))
    logits = model.teacher_forced(*batch_of("dflash"))
    assert logits.confidence is not None
    assert logits.confidence.shape == (2, 3, spec.block_size)
    assert logits.draft is logits.base
