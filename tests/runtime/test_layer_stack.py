"""Draft layers taken out of their model: they compute what the family's own model computes, or the family is refused."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AutoModel

from dspark.errors import UnsupportedModel
from dspark.runtime.layer_stack import FAMILIES, LayerStack, family_norm, layers_config, within_window
from tests.runtime.tiny_drafters import LAYERS
from tests.runtime.tiny_layers import CAUSAL, FAMILY_LAYERS, randomise, register_causal

CAPTURE = "test_capture"
NUM_ROWS = 20
WIDTH = LAYERS["hidden_size"]


def stack_of(family: str, attention: str) -> LayerStack:
    register_causal()
    AttentionInterface.register(CAPTURE, capture)
    stack = LayerStack(FAMILY_LAYERS[family], attention)
    randomise(parts_of(stack).parameters())
    return stack


def parts_of(stack: LayerStack) -> nn.Module:
    return nn.ModuleDict({"embed_tokens": stack.embed_tokens, "layers": stack.layers, "norm": stack.norm})


def own_model(family: str, stack: LayerStack) -> Any:
    """transformers' whole base model with the same weights."""
    build: Any = AutoModel
    model = build.from_config(layers_config(FAMILY_LAYERS[family], "eager")).eval()
    model.load_state_dict(parts_of(stack).state_dict())
    return model


def capture(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, *, seen: list[Any], **_: Any) -> Any:
    seen.append((key, value))
    return torch.zeros_like(query).transpose(1, 2), None


def rows(seed: int = 0, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, NUM_ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_every_family_on_the_list_is_tested() -> None:
    assert {layers["model_type"] for layers in FAMILY_LAYERS.values()} == FAMILIES


@pytest.mark.parametrize("family", FAMILY_LAYERS)
@torch.no_grad()
def test_a_stack_runs_as_the_familys_own_model(family: str) -> None:
    stack, hidden = stack_of(family, CAUSAL), rows()
    output = stack.run(hidden, torch.arange(NUM_ROWS).expand(2, -1))
    expected = own_model(family, stack)(inputs_embeds=hidden, use_cache=False).last_hidden_state
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILY_LAYERS)
@torch.no_grad()
def test_embeddings_are_scaled_as_the_family_scales_them(family: str) -> None:
    stack = stack_of(family, CAUSAL)
    ids = torch.zeros((1, 3), dtype=torch.long)
    output = stack.run(stack.embed_tokens(ids), torch.arange(3).unsqueeze(0))
    expected = own_model(family, stack)(input_ids=ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILY_LAYERS)
@torch.no_grad()
def test_context_keys_and_values_are_those_of_the_familys_attention(family: str) -> None:
    stack, context = stack_of(family, CAPTURE), rows(seed=1)
    positions = torch.stack((torch.arange(NUM_ROWS) + 5, torch.arange(NUM_ROWS) * 2))
    rotations = stack.rotations(context, positions)
    for index, layer in enumerate(stack.layers):
        seen: list[Any] = []
        rotation = rotations[stack.layer_types[index]]
        attention: Any = layer.self_attn
        attention(hidden_states=context, position_embeddings=rotation, attention_mask=None, position_ids=positions, seen=seen)
        keys, values = stack.context_keys_values(index, context, rotations)
        torch.testing.assert_close(keys, seen[0][0])
        torch.testing.assert_close(values, seen[0][1])


def test_layer_types_that_rotate_differently_get_their_own_rotations() -> None:
    stack = stack_of("gemma3", CAUSAL)
    rotations = stack.rotations(rows(), torch.arange(NUM_ROWS).expand(2, -1))
    assert set(rotations) == {"sliding_attention", "full_attention"}
    assert set(stack_of("qwen3", CAUSAL).rotations(rows(), torch.arange(NUM_ROWS).expand(2, -1))) == {None}


@pytest.mark.parametrize("model_type", ["phi3", "granite", "gpt_oss", "smollm3", "olmo2", "starcoder2", "no_such_family"])
def test_a_family_whose_layers_do_more_is_refused_by_name(model_type: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"'{model_type}' are not offered; those of gemma, .*qwen3.* are"):
        LayerStack(LAYERS | {"model_type": model_type}, CAUSAL)


def test_a_configuration_that_builds_nothing_is_refused_with_the_reason() -> None:
    with pytest.raises(UnsupportedModel, match="no draft layers of type 'qwen3' can be built .*hidden_size"):
        LayerStack(LAYERS | {"hidden_size": "wide"}, CAUSAL)


@pytest.mark.parametrize("family", FAMILY_LAYERS)
def test_a_new_norm_of_each_family_only_scales_to_one(family: str) -> None:
    x = rows()
    norm = family_norm(FAMILY_LAYERS[family] | {"rms_norm_eps": 0.3})
    torch.testing.assert_close(norm(x), x / (x.square().mean(-1, keepdim=True) + 0.3).sqrt())


@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_a_window_hides_what_is_that_far_back_and_nothing_after(window: int | None) -> None:
    queries, keys = torch.tensor([[7, 9]]), torch.tensor([[0, 3, 5, 6, 7, 9]])
    visible = within_window(torch.ones(1, 1, 2, 6, dtype=torch.bool), queries, keys, window)
    expected = [[window is None or q - k < window for k in keys[0].tolist()] for q in queries[0].tolist()]
    assert visible[0, 0].tolist() == expected
    assert not within_window(torch.zeros(1, 1, 2, 6, dtype=torch.bool), queries, keys, window).any()
