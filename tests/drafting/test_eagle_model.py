"""The EAGLE-3-style network: its training pass is the chain run plainly, one anchor and one row at a time."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from dspark.drafting.eagle_model import EAGLE_ATTENTION, EagleModel
from dspark.drafting.vocabulary import DraftVocabulary
from dspark.errors import ModelLoadError, UnsupportedModel
from tests.drafting.feature_drafters import ALL_SPECS, checkpoint_of, model_of, shared_weights, text_of
from tests.runtime.tiny_drafters import EAGLE, random_tensors
from tests.runtime.tiny_layers import CAUSAL, FAMILY_LAYERS, register_causal

NUM_POSITIONS = 20
WHOLE = ALL_SPECS["eagle whole"]
EAGLES = [name for name in ALL_SPECS if name.startswith("eagle")]


def eagle_model(name: str, attention: str = EAGLE_ATTENTION) -> EagleModel:
    model = model_of(ALL_SPECS[name], attention)
    assert isinstance(model, EagleModel)
    return model


def plain_chain(model: EagleModel, taps: torch.Tensor, token_ids: torch.Tensor, anchor: int, before: list[int]) -> torch.Tensor:
    """[K, Vd]: every step runs all rows so far again, in ordinary causal attention; taps [S, m * d], token_ids [S]."""
    tokens, features = token_ids[1 : anchor + 1].tolist(), model.fc(taps[:anchor])  # row t: features of t, token at t + 1
    logits = []
    for k in range(model.spec.block_size):
        output = model.rows(torch.tensor([tokens]), features[None], torch.arange(len(tokens))[None])
        logits.append(model.logits(output[0, -1]))
        if k + 1 < model.spec.block_size:
            tokens.append(before[k + 1])
            features = torch.cat((features, output[0, -1:]))
    return torch.stack(logits)


@pytest.mark.parametrize("name", EAGLES)
@torch.inference_mode()
def test_the_training_pass_is_the_chain_run_plainly(name: str) -> None:
    """Also where the layer's window is shorter than the context (mistral)."""
    register_causal()
    spec, model, plain = ALL_SPECS[name], eagle_model(name), eagle_model(name, CAUSAL)
    texts = [text_of(spec, NUM_POSITIONS, seed=i) for i in range(2)]
    taps, token_ids = torch.stack([text.taps.float() for text in texts]), torch.tensor([text.token_ids for text in texts])
    anchors = torch.tensor([[1, 7, 19], [12, 2, 13]])
    before = torch.randint(0, spec.vocab_size, (2, 3, spec.block_size), generator=torch.Generator().manual_seed(1))
    before[..., 0] = token_ids.gather(1, anchors)
    together = model.teacher_forced(taps, token_ids, anchors, before)
    for row in range(2):
        for index, anchor in enumerate(anchors[row].tolist()):
            expected = plain_chain(plain, taps[row], token_ids[row], anchor, before[row, index].tolist())
            torch.testing.assert_close(together[row, index], expected, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_nothing_after_the_anchor_is_seen() -> None:
    model, text = eagle_model("eagle"), text_of(EAGLE, NUM_POSITIONS)
    anchors, before = torch.tensor([[9]]), torch.tensor([[[text.token_ids[9], 3, 4, 5, 6]]])
    taps, token_ids = text.taps.float()[None], torch.tensor([text.token_ids])
    plain = model.teacher_forced(taps, token_ids, anchors, before)
    other_taps, other_ids = taps.clone(), token_ids.clone()
    other_taps[:, 9:] += 1
    other_ids[:, 10:] = 0
    assert torch.equal(model.teacher_forced(other_taps, other_ids, anchors, before), plain)
    other_taps[:, 8] += 1
    assert not torch.allclose(model.teacher_forced(other_taps, other_ids, anchors, before), plain)


def test_a_new_head_is_the_targets_rows_of_the_draft_vocabulary() -> None:
    shared, vocabulary = shared_weights(EAGLE), DraftVocabulary.of_tokens(torch.arange(12) * 3, EAGLE.vocab_size)
    model = EagleModel(EAGLE, shared, vocabulary)
    assert torch.equal(model.lm_head.weight, shared.lm_head[::3][:12])
    saved = model.own_tensors()
    assert set(saved) == set(random_tensors(EAGLE))
    assert saved["d2t"].tolist() == (torch.arange(12) * 2).tolist()


@torch.inference_mode()
def test_an_embedding_of_its_own_replaces_the_shared_one() -> None:
    checkpoint = checkpoint_of(EAGLE)
    own = torch.randn(EAGLE.vocab_size, EAGLE.hidden_size, generator=torch.Generator().manual_seed(4))
    checkpoint.tensors["embed_tokens.weight"] = own
    model = EagleModel.from_checkpoint(checkpoint, shared_weights(EAGLE))
    assert torch.equal(model.stack.embed_tokens(torch.tensor([5]))[0], own[5])
    assert torch.equal(model.lm_head.weight, checkpoint.tensors["lm_head.weight"])


def test_a_head_that_is_left_out_is_the_targets() -> None:
    checkpoint, shared = checkpoint_of(WHOLE), shared_weights(WHOLE)
    assert not torch.equal(EagleModel.from_checkpoint(checkpoint, shared).lm_head.weight, shared.lm_head)
    del checkpoint.tensors["lm_head.weight"]
    assert torch.equal(EagleModel.from_checkpoint(checkpoint, shared).lm_head.weight, shared.lm_head)


def test_everything_but_the_targets_embedding_learns() -> None:
    model, text = EagleModel(WHOLE, shared_weights(WHOLE), DraftVocabulary.whole(WHOLE.vocab_size)), text_of(WHOLE, 12)
    before = torch.tensor([[[text.token_ids[5], 1, 2, 3, 4]]])
    logits = model.teacher_forced(text.taps.float()[None], torch.tensor([text.token_ids]), torch.tensor([[5]]), before)
    logits.square().sum().backward()  # type: ignore[no-untyped-call]
    assert model.stack.embed_tokens.weight.grad is None
    assert {name for name, parameter in model.own_parameters() if parameter.grad is None or not parameter.grad.any()} == set()


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_a_family_with_more_norms_than_the_published_layer_is_refused(family: str) -> None:
    spec = replace(EAGLE, layers=FAMILY_LAYERS[family] | {"num_hidden_layers": 1, "layer_types": ["full_attention"]})
    with pytest.raises(UnsupportedModel, match="one norm before attention"):
        model_of(spec, EAGLE_ATTENTION)


SPOILT: dict[str, tuple[dict[str, torch.Tensor | None], str]] = {
    "missing": ({"fc.weight": None}, "fc.weight"),
    "unknown": ({"midlayer.extra": torch.zeros(2)}, "midlayer.extra"),
    "misshapen": ({"norm.weight": torch.zeros(3)}, "norm.weight"),
}


@pytest.mark.parametrize(("change", "name"), SPOILT.values(), ids=SPOILT)
def test_only_a_whole_checkpoint_is_loaded(change: dict[str, Any], name: str) -> None:
    tensors = {key: tensor for key, tensor in (random_tensors(EAGLE) | change).items() if tensor is not None}
    with pytest.raises(ModelLoadError, match=f"tiny: tensor '{name}' is"):
        eagle_model("eagle").load(tensors, "tiny")
